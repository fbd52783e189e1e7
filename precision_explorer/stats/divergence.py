"""Per-position Kullback-Leibler divergences, and how often the top token is the same, in sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precision_explorer.stats.bootstrap import interval
from precision_explorer.stats.clusters import FEW
from precision_explorer.stats.intervals import wilson
from precision_explorer.stats.ratios import ratio_of_sums

# KL is of second order in the logits' errors, so that of unrelated errors adds up: at three times
# the floor (half an order of magnitude) a third of it is the floor's.
SAME_ORDER = 3.0


@dataclass(frozen=True)
class Divergence:
    """KL in nats over positions; intervals (95 %) resample examples, not positions, since the
    positions of a text share its tokens. Ends are None from a single example."""

    mean: float
    low: float | None
    high: float | None
    p50: float
    p90: float
    p99: float
    largest: float
    same_top: float
    same_top_low: float | None
    same_top_high: float | None
    positions: int
    examples: int

    def too_small(self, floor: float | None) -> bool:
        """Whether the mean is of the order of `floor`, the reference's KL to itself (nats)."""
        return floor is not None and self.mean <= SAME_ORDER * floor


def divergence(
    kl: Sequence[float], same_top: Sequence[bool], groups: Sequence[object], seed: int = 0
) -> Divergence:
    """The summary of positions with `kl` (nats) and `same_top`, in `groups` (their examples).

    Mean: percentile interval by cluster bootstrap, from fewer than `FEW` examples that of a ratio
    estimator with Student's t, which a bootstrap of so few is too narrow for. Percentiles by linear
    interpolation. Share of equal top tokens: the wider of that estimator's interval and Wilson's
    over positions; the first knows that positions of a text are alike, the second that none seen to
    differ is no proof that none does. ValueError where there are no positions.
    """
    values = np.asarray(kl, dtype=float)
    same = np.asarray(same_top, dtype=float)
    if not values.size or values.shape != same.shape or len(groups) != len(values):
        raise ValueError("positions, top tokens and groups differ in length or are none; pair them")
    _, labels = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
    examples = int(labels.max()) + 1
    low, high = _mean_interval(values, labels, examples, seed)
    same_low, same_high = _share_interval(same, labels)
    p50, p90, p99 = (float(np.quantile(values, q)) for q in (0.5, 0.9, 0.99))
    return Divergence(
        mean=float(values.mean()),
        low=low,
        high=high,
        p50=p50,
        p90=p90,
        p99=p99,
        largest=float(values.max()),
        same_top=float(same.mean()),
        same_top_low=same_low,
        same_top_high=same_high,
        positions=len(values),
        examples=examples,
    )


def _mean_interval(
    values: np.ndarray, labels: np.ndarray, examples: int, seed: int
) -> tuple[float | None, float | None]:
    if examples < FEW:
        found = ratio_of_sums(values, np.ones_like(values), labels)
        return None if found.low is None else max(found.low, 0.0), found.high
    statistics = np.stack([values, np.ones_like(values)], axis=1)
    return interval(statistics, lambda sums: sums[..., 0] / sums[..., 1], seed=seed, groups=labels)


def _share_interval(same: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    found = ratio_of_sums(same, np.ones_like(same), labels)
    if found.low is None or found.high is None:
        return None, None
    low, high = wilson(int(same.sum()), len(same))
    return max(0.0, min(low, found.low)), min(1.0, max(high, found.high))
