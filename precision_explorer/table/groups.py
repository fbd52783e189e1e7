"""Rows that may be compared: one model, task and method, on one device or on several."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from precision_explorer.records import SYNTHETIC
from precision_explorer.table.data import Context, Table, TaskContext

Row = dict[str, Any]
Note = Callable[[Row], str]

_KEY = ("model", "model_revision", "task", "task_version", "method_id")
# What a processor's name holds beside what tells it from others.
_FILLER = re.compile(r"\((?:R|TM)\)|\bCPU\b|\bProcessor\b|@.*$", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """The rows of one (model, task, method) and what is needed to read them."""

    title: str
    rows: list[Row]
    task: TaskContext | None
    reference: str
    objectives: str
    """What the front is taken over, in words; empty if unknown."""

    @cached_property
    def ok(self) -> list[Row]:
        """Rows with results."""
        return [r for r in self.rows if r["status"] == "ok"]

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """The devices of the rows, in order of appearance."""
        return tuple(dict.fromkeys(str(r["device"]) for r in self.rows))

    @cached_property
    def short_devices(self) -> dict[str, str]:
        """Device to a name short enough for a row."""
        return device_labels(self.devices)

    @cached_property
    def _runtimes(self) -> int:
        return len({r["runtime"] for r in self.rows})

    @cached_property
    def _alike(self) -> Counter[tuple[Any, ...]]:
        """How many rows are of one format, runtime and device."""
        return Counter(map(_of_one, self.rows))

    @property
    def is_joined(self) -> bool:
        """Whether the rows are of several devices."""
        return len(self.devices) > 1

    @property
    def per_device(self) -> list[Group]:
        """A group for each device, for what is never compared over devices."""
        return [
            replace(self, rows=[r for r in self.rows if r["device"] == device])
            for device in self.devices
        ]

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
        """The reference of `row`'s runtime: of its own run where there is a choice, else of its own
        device, else of another."""
        found = [r for r in self.ok if self.is_reference(r) and r["runtime"] == row["runtime"]]
        own = ("manifest_root", "device")
        found.sort(key=lambda r: [r[name] != row[name] for name in own])
        return found[0] if found else None

    def label(self, row: Row) -> str:
        """The row's format, with the runtime and run where the format alone is not unique, and the
        device where there are several."""
        where = f" on {self.short_devices[row['device']]}" if self.is_joined else ""
        return self.on_its_device(row) + where

    def on_its_device(self, row: Row) -> str:
        """The same without the device."""
        parts = []
        if self._runtimes > 1:
            parts.append(row["runtime"])
        if self._alike[_of_one(row)] > 1:
            parts.append(f"run {str(row['manifest_root'])[:6]}")
        # In brackets: labels are listed with commas.
        return f"{row['format']} ({', '.join(parts)})" if parts else str(row["format"])

    def named(self, row: Row) -> str:
        """The label, which says so when slow software computes the format."""
        return self.label(row) + _emulated(row)

    def listing(self, rows: Sequence[Row], named: bool = True, note: Note | None = None) -> str:
        """The rows' names (labels, without `named`) in a sentence, those of one device together; a
        `note` stands in brackets after each."""
        found: dict[str, list[str]] = {}
        for device in dict.fromkeys(r["device"] for r in rows):
            own = [
                self.on_its_device(r)
                + (_emulated(r) if named else "")
                + (f" ({note(r)})" if note else "")
                for r in rows
                if r["device"] == device
            ]
            found.setdefault(_in_words(own), []).append(self.short_devices[device])
        where = {
            names: f" on {_in_words(on)}" if self.is_joined else "" for names, on in found.items()
        }
        return "; ".join(names + where[names] for names in found)


def _emulated(row: Row) -> str:
    return " (emulated)" if row["execution"] == "emulated" else ""


def _in_words(items: Sequence[str]) -> str:
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def _of_one(row: Row) -> tuple[Any, ...]:
    return row["format"], row["runtime"], row["device"]


def device_labels(devices: Sequence[str]) -> dict[str, str]:
    """{device: a name short enough for a row}: without what all processors' names hold, where the
    names then still differ."""
    short = {device: " ".join(_FILLER.sub(" ", device).split()) for device in devices}
    counts = Counter(short.values())
    return {d: s if s and counts[s] == 1 else d for d, s in short.items()}


class _Placed(Protocol):
    @property
    def devices(self) -> tuple[str, ...]: ...


_T = TypeVar("_T", bound=_Placed)


def by_devices(items: Iterable[_T]) -> list[list[_T]]:
    """`items` that share a device together, also by way of others: what was measured on two devices
    in one task is put together with what was measured on one of them in another."""
    found: list[list[_T]] = []
    for item in items:
        near = [m for m in found if any(set(item.devices) & set(one.devices) for one in m)]
        merged = [one for members in near for one in members] + [item]
        found = [m for m in found if m not in near] + [merged]
    return found


_Item = TypeVar("_Item")


def by_meter(items: Sequence[_Item], rows: Sequence[Row]) -> dict[frozenset[Any], list[_Item]]:
    """`items`, of which each has one of `rows`, by what meters their devices were read with."""
    meters: dict[str, set[Any]] = {}
    for row in rows:
        meters.setdefault(row["device"], set()).add((row["power_source"], row["energy_boundary"]))
    found: dict[frozenset[Any], list[_Item]] = {}
    for item, row in zip(items, rows, strict=True):
        found.setdefault(frozenset(meters[row["device"]]), []).append(item)
    return found


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
    return [_group(table.context, key, found) for key in found]


def _group(
    context: Context, key: tuple[Any, ...], found: dict[tuple[Any, ...], list[Row]]
) -> Group:
    rows = found[key]
    row = rows[0]
    tasks = [t for t in context.tasks if t.name == row["task"]]
    same_version = [t for t in tasks if t.version == row["task_version"]]
    return Group(
        title=_title(key, found),
        rows=rows,
        task=next(iter(same_version or tasks), None),
        reference=context.reference,
        objectives=_objectives(context, row),
    )


def _title(key: tuple[Any, ...], found: dict[tuple[Any, ...], list[Row]]) -> str:
    """Model and task; what else tells the group from others with the same two. `found`: the rows of
    each group, by its key."""
    row = found[key][0]
    title = f"{row['model']} on {row['task']}"
    same = [k for k in found if (k[0], k[2]) == (key[0], key[2])]
    if len({found[k][0].get("workload") for k in same}) > 1:
        title += f", workload {row['workload']}"
    devices = {k: tuple(dict.fromkeys(str(r["device"]) for r in found[k])) for k in same}
    for index, name in enumerate(_KEY):
        if name == "method_id" and len(set(devices.values())) > 1:
            title += f", {'devices' if len(devices[key]) > 1 else 'device'} "
            title += " and ".join(devices[key])
        if name not in ("model", "task") and len({k[index] for k in same}) > 1:
            title += f", {name.replace('_', ' ')} {row[name]}"
    return title


def _objectives(context: Context, row: Row) -> str:
    """The table says them once when all groups agree, else once per group with its name before."""
    if len(context.objectives) == 1:
        return context.objectives[0]
    key = [row[name] for name in ("model", "task", "method_id")]
    start = f"{', '.join(key)}: "
    return next((o.removeprefix(start) for o in context.objectives if o.startswith(start)), "")
