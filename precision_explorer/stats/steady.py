"""Whether a series of latencies has settled: warm-up cut off, no trend, no change of level.

A label is a finding, not a repair: fewer than half of program runs reach a steady state (Barrett
et al. 2017, OOPSLA), so "no steady state" is a result that is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtr

from precision_explorer.stats.correlation import correlation_time

Label = Literal["steady", "drifting", "bimodal", "budget-exhausted"]

MIN_VALUES = 20
"""Fewer values than this say nothing: the rank tests below then find only gross changes."""
DRIFT = 0.05
"""A change of level below 5 % of the median is no drift, however significant: two runs of one
program with other seeds may differ by as much (MLPerf Inference, TEST05)."""
ALPHA = 0.01
"""Level of each of the two tests, so that an undisturbed series is called steady in about 98 %."""
SEPARATION = 0.85
"""Share of the variance of log values between two clusters (Otsu 1979) from which they are two
modes: equal clusters 4.8 standard deviations apart. The best split of a normal distribution makes
2/pi = 0.64, of a uniform one 0.75; at 0.85 fewer than 1 in 20 uniform samples of 30 pass by chance
(simulated)."""
CLUSTER = 0.1
"""A mode holds at least a tenth of the values; less is a tail, which the percentiles show."""
# Means that the slope is taken over: their 19,900 pairs take milliseconds, those of all values may
# not.
_TREND_POINTS = 200


@dataclass(frozen=True)
class SteadyState:
    """`truncated`: values cut off the front as warm-up. `label` None: too few values to tell."""

    label: Label | None
    truncated: int


def mser5(values: np.ndarray) -> int:
    """How many values to cut off the front by MSER-5, 0 when it finds no warm-up's end.

    White 1997, on means of 5 (Spratt 1998): the cut that makes the squared standard error of what
    is left least. After Hoad, Robinson & Davies 2010 only cuts in the first half count and the last
    five batches are no candidates, as few values can agree by chance. A best cut at that limit
    means that the error would go on falling: nothing has settled, and nothing is cut.
    """
    batches = len(values) // 5
    if batches < 6:
        return 0
    means = np.asarray(values[: 5 * batches], dtype=float).reshape(batches, 5).mean(axis=1)
    backwards = means[::-1] - means.mean()
    left = np.arange(1, batches + 1)
    squares = np.cumsum(backwards**2) - np.cumsum(backwards) ** 2 / left
    error = (squares / left**2)[::-1]  # error[d]: the first d batches are cut
    last = min(batches // 2, batches - 6)
    cut = int(np.argmin(error[: last + 1]))
    return 5 * cut if cut < last else 0


def mann_kendall_p(values: np.ndarray, time: float = 1.0) -> float:
    """Two-sided p value of a monotonic trend (Mann 1945; Kendall 1975), corrected for ties.

    Quadratic in the number of values. They count as independent unless their correlation `time` is
    above 1: the variance is then that many times as large (Hamed & Rao 1998; in this form, with the
    trend taken out first, Yue & Wang 2004), and the quantile Student's.
    """
    n = len(values)
    if n < 3:
        return 1.0
    signs = np.sign(values[None, :] - values[:, None])
    score = float(np.triu(signs, 1).sum())
    _, ties = np.unique(values, return_counts=True)
    tied = float((ties * (ties - 1) * (2 * ties + 5)).sum())
    variance = (n * (n - 1) * (2 * n + 5) - tied) / 18
    return _p_value(score, variance, n, time)


def sen_slope(values: np.ndarray) -> float:
    """Change per step: the median slope over all pairs (Theil 1950; Sen 1968)."""
    if len(values) < 2:
        return 0.0
    rows, columns = np.triu_indices(len(values), 1)
    return float(np.median((values[columns] - values[rows]) / (columns - rows)))


def rank_sum_p(first: np.ndarray, second: np.ndarray, time: float = 1.0) -> float:
    """Two-sided p value that one sample lies above the other (Mann & Whitney 1947), normal
    approximation with the corrections for ties and continuity; `time` as in `mann_kendall_p`."""
    n, m = len(first), len(second)
    joined = np.concatenate([first, second])
    _, ties = np.unique(joined, return_counts=True)
    ranks = _ranks(joined)
    excess = float(ranks[:n].sum()) - n * (n + m + 1) / 2
    tied = float((ties**3 - ties).sum()) / ((n + m) * (n + m - 1))
    return _p_value(excess, n * m / 12 * (n + m + 1 - tied), n + m, time, correction=0.5)


def time_beside_drift(values: np.ndarray) -> float:
    """Correlation time of the ranks of `values`, a drift taken out first: it would count as
    correlation itself. A straight line, or the best change of level between the first and the last
    tenth, whichever leaves less correlation; 1 for fewer than 3 values."""
    if len(values) < 3:
        return 1.0
    ranks = _ranks(np.asarray(values, dtype=float))
    steps = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    line = ranks.mean() + steps * float(steps @ ranks) / float(steps @ steps)
    return min(correlation_time(ranks - fit) for fit in (line, _levels(ranks)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties sharing their mean."""
    _, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(ties) - (ties - 1) / 2)[inverse])


def _levels(values: np.ndarray) -> np.ndarray:
    """The two levels, before and after one change, that fit best by least squares."""
    n = len(values)
    edge = max(1, n // 10)
    left = np.arange(edge, n - edge + 1)
    sums = np.cumsum(values)
    gaps = (sums[-1] - sums[left - 1]) / (n - left) - sums[left - 1] / left
    split = int(left[np.argmax(left * (n - left) * gaps**2)])
    before, after = values[:split].mean(), values[split:].mean()
    return np.r_[np.full(split, before), np.full(n - split, after)]


def two_modes(values: np.ndarray) -> bool:
    """Whether positive `values` form two clusters, by the best split of their logs (Otsu 1979).

    Three conditions: the split explains `SEPARATION` of the variance, each side holds `CLUSTER` of
    the values, and the sides' medians differ by more than `DRIFT` of the whole's.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered) < MIN_VALUES or ordered[0] <= 0:
        return False
    logs = np.log(ordered) - math.log(ordered[len(ordered) // 2])
    n = len(logs)
    left = np.arange(1, n)
    sums = np.cumsum(logs)
    gap = (sums[-1] - sums[:-1]) / (n - left) - sums[:-1] / left
    between = left * (n - left) / n**2 * gap**2
    total = float(logs.var())
    split = int(np.argmax(between)) + 1
    if total == 0 or between[split - 1] / total < SEPARATION:
        return False
    if min(split, n - split) < CLUSTER * n:
        return False
    apart = np.median(ordered[split:]) - np.median(ordered[:split])
    return bool(apart > DRIFT * np.median(ordered))


def assess(values: np.ndarray, budget_exhausted: bool) -> SteadyState:
    """Label a series of latencies (n,), in order of measurement, in seconds.

    `drifting`, after the cut: the halves' medians differ by more than `DRIFT` of the median and
    their rank sums differ at `ALPHA`; or Sen's slope makes more than that of the whole series and
    Mann-Kendall's test says so at `ALPHA` (both on at most 200 means of neighbours). Both tests
    allow for values that depend on those before them, as in a queue (`time_beside_drift`): of M/M/1
    queues at utilisation 0.7 with 300 requests and more 1 to 5 % are called drifting (simulated,
    `scripts/simulate_tails.py`), where tests for independent values would call half of them so.
    `bimodal`: `two_modes`. Neither:
    `budget-exhausted` when the time ran out before the stop rules were met, else `steady`; None
    below `MIN_VALUES` values. Raises ValueError for values that are not finite.
    """
    series = np.asarray(values, dtype=float)
    if not np.isfinite(series).all():
        raise ValueError("a latency is not finite; check the samples")
    calm: Label = "budget-exhausted" if budget_exhausted else "steady"
    if len(series) < MIN_VALUES:
        return SteadyState(calm if budget_exhausted else None, 0)
    cut = mser5(series)
    rest = series[cut:]
    if _drifts(rest):
        return SteadyState("drifting", cut)
    if two_modes(rest):
        return SteadyState("bimodal", cut)
    return SteadyState(calm, cut)


def _drifts(values: np.ndarray) -> bool:
    """A trend or a change of level that is both above `DRIFT` of the median and significant."""
    matters = DRIFT * abs(float(np.median(values)))
    half = len(values) // 2
    first, second = values[:half], values[len(values) - half :]
    step = abs(float(np.median(second)) - float(np.median(first)))
    if step > matters and rank_sum_p(first, second, time_beside_drift(values)) < ALPHA:
        return True
    width = math.ceil(len(values) / _TREND_POINTS)
    whole = len(values) // width * width
    means = values[:whole].reshape(-1, width).mean(axis=1)
    if abs(sen_slope(means)) * len(means) <= matters:
        return False
    return mann_kendall_p(means, time_beside_drift(means)) < ALPHA


def _p_value(excess: float, variance: float, n: int, time: float, correction: float = 1.0) -> float:
    """Two-sided, normal for independent values. A correlation time is estimated, so that of `n`
    values n / time - 2 degrees of freedom stand behind it, by Student's t: more careful than the
    normal where they are few."""
    if variance <= 0:
        return 1.0
    deviate = -max(0.0, abs(excess) - correction) / math.sqrt(variance * time)
    freedom = max(n / time - 2, 1.0) if time > 1 else math.inf
    return float(2 * stdtr(freedom, deviate))
