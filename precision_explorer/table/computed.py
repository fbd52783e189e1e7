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
    draws_interval,
    draws_p_value,
    flips,
    verdict_for_bootstrap,
)

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


def paired_computed(reference: Computed, other: Computed, budget: float) -> dict[str, Any]:
    """Difference to the reference with interval, p value and verdict from draws of the same
    resamples. Empty when the examples are not the same; the difference alone without draws."""
    if list(reference.columns["id"]) != list(other.columns["id"]):
        return {}
    first, second = reference.score, other.score
    if first.value is None or second.value is None:
        return {}
    found = {"quality_delta": second.value - first.value} | _flips(reference, other)
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
    verdict = verdict_for_bootstrap(oriented, budget, len(other))
    return found | {"verdict": verdict.verdict, "needed_n": verdict.needed_n}


def _flips(reference: Computed, other: Computed) -> dict[str, Any]:
    """Flips where each example is right or wrong, whatever the metric is."""
    first, second = reference.columns.get("score"), other.columns.get("score")
    if not first or not second or not {*first, *second} <= {0.0, 1.0}:
        return {}
    b, c = flips(first, second)
    return {"flips": b + c}
