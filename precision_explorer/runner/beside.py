"""Whether places of one machine disturb one another: the reference measured on one of them while
the others rest, and while they measure it too. No torch here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import PlannedCell, SweepSpec
from precision_explorer.runner.manager import OnEvent, WorkerError, WorkerGone
from precision_explorer.runner.places import (
    Place,
    PlaceFailed,
    PlaceLost,
    PlaceWorker,
    understood,
)
from precision_explorer.runner.requests import load_request, task_request
from precision_explorer.units import share

Json = dict[str, Any]
LIMIT = 0.02
"""A change of the reference beside the others that is larger than this is a disturbance: as much as
the formats that a table tells apart may differ by. A declared choice."""
PAIRS = 3
"""So many times alone, and beside the others, in turn, so that a machine that grows slower is not
taken for a disturbance."""
_FAILED = (PlaceLost, PlaceFailed, WorkerError, WorkerGone, UsageError)


@dataclass(frozen=True)
class Beside:
    """What was found: `change`, of a request's typical time beside the others relative to alone, or
    None and `why` it is not known."""

    change: float | None
    why: str | None = None

    @property
    def disturbs(self) -> bool:
        """Whether cells may not be measured at the same time: where that is not known, too."""
        return self.change is None or abs(self.change) > LIMIT

    @property
    def words(self) -> str:
        """One sentence for who runs the sweep."""
        if self.change is None:
            how = f"it could not be checked whether places disturb one another ({self.why})"
        else:
            how = (
                f"beside the other places the reference's requests took "
                f"{share(abs(self.change), 1)} {'more' if self.change > 0 else 'less'} time than "
                "alone"
            )
        if self.disturbs:
            limit = share(LIMIT, 0)
            return f"{how} (at most {limit} is taken for none): cells run one after the other"
        return f"{how}: cells run on all of them at once"


def measured_beside(
    places: Sequence[Place],
    planned: PlannedCell,
    spec: SweepSpec,
    offered: Json,
    threads: int,
    on_event: OnEvent,
) -> Beside:
    """Measure blocks of `planned` on the first of the `places`, alone and while all others measure
    it too. `offered`: what a block is told beside the cell's task."""
    settings = {"threads": threads, "trust_remote_code": spec.trust_remote_code}
    deadline = time.monotonic() + spec.cell_timeout
    asked = task_request(planned, "log") | offered | {"op": "block", "round": 0}

    def load(place: Place) -> PlaceWorker:
        worker = PlaceWorker(place, on_event, settings)
        request = load_request(planned, spec, place.told.facts, "log")
        worker.ask(request | {"compile_cache": "compiled"}, deadline)
        if RUNTIMES[planned.cell.runtime].compiles:
            worker.ask(task_request(planned, "log") | {"op": "compile"}, deadline)
        # What a first block pays for is no part of either side.
        worker.ask(asked | {"first": True}, deadline)
        return worker

    def block(worker: PlaceWorker) -> float:
        answer, rows = worker.ask(asked | {"first": False}, deadline)
        with understood():
            return typical_s(answer, rows)

    workers: list[PlaceWorker] = []
    try:
        with _threads(len(places)) as pool:
            workers += pool.map(load, places)
        ratios = []
        for _ in range(PAIRS):
            alone_s = block(workers[0])
            with _busy(workers[1:], block):
                ratios.append(block(workers[0]) / alone_s)
        found = Beside(median(ratios) - 1)
    except _FAILED as error:
        found = Beside(None, str(error).partition("; see the cell's log")[0])
    for worker in workers:
        worker.close()
    return found


@contextlib.contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended after the inside, but for an interrupt: who gets that ends the
    places, and with it what the threads wait for."""
    pool = ThreadPoolExecutor(max(count, 1))
    try:
        yield pool
    except Exception:
        pool.shutdown()
        raise
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _busy(workers: Sequence[PlaceWorker], block: Any) -> Iterator[None]:
    """Have `workers` measure block after block while the inside runs; what one raises is raised."""
    done, begun = threading.Event(), threading.Barrier(len(workers) + 1)

    def work(worker: PlaceWorker) -> None:
        try:
            begun.wait()
        except threading.BrokenBarrierError:  # Interrupted before all were there.
            return
        while not done.is_set():
            block(worker)

    with _threads(len(workers)) as pool:
        try:
            running = [pool.submit(work, worker) for worker in workers]
            begun.wait()
            yield
        finally:
            done.set()
            begun.abort()
        for one in running:
            one.result()


def typical_s(answer: Json, rows: bytes) -> float:
    """The median seconds of a block's requests or, where it has none by themselves, of its smallest
    batches. WorkerError where it has neither."""
    import pyarrow as pa

    columns = pa.ipc.open_stream(rows).read_all().to_pydict() if rows else {}
    pairs = zip(columns.get("window", ()), columns.get("latency_s", ()), strict=True)
    found = [took_s for window, took_s in pairs if window == "measure" and took_s is not None]
    rates = (answer.get("throughput") or {}).get("by_batch_size", {})
    for rate in rates.values():
        found = found or [s for s in rate["batch_s"] if s]
    if not found:
        message = "a block of it has no times; use --one-at-a-time"
        raise WorkerError({"status": "failed", "kind": "NoTimes", "message": message})
    return median(found)
