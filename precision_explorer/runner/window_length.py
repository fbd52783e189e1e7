"""How long a window of requests that come by their own clock lasts. No torch."""

from __future__ import annotations

import math

import numpy as np

from precision_explorer.stats import needed_n, tail
from precision_explorer.workload import TAILS, DailyArrivals, Workload

# More than the least for a percentile: a Poisson number of requests falls below its mean, of 299 by
# 12 % in one window of fifty, and how many are needed is itself known from those before. How much
# more is a declared choice.
_MORE = 1.2


def first_window_s(rules: Workload, rate_per_s: float) -> float:
    """Seconds of a round's first window: the workload's own, or as many as its tail would take if
    requests were independent."""
    if rules.tails is None:
        return rules.duration_seconds
    return _lasting(rules, rate_per_s, needed_n(TAILS[rules.tails]), rules.budget_seconds)


def longer_window_s(
    rules: Workload, rate_per_s: float, latencies_s: np.ndarray, spent_s: float
) -> float | None:
    """Seconds of the window that the tail takes by the latencies (n,) of the last one, within what
    is left of the budget after `spent_s`; None where these are enough, a round counting for its
    share."""
    if rules.tails is None or not len(latencies_s):
        return None
    needed = tail(latencies_s, TAILS[rules.tails]).needed_n
    if needed is None or len(latencies_s) * rules.rounds >= needed:
        return None
    return _lasting(rules, rate_per_s, needed, rules.budget_seconds - spent_s)


def _lasting(rules: Workload, rate_per_s: float, needed: int, left_s: float) -> float:
    """For this round's share of `needed` requests; a whole number of days where days are one."""
    longer = _MORE * needed / rules.rounds / rate_per_s + rules.warmup_seconds
    duration = max(rules.duration_seconds, min(longer, left_s))
    day_s = rules.arrivals.day_s if isinstance(rules.arrivals, DailyArrivals) else None
    if day_s is None:
        return duration
    # A little more than whole days is whole: the declared window is, but for rounding.
    return max(math.floor(duration / day_s + 1e-9), 1) * day_s
