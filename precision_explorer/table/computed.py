"""Quality by a metric of the `evaluate` library, or by one whose columns were not stored: its score
and its values on resampled examples, as stored. What a difference means is derived from these, as
it is for other metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_explorer.records import AddedScore, metric_info
from precision_explorer.stats import (
    FEW,
    Few,
    NoiseFloor,
    cluster_labels,
    clusters_with,
    draws_interval,
    draws_p_value,
    effective_clusters,
    flips,
    verdict_for_bootstrap,
)
from precision_explorer.table.quality import Quality, above_noise

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Computed:
    """One cell's stored score. Such a metric has no terms per example: its interval and its
    difference to the reference rest on the stored draws alone, and are missing without them."""

    metric: str
    columns: Columns
    score: AddedScore

    @property
    def higher_is_better(self) -> bool | None:
        """The card's word for it; None where nobody said."""
        return self.score.higher_is_better

    @property
    def is_share(self) -> bool:
        """Of a metric that the registry knows; else its unit is not known, and the budget is
        relative."""
        info = metric_info(self.metric)
        return info.is_share if info else False

    @property
    def rows(self) -> Quality:
        """The example rows themselves, for what is told of them whatever the metric is."""
        return Quality.of(self.metric, self.columns, self.higher_is_better)

    def __len__(self) -> int:
        return len(self.columns["id"])


def computed_columns(quality: Computed) -> dict[str, Any]:
    """quality, n, and its 95 % interval by the percentiles of the draws, if there are any."""
    low = high = None
    if quality.score.draws:
        low, high = draws_interval(np.array(quality.score.draws))
    return {
        "quality_metric": quality.metric,
        "quality": quality.score.value,
        "quality_ci_low": low,
        "quality_ci_high": high,
        "quality_n": len(quality),
    }


def computed_floor(reference: Computed, again: Columns) -> NoiseFloor | None:
    """What the reference differs from itself, `again` being the rows of its second pass; None
    where no score of that is stored."""
    value, second = reference.score.value, reference.score.again
    if value is None or second is None or list(again["id"]) != list(reference.columns["id"]):
        return None
    repeated = Computed(reference.metric, again, reference.score)
    return NoiseFloor(_flips(reference, repeated).get("flips"), second - value)


def paired_computed(
    reference: Computed, other: Computed, budget: float, noise: NoiseFloor | None = None
) -> dict[str, Any]:
    """Difference to the reference with interval, p value and verdict from draws of the same
    resamples; `outside` only beyond the `noise` floor. Empty when the examples are not the same;
    the difference alone without draws."""
    if list(reference.columns["id"]) != list(other.columns["id"]):
        return {}
    first, second = reference.score, other.score
    if first.value is None or second.value is None:
        return {}
    found: dict[str, Any] = {"quality_delta": second.value - first.value}
    found |= _flips(reference, other)
    same = (first.seed, first.draws_of) == (second.seed, second.draws_of)
    count = min(len(first.draws), len(second.draws)) if same else 0
    if not count:
        return found
    base = np.array(first.draws[:count])
    deltas = np.array(second.draws[:count]) - base
    low, high = draws_interval(deltas)
    found |= {
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "p_value": draws_p_value(deltas),
    }
    share = reference.is_share
    if reference.higher_is_better is None or not (share or base.all()):
        return found
    moved = deltas if share else deltas / np.abs(base)
    oriented = moved if reference.higher_is_better else -moved
    effective = effective_clusters(cluster_labels(reference.columns.get("group")), len(other))
    few = _few_differing(reference, other, effective / len(other))
    verdict = verdict_for_bootstrap(oriented, budget, len(other), effective=effective, few=few)
    found |= {"verdict": verdict.verdict, "needed_n": verdict.needed_n}
    return found | above_noise(found, noise)


def _few_differing(reference: Computed, other: Computed, scale: float) -> Few | None:
    """The examples (clusters) that were answered otherwise, where they are some but too few to show
    how the metric's difference spreads; all counted as lost, since nothing says which are. One is
    taken to move the metric by its share of the examples, as it does a mean of shares."""
    first, second = reference.columns.get("prediction"), other.columns.get("prediction")
    if not first or not second:
        return None
    moved = [float(a != b) for a, b in zip(first, second, strict=True)]
    count = clusters_with(moved, cluster_labels(reference.columns.get("group")))
    return Few(count * scale, 0.0, 1.0) if 0 < count < FEW else None


def _flips(reference: Computed, other: Computed) -> dict[str, Any]:
    """Flips where each example is right or wrong, whatever the metric is."""
    first, second = reference.columns.get("score"), other.columns.get("score")
    if not first or not second or not {*first, *second} <= {0.0, 1.0}:
        return {}
    b, c = flips(first, second)
    return {"flips": b + c}
