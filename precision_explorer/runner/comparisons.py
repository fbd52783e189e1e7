"""Which comparisons a cell still lacks, and what is stored of them. No torch here.

The reference of a (model, task, runtime) is scored a second time (`noise`), keeps its next-token
distributions (`kept`) where it is a language model, and is held against them in other batches; the
other formats are held against them as they are. All are parts of the cell, taken when it is
measured: an interrupted sweep, or one with a format more, adds those that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import Plan, PlannedCell, SweepSpec
from precision_explorer.plan.expand import reference_of
from precision_explorer.records import CellRecord, Measurements
from precision_explorer.runner.rounds import block_names
from precision_explorer.runner.streams import joined_streams
from precision_explorer.store import RunFolder
from precision_explorer.tasks import KINDS

Json = dict[str, Any]


@dataclass(frozen=True)
class Ask:
    """A request to the worker, and the part that its answer becomes."""

    part: str
    request: Json


@dataclass(frozen=True)
class Comparisons:
    """The comparisons of a sweep's cells with their references."""

    spec: SweepSpec
    plan: Plan
    folder: RunFolder

    def reference(self, planned: PlannedCell) -> PlannedCell | None:
        """The cell that `planned` is compared with (itself, if it is a reference)."""
        spec, served = self.spec, planned.served is not None
        wanted = spec.served_reference if served else reference_of(spec, planned.ref)
        for other in self.plan.to_run:
            same = other.ref is planned.ref and other.task is planned.task
            if same and other.cell.runtime == planned.cell.runtime and other.cell.format == wanted:
                return other
        return None

    def lacking(self, planned: PlannedCell) -> list[Ask]:
        """What is still to be asked of the worker that holds the format, in order. Nothing of cells
        whose parts were removed. Under a runtime of fixed shapes nothing in other batches, as these
        would have to be compiled too: no noise floor."""
        reference, cell_id = self.reference(planned), planned.cell_id
        if not planned.has_quality:
            return []
        if reference is None or not self.folder.has_part(cell_id, "quality"):
            return []
        any_batch = RUNTIMES[planned.cell.runtime].dynamic
        asked = []
        is_language = KINDS[planned.task.card.kind].head == "causal-lm"
        if reference is planned:
            if any_batch:
                asked.append(Ask("noise", {"op": "noise"}))
            if is_language and planned.served is None:
                asked.append(Ask("kept", {"op": "keep"}))
        if is_language and planned.served is None and (any_batch or reference is not planned):
            asked += self._compare(reference, is_reference=reference is planned)
        return [ask for ask in asked if not self.folder.has_part(cell_id, ask.part)]

    def _compare(self, reference: PlannedCell, is_reference: bool) -> list[Ask]:
        """One request where the reference has kept its distributions, else none."""
        kept = self.folder.read_answer(reference.cell_id, "kept")
        if kept is None or "kept" not in kept:
            return []
        request = {
            "op": "compare",
            "reference": reference.cell_id,
            "is_reference": is_reference,
            "kept": kept["kept"],
            "kept_rows": str(self.folder.part_path(reference.cell_id, "kept").resolve()),
        }
        return [Ask(_positions(reference), request)]

    def join(self, planned: PlannedCell) -> None:
        """Put what is there of the comparisons into the cell's record and samples, unless it stands
        there already."""
        record, reference = self.folder.read_record(planned.cell_id), self.reference(planned)
        if record is None or reference is None or not planned.has_quality:
            return
        names = {"noise": "noise", "kept": "kept", _positions(reference): "positions"}
        found = {
            name: self.folder.read_answer(planned.cell_id, part) for part, name in names.items()
        }
        joined = with_comparisons(record, {name: a for name, a in found.items() if a is not None})
        if joined == record:
            return
        rows = {"example": ["quality"], "request": block_names(planned), "repeat": ["noise"]}
        rows["disturbed"] = block_names(planned, disturbed=True)
        rows["position"] = [_positions(reference)]
        streams = {kind: self._streams(planned.cell_id, parts) for kind, parts in rows.items()}
        found_rows = {kind: joined_streams(given) for kind, given in streams.items() if given}
        self.folder.write_samples(planned.cell_id, found_rows)
        self.folder.write_record(joined)

    def _streams(self, cell_id: str, parts: list[str]) -> list[bytes]:
        stored = (self.folder.read_part(cell_id, part) for part in parts)
        return [part[1] for part in stored if part is not None and part[1]]


def _positions(reference: PlannedCell) -> str:
    """The part's name; the reference may be another when a sweep is run again."""
    return f"positions-{reference.cell_id}"


def with_comparisons(record: CellRecord, answers: dict[str, Json]) -> CellRecord:
    """`record` with the worker's `answers` by name (noise, kept, positions); one that holds ``why``
    stands for a comparison that came to nothing."""
    found = {name: answer[name] for name, answer in answers.items() if name in answer}
    missing = {name: answer["why"] for name, answer in answers.items() if name not in answer}
    gone = dict.fromkeys(missing)
    document = record.measurements.model_dump() | found | gone | {"not_compared": missing or None}
    return record.model_copy(update={"measurements": Measurements.model_validate(document)})
