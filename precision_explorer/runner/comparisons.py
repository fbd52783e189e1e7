"""Which comparisons a cell still lacks, and what is stored of them. No torch here.

The reference of a (model, task, runtime) is scored a second time (`noise`), keeps its next-token
distributions (`kept`) where it is a language model, and is held against them in other batches; the
other formats are held against them as they are. All are parts of the cell, taken when it is
measured: an interrupted sweep, or one with a format more, adds those that are missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import Plan, PlannedCell, SweepSpec
from precision_explorer.plan.expand import reference_of
from precision_explorer.records import CellRecord, Measurements
from precision_explorer.runner.rounds import block_names
from precision_explorer.runner.streams import joined_streams, table_of
from precision_explorer.store import RunFolder
from precision_explorer.tasks import KINDS

Json = dict[str, Any]

NO_DISTRIBUTIONS = "the task scores no next-token distributions"
"""Why some references keep none."""


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
        whose parts were removed, and nothing that a finished cell's record holds: a damaged part
        would else replace its figures by those of another day. Under a runtime of fixed shapes
        nothing in other batches, as these would have to be compiled too: no noise floor."""
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
        held = _held(self.folder.read_record(cell_id), reference)
        return [
            replace(ask, request=ask.request | self._outputs(planned))
            if ask.part == "kept"
            else ask
            for ask in asked
            if ask.part not in held and not self._has(planned, ask.part)
        ]

    def _has(self, planned: PlannedCell, part: str) -> bool:
        """Whether a part is there. Of answers in text an earlier version kept no distributions, and
        said that there are none."""
        if not self.folder.has_part(planned.cell_id, part):
            return False
        if part != "kept" or not KINDS[planned.task.card.kind].answers:
            return True
        answer = self.folder.read_answer(planned.cell_id, part)
        return answer is None or answer.get("why") != NO_DISTRIBUTIONS

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
            "outputs": kept.get("outputs"),
        }
        return [Ask(_positions(reference), request)]

    def _outputs(self, reference: PlannedCell) -> Json:
        """{outputs: text by example} of a task that is answered in text, else nothing. Of an answer
        whose distributions were not finite there is none."""
        if not KINDS[reference.task.card.kind].answers:
            return {}
        part = self.folder.read_part(reference.cell_id, "quality")
        if part is None:  # Damaged since, and set aside.
            return {"outputs": {}}
        columns = table_of([part[1]]).select(["id", "output"]).to_pydict()
        pairs = zip(columns["id"], columns["output"], strict=True)
        return {"outputs": {name: output for name, output in pairs if output is not None}}

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
        rows = None if joined == record else self._rows(planned, reference, record)
        if rows is not None:
            self.folder.write_samples(planned.cell_id, rows)
            self._note_samples(joined)

    def restore(self, planned: PlannedCell, record: CellRecord) -> bool:
        """Make a finished cell's samples what its parts say; False where these lack some. They may
        be sound, and newer than the record, where a sweep was killed in between."""
        rows = self._rows(planned, self.reference(planned), record)
        if rows is not None:
            self.folder.restore_samples(planned.cell_id, rows)
            self._note_samples(record)
        return rows is not None

    def _note_samples(self, record: CellRecord) -> None:
        digest = self.folder.samples_hash(record.cell_id) or None
        hashes = {"samples_sha256": digest, "samples_next_sha256": None}
        self.folder.write_record(record.model_copy(update=hashes))

    def _rows(
        self, planned: PlannedCell, reference: PlannedCell | None, record: CellRecord
    ) -> dict[str, bytes] | None:
        """A cell's samples by kind, from its parts; None where one that every cell has, or whose
        figures the record holds, is not there or not whole."""
        kinds = {"example": ["quality"], "request": block_names(planned), "repeat": ["noise"]}
        kinds["disturbed"] = block_names(planned, disturbed=True)
        if reference is not None:
            kinds["position"] = [_positions(reference)]
        parts = {
            name: self.folder.read_part(planned.cell_id, name)
            for names in kinds.values()
            for name in names
        }
        needed = {name for kind in ("example", "request") for name in kinds[kind]}
        needed |= _held(record, reference) & parts.keys()
        if any(parts[name] is None for name in needed):
            return None
        streams = {
            kind: [part[1] for name in names if (part := parts[name]) is not None and part[1]]
            for kind, names in kinds.items()
        }
        return {kind: joined_streams(given) for kind, given in streams.items() if given} or None


def _held(record: CellRecord | None, reference: PlannedCell | None) -> set[str]:
    """The parts whose figures stand in a finished cell's record."""
    if record is None or record.status != "ok":
        return set()
    measured = record.measurements
    held = {name for name in ("noise", "kept") if getattr(measured, name) is not None}
    positions = measured.positions
    if reference is not None and positions and positions.reference == reference.cell_id:
        held.add(_positions(reference))
    return held


def _positions(reference: PlannedCell) -> str:
    """The part's name; the reference may be another when a sweep is run again."""
    return f"positions-{reference.cell_id}"


def with_comparisons(record: CellRecord, answers: dict[str, Json]) -> CellRecord:
    """`record` with the worker's `answers` by name (noise, kept, positions); one that holds ``why``
    stands for a comparison that came to nothing."""
    found = {name: answer[name] for name, answer in answers.items() if name in answer}
    missing = {name: answer["why"] for name, answer in answers.items() if name not in answer}
    gone = dict.fromkeys(missing)
    # What was said of others stays.
    before = record.measurements.not_compared or {}
    missing = {n: why for n, why in before.items() if n not in answers} | missing
    document = record.measurements.model_dump() | found | gone | {"not_compared": missing or None}
    return record.model_copy(update={"measurements": Measurements.model_validate(document)})
