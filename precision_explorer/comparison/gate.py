"""A run held to a baseline: whether it is worse by more than its budgets, shown, not guessed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from precision_explorer.comparison.data import Change, Compared, RowChanges
from precision_explorer.comparison.figures import (
    BELOW_NOISE,
    DRIFTED,
    NO_FLIP,
    RELATIVE,
    TO_REFERENCE,
)
from precision_explorer.errors import UsageError

Outcome = Literal["passed", "regressed", "cannot-tell"]
Speed = Literal["ratio", "time", "both"]
SPEEDS = ("ratio", "time", "both")
_TIMES = ("latency", "latency_p99", "throughput", "rate")
SATURATED = "serving-saturated"
_COUNTED_ONCE = ("memory", "weights")


@dataclass(frozen=True)
class Budgets:
    """How much worse each figure may be: `quality` in points for shares, relative otherwise; the
    others relative, `slowdown` of latency and throughput, `memory` of peak memory and weights.
    `speed`: whether median latency and offline throughput are held to the baseline's as ratios to
    the reference of their own run, which another machine does not move; or they, p99 latency and
    the largest rate, where it was searched, as they are; or both."""

    quality: float = 0.01
    slowdown: float = 0.10
    memory: float = 0.25
    speed: Speed = "ratio"

    def __post_init__(self) -> None:
        for name, most in (("quality", 1.0), ("slowdown", math.inf), ("memory", math.inf)):
            if not 0 <= getattr(self, name) < most:  # NaN is none.
                below = " and below 100%" if most == 1 else ""
                raise UsageError(f"{name}: a budget is at least 0{below}; write it as 1%")

    def of(self, figure: str) -> float | None:
        """The budget of a figure; None where it is not held to one."""
        name, relative, _ = figure.partition(TO_REFERENCE)
        if name in _TIMES:
            wanted = ("ratio", "both") if relative else ("time", "both")
            return self.slowdown if self.speed in wanted else None
        return {"quality": self.quality, "memory": self.memory, "weights": self.memory}.get(name)


@dataclass(frozen=True)
class Check:
    """One figure of one row against its budget. `loss`: how much worse, relative or in points,
    below 0 where better; `low`, `high` its 95 % interval. `note` says why it can't be told."""

    row: RowChanges
    change: Change
    budget: float
    outcome: Outcome
    loss: float | None
    low: float | None
    high: float | None
    note: str | None


@dataclass(frozen=True)
class Gated:
    """A run against its baseline: all that was checked, and what `compared` says beside it."""

    compared: Compared
    budgets: Budgets
    checks: tuple[Check, ...]

    def having(self, outcome: Outcome) -> tuple[Check, ...]:
        """The checks with that outcome."""
        return tuple(check for check in self.checks if check.outcome == outcome)

    def passes(self, strict: bool = False) -> bool:
        """Whether it `holds`, of figures that were checked, with no row refused."""
        return self.holds(strict) and self.compared.is_answered and bool(self.checks)

    def holds(self, strict: bool = False) -> bool:
        """Whether nothing is shown to be worse beyond its budget and no row was lost; `strict`:
        and everything is shown to be within it."""
        fine = not (self.having("regressed") or self.compared.lost)
        return fine and not (strict and self.having("cannot-tell"))


def gate(compared: Compared, budgets: Budgets) -> Gated:
    """Hold the second run of `compared` to the first.

    A figure is ``regressed`` only where its whole 95 % interval lies beyond the budget, ``passed``
    where the whole of it lies within, ``cannot-tell`` else: of figures whose true loss is within
    their budgets each is called regressed in at most 2.5 % of gates, beside what rounds can't show
    (`between_runs`). Quality with the same answers to all examples is passed. A row whose
    speed can't be held to its reference's is told so; one that is saturated by a load that it bore
    in the first run, while its reference bears it, is ``regressed``.
    """
    checks = []
    for row in compared.rows:
        checks += _speed_lost(row, compared, budgets)
        for change in row.changes:
            budget = budgets.of(change.figure)
            # What the baseline does not show can't have become worse.
            if budget is not None and change.one is not None:
                checks.append(_check(row, change, budget))
    return Gated(compared, budgets, tuple(checks))


def _speed_lost(row: RowChanges, compared: Compared, budgets: Budgets) -> list[Check]:
    """Of a row that is no reference: its figures of speed that no ratio to one is there for."""
    if row.is_reference:
        return []
    there = {change.figure: change for change in row.changes}
    found = []
    for name in RELATIVE:
        change, figure = there.get(name), f"{name}{TO_REFERENCE}"
        budget = budgets.of(figure)
        if change is None or change.one is None or figure in there or budget is None:
            continue
        note = change.note or "there is no reference in both runs to hold it to"
        lost = name == "latency" and _is_saturated(row, compared)
        held = Change(figure, None, None, note=note, higher_is_better=change.higher_is_better)
        outcome: Outcome = "regressed" if lost else "cannot-tell"
        found.append(Check(row, held, budget, outcome, None, None, None, note))
    return found


def _is_saturated(row: RowChanges, compared: Compared) -> bool:
    """Whether the second run's row could not serve what came, unlike the first's and unlike the
    second run's reference."""
    before, after = (SATURATED in ids for ids in row.cautions)
    beside = [
        SATURATED in other.cautions[1]
        for other in compared.rows
        if other.is_reference
        and (other.model, other.task, other.runtime) == (row.model, row.task, row.runtime)
    ]
    return after and not before and bool(beside) and not any(beside)


def _check(row: RowChanges, change: Change, budget: float) -> Check:
    loss, low, high = _losses(change)
    outcome, note = _outcome(change, budget, (loss, low, high))
    return Check(row, change, budget, outcome, loss, low, high, note)


def _losses(change: Change) -> tuple[float | None, float | None, float | None]:
    """(change, low, high) with their signs such that more is worse."""
    ends = change.change, change.low, change.high
    if change.higher_is_better is None:
        return None, None, None
    if not change.higher_is_better:
        return ends
    moved, low, high = (None if end is None else -end for end in ends)
    return moved, high, low


def _outcome(
    change: Change, budget: float, losses: tuple[float | None, float | None, float | None]
) -> tuple[Outcome, str | None]:
    loss, low, high = losses
    if change.higher_is_better is None:
        return "cannot-tell", "nobody said which end of the metric is better"
    if loss is None:
        return "cannot-tell", change.note or "not measured in both"
    if change.figure in _COUNTED_ONCE:
        return _counted(change, budget, loss)
    note = change.note or ""
    if change.figure == "quality" and loss == 0 and note.startswith(NO_FLIP):
        return "passed", change.note
    # What was searched lies anywhere within its ends, for which there is no test.
    untold = change.figure not in ("quality", "rate") and change.p_value is None
    if low is None or high is None or untold or note.startswith(DRIFTED):
        return "cannot-tell", change.note or "nothing shows how far it may be off"
    if low > budget:
        return ("cannot-tell" if note.startswith(BELOW_NOISE) else "regressed"), change.note
    if high <= budget:
        return "passed", change.note
    return "cannot-tell", "the interval lies on both sides of the budget"


def _counted(change: Change, budget: float, loss: float) -> tuple[Outcome, str | None]:
    """Weights are counted; peak memory is measured once in a run, and told beyond what it repeats
    within only (`MEMORY_REPEATS`)."""
    if loss <= budget:
        return "passed", change.note
    return ("regressed" if change.verdict == "worse" else "cannot-tell"), change.note
