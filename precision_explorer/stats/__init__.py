"""Intervals, paired comparison, percentiles and when they hold, steady state (numpy, scipy)."""

from precision_explorer.stats.bootstrap import (
    draws_interval,
    draws_of,
    draws_p_value,
    group_sums,
    interval,
    paired_interval,
    paired_p_value,
    resample_counts,
)
from precision_explorer.stats.intervals import tango, wilson
from precision_explorer.stats.paired import (
    Verdict,
    flips,
    mcnemar_exact,
    verdict_for_bootstrap,
    verdict_for_share,
)
from precision_explorer.stats.percentiles import needed_n, order_interval, percentile, supports
from precision_explorer.stats.sqnr import SQNR_STATES, relative_error, sqnr
from precision_explorer.stats.steady import SteadyState, assess

__all__ = [
    "SQNR_STATES",
    "SteadyState",
    "Verdict",
    "assess",
    "draws_interval",
    "draws_of",
    "draws_p_value",
    "flips",
    "group_sums",
    "interval",
    "mcnemar_exact",
    "needed_n",
    "order_interval",
    "paired_interval",
    "paired_p_value",
    "percentile",
    "relative_error",
    "resample_counts",
    "sqnr",
    "supports",
    "tango",
    "verdict_for_bootstrap",
    "verdict_for_share",
    "wilson",
]
