"""The processes beside a worker that hold the other shares of a model whose tensors are split. Each
loads its share as the worker does, and makes every call that runs the model when the worker does.

They are forked from the worker before it has read anything, so that they cost no imports, and end
with it. One that ends before ends the cell: a device that waits for another waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from precision_explorer.errors import DoesNotFit, ModelError, PrecisionExplorerError
from precision_explorer.measure import CudaPeakMemory, NullPhases, PeakMemory, Phases, count_as_own
from precision_explorer.measure.throughput import is_out_of_memory
from precision_explorer.models.adapter import Adapter
from precision_explorer.runner.guard import die_with_parent, error_answer, signal_name

if TYPE_CHECKING:
    from precision_explorer.runner.session import Session

Json = dict[str, Any]
GiveUp = Callable[[BaseException], NoReturn]
"""Tell the manager of an error and end this process, whatever its main thread waits for."""

MIRRORED = (
    "score", "scores", "request", "offline", "serve_batch", "greedy_tokens", "share", "release",
)  # fmt: skip
"""What of an adapter runs the model, or decides how it is run later."""
# How long the worker's own call has to fail of what ended a follower, before it counts as stuck.
_STUCK_S = 5.0
# The end of a process is seen here, once a call has failed of it.
_SEEN_S = 1.0
# A follower that is asked to end does so as soon as it has ended its call.
_END_S = 5.0


class FollowerLost(PrecisionExplorerError):
    """A process that held a share of the model has ended, and with it the model."""


@dataclass
class _Follower:
    device: str
    pid: int
    connection: Connection
    ended: threading.Event
    code: int = 0


class Followers:
    """The followers of this process, for a session's `request`, which tells of the devices."""

    def __init__(self, request: Json, devices: list[Json], give_up: GiveUp) -> None:
        cuda = request["device"] != "cpu"
        if cuda and (torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork()):
            raise ModelError(
                "CUDA was asked before the model's processes were started, so that they can't use "
                "it; report this with the versions of torch and transformers"
            )
        self.count = len(devices)
        self._give_up, self._depth, self._adapters = give_up, 0, 0
        self._failure: PrecisionExplorerError | None = None
        self._closing = False
        # In a folder that the manager removes, whatever ends this process.
        self._files = tempfile.TemporaryDirectory(
            prefix="precision-explorer-",
            dir=request.get("compile_cache"),
            ignore_cleanup_errors=True,
        )
        self.folder = Path(self._files.name)
        self._each: list[_Follower] = []
        for rank, facts in enumerate(devices[1:], 1):
            self._each.append(self._started(request, rank, facts))
        count_as_own(follower.pid for follower in self._each)
        for follower in self._each:
            threading.Thread(target=self._watch, args=(follower,), daemon=True).start()

    def _started(self, request: Json, rank: int, facts: Json) -> _Follower:
        ours, theirs = Pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            for other in (ours, *(follower.connection for follower in self._each)):
                other.close()
            device = "cpu" if facts["device"].startswith("cpu") else facts["device"]
            own = {"device": device, "facts": facts, "beside": (), "rank": rank}
            _follow(theirs, request | own | {"folder": str(self.folder)})
        theirs.close()
        return _Follower(facts["device"], pid, ours, threading.Event())

    # -- what is told ------------------------------------------------------------------------

    def tell(self, *command: Any) -> None:
        """Have all of them do something, without waiting for it."""
        self._check()
        with self.guarded():
            for follower in self._each:
                follower.connection.send(command)

    def ask(self, *command: Any) -> list[Any]:
        """Their answers, in the order of the devices."""
        self.tell(*command)
        return self.told()

    def told(self) -> list[Any]:
        """What each answers next: to its load, or to what it was asked."""
        with self.guarded():
            return [json.loads(follower.connection.recv_bytes()) for follower in self._each]

    def mirrored(self, adapter: Adapter, request: Json, kept: Sequence[Adapter | None]) -> Adapter:
        """`adapter`, whose calls that run the model they make too, each by its own of the same
        `request`. Of those before they let go, but for those of `kept`."""
        self._adapters += 1
        number = self._adapters
        self.tell("adapter", number, request, [getattr(one, "number", None) for one in kept])
        for name in MIRRORED:
            method = getattr(adapter, name, None)
            if method is not None:
                setattr(adapter, name, self._mirror(number, name, method))
        adapter.number = number  # type: ignore[attr-defined]
        return adapter

    def _mirror(self, number: int, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*given: Any, **named: Any) -> Any:
            if self._depth:
                return method(*given, **named)
            self.tell("call", number, name, [_sent(g) for g in given],
                      {key: _sent(g) for key, g in named.items()})  # fmt: skip
            self._depth += 1
            try:
                with self.guarded():
                    return method(*given, **named)
            finally:
                self._depth -= 1

        return call

    def guard(self, model: torch.nn.Module) -> None:
        """Refuse calls of `model` that they know nothing of, which would wait for them for ever."""
        inner = model.forward

        @functools.wraps(inner)
        def forward(*given: Any, **named: Any) -> Any:
            if not self._depth:
                raise ModelError(
                    "this runs the model in one process alone, and its tensors are split over "
                    f"{self.count}; use --split layers for it"
                )
            return inner(*given, **named)

        model.forward = forward  # type: ignore[method-assign]

    # -- what goes wrong ---------------------------------------------------------------------

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """What is done in here together fails for one reason: that of a follower that has ended,
        where one has. After an error here they wait for what never comes, and are ended."""
        try:
            yield
        except BaseException as error:
            if self._failure is not None:
                raise
            lost = None if _is_own(error) else self._ended()
            self._failure = lost or _after(error)
            self._kill()
            if lost is not None:
                raise lost from error
            raise

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _ended(self) -> PrecisionExplorerError | None:
        """Why a follower has ended, where one has: what broke a call is seen a moment later."""
        until = time.monotonic() + _SEEN_S
        while time.monotonic() < until:
            lost = next((f for f in self._each if f.ended.is_set()), None)
            if lost is not None:
                return self._lost(lost)
            time.sleep(0.02)
        return None

    def _lost(self, follower: _Follower) -> PrecisionExplorerError:
        told = self.folder / f"error-{follower.pid}"
        where = f"the process of {follower.device}, which held a share of the model,"
        try:
            answer = json.loads(told.read_text(encoding="utf8"))
        except (OSError, ValueError):
            name = signal_name(follower.code)
            how = f"was ended by {name}" if name else f"ended with exit code {follower.code}"
            return FollowerLost(f"{where} {how}; see the cell's log, then run again")
        kind = DoesNotFit if answer["status"] == "out_of_memory" else FollowerLost
        return kind(f"{where} failed: {answer['message']}")

    def _watch(self, follower: _Follower) -> None:
        """Wait for a follower's end. Where that comes too soon, and the call that it breaks does
        not fail by itself, this process is ended with a word to the manager."""
        with contextlib.suppress(ChildProcessError):
            follower.code = os.waitstatus_to_exitcode(os.waitpid(follower.pid, 0)[1])
        follower.ended.set()
        time.sleep(_STUCK_S)
        if self._failure is None and not self._closing:
            self._give_up(self._lost(follower))

    def _kill(self) -> None:
        for follower in self._each:
            if not follower.ended.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(follower.pid, signal.SIGKILL)

    def close(self) -> None:
        """End them, and wait for that."""
        self._closing = True
        for follower in self._each:
            follower.connection.close()
        until = time.monotonic() + _END_S
        for follower in self._each:
            follower.ended.wait(max(until - time.monotonic(), 0.0))
        self._kill()
        for follower in self._each:
            follower.ended.wait(_END_S)
        self._files.cleanup()


def _is_own(error: BaseException) -> bool:
    """Whether `error` came about in this process, not by the end of another."""
    own = is_out_of_memory(error) or isinstance(error, PrecisionExplorerError)
    return own or not isinstance(error, Exception)


def _after(error: BaseException) -> PrecisionExplorerError:
    """What later calls are answered with, after `error` in one that all make together."""
    if is_out_of_memory(error):
        return DoesNotFit(
            "the first device had no memory left in a call that all devices make together, and "
            "they can't go on after it; leave larger sizes out of --batch-size"
        )
    return FollowerLost(
        f"an earlier call that all devices make together failed ({type(error).__name__}); see the "
        "cell's log"
    )


def _sent(value: Any) -> Any:
    """Times are taken by the worker alone."""
    return NullPhases() if isinstance(value, Phases) else value


class MemoryOfAll:
    """Peak memory as `measure.memory` has it, summed over this process and its followers, each of
    which watches its own. The peaks need not have been at one time."""

    def __init__(
        self, own: PeakMemory | CudaPeakMemory, followers: Followers, baseline_bytes: int
    ) -> None:
        self._own, self._followers = own, followers
        self.baseline_bytes = baseline_bytes
        self._extras: dict[str, int | None] = {}
        self.method = own.method

    def begin(self) -> None:
        """Start watching for a peak."""
        self._followers.tell("begin")
        self._own.begin()

    def end(self) -> int:
        """Bytes of the peaks since `begin`, above the baselines."""
        peaks, extras = [self._own.end()], [self._own.extras()]
        for peak, more in self._followers.ask("end"):
            peaks.append(peak)
            extras.append(more)
        self._extras = {name: _sum([e.get(name) for e in extras]) for name in extras[0]}
        self._extras["largest_device_peak_bytes"] = max(peaks)
        return sum(peaks)

    def trim(self) -> None:
        """Free garbage in all of them."""
        self._followers.tell("trim")
        self._own.trim()

    def extras(self) -> dict[str, int | None]:
        """As of `CudaPeakMemory`: sums, and the fullest device's peak."""
        return dict(self._extras)


def _sum(values: list[int | None]) -> int | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# -- in a follower ----------------------------------------------------------------------------


def _follow(connection: Connection, request: Json) -> NoReturn:
    """Load the share, then do what is told, until the worker closes the pipe."""
    from precision_explorer.runner.session import Session

    try:
        session = Session(request, _silent)
        _tell(connection, session.load_answer)
        _serve(connection, session)
    except EOFError:
        os._exit(0)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        told = Path(request["folder"]) / f"error-{os.getpid()}"
        with contextlib.suppress(OSError):
            told.write_text(json.dumps(error_answer(error, "follower")), encoding="utf8")
        os._exit(1)


def _serve(connection: Connection, session: Session) -> NoReturn:
    adapters: dict[int, Any] = {}
    memory = session.memory
    while True:
        operation, *given = connection.recv()
        if operation == "adapter":
            number, asked, kept = given
            adapters = {n: adapter for n, adapter in adapters.items() if n in kept}
            adapters[number] = session._adapter(asked)
        elif operation == "call":
            number, name, arguments, named = given
            with torch.inference_mode():
                getattr(adapters[number], name)(*arguments, **named)
        elif operation == "begin":
            memory.begin()
        elif operation == "end":
            _tell(connection, (memory.end(), memory.extras()))
        elif operation == "trim":
            memory.trim()


def _tell(connection: Connection, answer: Any) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def _silent(phase: str, done: int, total: int) -> None:
    return None
