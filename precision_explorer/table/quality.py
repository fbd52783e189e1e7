"""Quality columns: intervals, and the paired difference to the reference, from per-example rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from precision_explorer.records import metric_info
from precision_explorer.stats import (
    FEW,
    Few,
    NoiseFloor,
    Verdict,
    cluster_labels,
    cluster_signs,
    clusters_with,
    draws_of,
    effective_clusters,
    error_ratio,
    few_clusters,
    flips,
    group_sums,
    influence,
    interval,
    mcnemar_exact,
    paired_interval,
    paired_p_value,
    perplexity_ratio,
    resample_counts,
    share_interval,
    tango,
    verdict_for_bootstrap,
    verdict_for_share,
)
from precision_explorer.tasks import sufficient, sufficient_of_two, zero_one_column

# The end of an interval, a quantile of 2.5 %, is then known to half a percent of the draws
# (binomial); Efron & Tibshirani 1993 take 1,000 and more for percentile intervals.
DRAWS = 1000
# What the losses are divided by; bits per byte have no perplexity of their own, so it is a token's.
_UNITS = {"token_perplexity": "tokens", "word_perplexity": "words", "bits_per_byte": "tokens"}
Columns = Mapping[str, Sequence[Any]]
# (n, k) terms of the reference and of the other, and what makes the metric of the sums of either.
Terms = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class Quality:
    """One cell's example rows under one metric."""

    metric: str
    columns: Columns
    higher_is_better: bool
    is_share: bool

    @classmethod
    def of(cls, metric: str, columns: Columns, higher_is_better: bool | None = None) -> Quality:
        """Direction and kind come from the metric registry, else from `higher_is_better`."""
        info = metric_info(metric)
        return cls(
            metric,
            columns,
            info.higher_is_better if info else higher_is_better is not False,
            info.is_share if info else False,
        )

    def value(self, scores: Mapping[str, float]) -> float:
        """The metric over all examples: as it was measured, else from the rows."""
        if self.metric in scores:
            return scores[self.metric]
        terms, finish = sufficient(self.metric, self.columns)
        return float(finish(terms.sum(0)))

    def first(self, n: int) -> Quality:
        """The same of the first `n` examples."""
        return replace(self, columns={name: rows[:n] for name, rows in self.columns.items()})

    def __len__(self) -> int:
        return len(self.columns["id"])


def common(reference: Quality, other: Quality) -> tuple[Quality, Quality] | None:
    """Both on the examples that both were asked, the first of one order; None where they are
    not."""
    n = min(len(reference), len(other))
    first, second = reference.first(n), other.first(n)
    same = list(first.columns["id"]) == list(second.columns["id"])
    return (first, second) if same else None


def _groups(quality: Quality) -> np.ndarray | None:
    """Cluster labels where the task declares any (examples that share a passage)."""
    return cluster_labels(quality.columns.get("group"))


def own_columns(quality: Quality, value: float, seed: int) -> dict[str, Any]:
    """quality, its 95 % interval and n. Wilson for 0/1 scores (see `share_interval` for clusters),
    else bootstrap."""
    column = zero_one_column(quality.metric, quality.columns)
    groups = _groups(quality)
    if column:
        scores = np.asarray(quality.columns[column], dtype=float)
        low, high = share_interval(scores, groups, draws=DRAWS, seed=seed)
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


def paired_columns(
    reference: Quality,
    other: Quality,
    budget: float,
    seed: int,
    noise: NoiseFloor | None = None,
) -> dict[str, Any]:
    """Difference to the reference with its interval, flips, p value and verdict.

    0/1 scores: Tango's interval, exact McNemar and Tango's one-sided bound for the verdict; in
    clusters the paired bootstrap, or the same at the effective number of clusters where fewer than
    ten clusters hold a flip. Everything else: paired bootstrap. `outside` stands only beyond the
    `noise` floor. Empty when the examples are not the same.
    """
    if list(reference.columns["id"]) != list(other.columns["id"]):
        return {}
    column = zero_one_column(reference.metric, reference.columns, other.columns)
    groups = _groups(reference)
    found: dict[str, Any] | None = None
    if column:
        first, second = (np.asarray(q.columns[column], dtype=float) for q in (reference, other))
        if groups is None or few_clusters(second - first, groups):
            found = _share_columns(first, second, groups, budget)
    if found is None:
        found = _bootstrap_columns(reference, other, groups, budget, seed)
        found |= flips_of(reference, other)
    return found | above_noise(found, noise)


class Margin:
    """Whether the loss of `other` against `reference` is shown to be within a budget, for any
    budget: the verdict of `paired_columns` alone, without its columns."""

    def __init__(self, reference: Quality, other: Quality, seed: int) -> None:
        self._reference, self._other, self._seed = reference, other, seed

    def is_within(self, budget: float) -> bool:
        """Of a `budget` above 0 and below 1, as the columns count it."""
        return self._verdict(budget).verdict == "within"

    def least_budget(self, low: float, high: float) -> float:
        """The least budget from `low` to `high` that the loss is shown to be within, to one part in
        a million; `low` where that is, infinity where not even `high` is wide enough."""
        if not self.is_within(high):
            return math.inf
        if self.is_within(low):
            return low
        while high / low - 1 > 1e-6:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self.is_within(middle) else (middle, high)
        return high

    @cached_property
    def _verdict(self) -> Callable[[float], Verdict]:
        reference, other = self._reference, self._other
        column = zero_one_column(reference.metric, reference.columns, other.columns)
        groups = _groups(reference)
        if column:
            first, second = (np.asarray(q.columns[column], dtype=float) for q in (reference, other))
            if groups is None or few_clusters(second - first, groups):
                n = len(first)
                scale = effective_clusters(groups, n) / n
                b, c = (count * scale for count in flips(first, second))
                return lambda budget: verdict_for_share(b, c, n * scale, budget)
        terms = both_terms(reference, other)
        oriented = oriented_draws(reference, terms, self._seed, groups)
        if oriented is None:
            return lambda budget: Verdict("cannot-tell")
        n, effective = len(other), effective_clusters(groups, len(other))
        few = few_differing(reference, terms, groups)
        return lambda budget: verdict_for_bootstrap(
            oriented, budget, n, effective=effective, few=few
        )


def above_noise(found: dict[str, Any], noise: NoiseFloor | None) -> dict[str, Any]:
    """What changes where a loss is called `outside` that is not beyond the noise floor."""
    beyond = noise is None or noise.exceeded_by(found.get("flips"), found["quality_delta"])
    if found["verdict"] != "outside" or beyond:
        return {}
    return {"verdict": "cannot-tell", "needed_n": None, "within_noise": True}


def _share_columns(
    reference: np.ndarray, other: np.ndarray, groups: np.ndarray | None, budget: float
) -> dict[str, Any]:
    """Of 0/1 scores; counts are shrunk to the effective number of clusters where there are any."""
    b, c = flips(reference, other)
    n = len(reference)
    scale = effective_clusters(groups, n) / n
    low, high = tango(b * scale, c * scale, n * scale)
    verdict = verdict_for_share(b * scale, c * scale, n * scale, budget)
    needed = verdict.needed_n
    return {
        "quality_delta": (c - b) / n,
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "flips": b + c,
        "p_value": mcnemar_exact(*cluster_signs(other - reference, groups)),
        "verdict": verdict.verdict,
        "needed_n": None if needed is None else math.ceil(needed / scale),
    }


def flips_of(reference: Quality, other: Quality) -> dict[str, Any]:
    """Flips where each example is right or wrong, whatever the headline metric is."""
    scores = _both_scores(reference, other)
    if scores is None:
        return {}
    b, c = flips(*scores)
    return {"flips": b + c}


def _both_scores(reference: Quality, other: Quality) -> tuple[np.ndarray, np.ndarray] | None:
    """0/1 scores of both: those of the metric, else those of the examples; None without any."""
    both = (reference.columns, other.columns)
    column = zero_one_column(reference.metric, *both) or "score"
    first, second = reference.columns.get(column), other.columns.get(column)
    if not first or not second or None in first or None in second:
        return None
    scores = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    # Some kinds score an example by a share of its own.
    return scores if all(np.isin(s, (0.0, 1.0)).all() for s in scores) else None


def _bootstrap_columns(
    reference: Quality, other: Quality, groups: np.ndarray | None, budget: float, seed: int
) -> dict[str, Any]:
    terms = a, b, finish = both_terms(reference, other)
    drawn: dict[str, Any] = {"draws": DRAWS, "seed": seed, "groups": groups}
    low, high = paired_interval(a, b, finish, **drawn)
    oriented = oriented_draws(reference, terms, seed, groups)
    verdict = Verdict("cannot-tell")
    if oriented is not None:
        effective = effective_clusters(groups, len(a))
        few = few_differing(reference, terms, groups)
        verdict = verdict_for_bootstrap(oriented, budget, len(a), effective=effective, few=few)
    return {
        "quality_delta": float(finish(b.sum(0)) - finish(a.sum(0))),
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "p_value": paired_p_value(a, b, finish, **drawn),
        "verdict": verdict.verdict,
        "needed_n": verdict.needed_n,
    }


def both_terms(reference: Quality, other: Quality) -> Terms:
    """Sufficient statistics of both with the same columns and one `finish`."""
    return sufficient_of_two(reference.metric, reference.columns, other.columns)


def few_differing(reference: Quality, terms: Terms, groups: np.ndarray | None = None) -> Few | None:
    """The examples (clusters of `groups`, at their effective number) that differ, where they are
    some but too few to show how the metric's difference spreads; else None."""
    a, b, finish = terms
    if not 0 < clusters_with((a != b).any(axis=1), groups) < FEW:
        return None
    units_a, units_b = group_sums(a, groups), group_sums(b, groups)
    moved = influence(units_b, finish) - influence(units_a, finish)
    moved = moved[(units_a != units_b).any(axis=1)] * (1 if reference.higher_is_better else -1)
    scale = effective_clusters(groups, len(a)) / len(units_a)
    lost = int((moved < 0).sum())
    return Few(lost * scale, (len(moved) - lost) * scale, weight_of(reference, units_a, finish))


def weight_of(reference: Quality, a: np.ndarray, finish: Callable) -> float:
    """By how much one row of the reference's terms moves the mean of the metric at most, as the
    budget counts it: the range of its influence values, but at least 1, which is a share's."""
    size = 1.0 if reference.is_share else abs(float(finish(a.sum(0))))
    reach = float(np.ptp(influence(a, finish))) / size if size else 1.0
    return max(1.0, reach) if math.isfinite(reach) else 1.0


def oriented_draws(
    reference: Quality, terms: Terms, seed: int, groups: np.ndarray | None = None
) -> np.ndarray | None:
    """(draws,) differences to the reference on resampled examples (whole clusters of `groups`), as
    the budget counts them: positive is better, relative unless the metric is a share. None where
    one is no number: nothing is a share of a score of 0."""
    a, b, finish = terms
    units_a, units_b = group_sums(a, groups), group_sums(b, groups)
    counts = resample_counts(len(units_a), DRAWS, seed)
    drawn = draws_of(units_a, finish, counts)
    deltas = draws_of(units_b, finish, counts) - drawn
    if not reference.is_share:
        if not drawn.all():
            return None
        deltas = deltas / np.abs(drawn)
    if not np.isfinite(deltas).all():
        return None
    return deltas if reference.higher_is_better else -deltas


def noise_floor(reference: Quality, again: Quality) -> NoiseFloor | None:
    """What the reference differs from itself, `again` being its second pass in other batches, on
    the first examples that both hold; None where these are not the same."""
    both = common(reference, again)
    if both is None or not len(both[0]):
        return None
    a, b, finish = both_terms(*both)
    delta = float(finish(b.sum(0)) - finish(a.sum(0)))
    return NoiseFloor(flips_of(*both).get("flips"), delta)


def flips_and_ratios(reference: Quality, other: Quality) -> dict[str, Any]:
    """`to_wrong`, `to_right`: flips each way; `errors`: the ratio of errors; `perplexity`: the
    ratio of perplexities (`Ratio`s); each None where the metric has no such thing."""
    groups = _groups(reference)
    scores = _both_scores(reference, other)
    b, c = flips(*scores) if scores else (None, None)
    units = _UNITS.get(reference.metric)
    perplexity = None
    if units is not None:
        first, second = reference.columns["loss"], other.columns["loss"]
        perplexity = perplexity_ratio(first, second, reference.columns[units], groups)
    return {
        "to_wrong": b,
        "to_right": c,
        "errors": error_ratio(*scores, groups) if scores else None,
        "perplexity": perplexity,
    }


def quality_draws(quality: Quality, seed: int, draws: int) -> np.ndarray:
    """(draws,) bootstrap values of the metric; the same seed and n give the same resampled examples
    (whole clusters where there are any), so that rows of one task are drawn as pairs."""
    statistics, finish = sufficient(quality.metric, quality.columns)
    units = group_sums(statistics, _groups(quality))
    return draws_of(units, finish, resample_counts(len(units), draws, seed))
