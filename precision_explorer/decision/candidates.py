"""What competes: the formats of one group, or of all tasks of a model, with their draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from precision_explorer.decision.data import Question
from precision_explorer.table import ROW_KEY, Table
from precision_explorer.table.figures import FIGURES, unfit_energy
from precision_explorer.table.groups import Group, Row, at_own_rates
from precision_explorer.table.limits import Check, checks, is_disturbed, limits_of, state_of
from precision_explorer.table.samples import Samples

# What may be chosen: rows whose label was seen to be true.
_SEEN = ("native", "dequantized", "emulated")

Parts = Sequence[np.ndarray]


def _mean(parts: Parts) -> np.ndarray:
    return np.mean(np.stack(list(parts)), axis=0)


def _harmonic(parts: Parts) -> np.ndarray:
    table = np.stack(list(parts))
    # A rate of 0 on one task is a rate of 0 over all.
    with np.errstate(divide="ignore"):
        return np.asarray(1 / np.mean(1 / table, axis=0))


def _largest(parts: Parts) -> np.ndarray:
    return np.max(np.stack(list(parts)), axis=0)


# Over tasks with as many requests (useful results) of each.
OVER_TASKS: dict[str, tuple[Callable[[Parts], np.ndarray], str]] = {
    "cost": (_mean, "the mean over the tasks, as many requests of each"),
    "energy": (_mean, "the mean over the tasks, as many requests of each"),
    "throughput": (_harmonic, "the rate of as many requests of each task"),
    "net": (_mean, "the mean over the tasks, as many requests of each"),
    "value": (_harmonic, "as many useful results of each task per dollar"),
    "latency": (_largest, "that of the slowest task"),
    "latency_p90": (_largest, "that of the slowest task"),
    "latency_p99": (_largest, "that of the slowest task"),
    "latency_p999": (_largest, "that of the slowest task"),
    "memory": (_largest, "that of the largest task"),
    "weights": (_largest, "that of the largest task"),
}
"""Quality is missing: nothing adds up scores of different tasks."""


@dataclass(frozen=True)
class Part:
    """A format on one task: its samples, and its checks as they are named there."""

    samples: Samples
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Candidate:
    """A format with one row per task. `value` of the objective, None where not measured; `draws`
    (DRAWS,) of it, None where nothing was resampled; `tells`: whether its sample is large enough to
    show how far off it may be; `spread`: of its rounds, relatively."""

    name: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...]
    barred: str | None
    value: float | None
    draws: np.ndarray | None
    tells: bool
    spread: float | None
    verdicts: tuple[str | None, ...] = ()
    """Of the quality on each task; ``reference`` of the reference."""
    parts: tuple[Part, ...] = ()
    """One per task."""

    @cached_property
    def state(self) -> str:
        """``barred``, or whether it holds all limits."""
        return "barred" if self.barred else state_of(self.checks)

    @property
    def disturbed(self) -> bool:
        """Whether other work moved the times of one of its rows."""
        return any(is_disturbed(row) for row in self.rows)


def unfit(group: Group, objective: str) -> str | None:
    """Why the group's rows may not be ranked by the objective; None where they may."""
    if objective == "energy":
        problem = unfit_energy(group.ok)
        return None if problem is None else problem.removesuffix("; leave it out")
    if FIGURES[objective].quantile is not None and at_own_rates(group.ok):
        return "formats were served at rates of their own, so their latencies rank nothing"
    return None


def asked_of(table: Table, group: Group, question: Question) -> Question:
    """`question` for one group: of a model with random weights without the table's own quality
    budget, which no format would ever be known to hold."""
    if not group.is_synthetic:
        return question
    most = limits_of(table.context, scored=False).max_quality_loss
    return replace(question, limits=replace(question.limits, max_quality_loss=most))


def of_group(table: Table, group: Group, question: Question) -> list[Candidate]:
    """One candidate per row of the group with a result, of whatever device."""
    found = []
    for row in group.ok:
        samples = table.samples.get(tuple(row[name] for name in ROW_KEY))
        if samples is not None:
            found.append(_candidate(group, row, samples, question))
    return found


def over_tasks(members: Sequence[tuple[Group, list[Candidate]]], objective: str) -> list[Candidate]:
    """The formats that every task has a result of, once; a check is named with its task."""
    by_key = [{_key(c): c for c in candidates} for _, candidates in members]
    tasks = [str(group.rows[0]["task"]) for group, _ in members]
    merged = []
    for key in by_key[0]:
        if all(key in found for found in by_key):
            merged.append(_merge([found[key] for found in by_key], tasks, objective))
    return merged


def repeated(members: Sequence[tuple[Group, list[Candidate]]]) -> list[str]:
    """Formats of which a group has several rows (of several runs): which of them goes with which
    of another task, nobody said."""
    counts = [Counter(map(_key, candidates)) for _, candidates in members]
    return sorted({key[0] for count in counts for key, times in count.items() if times > 1})


def _candidate(group: Group, row: Row, samples: Samples, question: Question) -> Candidate:
    name = question.objective
    execution = row["execution"]
    barred = None
    if execution not in _SEEN:
        barred = f"what it ran was not verified ({execution or 'no label'})"
    column = FIGURES[name].column
    spread = "throughput_round_spread" if name in ("cost", "throughput", "value") else None
    spread = "latency_p50_round_spread" if column.startswith("latency") else spread
    found = checks(samples, question.limits)
    return Candidate(
        name=group.named(row),
        rows=(row,),
        checks=found,
        barred=barred,
        value=None if unfit(group, name) else samples.value(name),
        draws=None if unfit(group, name) else samples.draws(name),
        tells=samples.tells(name),
        spread=row[spread] if spread else None,
        verdicts=("reference" if group.is_reference(row) else row["verdict"],),
        parts=(Part(samples, found),),
    )


def _merge(parts: list[Candidate], tasks: list[str], objective: str) -> Candidate:
    values = [part.value for part in parts]
    join = OVER_TASKS.get(objective)
    known = join is not None and None not in values
    value = draws = None
    if join is not None and known:
        value = float(join[0]([np.array(v, dtype=float) for v in values]))
        if any(part.draws is not None for part in parts):
            size = next(len(p.draws) for p in parts if p.draws is not None)
            each = [p.draws if p.draws is not None else np.full(size, p.value) for p in parts]
            draws = join[0](each)
    spreads = [part.spread for part in parts if part.spread is not None]
    return Candidate(
        name=parts[0].name,
        rows=tuple(row for part in parts for row in part.rows),
        checks=tuple(
            replace(check, limit=f"{check.limit} on {task}")
            for part, task in zip(parts, tasks, strict=True)
            for check in part.checks
        ),
        barred=next((part.barred for part in parts if part.barred), None),
        value=value,
        draws=draws,
        tells=all(part.tells for part in parts),
        spread=max(spreads, default=None),
        verdicts=tuple(verdict for part in parts for verdict in part.verdicts),
        parts=tuple(one for part in parts for one in part.parts),
    )


def _key(candidate: Candidate) -> tuple[str, str, str]:
    row = candidate.rows[0]
    return row["format"], row["runtime"], row["device"]
