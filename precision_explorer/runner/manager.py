"""The manager: starts workers, asks, waits without spinning, and names whatever goes wrong.

No torch here. One worker session serves the cells of one (model, head, format, runtime, device).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from precision_explorer.hardware.nvml import gpu_present
from precision_explorer.plan.expand import NVML_CHECK, OWN_VARIABLES
from precision_explorer.runner.guard import signal_name
from precision_explorer.runner.protocol import receive

PRELOAD = "precision_explorer.runner.preload"
# A worker that ends by itself does so in well under a second; later it is killed, and nothing is
# lost.
_GRACE_S = 5.0
# Longer than the imports take on a slow disk.
_START_S = 120.0


@dataclass(frozen=True)
class Event:
    """Something a progress display may show. `name`: worker, start, progress, round, cell,
    compare, skip, note."""

    name: str
    data: dict[str, Any]


OnEvent = Callable[[Event], None]


class WorkerGone(Exception):
    """A worker that did not answer. `status`, `message` and `signal` go into the record."""

    def __init__(self, status: str, kind: str, message: str, signal: str | None = None) -> None:
        super().__init__(message)
        self.answer = {"status": status, "kind": kind, "message": message, "signal": signal}


class WorkerError(Exception):
    """A worker that answered with an error; `answer` as in `guard.error_answer`."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(answer["message"])
        self.answer = answer


OFFLINE = ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_SET = ("1", "on", "yes", "true")
_asked_offline: list[bool] = []


def asked_offline() -> bool:
    """Whether the user's own environment forbids fetching, before `prepare_environment` did."""
    if not _asked_offline:
        _asked_offline.append(any(os.environ.get(n, "").lower() in _SET for n in OFFLINE))
    return _asked_offline[0]


def prepare_environment(threads: int) -> None:
    """Variables that libraries read when imported: set before the fork server starts, after
    everything was fetched. The server and all workers inherit them."""
    asked_offline()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ[NVML_CHECK] = "1"
    for name in OWN_VARIABLES:
        os.environ[name] = str(threads)


# Filled once a forked worker was found whose server had touched CUDA.
_fork_broke_cuda: list[bool] = []


def start_context(preload: bool = True) -> BaseContext:
    """A fork server with torch and transformers preloaded, unless nothing is run here; spawn where
    there is none, or where its workers could not use CUDA."""
    methods = multiprocessing.get_all_start_methods()
    if "forkserver" not in methods or _fork_broke_cuda:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD] if preload else [])
    return context


def _vm_oom_kills() -> int:
    try:
        for line in Path("/proc/vmstat").read_text(encoding="utf8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


class WorkerHandle:
    """One worker process and its pipe."""

    def __init__(self, context: BaseContext, on_event: OnEvent) -> None:
        from precision_explorer.runner.worker import main

        self.on_event = on_event
        started = time.monotonic()
        self._oom_kills = _vm_oom_kills()
        hello = self._start(start_context() if _fork_broke_cuda else context, main)
        # Without a GPU nothing is lost by having asked for one.
        if hello["cuda_touched"] and gpu_present():
            # A library of the server's asks CUDA when it is imported: from now on without a server.
            self.kill()
            _fork_broke_cuda.append(True)
            hello = self._start(start_context(), main)
        self.ready_s = time.monotonic() - started
        if hello["cuda_touched"] and gpu_present():
            self.kill()
            raise WorkerGone(
                "failed",
                "CudaTouched",
                "CUDA was initialised before the worker began, so it can't work in it; report this "
                "with the versions of torch and transformers",
            )
        self.busy_s = 0.0
        """Seconds that the worker itself spent on what it answered."""
        on_event(Event("worker", {"pid": self.process.pid, "ready_s": self.ready_s}))

    def _start(self, context: BaseContext, main: Callable[..., None]) -> dict[str, Any]:
        """Start the process; what it says of itself."""
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(theirs,), daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        theirs.close()
        return self._hello()

    def _hello(self) -> dict[str, Any]:
        try:
            hello, _ = self._receive(deadline=time.monotonic() + _START_S)
            return {"cuda_touched": hello["cuda_touched"]}
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise self._gone(error) from error

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer, forwarding progress.

        Raises WorkerError for an answered error, WorkerGone for a crash or for a deadline (a clock
        of `time.monotonic`) that passed; the worker is dead after either.
        """
        try:
            self.connection.send(request)
            while True:
                header, arrow = self._receive(deadline)
                if header["type"] == "progress":
                    self.on_event(Event("progress", header))
                    continue
                if header["type"] == "error":
                    raise WorkerError(header)
                self.busy_s += header["seconds"]
                return header["answer"], arrow
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise self._gone(error) from error

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        connection: Connection = self.connection
        left = deadline - time.monotonic()
        ready = wait([connection, self.process.sentinel], timeout=max(left, 0.0))
        if not ready:
            self.kill()
            raise WorkerGone(
                "timeout",
                "Timeout",
                "no answer within the cell's time limit; raise --cell-timeout or lower --limit",
            )
        if connection in ready or connection.poll():
            return receive(connection)
        raise EOFError

    def _gone(self, cause: Exception) -> WorkerGone:
        self.process.join(_GRACE_S)
        code = self.process.exitcode
        if code is None:
            self.kill()
            text = f"the worker's answer could not be read ({type(cause).__name__}: {cause})"
            return WorkerGone("failed", "WorkerBroken", f"{text}; see the cell's log")
        name = signal_name(code)
        if name == "SIGKILL" and _vm_oom_kills() > self._oom_kills:
            return WorkerGone(
                "out_of_memory",
                "OomKilled",
                "the kernel killed the worker for memory; use a smaller model or --memory-limit",
                name,
            )
        how = f"was ended by {name}" if name else f"ended with exit code {code} and no answer"
        return WorkerGone(
            "failed", "WorkerCrashed", f"the worker {how}; see the cell's log, then run again", name
        )

    def kill(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        self.process.join(_GRACE_S)

    def close(self) -> None:
        """Ask the worker to end; kill it if it does not."""
        with contextlib.suppress(OSError, ValueError):
            self.connection.send({"op": "close"})
        self.process.join(_GRACE_S)
        if self.process.exitcode is None:
            self.kill()
        self.connection.close()
