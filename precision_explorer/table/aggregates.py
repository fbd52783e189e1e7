"""Scores of groups of tasks: each format's over the group, and its difference to the reference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from precision_explorer.stats import combined
from precision_explorer.table.against import is_reference, reference_of
from precision_explorer.table.data import Aggregate
from precision_explorer.table.quality import Quality, paired_columns
from precision_explorer.tasks import has_terms

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

Json = dict[str, Any]


def aggregates(groups: list[Json], entries: list[Entry]) -> tuple[Aggregate, ...]:
    """One for each group of one run, metric and format of which every task of the group that has
    the metric was scored. `entries`: those of the run."""
    found: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        cell = entry.record.cell
        key = (cell.model.name, cell.model.revision, cell.device_name, cell.runtime, cell.format)
        found[key].append(entry)
    return tuple(
        made
        for group in groups
        for metric in group["metrics"]
        for own in found.values()
        for made in _made(group, metric, own, entries)
    )


def _made(group: Json, metric: Json, own: list[Entry], entries: list[Entry]) -> Iterator[Aggregate]:
    """The aggregate of one format's `own` entries, or nothing where a task lacks a result."""
    name = metric["metric"]
    members = {t: [e for e in entries if e.record.cell.task.name == t] for t in group["tasks"]}
    with_metric = [t for t, found in members.items() if any(name in _scores(e) for e in found)]
    chosen = {e.record.cell.task.name: e for e in own if name in _scores(e)}
    if not with_metric or not set(with_metric) <= chosen.keys():
        return
    rows = [chosen[task] for task in with_metric]
    sizes = [_size(entry) for entry in rows]
    # lm-evaluation-harness: api/metrics.py, aggregate_subtask_metrics.
    weights = sizes if metric["by_size"] else [1] * len(sizes)
    values = [_scores(entry)[name] for entry in rows]
    value = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    first = rows[0]
    references = [e for e in entries if is_reference(e)]
    change = None if is_reference(first) else _change(rows, references, name, weights)
    delta, low, high = change or (None, None, None)
    row = first.row
    yield Aggregate(
        model=row["model"], model_revision=row["model_revision"], device=row["device"],
        group=group["name"], metric=name, format=row["format"], runtime=row["runtime"],
        value=value, delta=delta, low=low, high=high, tasks=len(rows), examples=sum(sizes),
        by_size=metric["by_size"], is_reference=is_reference(first),
    )  # fmt: skip


def _scores(entry: Entry) -> dict[str, float]:
    measured = entry.record.measurements.quality
    return measured.scores if measured is not None and entry.record.status == "ok" else {}


def _size(entry: Entry) -> int:
    measured = entry.record.measurements.quality
    assert measured is not None
    return measured.examples


def _change(
    rows: list[Entry], references: list[Entry], metric: str, weights: list[int]
) -> tuple[float, float | None, float | None] | None:
    """The difference over the tasks, which are independent samples, paired within each."""
    deltas, ends = [], []
    for entry in rows:
        task = entry.record.cell.task.name
        same = [r for r in references if r.record.cell.task.name == task and metric in _scores(r)]
        base = reference_of(entry, same)
        if base is None:
            return None
        delta = _scores(entry)[metric] - _scores(base)[metric]
        deltas.append(delta)
        ends.append(_interval(base, entry, metric))
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        total = sum(weights)
        return sum(w * d for w, d in zip(weights, deltas, strict=True)) / total, None, None
    return combined(deltas, known, weights)


def _interval(base: Entry, entry: Entry, metric: str) -> tuple[float, float] | None:
    """The paired interval on one task; None for a metric that is no mean over examples."""
    pair = []
    for one in (base, entry):
        columns = one.folder.read_samples(one.record.cell_id, "example", one.record.known_samples)
        if not has_terms(metric, columns):
            return None
        pair.append(Quality.of(metric, columns))
    budget, seed = entry.reader["quality_budget"], entry.record.cell.seed
    found = paired_columns(pair[0], pair[1], budget, seed)
    low, high = found.get("quality_delta_ci_low"), found.get("quality_delta_ci_high")
    return None if low is None or high is None else (low, high)
