"""The local executor: runs a plan's cells one after the other on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import DeviceFacts
from precision_explorer.paths import without_paths
from precision_explorer.plan import Plan, PlannedCell, SweepSpec
from precision_explorer.records import Attempt, CellRecord, Environment, Roof, canonical_hash
from precision_explorer.runner.comparisons import Comparisons
from precision_explorer.runner.join import (
    failed_record,
    ok_record,
    skipped_record,
    unproved,
    utc_now,
)
from precision_explorer.runner.manager import (
    Event,
    OnEvent,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    start_context,
)
from precision_explorer.runner.offered import offered
from precision_explorer.runner.requests import load_request, task_request
from precision_explorer.runner.until_decided import Looks
from precision_explorer.store import RunFolder
from precision_explorer.tasks import KINDS

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


@dataclass
class Executor:
    """Everything a run needs; `run` does it."""

    spec: SweepSpec
    plan: Plan
    facts: DeviceFacts
    environment: Environment
    folder: RunFolder
    on_event: OnEvent
    roof: Roof | None = None
    _context: BaseContext | None = None
    tally: Tally = field(default_factory=Tally)
    _told: set[str] = field(default_factory=set)

    @property
    def comparisons(self) -> Comparisons:
        """Which comparisons with the references are still to be made."""
        return Comparisons(self.spec, self.plan, self.folder)

    def run(self) -> Tally:
        """Run every cell that has no finished record; failures are recorded and passed over."""
        for planned in self.plan.cells:
            if planned.skip is not None:
                self._record_skip(planned)
        for group in _sessions(self.plan.to_run):
            pending = [cell for cell in group if not self._finished(cell)]
            while pending:
                pending = self._session(pending)
        return self.tally

    def _finished(self, planned: PlannedCell) -> bool:
        done = self._measured(planned) and not self.comparisons.lacking(planned)
        if done:
            self.comparisons.join(planned)
            self._done(planned, reused=True)
        return done

    def _measured(self, planned: PlannedCell) -> bool:
        record = self.folder.read_record(planned.cell_id)
        return record is not None and record.status == "ok"

    def _done(self, planned: PlannedCell, reused: bool) -> None:
        """Count and tell of a cell that is ok, once."""
        if planned.cell_id in self._told:
            return
        self._told.add(planned.cell_id)
        if reused:
            self.tally.reused += 1
        else:
            self.tally.ran += 1
        self._event("cell", planned, status="ok", reused=reused)

    def _record_skip(self, planned: PlannedCell) -> None:
        self.tally.skipped += 1
        stored = self.folder.read_record(planned.cell_id)
        if stored is None or stored.skip_reason != planned.skip:
            self._store(skipped_record(planned, self.environment, utc_now()))
        self._event("skip", planned, reason=planned.skip)

    def _event(self, name: str, planned: PlannedCell, **data: Any) -> None:
        labels = {
            "cell_id": planned.cell_id,
            "model": planned.ref.name,
            "task": planned.task.card.name,
            "format": planned.cell.format,
            "runtime": planned.cell.runtime,
        }
        self.on_event(Event(name, labels | data))

    def _store(self, record: CellRecord) -> None:
        self.folder.write_record(record)

    # -- one session -------------------------------------------------------------------------

    def _session(self, cells: list[PlannedCell]) -> list[PlannedCell]:
        """Run `cells` in one worker; returns those still to be run after something went wrong."""
        if self._context is None:
            self._context = start_context()
        fresh = [cell for cell in cells if not self._measured(cell)]
        current = (fresh or cells)[0]
        started, began = utc_now(), time.monotonic()
        answers: dict[str, dict[str, Any]] = {}
        worker = None
        # Made here, since a worker that is killed could not remove it.
        cache = tempfile.TemporaryDirectory(
            prefix="precision-explorer-", ignore_cleanup_errors=True
        )
        try:
            self._event("start" if fresh else "compare", current)
            worker = WorkerHandle(self._context, self.on_event)
            self.tally.ready_s.append(worker.ready_s)
            request = self._load_request(current) | {"compile_cache": cache.name}
            load, _ = worker.ask(request, began + self.spec.cell_timeout)
            for index, planned in enumerate(fresh):
                if index:
                    current, started, began = planned, utc_now(), time.monotonic()
                    self._event("start", current)
                answers = {"load": load}
                self._cell(worker, planned, answers, started, began + self.spec.cell_timeout)
                if not worker.process.is_alive():
                    # It died of being watched, which costs no cell: the others get a new worker.
                    break
            # After all cells are measured, so that none holds what comparing another has left.
            for planned in cells:
                self._compare(worker, planned, compiled=any(planned is c for c in fresh))
            return [cell for cell in cells if not self._finished(cell)]
        except (WorkerError, WorkerGone, EOFError) as error:
            answer = getattr(error, "answer", None) or {
                "status": "failed",
                "kind": "WorkerCrashed",
                "message": "the worker ended before it was ready; see the cell's log",
            }
            failed = cells if "load" not in answers else [current]
            for planned in failed:
                if self._measured(planned):
                    for ask in self.comparisons.lacking(planned):
                        self._not_compared(planned, ask.part, error)
                else:
                    self._failed(planned, answer, answers, started)
            tried = {planned.cell_id for planned in failed if not self._measured(planned)}
            return [c for c in cells if c.cell_id not in tried and not self._finished(c)]
        except BaseException:
            # Interrupted, or the disk is full: nothing that the worker may still say is of use.
            if worker is not None:
                worker.kill()
            raise
        finally:
            if worker is not None:
                worker.close()
                self.tally.worker_s += worker.busy_s
            cache.cleanup()

    def _cell(
        self,
        worker: WorkerHandle,
        planned: PlannedCell,
        answers: dict[str, dict[str, Any]],
        started: str,
        deadline: float,
    ) -> None:
        folder, cell_id = self.folder, planned.cell_id
        attempts = self._attempts(planned)
        stored = folder.read_part(cell_id, "quality")
        resumed = stored is not None
        steps = Looks(folder, planned, self._reference(planned)) if planned.in_looks else None
        folder.write_part(cell_id, "load", answers["load"], b"")
        arrows: dict[str, bytes] = {}
        request = self._task_request(planned)
        if RUNTIMES[planned.cell.runtime].compiles:
            shapes = {"looks": steps.ends} if steps is not None else {}
            made = worker.ask(request | shapes | {"op": "compile"}, deadline)
            folder.write_part(cell_id, "compile", *made)
            answers["compile"] = made[0]
        if stored is None:
            if steps is None:
                stored = worker.ask(request | {"op": "quality"}, deadline)
            else:
                # Half of the time is kept for what else is measured.
                half = deadline - self.spec.cell_timeout / 2
                stored = steps.score(lambda part: worker.ask(request | part, deadline), half)
                resumed = steps.resumed
            folder.write_part(cell_id, "quality", *stored)
        answers["quality"], arrows["example"] = stored
        load = offered(self.spec.workload, planned, self.comparisons.reference(planned), folder)
        block = worker.ask(request | load | {"op": "block", "round": 0}, deadline)
        folder.write_part(cell_id, "block-0", *block)
        answers["block-0"] = block[0]
        arrows |= {"request": block[1]} if block[1] else {}
        # After all that is measured, so that watching disturbs nothing.
        certificate = self._certificate(worker, request, deadline)
        folder.write_part(cell_id, "certificate", certificate, b"")
        answers["certificate"] = certificate
        folder.write_samples(cell_id, arrows)

        def record() -> CellRecord:
            return ok_record(
                planned, answers, self.environment, started, attempts, resumed, self.roof
            )

        # Already now: an interrupt in the profile takes nothing with it that was measured.
        self._store(record())
        profile = self._profile(worker, request, deadline)
        if profile is not None:
            folder.write_part(cell_id, "profile", profile, b"")
            answers["profile"] = profile
            self._store(record())
        self._done(planned, reused=False)

    def _compare(self, worker: WorkerHandle, planned: PlannedCell, compiled: bool) -> None:
        """Ask for the comparisons that the cell still lacks; one that fails costs only itself.
        `compiled`: whether the worker has compiled the model, where the runtime does."""
        if not worker.process.is_alive() or not self.comparisons.lacking(planned):
            return
        self._event("compare", planned)
        request = self._task_request(planned)
        deadline = time.monotonic() + self.spec.cell_timeout
        while lacking := self.comparisons.lacking(planned):
            ask = lacking[0]
            try:
                if RUNTIMES[planned.cell.runtime].compiles and not compiled:
                    worker.ask(request | {"op": "compile"}, deadline)
                    compiled = True
                made = worker.ask(request | ask.request, deadline)
            except (WorkerError, WorkerGone) as error:
                worker.kill()
                self._not_compared(planned, ask.part, error)
                break
            self.folder.write_part(planned.cell_id, ask.part, *made)
        self.comparisons.join(planned)

    def _not_compared(self, planned: PlannedCell, part: str, error: Exception) -> None:
        """Store why, so that it is not tried at each run again."""
        why = without_paths(str(error) or "the worker did not start")
        self.folder.write_part(planned.cell_id, part, {"why": why}, b"")
        name = part.partition("-")[0]
        text = f"{planned.cell.format}: no comparison with the reference ({name}): {why}"
        self.on_event(Event("note", {"text": text}))

    def _reference(self, planned: PlannedCell) -> CellRecord | None:
        """The finished record that `planned` is compared with; None for the reference itself."""
        other = self.comparisons.reference(planned)
        if other is None or other is planned:
            return None
        record = self.folder.read_record(other.cell_id)
        return record if record is not None and record.status == "ok" else None

    def _certificate(
        self, worker: WorkerHandle, request: dict[str, Any], deadline: float
    ) -> dict[str, Any]:
        """The worker's answer; that nothing is proved where the pass could not be watched. A label
        that was seen to be untrue is raised on, and fails the cell."""
        try:
            return worker.ask(request | {"op": "certificate"}, deadline)[0]
        except (WorkerError, WorkerGone) as error:
            if error.answer["kind"] == FormatNotApplied.__name__:
                raise
            worker.kill()
            return unproved(without_paths(str(error)))

    def _profile(
        self, worker: WorkerHandle, request: dict[str, Any], deadline: float
    ) -> dict[str, Any] | None:
        """The worker's answer, or None where it gave none: what the cell is measured for is there
        already, and is not lost for want of an explanation."""
        if not worker.process.is_alive():
            return None  # It ended in the certificate's pass.
        roof = None if self.roof is None else self.roof.model_dump(mode="json")
        try:
            return worker.ask(request | {"op": "profile", "roof": roof}, deadline)[0]
        except (WorkerError, WorkerGone) as error:
            worker.kill()
            text = f"no profile, so no diagnosis of this cell: {without_paths(str(error))}"
            self.on_event(Event("note", {"text": text}))
            return None

    def _attempts(self, planned: PlannedCell) -> list[Attempt]:
        """Earlier tries that were not ok, the last one included."""
        record = self.folder.read_record(planned.cell_id)
        if record is None or record.status in ("ok", "skipped"):
            return []
        last = Attempt(status=record.status, started_at=record.started_at, error=record.error)
        return [*record.attempts, last]

    def _failed(
        self,
        planned: PlannedCell,
        error: dict[str, Any],
        answers: dict[str, dict[str, Any]],
        started: str,
    ) -> None:
        attempts = self._attempts(planned)
        tail = self._log_tail(planned)
        error = error | {"message": without_paths(error["message"])}
        record = failed_record(planned, error, answers, tail, self.environment, started, attempts)
        self._store(record)
        self.folder.set_aside_parts(planned.cell_id)
        self.tally.failed += 1
        self._event("cell", planned, status=record.status, message=error["message"], reused=False)

    def _log_tail(self, planned: PlannedCell) -> str:
        try:
            content = self.folder.log_path(planned.cell_id).read_bytes()
        except OSError:
            return ""
        return without_paths(content[-_LOG_TAIL_BYTES:].decode("utf8", "replace"))

    # -- requests ----------------------------------------------------------------------------

    def _load_request(self, planned: PlannedCell) -> dict[str, Any]:
        return load_request(planned, self.spec, self.facts, self._log(planned))

    def _task_request(self, planned: PlannedCell) -> dict[str, Any]:
        return task_request(planned, self._log(planned))

    def _log(self, planned: PlannedCell) -> str:
        return str(self.folder.log_path(planned.cell_id).resolve())


def _sessions(cells: list[PlannedCell]) -> Iterator[list[PlannedCell]]:
    """Cells that can share a loaded model: the same model, head, format, recipe and runtime. A
    calibrated recipe is that of one task, whose card says how its texts become tokens. Compiled
    cells share none: what the first compiled would be missing in the second's seconds. Nor do those
    whose kind needs libraries of its own, which would count as memory of the other's."""
    groups: dict[tuple[str, ...], list[PlannedCell]] = {}
    for planned in cells:
        kind = KINDS[planned.task.card.kind]
        cell = planned.cell
        card = cell.task.card_hash if spec_of(cell.format).calibrates else ""
        recipe = canonical_hash(cell.recipe)
        alone = planned.cell_id if RUNTIMES[cell.runtime].compiles else ""
        key = (
            str(planned.ref.path),
            *kind.imports,
            kind.head,
            cell.format,
            recipe,
            card,
            cell.runtime,
            alone,
        )
        groups.setdefault(key, []).append(planned)
    yield from groups.values()
