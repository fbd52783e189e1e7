"""The local executor: measures a plan's cells on this machine.

The cells of one model and task are loaded and scored one after the other, their workers stay
loaded as far as memory allows, and their timed blocks are then taken in interleaved rounds.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import DeviceFacts
from precision_explorer.paths import without_paths
from precision_explorer.plan import Plan, PlannedCell, SweepSpec
from precision_explorer.records import Environment, Roof
from precision_explorer.runner.audits import Audits
from precision_explorer.runner.background import Neighbours
from precision_explorer.runner.cell_run import CellRun
from precision_explorer.runner.comparisons import Comparisons
from precision_explorer.runner.disturbed import lacks_disturbed
from precision_explorer.runner.holder import LOST, Holder
from precision_explorer.runner.interference import Interference, same_load
from precision_explorer.runner.join import unproved
from precision_explorer.runner.ledger import Ledger, Tally
from precision_explorer.runner.manager import (
    OnEvent,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    start_context,
)
from precision_explorer.runner.offered import Load, offered
from precision_explorer.runner.parking import Parking
from precision_explorer.runner.requests import load_bytes, load_request, task_request
from precision_explorer.runner.rounds import block_name
from precision_explorer.runner.schedule import Schedule, is_crowded
from precision_explorer.runner.sessions import Session, groups, tasks_of
from precision_explorer.runner.until_decided import Looks
from precision_explorer.store import RunFolder
from precision_explorer.tasks import PreparedTask

Json = dict[str, Any]
NO_QUALITY: Json = {"quality": None, "peak_bytes": None, "recompiles": None}
"""In place of a quality pass's answer, where there is none to be made."""


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
    load: Load = field(default_factory=Load)
    """What no cell holds of the workload."""
    background: Sequence[Json] = ()
    """What the processes of the workload's background are asked to become."""
    _context: BaseContext | None = None
    _audited: set[str] = field(default_factory=set)
    _began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._ledger = Ledger(self.folder, self.environment, self.roof, self.on_event)

    @property
    def comparisons(self) -> Comparisons:
        """Which comparisons with the references are still to be made."""
        return Comparisons(self.spec, self.plan, self.folder)

    @property
    def audits(self) -> Audits:
        """Which audits are still to be made."""
        made = self.spec, self.folder, self._ledger, self.roof, self._load_again
        return Audits(*made, self.load, self._audited)

    def _load_again(self, holder: Holder, planned: PlannedCell) -> None:
        """Load the model of a measured cell in another worker."""
        self._close(holder)
        self._load(holder, planned, self.spec.cell_timeout)

    @property
    def tally(self) -> Tally:
        """What the run has come to so far."""
        return self._ledger.tally

    def run(self) -> Tally:
        """Run every cell that has no finished record; failures are recorded and passed over."""
        self.begin()
        for sessions in groups(self.plan.to_run):
            self._group(sessions)
        return self._ledger.tally

    def begin(self) -> None:
        """Record what is skipped, and set aside what is not as it was written."""
        for planned in self.plan.cells:
            if planned.skip is not None:
                self._ledger.skipped(planned)
        for planned in self.plan.to_run:
            self._check(planned)

    def lacks_any(self, cells: Sequence[PlannedCell]) -> bool:
        """Whether anything is left to be asked of a worker for `cells`."""
        return any(
            not self._is_done(planned)
            or self.comparisons.lacking(planned)
            or self.audits.lacks(planned)
            or self._ledger.lacks_profile(planned)
            for planned in cells
        )

    def _check(self, planned: PlannedCell) -> None:
        """Set aside what is not as it was written of an earlier run: samples are made again from
        their parts; a cell whose parts don't suffice is measured again, as is one without a whole
        record."""
        self.folder.check_parts(planned.cell_id)
        record = self.folder.read_record(planned.cell_id)
        if record is None or record.known_samples is None:
            return
        if self.folder.samples_hash(planned.cell_id) in record.known_samples:
            return
        if not self.comparisons.restore(planned, record):
            self.folder.set_aside_record(planned.cell_id)

    # -- the sessions of one model -------------------------------------------------------------

    def _group(self, sessions: list[Session]) -> None:
        """Measure the cells of one model in turn, those apart that memory does not hold beside the
        others; then compare them."""
        holders = [Holder(cells) for cells in sessions]
        with self._closing(holders):
            parking = Parking(self.facts)
            for task in tasks_of(sessions):
                self._task(holders, task, parking)
            for holder in holders:
                self._compare_all(holder)
        apart = [holder.cells for holder in holders if holder.apart]
        for cells in apart:
            self._group([cells])
        if apart and len(sessions) > 1:
            # What one that was measured apart had to keep for them is there only now.
            for cells in sessions:
                holder = Holder(cells)
                with self._closing([holder]):
                    self._compare_all(holder)

    @contextlib.contextmanager
    def _closing(self, holders: list[Holder]) -> Iterator[None]:
        """End all workers in the end, at once where something went wrong."""
        try:
            yield
        except BaseException:
            # Interrupted, or the disk is full: nothing that a worker may still say is of use.
            for holder in holders:
                holder.kill()
            raise
        finally:
            for holder in holders:
                self._close(holder)

    def _close(self, holder: Holder) -> None:
        self._ledger.tally.worker_s += holder.close()

    def _task(self, holders: list[Holder], task: PreparedTask, parking: Parking) -> None:
        """The cells of one task: each loaded and scored, then all timed in turn, then certified."""
        schedule = self._schedule(holders, task)
        for holder in holders:
            cell = next((c for c in holder.cells if c.task is task), None)
            if cell is None or holder.apart or holder.lost:
                continue
            if self._is_done(cell):
                if self._decides(cell):
                    self._compare_one(holder, cell)
            elif self._fits(holder, holders, parking):
                self._begin(CellRun(cell, holder, self.folder, self.spec.cell_timeout), schedule)
            else:
                self._put_apart(holder)
        with self._interference() as beside:
            for run, number, place, disturbed in schedule.blocks():
                if disturbed:
                    self._disturb(beside, run, number, place, schedule)
                    continue
                beside.end()
                self._block(run, number, schedule.place(run, number, place), schedule)
        for run in schedule.runs:
            if not run.over:
                self._finish(run, schedule)

    def _is_done(self, planned: PlannedCell) -> bool:
        """Whether nothing of the cell but comparisons is left to be measured."""
        record = self.folder.read_record(planned.cell_id)
        return self._ledger.is_measured(planned) and not lacks_disturbed(planned, record)

    def _schedule(self, holders: list[Holder], task: PreparedTask) -> Schedule:
        first = next(c for h in holders for c in h.cells if c.task is task)
        planned = [c for c in self.plan.to_run if c.ref is first.ref and c.task is task]
        return Schedule(holders, len(planned), first.cell.seed, self.facts, self._began)

    def _fits(self, holder: Holder, holders: list[Holder], parking: Parking) -> bool:
        """Whether the holder may load its model beside those of the others."""
        beside = [h.pid for h in holders if h is not holder and h.is_loaded]
        need = max(load_bytes(holder.cells[0]), *(h.peak_bytes for h in holders))
        return holder.is_loaded or not beside or parking.fits(need, beside, holder.cells[0].split)

    def _put_apart(self, holder: Holder) -> None:
        """Have a session wait until the others are measured."""
        holder.apart = True
        self._close(holder)
        name = holder.cells[0].cell.format
        self._ledger.note(f"{name}: measured apart, as memory does not hold it beside the others")

    def _decides(self, planned: PlannedCell) -> bool:
        """Whether it is the reference by whose scores and noise floor others stop being scored."""
        return planned.in_looks and self.comparisons.reference(planned) is planned

    def _begin(self, run: CellRun, schedule: Schedule) -> None:
        """Load and score a cell, and put it among those to be timed."""
        planned = run.planned
        self._ledger.event("start", planned)
        if not run.holder.is_loaded and not self._loaded(run, schedule):
            return
        try:
            self._score(run)
            schedule.add(run, self.comparisons.reference(planned) is planned)
            if self._decides(planned):
                self._ahead(run, schedule)
        except LOST as error:
            self._lost(run, error, schedule)

    def _loaded(self, run: CellRun, schedule: Schedule) -> bool:
        """Load the model of a cell. False where that failed, which all cells of the session share,
        or where there was no room beside the others."""
        holder = run.holder
        self._close(holder)
        try:
            with run.counted():
                self._load(holder, run.planned, run.left_s)
            return True
        except LOST as error:
            if self._is_crowded_out(run, error, schedule):
                return False
            holder.lost = run.over = True
            for planned in holder.cells:
                if not self._ledger.is_measured(planned):
                    self._ledger.failed(planned, error, run if planned is run.planned else None)
            self._close(holder)
            return False

    def _started(self) -> BaseContext:
        """Where processes come from."""
        if self._context is None:
            self._context = start_context(preload=bool(self.spec.local_runtimes))
        return self._context

    def _load(self, holder: Holder, planned: PlannedCell, limit_s: float) -> None:
        """Start the holder's worker and load the model that `planned` shares with its cells."""
        deadline = time.monotonic() + limit_s
        worker = WorkerHandle(self._started(), self.on_event)
        own = holder.start(worker)
        self._ledger.tally.ready_s.append(worker.ready_s)
        request = load_request(planned, self.spec, self.facts, self._log(planned))
        holder.load, _ = worker.ask(request | own, deadline)
        holder.saw(holder.load)

    def _score(self, run: CellRun) -> None:
        """All before the timed part: what was loaded is stored and, unless it was before, compiled
        and scored."""
        planned, holder = run.planned, run.holder
        assert holder.load is not None
        steps = None
        if planned.in_looks:
            steps = Looks(self.folder, planned, self._scored_reference(planned))
        run.keep("load", holder.load)
        if RUNTIMES[planned.cell.runtime].compiles:
            shapes = {"looks": steps.ends} if steps is not None else {}
            run.keep("compile", *run.ask(shapes | {"op": "compile"}))
            holder.compiled.add(planned.cell_id)
        if "quality" not in run.answers and not planned.has_quality:
            run.keep("quality", NO_QUALITY | {"session": run.session})
        if "quality" not in run.answers:
            session: int | None = run.session
            if steps is None:
                answer, rows = run.ask({"op": "quality"})
            else:
                # Half of the time is kept for what else is measured.
                until = time.monotonic() + run.left_s - self.spec.cell_timeout / 2
                answer, rows = steps.score(run.ask, until)
                session = None if steps.resumed else session
            run.keep("quality", answer | {"session": session}, rows)
        holder.saw(run.answers["quality"])
        run.ask({"op": "park"})

    def _ahead(self, run: CellRun, schedule: Schedule) -> None:
        """A reference's first block and its comparisons, before the others are scored."""
        if not run.has_block(0):
            self._block(run, 0, schedule.early_place(run), schedule)
        if run.over:
            return
        worker, planned = run.holder.worker, run.planned
        assert worker is not None
        self._compare(worker, planned, planned.cell_id in run.holder.compiled)
        run.compared = True
        # It may have ended in the comparison, which costs no more than that.
        self._again(run, schedule)

    def _again(self, run: CellRun, schedule: Schedule) -> None:
        """Where the worker has ended, load the model of a scored cell in another one."""
        if not run.holder.is_loaded and self._loaded(run, schedule):
            run.in_new_process()
            self._score(run)

    def _block(self, run: CellRun, number: int, place: Json, schedule: Schedule) -> None:
        """One round's block of a cell."""
        planned = run.planned
        self._ledger.event("round", planned, round=number, rounds=run.rounds)
        reference = self.comparisons.reference(planned)
        load = offered(self.load, planned, reference, self.folder, number)
        try:
            how = {"op": "block", "round": number, "first": not run.served}
            answer, rows = run.ask(load | how)
        except LOST as error:
            self._lost(run, error, schedule)
            return
        if is_crowded(answer) and schedule.has_others(run.holder):
            self._put_off(run)
            return
        run.served = True
        marks = {"session": run.session, "compared": run.compared, "place": place}
        run.keep(block_name(number), answer | marks, rows)

    def _interference(self) -> Interference:
        log = str(self.folder.log_path("background").resolve())
        limit_s = self.spec.cell_timeout
        return Interference(Neighbours(self.background, self._started, self.on_event, log, limit_s))

    def _disturb(
        self, beside: Interference, run: CellRun, number: int, place: int, schedule: Schedule
    ) -> None:
        """One round's block of a cell beside the background, under the load of that alone."""
        planned = run.planned
        self._ledger.event("round", planned, round=number, rounds=run.rounds, disturbed=True)
        # After the first block, also in the first round: that has shown what a share is of.
        load = offered(
            self.load, planned, self.comparisons.reference(planned), self.folder, number + 1
        )
        load = same_load(load, run.answers[block_name(number)])
        failed = beside.block(run, number, load, schedule.place(run, number, place))
        if failed is None:
            return
        self._ledger.note(f"{planned.cell.format}: not measured beside the background: {failed}")
        try:
            self._again(run, schedule)
        except LOST as error:
            self._lost(run, error, schedule)

    def _finish(self, run: CellRun, schedule: Schedule) -> None:
        """What multiplied, the record, and the profile: after all that is measured, so that
        watching disturbs nothing."""
        planned, worker = run.planned, run.holder.worker
        assert worker is not None
        try:
            # It may stand from a parent that ended before the record was written.
            if "certificate" not in run.answers:
                with run.counted():
                    deadline = time.monotonic() + run.left_s
                    certificate = self._certificate(worker, run.request, deadline)
                run.keep("certificate", certificate)
        except LOST as error:
            self._lost(run, error, schedule)
            return
        samples = run.samples()
        if samples:
            self.folder.write_samples(planned.cell_id, samples)
        # Already now: an interrupt in the profile takes nothing with it that was measured.
        self._ledger.measured(run)
        # Into a server nothing looks.
        if not planned.served and "profile" not in run.answers:
            with run.counted():
                profile = self._profile(worker, run.request, time.monotonic() + run.left_s)
            run.keep("profile", profile)
            self._ledger.measured(run)
        run.over = True
        self.comparisons.join(planned)
        self._ledger.done(planned, reused=False)

    def _certificate(self, worker: WorkerHandle, request: Json, deadline: float) -> Json:
        """The worker's answer; that nothing is proved where the pass could not be watched. A label
        that was seen to be untrue is raised on, and fails the cell."""
        try:
            return worker.ask(request | {"op": "certificate"}, deadline)[0]
        except (WorkerError, WorkerGone) as error:
            if error.answer["kind"] == FormatNotApplied.__name__:
                raise
            worker.kill()
            return unproved(without_paths(str(error)))

    def _profile(self, worker: WorkerHandle, request: Json, deadline: float) -> Json:
        """The worker's answer, or ``why`` it gave none: what the cell is measured for is there
        already, and is not lost for want of an explanation."""
        if not worker.process.is_alive():
            return {"why": "the worker ended in the certificate's pass"}
        roof = None if self.roof is None else self.roof.model_dump(mode="json")
        try:
            return worker.ask(request | {"op": "profile", "roof": roof}, deadline)[0]
        except (WorkerError, WorkerGone) as error:
            worker.kill()
            why = without_paths(str(error))
            self._ledger.note(f"no profile, so no diagnosis of this cell: {why}")
            return {"why": why}

    def _complete(self, holder: Holder, planned: PlannedCell) -> None:
        """The profile of a cell that an earlier sweep had measured when it ended."""
        if not self._ledger.lacks_profile(planned):
            return
        answer = self.folder.read_answer(planned.cell_id, "profile")
        if answer is None:
            answer = self._profile_late(holder, planned)
            self.folder.write_part(planned.cell_id, "profile", answer, b"")
        self._ledger.profiled(planned, answer)

    def _profile_late(self, holder: Holder, planned: PlannedCell) -> Json:
        self._ledger.note(f"{planned.cell.format}: is profiled now, as its sweep ended before that")
        request = task_request(planned, self._log(planned))
        try:
            if not holder.is_loaded:
                self._close(holder)
                self._load(holder, planned, self.spec.cell_timeout)
            assert holder.worker is not None
            deadline = time.monotonic() + self.spec.cell_timeout
            if RUNTIMES[planned.cell.runtime].compiles and planned.cell_id not in holder.compiled:
                holder.worker.ask(request | {"op": "compile"}, deadline)
                holder.compiled.add(planned.cell_id)
            return self._profile(holder.worker, request, deadline)
        except LOST as error:
            self._close(holder)
            return {"why": without_paths(str(error) or "the worker did not start")}

    def _scored_reference(self, planned: PlannedCell) -> PlannedCell | None:
        """The cell that `planned` is compared with, if it was scored; None for the reference."""
        other = self.comparisons.reference(planned)
        if other is None or other is planned or not self._ledger.is_scored(other):
            return None
        return other

    # -- what went wrong -----------------------------------------------------------------------

    def _lost(self, run: CellRun, error: Exception, schedule: Schedule) -> None:
        """A worker's error or end: the cell has failed, unless memory only did not hold its model
        beside the others."""
        if self._is_crowded_out(run, error, schedule):
            return
        run.over = True
        if self._ledger.is_measured(run.planned):
            # Only its disturbed part was measured again.
            self._ledger.note(f"{run.planned.cell.format}: {without_paths(str(error))}")
        else:
            self._ledger.failed(run.planned, error, run)
        self._close(run.holder)

    def _is_crowded_out(self, run: CellRun, error: Exception, schedule: Schedule) -> bool:
        status = getattr(error, "answer", {}).get("status")
        if status != "out_of_memory" or not schedule.has_others(run.holder):
            return False
        self._put_off(run)
        return True

    def _put_off(self, run: CellRun) -> None:
        """Measure the cell alone when the others are done, and anew, in one process."""
        run.over = True
        if run.holder.load is not None:
            self.folder.set_aside_parts(run.planned.cell_id)
        self._put_apart(run.holder)

    def _compare_all(self, holder: Holder) -> None:
        """Audit the cells of a session and compare them with their references, then let the worker
        go. After all cells are measured, so that none holds what comparing another has left."""
        if holder.apart:
            return
        for planned in holder.cells:
            if self._ledger.is_measured(planned):
                self._complete(holder, planned)
                self.audits.make(holder, planned)
                self._compare_one(holder, planned)
                self._ledger.done(planned, reused=True)
        self._close(holder)

    def _compare_one(self, holder: Holder, planned: PlannedCell) -> None:
        """All that the cell lacks, by another worker where one ends in it."""
        while lacking := self.comparisons.lacking(planned):
            try:
                if not holder.is_loaded:
                    self._load_again(holder, planned)
            except LOST as error:
                for ask in lacking:
                    self._not_compared(planned, ask.part, error)
                self._close(holder)
                break
            assert holder.worker is not None
            self._compare(holder.worker, planned, planned.cell_id in holder.compiled)
        self.comparisons.join(planned)

    def _compare(self, worker: WorkerHandle, planned: PlannedCell, compiled: bool) -> None:
        """Ask for the comparisons that the cell still lacks; one that fails costs only itself.
        `compiled`: whether the worker has compiled the model, where the runtime does."""
        if not worker.process.is_alive() or not self.comparisons.lacking(planned):
            return
        self._ledger.event("compare", planned)
        request = task_request(planned, self._log(planned))
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
        which = f"no comparison with the reference ({part.partition('-')[0]})"
        self._ledger.note(f"{planned.cell.format}: {which}: {why}")

    def _log(self, planned: PlannedCell) -> str:
        return str(self.folder.log_path(planned.cell_id).resolve())
