"""`compare`: the rows of one run held against those of others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precision_explorer.comparison.data import Allowed, Compared, Refused, RowChanges
from precision_explorer.comparison.figures import changes_of, judged
from precision_explorer.comparison.fingerprint import (
    barred_fields,
    check_allowed,
    figure_fields,
    is_allowed,
    making_fields,
    system_fields,
)
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import CellRecord
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table import ROW_KEY, Table, build
from precision_explorer.table.methods import Field
from precision_explorer.table.samples import Samples

Row = dict[str, Any]


@dataclass(frozen=True)
class _Run:
    """A finished run: its table, and the record of each row."""

    name: str
    table: Table
    records: tuple[CellRecord, ...]
    missing: tuple[str, ...] = ()
    """Labels of the rows that have no result yet."""

    def samples(self, row: Row) -> Samples | None:
        return self.table.samples.get(tuple(row[name] for name in ROW_KEY))


@dataclass(frozen=True)
class _Match:
    """One row in both runs."""

    one: Row
    other: Row
    records: tuple[CellRecord, CellRecord]

    @property
    def label(self) -> str:
        return _label(self.one)


def compare(
    paths: Sequence[Path], allow: Sequence[str] = (), unfinished: bool = False
) -> list[Compared]:
    """The run at the first of `paths` held against each of the others.

    `allow`: fields of the method, as `Cell.method` names them with dots, that may differ.
    `unfinished`: of runs with rows that have no result yet the others are compared. StoreError for
    a folder that is no run, or is not finished without that; UsageError for fewer than two runs,
    the same run twice, runs that share no row, and a field that no method holds.
    """
    if len(paths) < 2:
        raise UsageError("one run is nothing to compare; give two runs' folders or more")
    resolved = [path.resolve() for path in paths]
    twice = next((p for i, p in enumerate(resolved) if p in resolved[:i]), None)
    if twice is not None:
        raise UsageError(f"{twice.name} is given twice; give another run to compare it with")
    names = [RunFolder(path).name for path in paths]
    alike = len(set(names)) < len(names)
    runs = [
        _read(path, str(path) if alike else name, unfinished)
        for path, name in zip(paths, names, strict=True)
    ]
    _check_apart(runs)
    allowed = check_allowed(allow, [record for run in runs for record in run.records])
    return [_compared(runs[0], other, allowed) for other in runs[1:]]


def _read(path: Path, name: str, unfinished: bool) -> _Run:
    folder, sweep = read_run(path)
    records, missing = [], []
    for cell in sweep["plan"]["cells"]:
        record = folder.read_record(cell["cell_id"])
        if record is not None:
            records.append(record)
        elif unfinished:
            missing.append(_label({"runtime": "eager"} | cell))
        else:
            raise StoreError(
                f"{path} is not finished: {cell['format']} on {cell['task']} has no result yet; "
                "run the sweep again, which goes on where it ended, or compare the other rows by "
                "--unfinished"
            )
    return _Run(name, build([path]), tuple(records), tuple(missing))


def _check_apart(runs: Sequence[_Run]) -> None:
    """UsageError where a run is a copy of another: what is the same record is no second
    measurement."""
    roots: dict[str, str] = {}
    for run in runs:
        root = run.table.context.manifest_root
        if root and root in roots:
            raise UsageError(
                f"{roots[root]} and {run.name} hold the same run (one is a copy of the other); "
                "give another run to compare it with"
            )
        roots[root] = run.name


def _label(row: Row) -> str:
    runtime = "" if row["runtime"] == "eager" else f" ({row['runtime']})"
    return f"{row['format']}{runtime} on {row['task']}"


# -- matching ---------------------------------------------------------------------------------


def _matches(one: _Run, other: _Run) -> tuple[list[_Match], list[str], list[str]]:
    """Rows of one model, task, format and runtime; what is not in both, in sentences; and those of
    these sentences that say that a result of `one` has none beside it.

    A row that has no such partner is put beside the only row left of its format and runtime: its
    model or task has another name, which is for the methods to say."""
    left = list(range(len(other.table.rows)))
    pairs: dict[int, int] = {}
    for names in (("model", "task", "format", "runtime"), ("task", "format", "runtime")):
        _pair(one.table.rows, other.table.rows, names, pairs, left)
    _pair(one.table.rows, other.table.rows, ("format", "runtime"), pairs, left)
    matches = [
        _Match(one.table.rows[i], other.table.rows[k], (one.records[i], other.records[k]))
        for i, k in sorted(pairs.items())
    ]
    unpaired = [row for i, row in enumerate(one.table.rows) if i not in pairs]
    alone = [_alone(row, one, other) for row in unpaired]
    lost = [text for row, text in zip(unpaired, alone, strict=True) if row["status"] == "ok"]
    alone += [_alone(other.table.rows[k], other, one) for k in left]
    return matches, alone, lost


def _alone(row: Row, own: _Run, other: _Run) -> str:
    if _label(row) in other.missing:
        return f"{_label(row)} has no result yet in {other.name}"
    return f"{_label(row)} is in {own.name} only"


def _pair(
    ones: Sequence[Row],
    others: Sequence[Row],
    names: tuple[str, ...],
    pairs: dict[int, int],
    left: list[int],
) -> None:
    """Add to `pairs` those that agree in `names` and have one partner each, and take them out of
    what is `left` of the others."""
    free: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(ones):
        if i not in pairs:
            free[tuple(row[n] for n in names)].append(i)
    partners: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for k in left:
        partners[tuple(others[k][n] for n in names)].append(k)
    for key, rows in free.items():
        if len(rows) == len(partners[key]) == 1:
            pairs[rows[0]] = partners[key][0]
            left.remove(partners[key][0])


# -- comparing --------------------------------------------------------------------------------


def _compared(one: _Run, other: _Run, allowed: tuple[str, ...]) -> Compared:
    matches, unmatched, lost = _matches(one, other)
    if not matches:
        raise UsageError(
            f"{one.name} and {other.name} share no row (a model, task, format and runtime); give "
            "runs of the same"
        )
    fit, refused, accepted = _by_method(matches, allowed)
    rows = []
    for match in fit:
        if match.records[0].measured_as() == match.records[1].measured_as():
            unmatched.append(f"{match.label} is the same record in both: measured once, not twice")
            continue
        found = _row(one, other, match, allowed)
        if found is None:
            unmatched.append(_without_result(one, other, match))
            lost += unmatched[-1:] if match.one["status"] == "ok" else []
        else:
            rows.append(found)
    judged_rows, tests = _judged(rows)
    return Compared(
        one=one.name,
        other=other.name,
        devices=(_devices(one), _devices(other)),
        manifest_roots=(one.table.context.manifest_root, other.table.context.manifest_root),
        measured_on=(one.table.context.measured_on, other.table.context.measured_on),
        rows=tuple(judged_rows),
        refused=refused,
        allowed=accepted,
        system=_system(fit),
        unmatched=tuple(unmatched),
        tests=tests,
        rounds=(_rounds(one), _rounds(other)),
        same_cells=bool(fit) and all(m.records[0].cell_id == m.records[1].cell_id for m in fit),
        asked=allowed,
        lost=tuple(lost),
    )


def _by_method(
    matches: Sequence[_Match], allowed: tuple[str, ...]
) -> tuple[list[_Match], tuple[Refused, ...], tuple[Allowed, ...]]:
    """The matches that may be compared; those that may not, by what they differ in; and what
    differs with the reader's leave."""
    fit: list[_Match] = []
    refused: dict[str, list[tuple[_Match, tuple[Field, ...]]]] = defaultdict(list)
    accepted: dict[str, list[tuple[_Match, Field]]] = defaultdict(list)
    for match in matches:
        barred, differ = barred_fields(*match.records, allowed)
        if barred:
            refused[repr(barred)].append((match, barred))
            continue
        fit.append(match)
        of_figures = [f for f in figure_fields(*match.records) if is_allowed(f, allowed)]
        for one in (*differ, *of_figures):
            accepted[repr(one)].append((match, one))
    no = tuple(
        Refused(
            tuple(match.label for match, _ in of),
            (of[0][0].records[0].method_id, of[0][0].records[1].method_id),
            of[0][1],
        )
        for of in refused.values()
    )
    yes = tuple(Allowed(of[0][1], tuple(m.label for m, _ in of)) for of in accepted.values())
    return fit, no, yes


def _row(one: _Run, other: _Run, match: _Match, allowed: tuple[str, ...]) -> RowChanges | None:
    first, second = one.samples(match.one), other.samples(match.other)
    if first is None or second is None:
        return None
    row = match.one
    return RowChanges(
        model=row["model"],
        task=row["task"],
        format=row["format"],
        runtime=row["runtime"],
        devices=(row["device"], match.other["device"]),
        method_ids=(row["method_id"], match.other["method_id"]),
        changes=changes_of(first, second, allowed),
        system=making_fields(*match.records),
        cautions=(_cautions(row), _cautions(match.other)),
        is_reference=first.reference is first or second.reference is second,
    )


def _cautions(row: Row) -> tuple[str, ...]:
    return tuple(name for name in (row["cautions"] or "").split(";") if name)


def _judged(rows: Sequence[RowChanges]) -> tuple[list[RowChanges], int]:
    """The rows with their verdicts, and over how many tests."""
    every = [change for row in rows for change in row.changes]
    told = judged(every)
    found, at = [], 0
    for row in rows:
        found.append(replace(row, changes=tuple(told[at : at + len(row.changes)])))
        at += len(row.changes)
    return found, sum(c.p_value is not None and c.resting is None for c in every)


def _system(matches: Sequence[_Match]) -> tuple[Field, ...]:
    """In what the systems differ in any of the rows, each difference once."""
    found = (field for match in matches for field in system_fields(*match.records))
    return tuple({repr(field): field for field in found}.values())


def _devices(run: _Run) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(row["device"]) for row in run.table.rows))


def _rounds(run: _Run) -> int | None:
    """The fewest rounds of a row; None where no row was timed in any."""
    counts = [row["rounds"] for row in run.table.rows if row["rounds"] is not None]
    return min(counts, default=None)


def _without_result(one: _Run, other: _Run, match: _Match) -> str:
    """That a row has no result in one run, or in both, and why."""
    parts = [
        f"{row['status']} in {run.name}" + (f" ({row['reason']})" if row["reason"] else "")
        for run, row in ((one, match.one), (other, match.other))
        if row["status"] != "ok"
    ]
    if len(parts) == 2 and match.one["status"] == match.other["status"] == "skipped":
        return f"{match.label} was skipped in both"
    return f"{match.label}: {', '.join(parts)}"
