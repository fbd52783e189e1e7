"""The diagnosis of a table's rows, where their runs hold profiles and roofs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.diagnose import Why, explain
from precision_explorer.records import CellRecord, Roof
from precision_explorer.store import RunFolder

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


def diagnoses(entries: list[Entry], roof: Roof | None = None) -> tuple[Why, ...]:
    """One `Why` per run and group of rows that may be compared. `roof` stands in for the roofs of
    runs that hold none; a run with neither, or without a profile, has no diagnosis."""
    groups: dict[tuple[object, ...], list[CellRecord]] = {}
    folders: dict[tuple[object, ...], tuple[RunFolder, str]] = {}
    for entry in entries:
        cell, method = entry.record.cell, entry.record.method_id
        row = (cell.model.revision, cell.task.name, cell.device_name, method)
        key = (str(entry.folder.path), *row)
        groups.setdefault(key, []).append(entry.record)
        folders[key] = (entry.folder, entry.reader["reference"])
    found = []
    for group, records in groups.items():
        folder, reference = folders[group]
        limits = folder.read_roof() or roof
        if limits is None or not any(r.measurements.profile for r in records):
            continue
        why = explain(records, limits, reference, folder.manifest_root())
        if why is not None:
            found.append(why)
    return tuple(found)
