"""Quality columns: intervals, and the paired difference to the reference, from per-example rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_explorer.records import metric_info
from precision_explorer.stats import (
    draws_of,
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


def _discordant(reference: Sequence[float], other: Sequence[float]) -> tuple[int, int]:
    """(b, c): right only in the reference, right only in the other."""
    pairs = list(zip(reference, other, strict=True))
    return sum(r > o for r, o in pairs), sum(o > r for r, o in pairs)


def _share_columns(
    reference: Sequence[float], other: Sequence[float], budget: float
) -> dict[str, Any]:
    b, c = _discordant(reference, other)
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
    if any(s is None for s in reference.columns["score"]):
        return {}
    b, c = _discordant(reference.columns["score"], other.columns["score"])
    return {"flips": b + c}


def _bootstrap_columns(
    reference: Quality, other: Quality, groups: np.ndarray | None, budget: float, seed: int
) -> dict[str, Any]:
    first, second = _statistics(reference, other)
    (a, finish), (b, _) = first, second
    common: dict[str, Any] = {"draws": DRAWS, "seed": seed, "groups": groups}
    low, high = paired_interval(a, b, finish, **common)
    value = float(finish(b.sum(0)) - finish(a.sum(0)))
    counts = resample_counts(len(a), DRAWS, seed)
    drawn_a, drawn_b = draws_of(a, finish, counts), draws_of(b, finish, counts)
    if groups is not None:
        drawn_a, drawn_b = _clustered(a, b, finish, groups, seed)
    deltas = drawn_b - drawn_a
    if not reference.is_share:
        deltas = deltas / np.abs(drawn_a)
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


def _clustered(
    a: np.ndarray, b: np.ndarray, finish: Any, groups: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of both with whole clusters resampled (Miller 2024, arXiv 2411.00640)."""
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    sums = [np.zeros((count, s.shape[1])) for s in (a, b)]
    for total, statistics in zip(sums, (a, b), strict=True):
        np.add.at(total, index, statistics)
    counts = resample_counts(count, DRAWS, seed)
    return draws_of(sums[0], finish, counts), draws_of(sums[1], finish, counts)


def quality_draws(quality: Quality, seed: int, draws: int) -> np.ndarray:
    """(draws,) bootstrap values, oriented so that higher is better; the same seed and n give the
    same resampled examples, so that rows of one task are drawn as pairs."""
    statistics, finish = sufficient(quality.metric, quality.columns)
    values = draws_of(statistics, finish, resample_counts(len(quality), draws, seed))
    return values if quality.higher_is_better else -values
