"""What a run says and writes of its cells: events, records and the count of them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from precision_explorer.paths import without_paths
from precision_explorer.plan import PlannedCell
from precision_explorer.records import Attempt, Environment, Roof
from precision_explorer.runner.cell_run import CellRun
from precision_explorer.runner.join import (
    failed_record,
    ok_record,
    profile_of,
    skipped_record,
    utc_now,
)
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.servers import client_environment
from precision_explorer.store import RunFolder

# A screen or two: where a traceback stands, at the log's end.
_LOG_TAIL_BYTES = 4000


@dataclass
class Tally:
    """What a run came to. `worker_s`: seconds of loading and computing inside the workers, as they
    counted them; `ready_s`: from starting each worker to its first word."""

    ran: int = 0
    reused: int = 0
    failed: int = 0
    skipped: int = 0
    worker_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    unscored: list[str] = field(default_factory=list)
    """Why metrics of the `evaluate` library were not computed, one line each."""


class Ledger:
    """Records of a run's cells, and what is told of them."""

    def __init__(
        self, folder: RunFolder, environment: Environment, roof: Roof | None, on_event: OnEvent
    ) -> None:
        self.folder, self.environment, self.roof = folder, environment, roof
        self.on_event, self.tally = on_event, Tally()
        self._told: set[str] = set()

    def event(self, name: str, planned: PlannedCell, **data: Any) -> None:
        """Tell of something that happened to a cell."""
        labels = {
            "cell_id": planned.cell_id,
            "model": planned.ref.name,
            "task": planned.task.card.name,
            "format": planned.cell.format,
            "runtime": planned.cell.runtime,
        }
        self.on_event(Event(name, labels | data))

    def note(self, text: str) -> None:
        """Tell something in words."""
        self.on_event(Event("note", {"text": text}))

    def is_measured(self, planned: PlannedCell) -> bool:
        """Whether the cell has a finished record."""
        record = self.folder.read_record(planned.cell_id)
        return record is not None and record.status == "ok"

    def is_scored(self, planned: PlannedCell) -> bool:
        """Whether the cell's examples were scored, in this run or an earlier one."""
        return self.folder.has_part(planned.cell_id, "quality") or self.is_measured(planned)

    def done(self, planned: PlannedCell, reused: bool) -> None:
        """Count and tell of a cell that is ok, once."""
        if planned.cell_id in self._told:
            return
        self._told.add(planned.cell_id)
        if reused:
            self.tally.reused += 1
        else:
            self.tally.ran += 1
        self.event("cell", planned, status="ok", reused=reused)

    def skipped(self, planned: PlannedCell) -> None:
        """Record a cell that the device can't run."""
        self.tally.skipped += 1
        stored = self.folder.read_record(planned.cell_id)
        if stored is None or stored.skip_reason != planned.skip:
            record = skipped_record(planned, self._environment(planned), utc_now())
            self.folder.write_record(record)
        self.event("skip", planned, reason=planned.skip)

    def measured(self, run: CellRun) -> None:
        """Record what a cell has answered so far, which makes it ok."""
        attempts = self._attempts(run.planned)
        record = ok_record(
            run.planned,
            run.answers,
            self._environment(run.planned),
            run.started,
            attempts,
            self.roof,
        )
        digest = self.folder.samples_hash(run.planned.cell_id) or None
        self.folder.write_record(record.model_copy(update={"samples_sha256": digest}))

    def lacks_profile(self, planned: PlannedCell) -> bool:
        """Whether a measured cell has no profile and none was tried, as its sweep ended before: it
        has a certificate, which comes shortly before. Into a server nothing looks."""
        record = self.folder.read_record(planned.cell_id)
        if planned.served or record is None or record.measurements.profile is not None:
            return False
        tried = self.folder.read_answer(planned.cell_id, "profile")
        return self.folder.has_part(planned.cell_id, "certificate") and (
            tried is None or "profile" in tried
        )

    def profiled(self, planned: PlannedCell, answer: dict[str, Any]) -> None:
        """Put a profile into the record of a measured cell, and nothing else."""
        record = self.folder.read_record(planned.cell_id)
        profile, above = profile_of(answer, self.roof)
        if record is None or profile is None:
            return
        measured = record.measurements.model_copy(update={"profile": profile})
        more = {"measurements": measured, "cautions": [*record.cautions, *above]}
        self.folder.write_record(record.model_copy(update=more))

    def failed(self, planned: PlannedCell, error: Exception, run: CellRun | None) -> None:
        """Record why a cell failed, with what was measured of it before."""
        answer = getattr(error, "answer", None) or {
            "status": "failed",
            "kind": "WorkerCrashed",
            "message": "the worker ended before it was ready; see the cell's log",
        }
        answer = answer | {"message": without_paths(answer["message"])}
        attempts, tail = self._attempts(planned), self._log_tail(planned)
        answers, started = (run.answers, run.started) if run else ({}, utc_now())
        record = failed_record(
            planned, answer, answers, tail, self._environment(planned), started, attempts
        )
        self.folder.write_record(record)
        self.folder.set_aside_parts(planned.cell_id)
        self.tally.failed += 1
        self.event("cell", planned, status=record.status, message=answer["message"], reused=False)

    def _environment(self, planned: PlannedCell) -> Environment:
        return client_environment(self.environment) if planned.served else self.environment

    def _attempts(self, planned: PlannedCell) -> list[Attempt]:
        """Earlier tries that were not ok, the last one included."""
        record = self.folder.read_record(planned.cell_id)
        if record is None or record.status == "skipped":
            return []
        if record.status == "ok":
            return record.attempts
        last = Attempt(status=record.status, started_at=record.started_at, error=record.error)
        return [*record.attempts, last]

    def _log_tail(self, planned: PlannedCell) -> str:
        try:
            content = self.folder.log_path(planned.cell_id).read_bytes()
        except OSError:
            return ""
        return without_paths(content[-_LOG_TAIL_BYTES:].decode("utf8", "replace"))
