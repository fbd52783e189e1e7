"""Intervals, paired comparison, percentiles and when they hold, steady state (numpy, scipy)."""

from precision_explorer.stats.bootstrap import (
    draws_of,
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
from precision_explorer.stats.sequential import SequentialVerdict, looks
from precision_explorer.stats.sqnr import SQNR_STATES, relative_error, sqnr
from precision_explorer.stats.steady import SteadyState, assess

__all__ = [
    "SQNR_STATES",
    "SequentialVerdict",
    "SteadyState",
    "Verdict",
    "assess",
    "draws_of",
    "flips",
    "group_sums",
    "interval",
    "looks",
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
