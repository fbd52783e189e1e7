"""Percentiles, and the sample size from which one may be printed."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr


def _check(q: float, confidence: float) -> None:
    if not (0 < q < 1 and 0 < confidence < 1):
        raise ValueError(
            f"quantile {q} at confidence {confidence} is not between 0 and 1; use 0.99 at 0.95"
        )


def needed_n(q: float, confidence: float = 0.95) -> int:
    """Smallest n with 1 - q^n >= confidence: the largest value then bounds the quantile from above.

    Wilks 1941 (one-sided nonparametric tolerance limit): 29 for p90, 59 for p95, 299 for p99,
    2,995 for p99.9, at 95 %.
    """
    _check(q, confidence)
    n = max(1, math.ceil(math.log1p(-confidence) / math.log(q)))
    # The two logarithms round: settle the edge with the definition itself.
    while n > 1 and 1 - q ** (n - 1) >= confidence:
        n -= 1
    while 1 - q**n < confidence:
        n += 1
    return n


def supports(n: float, q: float, confidence: float = 0.95) -> bool:
    """Whether `n` independent values are enough to print quantile `q`: `needed_n` above the median,
    else 1."""
    return n >= (needed_n(q, confidence) if q > 0.5 else 1)


def percentile(values: np.ndarray, q: float, n_eff: float | None = None) -> float | None:
    """The quantile `q` of `values`, or None when there are too few of them (`supports`); `n_eff`:
    how many independent ones they are worth (`stats.tails`), by default all.

    Up to the median linear interpolation (Hyndman & Fan 1996, type 7); above it the nearest rank
    (type 1), so that a tail is a value that was measured.
    """
    _check(q, 0.95)
    array = np.asarray(values, dtype=float)
    if array.size == 0 or not supports(array.size if n_eff is None else n_eff, q):
        return None
    if q > 0.5:
        return float(np.quantile(array, q, method="inverted_cdf"))
    return float(np.quantile(array, q))


def order_interval(
    values: np.ndarray, q: float, confidence: float = 0.95, n_eff: float | None = None
) -> tuple[float, float] | None:
    """Distribution-free interval of the quantile `q` from two order statistics, or None.

    Equal-tailed ranks from the binomial distribution (Hahn & Meeker 1991, section 5.2):
    (X_l, X_u) with P(Bin(n, q) < l) and P(Bin(n, q) >= u) each at most (1 - confidence) / 2.
    None when no such ranks exist: below 6 values for the median, 368 for p99, at 95 %. With
    `n_eff` below n the ranks are those of `n_eff` values, moved outwards to the next of n: rank
    l of m stands where rank l (n + 1) / (m + 1) of n does.
    """
    _check(q, confidence)
    ordered = np.sort(np.asarray(values, dtype=float))
    n = ordered.size
    size = n if n_eff is None else min(n, math.floor(n_eff))
    ranks = _ranks(size, q, confidence)
    if ranks is None:
        return None
    low = max(ranks[0] * (n + 1) // (size + 1), 1)
    high = min(-(-ranks[1] * (n + 1) // (size + 1)), n)
    return float(ordered[low - 1]), float(ordered[high - 1])


def lower_bound(
    values: np.ndarray, q: float, confidence: float = 0.95, n_eff: float | None = None
) -> float | None:
    """The lower end of `order_interval` alone, for which fewer values are enough: one for p99; None
    without that many."""
    _check(q, confidence)
    ordered = np.sort(np.asarray(values, dtype=float))
    n = ordered.size
    size = n if n_eff is None else min(n, math.floor(n_eff))
    rank = _rank_below(size, q, confidence) * (n + 1) // (size + 1)
    return float(ordered[rank - 1]) if rank >= 1 else None


def _ranks(n: int, q: float, confidence: float) -> tuple[int, int] | None:
    """The ranks of `order_interval` among `n` independent values."""
    low = _rank_below(n, q, confidence)
    below = bdtr(np.arange(n), n, q)  # P(Bin(n, q) <= k) for k = 0 .. n - 1
    high = int(np.searchsorted(below, 1 - (1 - confidence) / 2, side="left")) + 1
    return None if low < 1 or high > n else (low, high)


def _rank_below(n: int, q: float, confidence: float) -> int:
    """The lower of them; 0 where there is none."""
    below = bdtr(np.arange(n), n, q)
    return int(np.searchsorted(below, (1 - confidence) / 2, side="right"))
