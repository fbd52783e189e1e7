"""Columns of rows that were scored until their verdict was clear (`--until-decided`).

Derived from the samples alone, look by look as the sweep decided, whatever the budget of the one
who reads: the bounds hold at every look and for every margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from precision_explorer.records import Cell
from precision_explorer.stats import (
    SequentialVerdict,
    Verdict,
    flips,
    influence,
    looks,
    sequential,
    verdict_for_bootstrap,
    verdict_for_share,
)
from precision_explorer.table.quality import (
    Quality,
    above_noise,
    both_terms,
    common,
    few_differing,
    flips_of,
    noise_floor,
    oriented_draws,
    quality_draws,
    weight_of,
)
from precision_explorer.tasks import zero_one_column

RULE = "until_decided"
# For these, which side of the margin a format is on is a sum of terms over the examples: (loss and
# unit of a document's reference terms, its loss in the format) -> what it leaves of the budget.
_LEFT: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "bits_per_byte": lambda ref, other, b: (1 + b) * ref[:, 0] - other[:, 0],
    "word_perplexity": lambda ref, other, b: ref[:, 0] + math.log1p(b) * ref[:, 1] - other[:, 0],
    "token_perplexity": lambda ref, other, b: ref[:, 0] + math.log1p(b) * ref[:, 1] - other[:, 0],
}


def is_sequential(cell: Cell) -> bool:
    """Whether the cell was to be scored until its verdict is clear."""
    return RULE in cell.rules


def decide(
    reference: Quality, other: Quality, budget: float, planned: int, seed: int
) -> SequentialVerdict:
    """The verdict of the first look that is sure; both hold the same examples, in order.

    Means of scores between 0 and 1 by betting, everything else by the asymptotic sequence (see
    `stats.sequential`); after all `planned` examples the fixed verdict at what error is left.
    """
    made = _looks(len(other), planned)
    within, outside = _wealth(reference, other, budget, made)

    def at_the_end(confidence: float) -> Verdict:
        return _fixed(reference, other, budget, confidence, seed)

    return sequential.decide(made, within, outside, planned, at_the_end)


def is_settled(
    reference: Quality,
    other: Quality,
    again: Quality | None,
    budget: float,
    planned: int,
    seed: int,
) -> bool:
    """Whether the scoring may end: the verdict is clear and, where it is `outside`, the loss on the
    same examples is beyond the noise floor. `again`: the reference's second pass, if there is one.
    """
    verdict = decide(reference, other, budget, planned, seed).verdict
    floor = noise_floor(reference.first(len(other)), again) if again is not None else None
    if verdict != "outside" or floor is None:
        return verdict != "cannot-tell"
    a, b, finish = both_terms(reference, other)
    delta = float(finish(b.sum(0)) - finish(a.sum(0)))
    found = {"verdict": verdict, "quality_delta": delta} | flips_of(reference, other)
    return not above_noise(found, floor)


def sequential_columns(
    reference: Quality, other: Quality, budget: float, planned: int, seed: int
) -> dict[str, Any]:
    """Difference, flips, p value, verdict, `looks` and `verdict_note`; interval and p value hold
    at every stop too. Empty when the first examples are not the same."""
    both = common(reference, other)
    if both is None:
        return {}
    base, other = both
    made = _looks(len(other), planned)
    found = decide(base, other, budget, planned, seed)
    a, b, finish = both_terms(base, other)
    low, high = _interval(base, a, b, finish)
    return {
        "quality_delta": float(finish(b.sum(0)) - finish(a.sum(0))),
        "quality_delta_ci_low": low,
        "quality_delta_ci_high": high,
        "p_value": sequential.p_value_of(*_wealth(base, other, 0.0, made)),
        "verdict": found.verdict,
        "looks": found.look,
        "verdict_note": _note(found, planned),
    } | flips_of(base, other)


def placed(
    reference: Quality, other: Quality, value: float, delta: float, seed: int, draws: int
) -> tuple[float, np.ndarray]:
    """Where `other`, scored on the first examples only, stands beside the reference with its
    `value` on all of them: (value, (draws,) of it). The reference's value and the difference on
    the common examples; what the early examples happen to be like falls out of it."""
    both = common(reference, other)
    assert both is not None
    paired = quality_draws(both[1], seed, draws) - quality_draws(both[0], seed, draws)
    return value + delta, quality_draws(reference, seed, draws) + paired


def _looks(n: int, planned: int) -> list[int]:
    return [look for look in looks(planned) if look <= n] or [n]


def _note(found: SequentialVerdict, planned: int) -> str:
    at = f"{found.n:,} of {planned:,} examples"
    if found.verdict != "cannot-tell":
        return f"decided at {at}"
    if found.n < planned:
        return f"not decided at {at}, where the cell's time for them ended"
    if found.needed_n is None:
        return f"not decided at {at}"
    return f"not decided at {at}; about {found.needed_n:,} would tell"


def _bounded(reference: Quality, a: np.ndarray, b: np.ndarray) -> np.ndarray | None:
    """(n,) differences where the metric is the mean of scores between 0 and 1; else None."""
    if not reference.is_share or a.shape[1] != 2 or not (a[:, 1] == 1).all():
        return None
    scores = np.concatenate([a[:, 0], b[:, 0]])
    inside = scores.min() >= 0 and scores.max() <= 1
    return b[:, 0] - a[:, 0] if inside else None


def _interval(
    reference: Quality, a: np.ndarray, b: np.ndarray, finish: Callable
) -> tuple[float | None, float | None]:
    """95 % of the difference in the metric's unit; None where it is not a number, or where no
    example moves it, which says nothing of how far another would."""
    bounded = _bounded(reference, a, b)
    if bounded is not None:
        return sequential.interval_of_shares(bounded)
    values = influence(np.hstack([a, b]), lambda sums: _difference(sums, finish, False))
    known = np.isfinite(values).all() and np.ptp(values) > 0
    return sequential.interval_of_values(values) if known else (None, None)


def _wealth(
    reference: Quality, other: Quality, budget: float, made: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Log wealth at the looks against "outside the budget" and against "within it"."""
    a, b, _ = both_terms(reference, other)
    index = np.array(made) - 1
    sign = 1.0 if reference.higher_is_better else -1.0
    bounded = _bounded(reference, a, b)
    if bounded is not None:
        pair = sequential.wealth_of_shares(sign * bounded, -budget)
        return pair[0][index], pair[1][index]
    if reference.metric in _LEFT:
        pair = sequential.wealth_of_values(_LEFT[reference.metric](a, b, budget), budget)
        return pair[0][index], pair[1][index]

    # What an example does to the metric depends on the others, so each look has its own values.
    ends = [_at_look(reference.first(n), other.first(n), budget) for n in made]
    return np.array([e[0] for e in ends]), np.array([e[1] for e in ends])


def _at_look(reference: Quality, other: Quality, budget: float) -> tuple[float, float]:
    """The same at the last example, of a metric that is no sum over examples."""
    terms = a, b, finish = both_terms(reference, other)
    sign = 1.0 if reference.higher_is_better else -1.0

    def left(sums: np.ndarray) -> np.ndarray:
        return sign * _difference(sums, finish, not reference.is_share) + budget

    # Early on it may not be a number yet, which decides nothing.
    values = np.nan_to_num(influence(np.hstack([a, b]), left))
    above, below = (float(side[-1]) for side in sequential.wealth_of_values(values, budget))
    if few_differing(reference, terms) is not None:
        few = sequential.wealth_of_few(values, budget, weight_of(reference, a, finish))
        above = min(above, float(few[-1]))
    return above, below


def _difference(sums: np.ndarray, finish: Callable, relative: bool) -> np.ndarray:
    """The metric of the right half of `sums` less that of the left; `relative` to the latter."""
    left, right = np.split(np.asarray(sums), 2, axis=-1)
    first_value, second_value = finish(left), finish(right)
    change = second_value - first_value
    if not relative:
        return change
    # Nothing is a share of a score of 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(change / np.abs(first_value))


def _fixed(
    reference: Quality, other: Quality, budget: float, confidence: float, seed: int
) -> Verdict:
    """The verdict of a fixed plan, at `confidence`."""
    column = zero_one_column(reference.metric, reference.columns, other.columns)
    n = len(other)
    if column:
        b, c = flips(reference.columns[column], other.columns[column])
        return verdict_for_share(b, c, n, budget, confidence)
    terms = both_terms(reference, other)
    oriented = oriented_draws(reference, terms, seed)
    if oriented is None:
        return Verdict("cannot-tell")
    few = few_differing(reference, terms)
    return verdict_for_bootstrap(oriented, budget, n, confidence, few=few)
