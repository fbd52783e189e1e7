"""Intervals for a share of examples, and for the paired difference of two shares."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import ndtri


def two_sided_z(confidence: float) -> float:
    """The standard normal quantile of a two-sided interval; ValueError outside (0, 1)."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1; use 0.95")
    return float(ndtri(0.5 + confidence / 2))


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927; Newcombe 1998, method 3) for `successes` out of `n`.

    Returns (low, high) in [0, 1]. Raises ValueError unless 0 <= successes <= n and n >= 1. Counts
    need not be whole: see `stats.clusters`.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} examples is no share; need 0 <= k <= n")
    z2 = two_sided_z(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def score_variance(b: float, c: float, n: float, delta: float) -> float:
    """Variance of sqrt(n) x (the observed difference) if the true one were `delta` (Tango 1998).

    Tango, Statistics in Medicine 17 (1998) 891-908, equations 15 to 17: the rest of the table is at
    its maximum likelihood under ``P(c) - P(b) = delta``. `b`, `c`: discordant pairs as in `tango`.
    """
    first = 2.0
    second = -(b + c) / n + (2 + (b - c) / n) * delta
    third = -(b / n) * delta * (1 - delta)
    root = math.sqrt(max(0.0, second * second - 4 * first * third))
    likely_b = (root - second) / (2 * first)
    return max(0.0, 2 * likely_b + delta * (1 - delta))


def check_pairs(b: float, c: float, n: float) -> None:
    """ValueError unless `b` and `c` are counts of disjoint pairs out of `n` >= 1 (rounding apart,
    for counts that are not whole)."""
    if n < 1 or b < 0 or c < 0 or b + c > n * (1 + 1e-12):
        raise ValueError(f"{b} + {c} discordant pairs of {n} are no paired counts; need b + c <= n")


def tango(b: float, c: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Tango's score interval (Tango 1998) of the difference format minus reference, (c - b) / n.

    `b`: reference right and format wrong; `c`: reference wrong and format right; `n`: all pairs.
    With no flip at all it is +-z^2 / (n + z^2), where a bootstrap would claim [0, 0].
    Returns (low, high) in [-1, 1]. Raises ValueError for counts that are no pairs.
    """
    check_pairs(b, c, n)
    z2 = two_sided_z(confidence) ** 2
    estimate = (c - b) / n

    def excess(delta: float) -> float:
        return n * (estimate - delta) ** 2 - z2 * score_variance(b, c, n, delta)

    # The variance vanishes at the estimate itself when b = c = 0, b = n or c = n: start beside it.
    beside = 1e-12
    low, high = -1.0, 1.0
    if b < n:
        low = root(excess, -1.0, estimate - beside)
    if c < n:
        high = root(excess, 1.0, estimate + beside)
    return low, high


def root(function: Callable[[float], float], above: float, below: float) -> float:
    """Where `function` turns from positive (at `above`) to negative (at `below`), by bisection.

    Written out because importing scipy.optimize takes longer than all else in this room.
    """
    for _ in range(60):
        middle = (above + below) / 2
        if function(middle) > 0:
            above = middle
        else:
            below = middle
    return (above + below) / 2
