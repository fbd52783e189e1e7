"""Ratios of a format to the reference on the same examples: of errors, and of perplexities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from precision_explorer.stats.bootstrap import Groups, group_sums
from precision_explorer.stats.clusters import effective_clusters, few_clusters
from precision_explorer.stats.intervals import tango, two_sided_z
from precision_explorer.stats.paired import flips

Values = np.ndarray | Sequence[float]


@dataclass(frozen=True)
class Ratio:
    """A ratio with its 95 % interval; the ends are None where nothing supports one."""

    value: float
    low: float | None
    high: float | None


def error_ratio(
    reference: Values, other: Values, groups: Groups = None, confidence: float = 0.95
) -> Ratio | None:
    """(1 - accuracy of `other`) / (1 - accuracy of `reference`); None if the reference has none.

    `reference`, `other`: 0/1 scores of the same examples. The interval is that of the log of a
    ratio of two paired shares (Lachin, Biostatistical Methods, 2011, chapter 5): with E and R
    errors and b + c flips its variance is (b + c) / (E R). Taken apart by example it is the sum of
    (e / E - r / R)^2, which is summed over clusters first where there are `groups`.

    Where fewer than `FEW` examples (clusters) flipped, or `other` has no error, the log says
    nothing true; then it is Tango's interval of the difference over the reference's share of
    errors, at the effective number of clusters.
    """
    right_r, right_o = np.asarray(reference, dtype=float), np.asarray(other, dtype=float)
    lost, won = flips(right_r, right_o)
    errors_r, errors_o = (1 - right_r).sum(), (1 - right_o).sum()
    if errors_r == 0:
        return None
    value = float(errors_o / errors_r)
    if errors_o == 0 or few_clusters(right_o - right_r, groups):
        n = len(right_r)
        effective = effective_clusters(groups, n)
        low, high = tango(lost * effective / n, won * effective / n, effective, confidence)
        share = errors_r / n
        return Ratio(value, max(0.0, float(1 - high / share)), float(1 - low / share))
    pulls = (1 - right_o) / errors_o - (1 - right_r) / errors_r
    sums = group_sums(pulls[:, None], groups)[:, 0]
    spread = two_sided_z(confidence) * math.sqrt(float((sums**2).sum()))
    return Ratio(value, value * math.exp(-spread), value * math.exp(spread))


def perplexity_ratio(
    reference: Values,
    other: Values,
    units: Values,
    groups: Groups = None,
    confidence: float = 0.95,
) -> Ratio:
    """exp of (summed loss of `other` - summed loss of `reference`) / summed `units`.

    `reference`, `other`: summed losses in nats of the same documents; `units`: their tokens or
    words. The two losses of a document go up and down together, so the interval is that of their
    difference d: for the ratio r = sum d / sum u, var r = G / (G - 1) x sum (d - r u)^2 / (sum u)^2
    over the G documents, or clusters (Cochran, Sampling Techniques, 1977, chapter 6), with
    Student's t of G - 1 degrees of freedom. It is the same as var a + var b - 2 cov(a, b) of the
    two mean losses. No interval from a single document.
    """
    difference = np.asarray(other, dtype=float) - np.asarray(reference, dtype=float)
    found = ratio_of_sums(difference, units, groups, confidence)
    low, high = (None if end is None else math.exp(end) for end in (found.low, found.high))
    return Ratio(math.exp(found.value), low, high)


def ratio_of_sums(
    top: Values, below: Values, groups: Groups = None, confidence: float = 0.95
) -> Ratio:
    """sum of `top` / sum of `below` over units of resampling (examples, or clusters of them), with
    the interval of a ratio estimator (see `perplexity_ratio`); no interval from a single unit.

    Student's t takes account of few units, of which a bootstrap would make too narrow an interval.
    """
    sums = group_sums(np.stack([np.asarray(x, dtype=float) for x in (top, below)], axis=1), groups)
    total = sums[:, 1].sum()
    if total <= 0:
        raise ValueError("there is nothing to divide by; check the samples")
    value, count = float(sums[:, 0].sum() / total), len(sums)
    if count < 2:
        return Ratio(value, None, None)
    rest = sums[:, 0] - value * sums[:, 1]
    error = math.sqrt(count / (count - 1) * float((rest**2).sum())) / float(total)
    spread = float(stdtrit(count - 1, 0.5 + confidence / 2)) * error
    return Ratio(value, value - spread, value + spread)
