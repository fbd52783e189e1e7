"""Paired comparison of a format with the reference: McNemar's test and the budget's verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import bdtr, ndtri

from precision_explorer.stats.clusters import FEW
from precision_explorer.stats.intervals import check_pairs, score_variance

VerdictWord = Literal["within", "outside", "cannot-tell"]

# Differences nearer to the margin than this are the margin itself, up to rounding.
_SAME = 1e-12


@dataclass(frozen=True)
class Verdict:
    """`needed_n`: about how many examples would tell, for `cannot-tell`; None if no number would
    because the observed difference is the margin."""

    verdict: VerdictWord
    needed_n: int | None = None


@dataclass(frozen=True)
class Few:
    """Fewer than `clusters.FEW` examples (or clusters) differ, but some: how many to worse and to
    better. `weight`: by how much one moves the metric's mean at most; 1 for a share."""

    lost: float
    gained: float
    weight: float


def flips(
    reference: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray
) -> tuple[int, int]:
    """(b, c): examples right only in the reference, right only in the other.

    Both hold 0/1 scores of the same examples in order; ValueError if the lengths differ.
    """
    first, second = np.asarray(reference), np.asarray(other)
    if first.shape != second.shape:
        raise ValueError(f"{first.size} against {second.size} scores; pair the same examples")
    return int((first > second).sum()), int((second > first).sum())


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p value of McNemar's test: twice the binomial tail, at most 1.

    McNemar 1947, exact form in Fleiss, Levin & Paik 2003 section 13.1; 1 when nothing flipped.
    """
    if b < 0 or c < 0:
        raise ValueError(f"{b} and {c} are no counts of flips; need 0 or more")
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of `p_values`, in their order (Holm, Scandinavian Journal of
    Statistics 6 (1979) 65-70): the k-th smallest of m times m - k + 1, never below one before it,
    at most 1. Rejecting where it is at most 5 % calls a true "no difference" different in any of
    the m tests with a chance of at most 5 %."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict_for_share(
    b: float, c: float, n: float, budget: float, confidence: float = 0.95
) -> Verdict:
    """Non-inferiority of the format's share of right answers, with `budget` (in points) as margin.

    Tango 1998's score test of (format - reference) = -budget at one-sided `confidence`:
    `within` if the one-sided lower bound of the difference is above -budget, `outside` if the upper
    one is below, else `cannot-tell`. The bounds are the ends of Tango's two-sided interval at
    2 x confidence - 1 (90 % for 95 %).

    needed_n: with the same shares of flips the statistic grows with sqrt(n), so the test tells from
    n' = z^2 v / (d + budget)^2, d = (c - b) / n and v = `score_variance` at -budget.
    """
    check_pairs(b, c, n)
    if not 0 <= budget < 1:
        raise ValueError(f"a quality budget of {budget} is no share; use for example 0.01")
    z2 = float(ndtri(confidence)) ** 2
    distance = (c - b) / n + budget
    if abs(distance) < _SAME:
        return Verdict("cannot-tell")
    variance = score_variance(b, c, n, -budget)
    if n * distance**2 > z2 * variance:
        return Verdict("within" if distance > 0 else "outside")
    return Verdict("cannot-tell", max(math.floor(n) + 1, math.ceil(z2 * variance / distance**2)))


def verdict_for_bootstrap(
    deltas: np.ndarray,
    budget: float,
    n: int,
    confidence: float = 0.95,
    effective: float | None = None,
    few: Few | None = None,
) -> Verdict:
    """The same verdict for any metric, from bootstrap draws of its difference to the reference.

    `deltas`: (draws,), positive is better, relative where `budget` is relative; `n`: examples.
    One-sided percentile bounds (Efron 1981). needed_n: n' = n (z s / (m + budget))^2 with mean m
    and standard deviation s of the draws, since s shrinks with sqrt(n).

    When no draw differs from any other, the examples hold no difference to resample: then `within`
    only from n = z^2 (1 - budget) / budget, where Tango 1998 would tell without a single flip.
    `effective`: how many independent examples the `n` count for there (clusters), by default all.
    `few`: those that differ where they are too few to show the spread; `within` then takes that
    Tango's test says so too.
    """
    values = np.asarray(deltas, dtype=float)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("bootstrap differences are empty or not finite; check the statistics")
    z = float(ndtri(confidence))
    distance = float(values.mean()) + budget
    counted = n if effective is None else effective
    if np.ptp(values) == 0 and distance > _SAME and budget > 0:
        silent = math.ceil(z * z * (1 - budget) / budget)
        needed = math.ceil(silent * n / counted)
        return Verdict("within") if counted >= silent else Verdict("cannot-tell", needed)
    low, high = np.quantile(values, [1 - confidence, confidence])
    if low > -budget:
        if few is not None:
            pairs = few.lost, few.gained / few.weight
            told = verdict_for_share(*pairs, counted, budget / few.weight, confidence)
            if told.verdict != "within":
                # As many as would show the spread.
                return Verdict("cannot-tell", math.ceil(n * FEW / (few.lost + few.gained)))
        return Verdict("within")
    if high < -budget:
        return Verdict("outside")
    if abs(distance) < _SAME:
        return Verdict("cannot-tell")
    spread = float(values.std(ddof=1)) if values.size > 1 else 0.0
    return Verdict("cannot-tell", max(n + 1, math.ceil(n * (z * spread / distance) ** 2)))
