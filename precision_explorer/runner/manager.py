"""The manager: starts workers, asks, waits without spinning, and names whatever goes wrong.

No torch here. One worker session serves the cells of one (model, head, format, runtime, device).
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from precision_explorer import scrub
from precision_explorer.hardware import check_floors, relevant_variables
from precision_explorer.hardware.nvml import gpu_present
from precision_explorer.plan.expand import NVML_CHECK, OWN_VARIABLES, SET_BY_LIBRARIES
from precision_explorer.runner.guard import HELD, HUB_KERNELS, signal_name
from precision_explorer.runner.protocol import receive
from precision_explorer.runner.worker_log import WorkerLog

PRELOAD = "precision_explorer.runner.preload"
# A worker that ends by itself does so in well under a second; later it is killed, and nothing is
# lost.
_GRACE_S = 5.0
# Who stops a whole group of processes has sent the last signal by then.
_SETTLE_S = 0.3
# A process that was killed is gone as soon as the kernel lets it.
_KILLED_S = 1.0
# Longer than the imports take on a slow disk.
_START_S = 120.0
# What multiprocessing says of a process whose fork server was gone when it ended
# (multiprocessing/popen_forkserver.py, poll).
_SERVER_GONE = 255


@dataclass(frozen=True)
class Event:
    """Something a progress display may show. `name`: worker, start, progress, round, cell,
    compare, audit, skip, note."""

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


# Of every worker, whatever the user's environment says: read by libraries when they are imported.
OF_WORKERS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Also the token that `hf auth login` left in a file goes nowhere.
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
}
OFFLINE = ("HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_SET = ("1", "on", "yes", "true")
_asked_offline: list[bool] = []


def asked_offline() -> bool:
    """Whether the user's own environment forbids fetching, before `prepare_environment` did."""
    if not _asked_offline:
        _asked_offline.append(any(os.environ.get(n, "").lower() in _SET for n in OFFLINE))
    return _asked_offline[0]


# Whether workers may run the hub's kernels, and, once it has started, whether those of the fork
# server may, and the variables that change results as the server has them.
_kernels_on: list[bool] = [False]
_server_kernels: list[bool] = []
_server_variables: list[dict[str, str]] = []


@contextlib.contextmanager
def environment_restored() -> Iterator[None]:
    """Give this process its environment back afterwards: who calls from a program of their own has
    not asked for `prepare_environment`'s variables, by which their libraries would fetch nothing
    any more."""
    before = dict(os.environ)
    try:
        yield
    finally:
        scrub.become(before)
        _asked_offline.clear()


def _deciding_variables() -> dict[str, str]:
    """Those that change results and are read when libraries are imported. Threads are told each
    worker anew, and what libraries set in this process counts for none."""
    told = (*OWN_VARIABLES, *SET_BY_LIBRARIES, NVML_CHECK)
    return {name: os.environ[name] for name in relevant_variables(without=told)}


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """multiprocessing has each process it starts run the program's main module once more, for what
    may be pickled of it. Workers need nothing of it: a script without ``if __name__ ==
    "__main__"`` would sweep in each of them again, and what came by stdin can't be run again."""
    own = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = own


def prepare_environment(threads: int, trust_remote_code: bool | None = None) -> None:
    """Variables that libraries read when imported: set before the fork server starts, after
    everything was fetched. The server and all workers inherit them, without those of the user's
    that may hold secrets (`scrub`). `trust_remote_code`: whether workers may run kernels of the
    hub, compiled code that transformers takes in place of its own where `kernels` is installed;
    None leaves that as it is. UsageError where a library is below its security floor."""
    check_floors()
    if trust_remote_code is not None:
        _kernels_on[0] = trust_remote_code and importlib.util.find_spec("kernels") is not None
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
    # A server that runs keeps the environment that it was started with, as does one that the
    # program which calls this has started for work of its own.
    other = bool(_server_kernels) and _server_kernels != _kernels_on
    other |= bool(_server_variables) and _server_variables != [_deciding_variables()]
    other |= not _server_kernels and _server_pid() is not None
    if "forkserver" not in methods or _fork_broke_cuda or other:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD] if preload else [])
    return context


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches the whole process group: the fork server while it imports, and a worker before
    it can say that it ignores it, would die of it with a traceback. What is started in here holds
    `HELD` back; the manager gets them afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It lets SIGINT through once it has started, so it must have.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _vm_oom_kills() -> int:
    try:
        for line in Path("/proc/vmstat").read_text(encoding="utf8").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def _server_pid() -> int | None:
    """The number of this process's fork server, which it has but one of, whoever started it."""
    pid: int | None = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    return pid


@contextlib.contextmanager
def _own_server(context: BaseContext) -> Iterator[None]:
    """Remember what the fork server was started with, where it is started in here."""
    deciding = _deciding_variables()
    try:
        yield
    finally:
        if context.get_start_method() == "forkserver" and not _server_kernels and _server_pid():
            _server_kernels.append(_kernels_on[0])
            _server_variables.append(deciding)


def _has_server_ended() -> bool:
    """Whether the fork server was started and is there no more. It stays to be waited for by
    multiprocessing, which starts another."""
    pid = _server_pid()
    if pid is None or not hasattr(os, "waitid"):
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return True


_alive: weakref.WeakSet[Any] = weakref.WeakSet()


def kill_workers() -> None:
    """End every worker process that there is, without waiting for any."""
    for process in list(_alive):
        with contextlib.suppress(Exception):  # Ended already, or another process's.
            process.kill()


# Before multiprocessing's own end, which asks them by SIGTERM and waits for those that ignore it.
atexit.register(kill_workers)


class WorkerHandle:
    """One worker process, its pipe and its output. `keep`: names of variables that it gets though
    they may hold secrets."""

    output: WorkerLog | None = None
    _killed = _timed_out = False

    def __init__(self, context: BaseContext, on_event: OnEvent, keep: Iterable[str] = ()) -> None:
        from precision_explorer.runner.worker import main

        self.on_event, self._keep = on_event, tuple(keep)
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
        self._killed = False
        self.connection, theirs = context.Pipe()
        ours, output = context.Pipe(duplex=False)
        given = (theirs, output, self._keep) if self._keep else (theirs, output)
        self.process = context.Process(target=main, args=given, daemon=True)  # type: ignore[attr-defined]
        kernels = {HUB_KERNELS: "YES" if _kernels_on[0] else "NO"}
        environment = scrub.environment(OF_WORKERS | kernels, self._keep)
        try:
            with _own_server(context), _interrupts_held(), environment, _without_main():
                self.process.start()
            _alive.add(self.process)
            theirs.close()
            output.close()
            self.output = WorkerLog(ours)
            return self._hello()
        except BaseException:
            # Interrupted before anybody else knows of it.
            if self.process.pid is not None:
                self.process.kill()
            raise

    def _hello(self) -> dict[str, Any]:
        deadline = time.monotonic() + _START_S
        try:
            with self._limited(deadline):
                hello, _ = self._receive(deadline)
            return {"cuda_touched": hello["cuda_touched"]}
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise self._gone(error) from error

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer, forwarding progress.

        Raises WorkerError for an answered error, WorkerGone for a crash or for a deadline (a clock
        of `time.monotonic`) that passed; the worker is dead after either.
        """
        try:
            if self.output is not None and "log" in request:
                self.output.to(request["log"])
            with self._limited(deadline):
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
        except (EOFError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._gone(error) from error
        finally:
            if self.output is not None:
                self.output.settle()

    @contextlib.contextmanager
    def _limited(self, deadline: float) -> Iterator[None]:
        """Kill the process at `deadline`: who waits for the rest of an answer, or for a request
        to be taken, then learns that the worker is gone."""
        left = min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        timer = threading.Timer(left, self._time_out)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _time_out(self) -> None:
        self._timed_out = True
        with contextlib.suppress(OSError, ValueError):  # Ended, or closed, already.
            self.kill_soon()

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytes]:
        connection: Connection = self.connection
        left = deadline - time.monotonic()
        ready = wait([connection, self.process.sentinel], timeout=max(left, 0.0))
        if not ready:
            self.kill()
            self._timed_out = True
            raise EOFError
        if connection in ready or connection.poll():
            return receive(connection)
        raise EOFError

    def _gone(self, cause: Exception) -> WorkerGone:
        self.process.join(_GRACE_S)
        if self._timed_out:
            return WorkerGone(
                "timeout",
                "Timeout",
                "no answer within the cell's time limit; raise --cell-timeout or lower --limit",
            )
        code = self.process.exitcode
        if code is None:
            self.kill()
            text = f"the worker's answer could not be read ({type(cause).__name__}: {cause})"
            return WorkerGone("failed", "WorkerBroken", f"{text}; see the cell's log")
        name = signal_name(code)
        if name is not None or code == _SERVER_GONE:
            # Where all processes were asked to end, this one is too, and the worker has not failed.
            time.sleep(_SETTLE_S)
        if name == "SIGKILL" and _vm_oom_kills() > self._oom_kills:
            return WorkerGone(
                "out_of_memory",
                "OomKilled",
                "the kernel killed the worker for memory; use a smaller model or --memory-limit",
                name,
            )
        how = f"was ended by {name}" if name else f"ended with exit code {code} and no answer"
        if code == _SERVER_GONE and _has_server_ended():
            how = "ended, as its fork server was ended"
        return WorkerGone(
            "failed", "WorkerCrashed", f"the worker {how}; see the cell's log, then run again", name
        )

    def kill(self) -> None:
        """End the process whatever it does."""
        self._killed = True
        self.process.kill()
        self.process.join(_GRACE_S)

    def kill_soon(self) -> None:
        """The same without waiting for it."""
        self._killed = True
        self.process.kill()

    def close(self) -> None:
        """Ask the worker to end; kill it if it does not."""
        if not self._killed:
            with contextlib.suppress(OSError, ValueError):
                self.connection.send({"op": "close"})
        self.process.join(_KILLED_S if self._killed else _GRACE_S)
        if self.process.exitcode is None and not self._killed:
            self.kill()
        self.connection.close()
        if self.output is not None:
            self.output.close()
