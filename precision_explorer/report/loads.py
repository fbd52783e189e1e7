"""How another load moves latency: the workloads of one model, task and device side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from precision_explorer.report.columns import Cell, View, percentile_text, series_word
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.ranking import LATENCY, is_busy, is_within_spread
from precision_explorer.report.text import listed
from precision_explorer.units import MISSING, seconds, share, significant

# Whose order nobody may be told: no percentile of theirs is one of a steady load, or it is one at
# a rate that others were not asked for.
_OWN = "own rate"
_UNFIT = ("refused", "saturated", _OWN)


@dataclass(frozen=True)
class Loads:
    """One model's task on one device under several workloads: medians and tails of each format as
    a table, and in sentences whether the formats' order changes."""

    title: str
    view: View
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Load:
    """A workload, or one of several runs under it, by its name; its rows by label."""

    workload: str
    name: str
    rows: dict[str, Row]

    @property
    def ranked(self) -> dict[str, Row]:
        """The rows that may be ranked, fastest first."""
        fit = {k: r for k, r in self.rows.items() if r["latency_p50_s"] is not None}
        fit = {k: r for k, r in fit.items() if _word(r) not in _UNFIT and not is_busy(r)}
        return dict(sorted(fit.items(), key=lambda item: item[1]["latency_p50_s"]))


def load_sections(groups: Sequence[Group]) -> list[Loads]:
    """One for each model, task and device that was measured under more than one workload."""
    found: dict[tuple[str, ...], list[Group]] = {}
    apart = [one for group in groups for one in group.per_device]
    for group in apart:
        row = group.rows[0]
        names = ("model", "model_revision", "task", "task_version", "device")
        if any(r["latency_p50_s"] is not None for r in group.ok):
            found.setdefault(tuple(str(row[name]) for name in names), []).append(group)
    several = [
        members
        for members in found.values()
        if len({g.rows[0].get("workload") for g in members}) > 1
    ]
    subjects = [_subject(members) for members in several]
    return [
        _section(members, name if subjects.count(name) == 1 else f"{name}, {members[0].devices[0]}")
        for members, name in zip(several, subjects, strict=True)
    ]


def _subject(members: list[Group]) -> str:
    row = members[0].rows[0]
    return f"{row['model']} on {row['task']}"


def _section(members: list[Group], subject: str) -> Loads:
    loads = _loads(members)
    labels = list(dict.fromkeys(label for load in loads for label in load.rows))
    return Loads(
        title=f"{subject}: how the load moves latency",
        view=_view(loads, labels),
        lines=(*_orders(loads), _changes(loads), *_repeats(loads)),
    )


def _loads(members: list[Group]) -> list[_Load]:
    """Each run by itself where several ran under one workload."""
    split = [
        replace(group, rows=[r for r in group.rows if r["manifest_root"] == root])
        for group in members
        for root in dict.fromkeys(r["manifest_root"] for r in group.rows)
    ]
    names = [str(group.rows[0]["workload"]) for group in split]
    return [
        _Load(
            name,
            f"{name}, run {str(g.rows[0]['manifest_root'])[:6]}" if names.count(name) > 1 else name,
            {g.named(r): r for r in g.ok},
        )
        for name, g in zip(names, split, strict=True)
    ]


def _view(loads: Sequence[_Load], labels: Sequence[str]) -> View:
    first = loads[0]
    headings = [h for load in loads for h in (f"{load.name}: p50", "p99")]
    rows = []
    for label in labels:
        base = first.rows.get(label)
        pairs = [_pair(load.rows.get(label), None if load is first else base) for load in loads]
        rows.append((Cell(label), *(Cell(text) for pair in pairs for text in pair)))
    return View(
        f"Latency under each load, and as a multiple of that under {first.name}",
        ("Format", *headings),
        tuple(rows),
        (False, *(True for _ in headings)),
    )


def _pair(row: Row | None, base: Row | None) -> tuple[str, str]:
    """(median, 99th percentile) of one row; the word for why there is none."""
    if row is None:
        return MISSING, MISSING
    if row["latency_p50_s"] is None or _word(row) == _OWN:
        return _word(row), MISSING
    base = None if base is None or _word(base) == _OWN else base
    tail = percentile_text(row, "p99")
    return (
        _multiple(seconds(row["latency_p50_s"]), row, base, "latency_p50_s"),
        _multiple(tail, row, base, "latency_p99_s"),
    )


def _word(row: Row) -> str:
    """What the row's latencies are: those at a rate of its own, else as elsewhere."""
    word = series_word(row)
    own = "serving-own-load" in (row["cautions"] or "").split(";")
    return _OWN if word not in _UNFIT and (own or row["search_slo"] is not None) else word


def _multiple(text: str, row: Row, base: Row | None, column: str) -> str:
    if base is None or row[column] is None or not base[column]:
        return text
    return f"{text} ({significant(row[column] / base[column], 2)} x)"


def _apart(a: Row, b: Row) -> bool:
    """Whether the medians differ: the intervals of neither hold the other's, and by more than the
    rounds of either."""
    low, high = sorted((a, b), key=lambda r: r["latency_p50_s"])
    ends = low["latency_p50_ci_high_s"], high["latency_p50_ci_low_s"]
    return None not in ends and ends[0] < ends[1] and not is_within_spread(low, high, LATENCY)


def _orders(loads: Sequence[_Load]) -> list[str]:
    lines = []
    for load in loads:
        ranked = load.ranked
        unranked = [label for label in load.rows if label not in ranked]
        tail = f" Not ranked: {listed(unranked)}." if unranked else ""
        if len(ranked) > 1:
            steps = [" or ".join(step) for step in _steps(ranked)]
            lines.append(f"By median latency under {load.name}: {', then '.join(steps)}.{tail}")
        else:
            lines.append(f"Under {load.name} there is no order of formats.{tail}")
    return lines


def _steps(ranked: dict[str, Row]) -> list[list[str]]:
    """Labels from the fastest on, those that can't be told from the first of their step in one."""
    steps: list[list[str]] = []
    for label, row in ranked.items():
        if steps and not _apart(ranked[steps[-1][0]], row):
            steps[-1].append(label)
        else:
            steps.append([label])
    return steps


def _changes(loads: Sequence[_Load]) -> str:
    """Which two formats change places between two loads, beyond doubt under both."""
    ranked = [(load.name, load.ranked) for load in loads]
    labels = list(dict.fromkeys(label for _, rows in ranked for label in rows))
    turned = [_turned(a, b, ranked) for a, b in combinations(labels, 2)]
    found = [text for text in turned if text]
    if found:
        return f"The order changes with the load: {'; '.join(found)}."
    if all(len(rows) < 2 for _, rows in ranked):
        return "Whether the order of formats changes with the load can't be told."
    return (
        "No two formats are seen to change places with the load. Formats joined by 'or' can't be "
        "told apart there."
    )


def _turned(a: str, b: str, ranked: Sequence[tuple[str, dict[str, Row]]]) -> str | None:
    known = [(name, rows[a], rows[b]) for name, rows in ranked if a in rows and b in rows]
    apart = [(name, _first(x, y)) for name, x, y in known if _apart(x, y)]
    faster = [name for name, is_first in apart if is_first]
    slower = [name for name, is_first in apart if not is_first]
    if not faster or not slower:
        return None
    return f"{a} is faster than {b} under {listed(faster)} and slower under {listed(slower)}"


def _first(a: Row, b: Row) -> bool:
    return bool(a["latency_p50_s"] < b["latency_p50_s"])


def _repeats(loads: Sequence[_Load]) -> list[str]:
    """How far the medians of several runs under one workload lie apart."""
    lines = []
    for workload in dict.fromkeys(load.workload for load in loads):
        runs = [load.ranked for load in loads if load.workload == workload]
        labels = [label for label in runs[0] if all(label in run for run in runs)]
        if len(runs) < 2 or not labels:
            continue
        spreads = [
            f"{label} {share(max(medians) / min(medians) - 1)}"
            for label in labels
            if (medians := [run[label]["latency_p50_s"] for run in runs])
        ]
        lines.append(f"{len(runs)} runs under {workload}, their medians apart: {listed(spreads)}.")
    return lines
