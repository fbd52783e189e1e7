"""Quality columns: intervals, and the paired difference to the reference, from per-example rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_explorer.records import metric_info
from precision_explorer.stats import (
    draws_of,
    flips,
    group_sums,
    interval,
    mcnemar_exact,
    paired_interval,
    paired_p_value,
    resample_counts,
    tango,
    verdict_for_bootstrap,
    verdict_for_share,
    wilson,
)
from precision_explorer.tasks import sufficient, zero_one_column

DRAWS = 1000
Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Quality:
    """One cell's example rows under one metric."""

    metric: str
    columns: Columns
    higher_is_better: bool
    is_share: bool

    @classmethod
    def of(cls, metric: str, columns: Columns) -> Quality:
        """Direction and kind come from the metric registry."""
        info = metric_info(metric)
        return cls(
            metric,
            columns,
            info.higher_is_better if info else True,
            info.is_share if info else False,
        )

    def __len__(self) -> int:
        return len(self.columns["id"])


def _groups(quality: Quality) -> np.ndarray | None:
    """Cluster labels where the task declares any (examples that share a passage)."""
    groups = quality.columns.get("group")
    if groups is None or all(g is None for g in groups):
        return None
    return np.asarray([str(g) for g in groups])


def own_columns(quality: Quality, value: float, seed: int) -> dict[str, Any]:
    """quality, its 95 % interval and n. Wilson for 0/1 scores without clusters, else bootstrap."""
    column = zero_one_column(quality.metric)
    groups = _groups(quality)
    if column and groups is None:
        right = int(sum(quality.columns[column]))
        low, high = wilson(right, len(quality))
    else:
        statistics, finish = sufficient(quality.metric, quality.columns)
        low, high = interval(statistics, finish, draws=DRAWS, seed=seed, groups=groups)
    return {
        "quality_metric": quality.metric,
        "quality": value,
        "quality_ci_low": low,
        "quality_ci_high": high,
        "quality_n": len(quality),
    }


def paired_columns(reference: Quality, other: Quality, budget: float, seed: int) -> dict[str, Any]:
    """Difference to the reference with its interval, flips, p value and verdict.

    0/1 scores without clusters: Tango's interval, exact McNemar and Tango's one-sided bound for the
    verdict. Everything else: paired bootstrap. Empty when the examples are not the same.
    """
    if list(reference.columns["id"]) != list(other.columns["id"]):
        return {}
    column = zero_one_column(reference.metric)
    groups = _groups(reference)
    if column and groups is None:
        return _share_columns(reference.columns[column], other.columns[column], budget)
    return _bootstrap_columns(reference, other, groups, budget, seed) | _flips(reference, other)


def _share_columns(
    reference: Sequence[float], other: Sequence[float], budget: float
) -> dict[str, Any]:
    b, c = flips(reference, other)
    n = len(reference)
    low, high = tango(b, c, n)
    verdict = verdict_for_share(b, c, n, budget)
    return {
        "quality_delta": (c - b) / n,
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "flips": b + c,
        "p_value": mcnemar_exact(b, c),
        "verdict": verdict.verdict,
        "needed_n": verdict.needed_n,
    }


def _flips(reference: Quality, other: Quality) -> dict[str, Any]:
    """Flips where each example is right or wrong, whatever the headline metric is."""
    first, second = reference.columns.get("score"), other.columns.get("score")
    if not first or not second or None in first or None in second:
        return {}
    b, c = flips(first, second)
    return {"flips": b + c}


def _bootstrap_columns(
    reference: Quality, other: Quality, groups: np.ndarray | None, budget: float, seed: int
) -> dict[str, Any]:
    first, second = _statistics(reference, other)
    (a, finish), (b, _) = first, second
    common: dict[str, Any] = {"draws": DRAWS, "seed": seed, "groups": groups}
    low, high = paired_interval(a, b, finish, **common)
    value = float(finish(b.sum(0)) - finish(a.sum(0)))
    units_a, units_b = group_sums(a, groups), group_sums(b, groups)
    counts = resample_counts(len(units_a), DRAWS, seed)
    drawn_a, drawn_b = draws_of(units_a, finish, counts), draws_of(units_b, finish, counts)
    deltas = drawn_b - drawn_a
    if not reference.is_share:
        # A rank correlation may be 0, and then the difference counts as it is.
        deltas = deltas / np.where(drawn_a == 0, 1.0, np.abs(drawn_a))
    oriented = deltas if reference.higher_is_better else -deltas
    verdict = verdict_for_bootstrap(oriented, budget, len(a))
    return {
        "quality_delta": value,
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "p_value": paired_p_value(a, b, finish, **common),
        "verdict": verdict.verdict,
        "needed_n": verdict.needed_n,
    }


def _statistics(reference: Quality, other: Quality) -> Any:
    """Sufficient statistics of both with the same columns: macro F1's depend on the classes seen,
    so both are built from the joined rows and cut apart again."""
    joined = {name: [*reference.columns[name], *other.columns[name]] for name in reference.columns}
    statistics, finish = sufficient(reference.metric, joined)
    n = len(reference)
    return (statistics[:n], finish), (statistics[n:], finish)


def quality_draws(quality: Quality, seed: int, draws: int) -> np.ndarray:
    """(draws,) bootstrap values of the metric; the same seed and n give the same resampled examples
    (whole clusters where there are any), so that rows of one task are drawn as pairs."""
    statistics, finish = sufficient(quality.metric, quality.columns)
    units = group_sums(statistics, _groups(quality))
    return draws_of(units, finish, resample_counts(len(units), draws, seed))
