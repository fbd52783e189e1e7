"""Per-position Kullback-Leibler divergences, and how often the top token is the same, in sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precision_explorer.stats.bootstrap import interval
from precision_explorer.stats.clusters import share_interval

# A mean within ten times the floor is of its order: what is left may be the floor itself.
SAME_ORDER = 10.0


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

    Mean with a percentile interval by cluster bootstrap; percentiles by linear interpolation; the
    share of equal top tokens with `share_interval`. ValueError where there are no positions.
    """
    values = np.asarray(kl, dtype=float)
    same = np.asarray(same_top, dtype=float)
    if not values.size or values.shape != same.shape or len(groups) != len(values):
        raise ValueError("positions, top tokens and groups differ in length or are none; pair them")
    _, labels = np.unique(np.asarray([str(g) for g in groups]), return_inverse=True)
    examples = int(labels.max()) + 1
    low = high = same_low = same_high = None
    if examples > 1:
        statistics = np.stack([values, np.ones_like(values)], axis=1)
        low, high = interval(
            statistics, lambda sums: sums[..., 0] / sums[..., 1], seed=seed, groups=labels
        )
        same_low, same_high = share_interval(same, labels, seed=seed)
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
