"""Rows that may be compared: one model, task, device and method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.records import SYNTHETIC
from precision_explorer.table.data import Context, Table, TaskContext

Row = dict[str, Any]

_KEY = ("model", "model_revision", "task", "task_version", "device", "method_id")


@dataclass(frozen=True)
class Group:
    """The rows of one (model, task, device, method) and what is needed to read them."""

    title: str
    rows: list[Row]
    task: TaskContext | None
    reference: str
    objectives: str
    """What the front is taken over, in words; empty if unknown."""

    @property
    def ok(self) -> list[Row]:
        """Rows with results."""
        return [r for r in self.rows if r["status"] == "ok"]

    @property
    def unmeasured(self) -> list[Row]:
        """Skipped and failed rows."""
        return [r for r in self.rows if r["status"] != "ok"]

    @property
    def is_synthetic(self) -> bool:
        """Whether the model's weights are random, so that quality was not measured."""
        return is_synthetic(self.rows[0])

    @property
    def generates(self) -> bool:
        """Whether requests are answered token by token."""
        return any(r["ttft_s"] is not None for r in self.rows)

    @property
    def is_share(self) -> bool:
        """Whether quality is a share of examples; differences are then in points."""
        return self.task is not None and self.task.unit == "share"

    @property
    def higher_is_better(self) -> bool:
        """Direction of the quality metric; up where it is not known (see `direction`)."""
        return self.task is None or self.task.higher_is_better is not False

    @property
    def direction(self) -> str:
        """The same in words, which say so where it is not known."""
        return direction_words(None if self.task is None else self.task.higher_is_better)

    @property
    def metric(self) -> str:
        """Name of the quality metric."""
        return next((r["quality_metric"] for r in self.ok if r["quality_metric"]), "quality")

    def is_reference(self, row: Row) -> bool:
        """Whether other rows are compared with `row`."""
        return bool(row["format"] == self.reference)

    def reference_of(self, row: Row) -> Row | None:
        """The reference of `row`'s runtime, of its own run where there is a choice."""
        found = [r for r in self.ok if self.is_reference(r) and r["runtime"] == row["runtime"]]
        found.sort(key=lambda r: r["manifest_root"] != row["manifest_root"])
        return found[0] if found else None

    def label(self, row: Row) -> str:
        """The row's format, with the runtime and run where the format alone is not unique."""
        parts = []
        if len({r["runtime"] for r in self.rows}) > 1:
            parts.append(row["runtime"])
        same = Counter((r["format"], r["runtime"]) for r in self.rows)
        if same[row["format"], row["runtime"]] > 1:
            parts.append(f"run {str(row['manifest_root'])[:6]}")
        # In brackets: labels are listed with commas.
        return f"{row['format']} ({', '.join(parts)})" if parts else str(row["format"])

    def named(self, row: Row) -> str:
        """The label, which says so when slow software computes the format."""
        emulated = " (emulated)" if row["execution"] == "emulated" else ""
        return self.label(row) + emulated


def is_synthetic(row: Row) -> bool:
    """Whether a row's model has random weights."""
    return str(row["model_revision"]).startswith(SYNTHETIC)


def at_own_rates(rows: Sequence[Row]) -> bool:
    """Whether the rows were served at rates of their own, so that their latencies rank nothing:
    searched rows at the largest that held, others at a share of their own capacity."""
    return any(
        row["search_slo"] is not None or "serving-own-load" in (row["cautions"] or "").split(";")
        for row in rows
    )


def solves_nothing(group: Group) -> str | None:
    """That the references get no example right, in words: nothing can be lost beside them. None
    where they do, or where quality is no share."""
    if not group.is_share or not group.higher_is_better:
        return None
    rows = [row for row in group.ok if group.is_reference(row) and row["quality"] is not None]
    if not rows or any(row["quality"] for row in rows):
        return None
    return f"the reference solves none of the {rows[0]['quality_n']:,} examples"


def direction_words(higher_is_better: bool | None) -> str:
    """``higher is better``, ``lower is better``, or that nobody said."""
    if higher_is_better is None:
        return "direction not known"
    return "higher is better" if higher_is_better else "lower is better"


def groups(table: Table) -> list[Group]:
    """The table's rows by what may be compared, in order of appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in table.rows:
        found.setdefault(tuple(row[name] for name in _KEY), []).append(row)
    first = {key: rows[0] for key, rows in found.items()}
    return [_group(table.context, key, first, rows) for key, rows in found.items()]


def _group(
    context: Context, key: tuple[Any, ...], first: dict[tuple[Any, ...], Row], rows: list[Row]
) -> Group:
    row = rows[0]
    tasks = [t for t in context.tasks if t.name == row["task"]]
    same_version = [t for t in tasks if t.version == row["task_version"]]
    return Group(
        title=_title(row, key, first),
        rows=rows,
        task=next(iter(same_version or tasks), None),
        reference=context.reference,
        objectives=_objectives(context, row),
    )


def _title(row: Row, key: tuple[Any, ...], first: dict[tuple[Any, ...], Row]) -> str:
    """Model and task; what else tells the group from others with the same two. `first`: the first
    row of each group, by its key."""
    title = f"{row['model']} on {row['task']}"
    same = [k for k in first if (k[0], k[2]) == (key[0], key[2])]
    if len({first[k].get("workload") for k in same}) > 1:
        title += f", workload {row['workload']}"
    for index, name in enumerate(_KEY):
        if name not in ("model", "task") and len({k[index] for k in same}) > 1:
            title += f", {name.replace('_', ' ')} {row[name]}"
    return title


def _objectives(context: Context, row: Row) -> str:
    """The table says them once when all groups agree, else once per group with its name before."""
    if len(context.objectives) == 1:
        return context.objectives[0]
    key = [row[name] for name in ("model", "task", "device", "method_id")]
    start = f"{', '.join(key)}: "
    return next((o.removeprefix(start) for o in context.objectives if o.startswith(start)), "")
