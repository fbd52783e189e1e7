"""A lane: the process that measures lots on a place (`places.LaneProcess`). Its argument is the
number of the descriptor on which it is asked. No torch here.

It owns the fork server of its workers and, where cores were declared, binds itself, and with that
all that it starts, to cores that no other place has. Requests are pickled dicts with ``op``:
``hello``, ``worker``, ``ask``, ``dismiss``, ``lot``. Each is answered by headers with bytes
(`runner.protocol`), the last one of type ``end`` or ``error``. When the descriptor is closed the
lane ends at once, with its workers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from precision_explorer.errors import PrecisionExplorerError, UsageError
from precision_explorer.hardware import (
    DeviceFacts,
    device_facts,
    library_versions,
    resolve_device,
)
from precision_explorer.plan import Plan
from precision_explorer.records import Environment, Placement
from precision_explorer.runner.cores import Cores, near_device, take_cores
from precision_explorer.runner.environment import make_environment, take_variables
from precision_explorer.runner.guard import HELD
from precision_explorer.runner.local import Executor
from precision_explorer.runner.lots import SentFolder
from precision_explorer.runner.manager import (
    Event,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    kill_workers,
    prepare_environment,
    start_context,
)
from precision_explorer.runner.protocol import reply

Json = dict[str, Any]


class Lane:
    """What answers. `send`: a header and bytes, to who asked."""

    facts: DeviceFacts
    environment: Environment

    def __init__(self, send: Any) -> None:
        self._send = send
        self._worker: WorkerHandle | None = None
        self._cores: Cores | None = None
        self._work = tempfile.TemporaryDirectory(
            prefix="precision-explorer-lane-", ignore_cleanup_errors=True
        )

    def answer(self, request: Json) -> None:
        """Answer one request, an error by its one line."""
        operation = {
            "hello": self._hello,
            "worker": self._start_worker,
            "ask": self._ask,
            "dismiss": self._dismiss,
            "lot": self._lot,
        }[request["op"]]
        try:
            header, content = operation(request)
        except (PrecisionExplorerError, OSError, WorkerGone) as error:
            text = str(error).strip() or type(error).__name__
            self._send({"type": "error", "message": " ".join(text.split())[:500]}, b"")
            return
        self._send({"type": "end"} | header, content)

    # -- what it is ------------------------------------------------------------------------------

    def _hello(self, request: Json) -> tuple[Json, bytes]:
        """Bind to cores, and tell of the device and the software."""
        cores, note = request["cores"], None
        # Before the device is asked: some forbid instructions.
        take_variables(request["variables"])
        device = resolve_device(request["device"])
        if cores is not None:
            near = near_device(device_facts(device).pci_bus_id)
            self._cores = take_cores(cores, near)
            if self._cores is not None:
                self._cores.bind()
            elif device == "cpu":
                raise UsageError(
                    f"{cores} whole cores that no other place has are not free on its machine; "
                    "declare fewer by --cores, or wait for what has them"
                )
            else:
                note = (
                    f"{cores} cores that no other place has are not free on its machine, so that "
                    "its processes may wait for others'; declare fewer by --cores"
                )
        facts = device_facts(device)
        # What a lot's models may take together is of the share of this place.
        share = facts.memory_bytes // max(request["beside"], 1)
        facts = facts.model_copy(update={"memory_bytes": share})
        if cores is not None:
            facts = facts.model_copy(update={"cores": min(cores, facts.cores)})
        placement = Placement(
            executor=request["executor"],
            place=request["place"],
            device_type=request["device_type"],
            cpus=None if self._cores is None else self._cores.cpus,
        )
        versions = library_versions()
        self.facts = facts
        self.environment = make_environment(facts, facts.cores, versions, placement)
        told = {
            "facts": facts.model_dump(mode="json"),
            "environment": self.environment.model_dump(mode="json"),
            "versions": versions,
            "note": note,
        }
        return told, b""

    def _prepare(self, request: Json) -> None:
        prepare_environment(request["threads"] or self.facts.cores, request["trust_remote_code"])

    def _on_event(self, event: Event) -> None:
        self._send({"type": "event", "name": event.name, "data": event.data}, b"")

    # -- questions from before the plan ----------------------------------------------------------

    def _start_worker(self, request: Json) -> tuple[Json, bytes]:
        self._dismiss(request)
        self._prepare(request)
        self._worker = WorkerHandle(start_context(), self._on_event)
        return {}, b""

    def _ask(self, request: Json) -> tuple[Json, bytes]:
        """The answer of the worker, or how it failed, for who asked to judge."""
        assert self._worker is not None, "worker comes first"
        asked = request["request"]
        # Those that were named are paths of the machine that asks.
        own = {name: str(Path(self._work.name) / name) for name in ("log", "compile_cache")}
        asked = asked | {name: path for name, path in own.items() if name in asked}
        try:
            answer, content = self._worker.ask(asked, time.monotonic() + request["limit_s"])
        except (WorkerError, WorkerGone) as error:
            return {"failed": error.answer}, b""
        return {"answer": answer}, content

    def _dismiss(self, request: Json) -> tuple[Json, bytes]:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
        return {}, b""

    # -- a lot -----------------------------------------------------------------------------------

    def _lot(self, request: Json) -> tuple[Json, bytes]:
        """Measure a lot by the local executor, into a folder that is sent as it is written."""
        self._dismiss(request)
        self._prepare(request)
        threads = request["threads"] or self.facts.cores
        placement = self.environment.placement
        assert placement is not None
        placed = placement.model_copy(update={"beside_change": request["beside_change"]})
        with tempfile.TemporaryDirectory(dir=self._work.name) as work:
            folder = SentFolder(Path(work), self._send)
            folder.open()
            try:
                folder.seed(request["files"])
                executor = Executor(
                    request["spec"],
                    Plan(request["cells"]),
                    self.facts,
                    self.environment.model_copy(update={"threads": threads, "placement": placed}),
                    folder,
                    self._on_event,
                    request["roof"],
                    request["load"],
                    request["background"],
                )
                tally = executor.run()
                folder.send_logs()
            finally:
                folder.close()
        return {"worker_s": tally.worker_s, "ready_s": tally.ready_s}, b""

    def remove(self) -> None:
        """Remove what it wrote on this machine."""
        self._work.cleanup()


def _read(connection: Connection, requests: queue.Queue[bytes], lane: Lane) -> None:
    """Take requests until nobody is there to send any; then end, with all workers."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(connection.recv_bytes())
    kill_workers()
    with contextlib.suppress(OSError):
        lane.remove()
    os._exit(0)


def main() -> None:
    """Answer what comes on the descriptor that is named on the command line."""
    connection = Connection(int(sys.argv[1]))
    # The end of a lane is its pipe's: who closes it decides when.
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
    # Now, and not beside the first cell, whose rows need it.
    importlib.import_module("pyarrow.parquet")
    requests: queue.Queue[bytes] = queue.Queue()
    lane = Lane(lambda header, content: reply(connection, header, content))
    threading.Thread(target=_read, args=(connection, requests, lane), daemon=True).start()
    while True:
        # From whoever started this process, as a worker's requests are.
        lane.answer(pickle.loads(requests.get()))
