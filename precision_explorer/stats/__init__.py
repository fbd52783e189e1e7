"""Intervals, paired comparison, percentiles and when they hold, steady state (numpy, scipy)."""

from precision_explorer.stats.between_runs import Contrast, Spread, between_runs
from precision_explorer.stats.bootstrap import (
    draws_interval,
    draws_of,
    draws_p_value,
    group_sums,
    influence,
    interval,
    paired_interval,
    paired_p_value,
    resample_counts,
)
from precision_explorer.stats.clusters import (
    FEW,
    cluster_labels,
    cluster_signs,
    clusters_with,
    effective_clusters,
    few_clusters,
    share_interval,
)
from precision_explorer.stats.combined import combined
from precision_explorer.stats.correlation import autocorrelation, correlation_time
from precision_explorer.stats.divergence import Divergence, divergence
from precision_explorer.stats.intervals import tango, wilson
from precision_explorer.stats.noise import NoiseFloor, is_different
from precision_explorer.stats.paired import (
    Few,
    Verdict,
    flips,
    holm,
    mcnemar_exact,
    verdict_for_bootstrap,
    verdict_for_share,
)
from precision_explorer.stats.percentiles import needed_n, order_interval, percentile, supports
from precision_explorer.stats.ratios import Ratio, error_ratio, perplexity_ratio
from precision_explorer.stats.rounds import ratio_over_rounds, round_draws, round_spread
from precision_explorer.stats.sequential import SequentialVerdict, looks
from precision_explorer.stats.sqnr import SQNR_STATES, relative_error, sqnr
from precision_explorer.stats.steady import SteadyState, assess, rank_sum_p
from precision_explorer.stats.tails import TAILS, Tail, effective_n, tail, tails
from precision_explorer.stats.windows import Rates, Window, cut_windows, peak_and_sustained, spans
from precision_explorer.stats.within import Within, share_within

__all__ = [
    "FEW",
    "SQNR_STATES",
    "TAILS",
    "Contrast",
    "Divergence",
    "Few",
    "NoiseFloor",
    "Rates",
    "Ratio",
    "SequentialVerdict",
    "Spread",
    "SteadyState",
    "Tail",
    "Verdict",
    "Window",
    "Within",
    "assess",
    "autocorrelation",
    "between_runs",
    "cluster_labels",
    "cluster_signs",
    "clusters_with",
    "combined",
    "correlation_time",
    "cut_windows",
    "divergence",
    "draws_interval",
    "draws_of",
    "draws_p_value",
    "effective_clusters",
    "effective_n",
    "error_ratio",
    "few_clusters",
    "flips",
    "group_sums",
    "holm",
    "influence",
    "interval",
    "is_different",
    "looks",
    "mcnemar_exact",
    "needed_n",
    "order_interval",
    "paired_interval",
    "paired_p_value",
    "peak_and_sustained",
    "percentile",
    "perplexity_ratio",
    "rank_sum_p",
    "ratio_over_rounds",
    "relative_error",
    "resample_counts",
    "round_draws",
    "round_spread",
    "share_interval",
    "share_within",
    "spans",
    "sqnr",
    "supports",
    "tail",
    "tails",
    "tango",
    "verdict_for_bootstrap",
    "verdict_for_share",
    "wilson",
]
