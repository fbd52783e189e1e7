"""The audits of a sweep's cells: which still lack theirs, what is asked for them, and their place
in the record. No torch here.

An audit is a part of its cell, no part of what is measured: it is taken when the cell is, in the
same process, or of a cell that an earlier sweep has measured.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from precision_explorer.errors import StoreError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.paths import without_paths
from precision_explorer.plan import PlannedCell, SweepSpec
from precision_explorer.records import Audit, CellRecord, Roof
from precision_explorer.runner.audit_answers import LOOKED_AT
from precision_explorer.runner.audit_rules import none_judged
from precision_explorer.runner.holder import LOST, Holder
from precision_explorer.runner.ledger import Ledger
from precision_explorer.runner.offered import Load, asked_of
from precision_explorer.runner.requests import task_request
from precision_explorer.store import RunFolder

Json = dict[str, Any]
AUDIT = "audit"
"""The part's name."""
_LOST = "lost"
# Runs that try an audit in which the worker is lost: memory may be short for once, or always.
_TRIES = 3
_OF_QUALITY = ("id", "prediction", "output", "logprobs", "choice_logprobs")


@dataclass(frozen=True)
class Audits:
    """The audits of one run. `load`: has a holder's worker load the model of a cell; `told`: what
    no cell holds of the workload; `tried`: cells whose audits this run has asked for."""

    spec: SweepSpec
    folder: RunFolder
    ledger: Ledger
    roof: Roof | None
    load: Callable[[Holder, PlannedCell], None]
    told: Load = field(default_factory=Load)
    tried: set[str] = field(default_factory=set)

    def lacks(self, planned: PlannedCell) -> bool:
        """Whether the cell, which is measured, is still to be audited. One whose parts were removed
        keeps the audit in its record; one whose audit a worker was lost in is tried again by a
        later run, `_TRIES` times in all."""
        if not self.spec.audit or planned.cell_id in self.tried:
            return False
        if self.folder.has_part(planned.cell_id, AUDIT):
            return 0 < self._lost(planned) < _TRIES
        record = self.folder.read_record(planned.cell_id)
        kept = record is not None and record.measurements.audit is not None
        return not (kept and not self.folder.has_part(planned.cell_id, "quality"))

    def make(self, holder: Holder, planned: PlannedCell) -> None:
        """Audit a measured cell that lacks it, by the worker that measured it or by another; one
        that fails costs no more than itself."""
        if self.lacks(planned):
            lost = self._lost(planned)
            self.tried.add(planned.cell_id)
            self.ledger.event("audit", planned)
            try:
                answer = self._asked(holder, planned)
            except (*LOST, StoreError) as error:
                if holder.worker is not None:
                    holder.worker.kill()
                why = without_paths(str(error) or "the worker did not start")
                self.ledger.note(f"{planned.cell.format}: no audit: {why}")
                answer = {"audit": none_judged(why).model_dump(mode="json"), _LOST: lost + 1}
            self.folder.write_part(planned.cell_id, AUDIT, answer, b"")
        self.join(planned)

    def _lost(self, planned: PlannedCell) -> int:
        """How many runs have lost a worker in the cell's audit."""
        return int((self.folder.read_answer(planned.cell_id, AUDIT) or {}).get(_LOST, 0))

    def _asked(self, holder: Holder, planned: PlannedCell) -> Json:
        if not holder.is_loaded:
            self.load(holder, planned)
        worker, deadline = holder.worker, time.monotonic() + self.spec.cell_timeout
        assert worker is not None
        log = str(self.folder.log_path(planned.cell_id).resolve())
        request = task_request(planned, log)
        if RUNTIMES[planned.cell.runtime].compiles and planned.cell_id not in holder.compiled:
            worker.ask(request | {"op": "compile"}, deadline)
            holder.compiled.add(planned.cell_id)
        return worker.ask(request | self.request(planned), deadline)[0]

    def request(self, planned: PlannedCell) -> Json:
        """What the worker is told of the cell beside its task: how the quality pass answered the
        first examples, the seconds of each example's timed requests, the device's limits."""
        return {
            "op": "audit",
            **asked_of(self.told, planned),
            "quality": self._quality(planned),
            "recorded_s": self._recorded(planned),
            "rates": self._rates(planned),
            "roof": None if self.roof is None else self.roof.model_dump(mode="json"),
        }

    def _quality(self, planned: PlannedCell) -> list[Json]:
        if not planned.has_quality:
            return []
        columns = self._samples(planned, "example")
        names = [name for name in _OF_QUALITY if name in columns]
        count = min(len(columns["id"]), LOOKED_AT)
        return [{name: columns[name][k] for name in names} for k in range(count)]

    def _samples(self, planned: PlannedCell, kind: str) -> dict[str, list[Any]]:
        record = self.folder.read_record(planned.cell_id)
        known = None if record is None else record.known_samples
        return self.folder.read_samples(planned.cell_id, kind, known)

    def _rates(self, planned: PlannedCell) -> dict[int, float]:
        """Requests per second of the batch sizes that fitted and were measured."""
        record = self.folder.read_record(planned.cell_id)
        throughput = None if record is None else record.measurements.throughput
        if throughput is None:
            return {}
        known = {int(n): r.requests_per_s for n, r in throughput.by_batch_size.items()}
        return {size: rate for size, rate in known.items() if rate}

    def _recorded(self, planned: PlannedCell) -> dict[int, list[float]]:
        """Of requests that waited for one another; else none is by itself."""
        if planned.cell.workload.get("scenario") != "single-stream":
            return {}
        rows = self._samples(planned, "request")
        found: dict[int, list[float]] = defaultdict(list)
        for index, window, took_s in zip(
            rows.get("index", ()), rows["window"], rows["latency_s"], strict=True
        ):
            if window == "measure":
                found[index].append(took_s)
        return dict(found)

    def join(self, planned: PlannedCell) -> None:
        """Put the audit that is there into the cell's record, unless it stands there already."""
        answer = self.folder.read_answer(planned.cell_id, AUDIT)
        record = self.folder.read_record(planned.cell_id)
        if answer is None or record is None or record.status != "ok":
            return
        joined = with_audit(record, Audit.model_validate(answer["audit"]))
        if joined != record:
            self.folder.write_record(joined)


def with_audit(record: CellRecord, audit: Audit) -> CellRecord:
    """`record` with its audit."""
    measured = record.measurements.model_copy(update={"audit": audit})
    return record.model_copy(update={"measurements": measured})
