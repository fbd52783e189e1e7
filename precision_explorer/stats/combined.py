"""A weighted sum of differences that were found in independent samples, and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence


def combined(
    deltas: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    weights: Sequence[float],
) -> tuple[float, float, float]:
    """(difference, low, high): sum of w d over strata, w as shares of the `weights`.

    The ends are those of MOVER (Zou & Donner 2008, Statistics in Medicine 27, equation 3): each
    stratum's distance from its difference to its end, squared and weighted by w squared, so that
    one in which nothing differs is as uncertain as its own interval says. ValueError where nothing
    weighs anything.
    """
    total = sum(weights)
    if not total > 0:
        raise ValueError("no stratum weighs anything; give the number of examples of each")
    shares = [weight / total for weight in weights]
    delta = sum(w * d for w, d in zip(shares, deltas, strict=True))
    rows = list(zip(shares, deltas, intervals, strict=True))
    below = math.sqrt(sum((w * (d - low)) ** 2 for w, d, (low, _) in rows))
    above = math.sqrt(sum((w * (high - d)) ** 2 for w, d, (_, high) in rows))
    return delta, delta - below, delta + above
