"""A sweep on several places at once: which lot goes where, what becomes of one whose place is lost,
and the one folder that all of it comes into. No torch here.

Each place has a thread here that waits for what it sends. All that they do beside that, they do one
at a time: the run's folder has one writer at any moment, and so has the progress display.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.plan import PlannedCell, SweepSpec
from precision_explorer.runner.beside import measured_beside
from precision_explorer.runner.environment import variables_to_send
from precision_explorer.runner.ledger import Ledger, Tally
from precision_explorer.runner.local import Executor
from precision_explorer.runner.lots import Lot, Replay, files_of, lots, start_anew, task_cells
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.offered import offered
from precision_explorer.runner.places import (
    ALL,
    ENDING_S,
    Place,
    PlaceFailed,
    PlaceLost,
    Slot,
    Source,
    Told,
    asking,
    close_all,
    join_all,
    understood,
)

Json = dict[str, Any]
CRASHES = ("WorkerCrashed", "WorkerBroken", "DeviceLost")
"""Kinds of errors after which a cell is tried once more: chance may have had a part in them. Out of
memory, invalid numerics, a time limit or an untrue label come again, and are not tried again."""
MOST_LOSSES = 2
"""Places that a lot may lose one after the other, with no cell finished in between: more than that
is no chance, and it would take down what else is there."""
MOST_STARTS = 3
"""Times that one slot is lost, or does not start, before it is left alone."""
# How long a lot waits for a place where none is left. A declared choice: longer than it takes to
# start a node that is installed.
_WAIT_S = 60.0
_LOOK_S = 0.2
# How often a cluster is asked what is there, while some of it is at work for this sweep.
_FREE_S = 1.0
# Threads of places that have ended do so at once; those that wait for one to start do not.
_LEAVING_S = 1.0


class Pool:
    """The places of a sweep: those that were started, by slot, and those that are no good."""

    def __init__(self, source: Source, spec: SweepSpec, on_event: OnEvent) -> None:
        self.source, self.spec, self.on_event = source, spec, on_event
        self.limit: int | None = 1 if spec.one_at_a_time else None
        """Places at once; None for as many as there are."""
        self.told: Told | None = None
        """Of the first place, which all others must be like."""
        self._idle: dict[str, Place] = {}
        self._open: set[Place] = set()
        self._left_out: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    def first(self) -> Place:
        """A place to ask before there is a plan. UsageError where there is none."""
        why = "none is offered"
        for slot in self.source.slots():
            try:
                place = self.start(slot)
            except PlaceLost as lost:
                why = str(lost)
                continue
            if place is not None:
                self._idle[slot.key] = place
                return place
            why = "each was left out"
        raise UsageError(
            f"--executor {self.source.executor}: no place to measure on ({why}); check what the "
            "cluster offers, and --on, --cores and --device"
        )

    def start(self, slot: Slot) -> Place | None:
        """The place of `slot`, started now unless it was; None for one that can't be used, which is
        said once. Raises PlaceLost where it does not start."""
        idle = self._idle.pop(slot.key, None)
        if idle is not None:
            return idle
        device = self.spec.device
        hello = {
            "executor": self.source.executor,
            "place": slot.name,
            "device_type": slot.device_type,
            # A place sees one GPU, whatever the number was elsewhere.
            "device": slot.device or ("auto" if device == ALL else device.partition(":")[0]),
            "cores": self.source.cores,
            "variables": variables_to_send(),
            "beside": sum(one.machine == slot.machine for one in self.source.slots()),
        }
        line = self.source.open(slot)
        try:
            place = Place(slot, line, hello, self.on_event)
        except PlaceFailed as failed:
            self._leave_out(slot, str(failed))
            return None
        with self._lock:
            self._open.add(place)
            closed = self._closed
        if closed:
            place.close()
            raise PlaceLost("the sweep has ended")
        self.told = self.told or place.told
        unlike = _unlike(self.told, place.told)
        if unlike is not None:
            self.close_one(place)
            self._leave_out(slot, unlike)
            return None
        return place

    def start_idle(self, most: int) -> list[Place]:
        """Up to so many places, started now, which wait for the first lots."""
        found = []
        for slot in self.free()[:most]:
            with contextlib.suppress(PlaceLost):  # It is tried again when there is a lot for it.
                place = self.start(slot)
                if place is not None:
                    self._idle[slot.key] = place
                    found.append(place)
        return found

    def _leave_out(self, slot: Slot, why: str) -> None:
        self._left_out.add(slot.key)
        self.on_event(Event("note", {"text": f"{slot.name} is left out: {why}"}))

    def free(self) -> list[Slot]:
        """Slots that are of use, those in use among them; first those whose place waits already."""
        slots = [s for s in self.source.slots() if s.key not in self._left_out]
        return sorted(slots, key=lambda slot: (slot.key not in self._idle, slot.name))

    def close_one(self, place: Place) -> None:
        """End a place."""
        with self._lock:
            self._open.discard(place)
        place.close()

    def end_places(self) -> None:
        """End all places, at once; none is started any more."""
        with self._lock:
            self._closed = True
            places = list(self._open)
        close_all([place.close for place in places])
        self._idle.clear()

    def close(self) -> None:
        """End all places, then what the source has started."""
        self.end_places()
        self.source.close()


def _unlike(first: Told, other: Told) -> str | None:
    """Why two places are no alternatives for one cell; None where they are."""
    if first.versions != other.versions:
        names = sorted(first.versions.keys() | other.versions.keys())
        differ = [n for n in names if first.versions.get(n) != other.versions.get(n)]
        return f"it has other versions of {', '.join(differ)}; install the same everywhere"
    if first.alike == other.alike:
        return None
    what = [n for n, value in first.alike.items() if other.alike.get(n) != value]
    return (
        f"it is another device ({other.facts.name} beside {first.facts.name}: {', '.join(what)}), "
        "whose cells compare with none of these; run it as a sweep of its own, by --on and --out"
    )


@dataclass
class _Count:
    """What became of each cell, by the last that was said of it."""

    cells: dict[str, str] = field(default_factory=dict)
    worker_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """Note the end of a cell; one that was measured by this sweep stays so."""
        if event.name != "cell":
            return
        data = event.data
        how = "failed" if data["status"] != "ok" else "reused" if data["reused"] else "ran"
        if self.cells.get(data["cell_id"]) != "ran" or how == "failed":
            self.cells[data["cell_id"]] = how

    def tally(self, skipped: int) -> Tally:
        """The same as a tally."""
        known = list(self.cells.values())
        ran, reused, failed = (known.count(name) for name in ("ran", "reused", "failed"))
        return Tally(ran, reused, failed, skipped, self.worker_s, self.ready_s)


class Spread:
    """The executor that has its lots measured on the places of a pool. `local`: the local executor
    of the same sweep, for what is done beside the folder: its skips, its checks, and what needs no
    measuring."""

    def __init__(self, local: Executor, pool: Pool) -> None:
        self._local, self._pool = local, pool
        self._count = _Count()
        self._told = local.on_event
        self._ledger = Ledger(local.folder, local.environment, local.roof, self._on_event)
        self._replay = Replay(local.folder, self._on_event)
        self._lock = threading.Condition(threading.RLock())
        pool.on_event = self._on_event
        self._waiting: deque[Lot] = deque()
        self._under_way = 0
        self._used: dict[str, threading.Thread] = {}
        self._lost: Counter[str] = Counter()
        self._retried: set[str] = set()
        self._error: BaseException | None = None
        self._beside_change: float | None = None
        self._none_since: float | None = None
        self._stopped = False

    def _on_event(self, event: Event) -> None:
        with self._lock:
            self._count.see(event)
            self._told(event)

    def run(self) -> Tally:
        """Run every cell that has no finished record; as `Executor.run`."""
        self._local.begin()
        for lot in lots(self._local.plan):
            if self._local.lacks_any(lot.cells):
                start_anew(self._local.folder, lot)
                self._waiting.append(lot)
            else:
                for planned in lot.cells:
                    self._ledger.done(planned, reused=True)
        try:
            self._check_beside()
            # What asks a cluster is in a thread of its own: an interrupt, which reaches the main
            # one, may be lost in another library's code.
            driver = threading.Thread(target=self._drive, name="places", daemon=True)
            driver.start()
            while driver.is_alive():
                driver.join(_LOOK_S)
        finally:
            self._stop()
        if self._error is not None:
            raise self._error
        return self._count.tally(self._local.tally.skipped)

    def _check_beside(self) -> None:
        """Where places share a machine: whether they disturb one another; one at a time if so."""
        pool, local = self._pool, self._local
        if not pool.source.shares_machine or pool.limit is not None or len(self._waiting) < 2:
            return
        places = pool.start_idle(len(self._waiting))
        if len(places) < 2:
            return
        first = self._waiting[0].cells[0]
        planned = local.comparisons.reference(first) or first
        told = offered(local.load, planned, planned, local.folder, 0)
        threads = planned.cell.threads
        found = measured_beside(places, planned, local.spec, told, threads, self._on_event)
        self._ledger.note(found.words)
        if found.disturbs:
            pool.limit = 1
        else:
            self._beside_change = found.change

    def _drive(self) -> None:
        """Start places as there are lots for them, until none is left or something went wrong."""
        try:
            while self._is_going_on():
                free = self._pool.free()
                with self._lock:
                    self._start_places(free)
                    self._lock.wait(_FREE_S if self._used else _LOOK_S)
        except BaseException as error:
            with self._lock:
                self._error = self._error or error

    def _is_going_on(self) -> bool:
        with self._lock:
            if self._used or not self._waiting:
                self._none_since = None
            elif self._none_since is None:
                self._none_since = time.monotonic()
            elif time.monotonic() - self._none_since > _WAIT_S:
                self._give_up()
            left = self._waiting or self._under_way
            return bool(left) and self._error is None and not self._stopped

    def _start_places(self, free: list[Slot]) -> None:
        """One thread more for each lot that waits, as far as there are places that are `free` or
        used."""
        wanted = len(self._waiting) + self._under_way - len(self._used)
        if self._pool.limit is not None:
            wanted = min(wanted, self._pool.limit - len(self._used))
        busy = [slot.machine for slot in free if slot.key in self._used]
        free = [s for s in free if s.key not in self._used and self._lost[s.key] < MOST_STARTS]
        # A machine that is less in use goes first.
        free.sort(key=lambda slot: busy.count(slot.machine))
        # One that was lost may have taken its machine with it; it is tried when no other is there.
        good = [slot for slot in free if not self._lost[slot.key]]
        for slot in (good or (free if not self._used else []))[: max(wanted, 0)]:
            thread = threading.Thread(target=self._serve, args=(slot,), name=slot.name, daemon=True)
            self._used[slot.key] = thread
            thread.start()

    def _give_up(self) -> None:
        """Record the cells for which no place is left."""
        lost = PlaceLost("no place is left, and none came")
        while self._waiting:
            self._fail(self._waiting.popleft(), lost)

    # -- one place, in its thread ----------------------------------------------------------------

    def _serve(self, slot: Slot) -> None:
        """Have lots measured on the place of `slot` for as long as there are any."""
        place = None
        try:
            place = self._pool.start(slot)
            while place is not None and (lot := self._next()) is not None:
                if not self._measure(place, lot):
                    break
        except PlaceLost as lost:
            with self._lock:
                self._lost[slot.key] += 1
                if not self._stopped:
                    self._ledger.note(f"{slot.name} did not start: {lost}")
        except BaseException as error:
            with self._lock:
                self._error = self._error or error
        finally:
            if place is not None:
                self._pool.close_one(place)
            with self._lock:
                del self._used[slot.key]
                self._lock.notify_all()

    def _next(self) -> Lot | None:
        """The next lot, or None where none is left, or none that may come back."""
        with self._lock:
            while not self._waiting and self._under_way and self._error is None:
                self._lock.wait(_LOOK_S)
            if not self._waiting or self._error is not None or self._stopped:
                return None
            self._under_way += 1
            return self._waiting.popleft()

    def _measure(self, place: Place, lot: Lot) -> bool:
        """Have a lot measured, and what crashed in it once more, by this place alone, as the cells
        that it is compared with are of its machine; whether the place is still of use."""
        left: Lot | None = lot
        try:
            while left is not None:
                before = self._finished(left)
                try:
                    self._ask(place, left)
                except (PlaceLost, PlaceFailed) as error:
                    lost = error if isinstance(error, PlaceLost) else PlaceLost(str(error))
                    with self._lock:
                        self._lost[place.slot.key] += 1
                        self._move(place, left, lost, before)
                    return False
                with self._lock:
                    left = self._again(left)
            return True
        finally:
            with self._lock:
                self._under_way -= 1
                self._lock.notify_all()

    def _ask(self, place: Place, lot: Lot) -> None:
        local = self._local
        with self._lock:
            files = files_of(local.folder, lot)
        request = {
            "op": "lot",
            "spec": local.spec,
            "cells": lot.cells,
            "threads": local.environment.threads,
            "trust_remote_code": local.spec.trust_remote_code,
            "roof": local.roof,
            "load": local.load,
            "background": local.background,
            "files": files,
            "beside_change": self._beside_change,
        }
        for header, content in place.ask(request):
            with self._lock:
                if self._stopped:
                    raise PlaceLost("the sweep has ended")
                if header["type"] == "end":
                    with understood():
                        worker_s, ready_s = float(header["worker_s"]), header["ready_s"]
                        self._count.ready_s += [float(one) for one in ready_s]
                        self._count.worker_s += worker_s
                else:
                    self._write(place, lot, header, content)

    def _write(self, place: Place, lot: Lot, header: Json, content: bytes) -> None:
        with understood():
            self._replay.message(lot, header, content, place.slot.name)

    # -- what went wrong -------------------------------------------------------------------------

    def _finished(self, lot: Lot) -> set[str]:
        with self._lock:
            return {c.cell_id for c in lot.cells if self._ledger.is_measured(c)}

    def _move(self, place: Place, lot: Lot, lost: PlaceLost, before: set[str]) -> None:
        """What becomes of a lot whose place was lost: another place measures what is not finished,
        unless it has lost several places by now."""
        if self._stopped or self._error is not None:
            return
        after = self._finished(lot)
        lot.losses = 1 if after - before else lot.losses + 1
        where = f"{place.slot.name} was lost ({lost})"
        if lot.losses > MOST_LOSSES:
            self._ledger.note(f"{where}, {lot.losses} in a row with {lot.model}: given up")
            self._fail(lot, lost)
            return
        left = len(lot.cells) - len(after)
        self._ledger.note(f"{where}: {left} cells of {lot.model} go to another place")
        start_anew(self._local.folder, lot)
        self._waiting.appendleft(lot)

    def _fail(self, lot: Lot, lost: PlaceLost) -> None:
        for planned in lot.cells:
            if not self._ledger.is_measured(planned):
                self._ledger.failed(planned, lost, None)

    def _again(self, lot: Lot) -> Lot | None:
        """What is to be measured once more of a lot: cells that crashed, with the finished ones of
        their model."""
        crashed = [c for c in lot.cells if self._has_crashed(c) and c.cell_id not in self._retried]
        if not crashed or self._stopped or self._error is not None:
            return None
        for planned in crashed:
            self._retried.add(planned.cell_id)
            self._ledger.note(f"{planned.cell.format}: crashed, and is tried once more")
        finished = [c for c in lot.cells if self._ledger.is_measured(c)]
        return task_cells(lot, [*finished, *crashed])

    def _has_crashed(self, planned: PlannedCell) -> bool:
        record = self._local.folder.read_record(planned.cell_id)
        return record is not None and record.error is not None and record.error.kind in CRASHES

    def _stop(self) -> None:
        """Have all threads end, by ending their places; nothing more is written after this."""
        with self._lock:
            self._stopped = True
            threads = list(self._used.values())
        self._pool.end_places()
        join_all(threads, _LEAVING_S)
        # Those that wait for a place to start do so until its source is closed.
        self._pool.close()
        join_all(threads, ENDING_S)


@contextlib.contextmanager
def asked_of(pool: Pool | None, spec: SweepSpec) -> Iterator[Told | None]:
    """What the pool's first place is, which is asked inside whatever a device is asked; None, and
    this machine, without a pool."""
    if pool is None:
        yield None
        return
    place = pool.first()
    with asking(place, spec):
        yield place.told
