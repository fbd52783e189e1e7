"""0/1 scores in clusters: intervals that stay honest when hardly any cluster tells something.

A bootstrap over clusters is too narrow when few of them hold what is counted, and [0, 0] when none
does. (MacKinnon & Webb, Journal of Applied Econometrics 32 (2017) 233-254: cluster-robust tests
reject far too often where few clusters are touched.) There, the counts are taken as if each cluster
were one answer given several times: the variance of a mean over clusters is that of independent
examples times a design effect of 1 + (m - 1) rho, which is at most m, the cluster's size (Kish,
Survey Sampling, 1965, chapter 5; unequal sizes: sum of m^2 / sum of m). The score intervals are
then taken at n divided by it, as Korn & Graubard (Survey Methodology 24 (1998) 193-201) do for
shares with their estimated design effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from precision_explorer.stats.bootstrap import Groups, interval
from precision_explorer.stats.intervals import wilson

FEW = 10
"""Fewer clusters than this, with what is counted in them, are too few to resample. A rule of thumb,
that of ten successes and ten failures for a share's normal interval."""


def cluster_labels(groups: Sequence[object] | None) -> np.ndarray | None:
    """(n,) whole numbers that name the clusters, 0 and up in the sorted order of the `groups`'
    names; None without any. An example without a group is a cluster by itself, after those."""
    if groups is None or all(group is None for group in groups):
        return None
    names = sorted({str(group) for group in groups if group is not None})
    codes = {name: code for code, name in enumerate(names)}
    alone = iter(range(len(names), len(names) + len(groups)))
    return np.array([next(alone) if g is None else codes[str(g)] for g in groups])


def effective_clusters(groups: Groups, n: int) -> float:
    """Kish's effective number of clusters, n^2 / sum of their sizes squared; `n` without groups.

    It is the number of clusters where they are of one size, less where they are not.
    """
    if groups is None:
        return float(n)
    _, sizes = np.unique(np.asarray(groups), return_counts=True)
    return float(n * n / (sizes.astype(float) ** 2).sum())


def clusters_with(values: np.ndarray | Sequence[float], groups: Groups) -> int:
    """How many clusters hold a value that is not 0."""
    held = np.asarray(values) != 0
    labels = np.arange(len(held)) if groups is None else np.asarray(groups)
    return len(np.unique(labels[held]))


def few_clusters(values: np.ndarray | Sequence[float], groups: Groups) -> bool:
    """Whether too few clusters hold a value that is not 0 for resampling them."""
    return clusters_with(values, groups) < FEW


def share_interval(
    right: np.ndarray | Sequence[float],
    groups: Groups = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of the share of ones in `right` (n,), 0/1; (low, high) in [0, 1].

    Wilson's without `groups`; the bootstrap over clusters with them, or Wilson's at the effective
    number of clusters where fewer than `FEW` clusters hold a one, or a zero.
    """
    values = np.asarray(right, dtype=float)
    if groups is None:
        return wilson(int(values.sum()), len(values), confidence)
    if few_clusters(values, groups) or few_clusters(1 - values, groups):
        effective = effective_clusters(groups, len(values))
        return wilson(float(values.mean()) * effective, effective, confidence)
    statistics = np.stack([values, np.ones_like(values)], axis=1)
    return interval(
        statistics,
        lambda sums: sums[..., 0] / sums[..., 1],
        draws=draws,
        seed=seed,
        groups=groups,
        confidence=confidence,
    )


def cluster_signs(differences: np.ndarray | Sequence[float], groups: Groups) -> tuple[int, int]:
    """(worse, better): clusters whose summed differences are below, and above, 0.

    Under "no difference" either is as likely, whatever happens inside a cluster, so that
    `mcnemar_exact` of the two counts is an exact test (the sign test over clusters).
    """
    values = np.asarray(differences, dtype=float)
    labels = np.arange(len(values)) if groups is None else np.asarray(groups)
    _, index = np.unique(labels, return_inverse=True)
    sums = np.bincount(index, weights=values)
    return int((sums < 0).sum()), int((sums > 0).sum())
