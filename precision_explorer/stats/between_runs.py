"""The ratio of one figure between two runs that were measured apart, with what its rounds tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

# Draws that differ by no more than this, relatively, differ by how their sums were rounded.
_ROUNDING = 1e-9
# An interval of the logarithm that is wider says as little, and its ends are no numbers.
_WIDEST = 600.0


@dataclass(frozen=True)
class Spread:
    """How uncertain one run's figure is. `draws`: (n,) bootstrap values of it (rounds drawn first,
    as in `round_draws`); `units`: how many independent things were drawn, rounds where there are
    several, else requests or batches."""

    draws: np.ndarray
    units: float


@dataclass(frozen=True)
class Contrast:
    """A ratio, its interval, and the two-sided p value of "no change"; the latter are None where
    nothing shows how far the ratio may be off."""

    value: float
    low: float | None
    high: float | None
    p_value: float | None


def between_runs(value: float, first: Spread, second: Spread, confidence: float = 0.95) -> Contrast:
    """`value`, the second run's figure over the first's, with Welch's t interval of its logarithm.

    A run's variance is that of the logarithms of its draws, times units / (units - 1): of R drawn
    units the bootstrap shows (R - 1) / R of the variance (Davison & Hinkley 1997, section 2.3). The
    two runs share nothing, so their variances add up, with Welch's degrees of freedom (Welch,
    Biometrika 34 (1947) 28-35): few rounds make a wide interval. What is the same in all rounds of
    a run and differs between runs is in neither variance.
    """
    found = [_variance(spread) for spread in (first, second)]
    if any(v is None for v in found) or not value > 0:
        return Contrast(value, None, None, None)
    parts = [v for v in found if v is not None]
    total = sum(parts)
    if total < _ROUNDING**2:
        return Contrast(value, None, None, None)
    freedom = total**2 / sum(
        part**2 / (spread.units - 1) for part, spread in zip(parts, (first, second), strict=True)
    )
    error = math.sqrt(total)
    half = min(float(stdtrit(freedom, 0.5 + confidence / 2)) * error, _WIDEST)
    p_value = 2 * float(stdtr(freedom, -abs(math.log(value)) / error))
    return Contrast(value, value * math.exp(-half), value * math.exp(half), p_value)


def _variance(spread: Spread) -> float | None:
    """Of the logarithm of a run's figure; None below two units, or where a draw has none."""
    draws: Sequence[float] | np.ndarray = np.asarray(spread.draws, dtype=float)
    if spread.units < 2 or len(draws) < 2 or not (np.isfinite(draws).all() and min(draws) > 0):
        return None
    return float(np.log(draws).var(ddof=1)) * spread.units / (spread.units - 1)
