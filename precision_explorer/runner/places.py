"""Places: where the cells of a sweep are measured, when that is not this process. No torch here.

One protocol for all executors beyond the plain local one. A *source* (`Source`) says which places
there could be now (`Slot`: a GPU, or a number of cores, of some machine) and opens a *line*
(`Line`) to one. At the other end of every line is the same program, a lane (`runner.lane`): a
process on that machine that owns a fork server, so that a cell pays no imports, and measures one
lot after the other by the local executor. What differs is only how its bytes travel:

- `LaneProcess`: a pipe, on this machine (one lane per device);
- `runner.ray_places`: a Ray actor that holds a lane, and a stream of Ray objects;
- `runner.slurm_places`: a Slurm job that holds a lane, and files in a folder that both see.

A place is asked and answers, as a worker does. It sends a lot's answers, records and files as they
are made (`runner.lots`), so that nothing is lost with it but what it was measuring.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from precision_explorer.bounded import MAX_JSON_BYTES, json_document
from precision_explorer.errors import PrecisionExplorerError, UsageError
from precision_explorer.hardware import DeviceFacts
from precision_explorer.paths import without_paths
from precision_explorer.plan import SweepSpec
from precision_explorer.records import Environment
from precision_explorer.runner.manager import Event, OnEvent, WorkerError, WorkerGone
from precision_explorer.runner.protocol import MAX_ARROW_BYTES, receive

Json = dict[str, Any]
Message = tuple[Json, bytes]
LANE = "precision_explorer.runner.lane"
"""The module that a lane runs."""
ALL = "all"
"""``--device all``: every GPU of this machine."""
LAST = ("end", "error")
"""Types of the message that ends an answer."""
_HEADER = struct.Struct("!Q")
MAX_FRAME_BYTES = _HEADER.size + MAX_JSON_BYTES + MAX_ARROW_BYTES
"""The most that `frame` makes of a message."""
_RUBBISH = (LookupError, TypeError, ValueError, AttributeError, OverflowError, MemoryError)
ENDING_S = 10.0
"""How long places are waited for that were told to end."""
# A lane that was asked to end does so at once; later it is killed, and nothing is lost.
_GRACE_S = 5.0


def frame(header: dict[str, Any], content: bytes) -> bytes:
    """A message as bytes: the header's length, the header as JSON, the content."""
    text = json.dumps(header, allow_nan=False).encode()
    return _HEADER.pack(len(text)) + text + content


def unframed(message: bytes) -> Message:
    """The message in `frame`'s bytes. PlaceLost for rubbish."""
    try:
        (length,) = _HEADER.unpack_from(message)
        if length > MAX_JSON_BYTES:
            raise ValueError("its header is too long")
        end = _HEADER.size + length
        header = json_document(message[_HEADER.size : end])
        if not isinstance(header, dict) or not isinstance(header.get("type"), str):
            raise ValueError("no header")
    except (ValueError, MemoryError, struct.error) as error:
        raise PlaceLost(f"its answer could not be read: {error}") from error
    return header, message[end:]


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Inside, what can't be made of what a place sent loses that place, and nothing else."""
    try:
        yield
    except _RUBBISH as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise PlaceLost(f"what it sent can't be used: {line}") from error


def close_all(closers: Sequence[Callable[[], None]]) -> None:
    """Call all at once; those that take longer than `ENDING_S` are not waited for."""
    threads = [threading.Thread(target=close, daemon=True) for close in closers]
    for thread in threads:
        thread.start()
    join_all(threads, ENDING_S)


def join_all(threads: Sequence[threading.Thread], limit_s: float) -> None:
    """Wait for threads, for so many seconds in all."""
    deadline = time.monotonic() + limit_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0.0))


class PlaceLost(Exception):
    """A place that can't be asked any more. `answer` as `WorkerGone` has it, for the record of a
    cell that is not measured elsewhere."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        advice = "look at what ended it, then run the sweep again"
        message = f"the place that measured the cell was lost ({without_paths(why)}); {advice}"
        self.answer = {"status": "failed", "kind": "NodeLost", "message": message}


class PlaceFailed(PrecisionExplorerError):
    """What a place itself said of its failure, in one line."""


class Line(Protocol):
    """A way to ask a lane."""

    def exchange(self, request: bytes) -> Iterator[Message]:
        """Send a pickled request; the messages of its answer, the last one of a type in `LAST`.
        Raises PlaceLost."""

    def close(self) -> None:
        """End the lane and what it runs, at once; whoever waits in `exchange` gets PlaceLost. May
        be called from another thread, and again."""


@dataclass(frozen=True)
class Slot:
    """A place that could be started. `key` names it among all, `machine` what it shares with the
    others of its machine, `name` is for people, and in records: it names no host."""

    key: str
    machine: str
    name: str
    device_type: str | None = None
    device: str | None = None
    """What its lane is to measure on; None for what the sweep says."""


class Source(Protocol):
    """Where an executor's places come from."""

    executor: str
    cores: int | None
    """Declared cores of a place; None where it has all of its machine's."""
    shares_machine: bool
    """Whether all its places are of this machine, so that they may disturb one another."""

    def slots(self) -> list[Slot]:
        """All that there could be at this moment, those in use among them."""

    def open(self, slot: Slot) -> Line:
        """Start a lane there. Raises PlaceLost where that does not succeed."""

    def close(self) -> None:
        """End what the source itself has started. May be called again."""


@dataclass(frozen=True)
class Told:
    """What a lane says of itself."""

    facts: DeviceFacts
    environment: Environment
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def alike(self) -> Json:
        """What places must have in common for their cells to be compared as if alike: not which
        slot, and not the memory that happens to be free or built in beside a device."""
        names = {"kind", "name", "compute_capability", "cpu_flags", "driver"}
        names |= {"cores"} if self.facts.kind == "cpu" else set()
        return self.facts.model_dump(mode="json", include=names)


class Place:
    """A lane that has told what it is, at the end of a line."""

    def __init__(self, slot: Slot, line: Line, hello: Json, on_event: OnEvent) -> None:
        self.slot, self._line, self._on_event = slot, line, on_event
        try:
            told = self.answer(hello | {"op": "hello"})
            with understood():
                self.told = Told(
                    DeviceFacts.model_validate(told["facts"]),
                    Environment.model_validate(told["environment"]),
                    dict(told["versions"]),
                )
                note = told["note"]
            if note:
                on_event(Event("note", {"text": f"{slot.name}: {note}"}))
        except BaseException:
            self.close()
            raise

    def ask(self, request: Json) -> Iterator[Message]:
        """The messages of an answer but the last, whose header is what is returned. PlaceFailed for
        an answered error, PlaceLost where none came."""
        for header, content in self._line.exchange(pickle.dumps(request)):
            with understood():
                if header["type"] == "error":
                    raise PlaceFailed(str(header["message"]))
                if header["type"] == "event":
                    header["data"]["place"] = self.slot.name
            yield header, content

    def answer(self, request: Json) -> Json:
        """The last header; events before it are told."""
        header: Json = {}
        for header, _ in self.ask(request):
            if header["type"] == "event":
                with understood():
                    self._on_event(Event(header["name"], header["data"]))
        return header

    def close(self) -> None:
        """End it, whatever it does."""
        self._line.close()


class PlaceWorker:
    """A worker on a place, for questions from before the plan (`elsewhere`); as `WorkerHandle`."""

    def __init__(self, place: Place, on_event: OnEvent, settings: Json) -> None:
        self._place, self._on_event, self._settings = place, on_event, settings
        self._asked("worker")

    def ask(self, request: Json, deadline: float) -> Message:
        """As `WorkerHandle.ask`."""
        return self._asked("ask", request=request, limit_s=deadline - time.monotonic())

    def close(self) -> None:
        """End the worker; the place stays."""
        with contextlib.suppress(PlaceLost, PlaceFailed):
            self._place.answer({"op": "dismiss"})

    kill = close

    def _asked(self, operation: str, **more: Any) -> Message:
        header: Json = {}
        content = b""
        try:
            request = self._settings | more | {"op": operation}
            for message in self._place.ask(request):
                header, content = message
                if header["type"] == "event":
                    with understood():
                        self._on_event(Event(header["name"], header["data"]))
            with understood():
                self._check(header.get("failed"))
        except PlaceLost as lost:
            raise UsageError(f"{lost.answer['message']}") from lost
        return header.get("answer", {}), content

    @staticmethod
    def _check(failed: Any) -> None:
        if failed is None:
            return
        # A worker that has gone says no phase.
        if "phase" in failed:
            raise WorkerError(failed)
        raise WorkerGone(failed["status"], failed["kind"], failed["message"], failed.get("signal"))


_elsewhere: ContextVar[tuple[Place, Json] | None] = ContextVar("elsewhere", default=None)


@contextlib.contextmanager
def asking(place: Place | None, spec: SweepSpec) -> Iterator[None]:
    """Inside, workers for the probe and for jobs are those of `place`; this machine's for None."""
    settings = {"threads": spec.threads, "trust_remote_code": spec.trust_remote_code}
    before = _elsewhere.set(None if place is None else (place, settings))
    try:
        yield
    finally:
        _elsewhere.reset(before)


def elsewhere(on_event: OnEvent) -> PlaceWorker | None:
    """A worker on the place that is asked now; None where that is this machine."""
    found = _elsewhere.get()
    return None if found is None else PlaceWorker(found[0], on_event, found[1])


class LaneProcess:
    """A lane on this machine, and the pipe to it. `variables`: of its environment beside this
    process's, None for those that it is not to have."""

    def __init__(self, module: str = LANE, variables: dict[str, str | None] | None = None) -> None:
        ours, theirs = socket.socketpair()
        wanted = dict(os.environ) | (variables or {})
        with theirs:
            self._process = subprocess.Popen(
                # Not ``-m``: each forked worker would import the module again, as its main one.
                [sys.executable, "-c", f"from {module} import main; main()", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={name: value for name, value in wanted.items() if value is not None},
                stdin=subprocess.DEVNULL,
                # What is not a worker's output: none of it belongs into the table on stdout.
                stdout=subprocess.DEVNULL,
                # Ctrl-C is this process's to handle.
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())

    def exchange(self, request: bytes) -> Iterator[Message]:
        """As `Line.exchange`."""
        try:
            self._connection.send_bytes(request)
            while True:
                header, content = receive(self._connection)
                yield header, content
                if header["type"] in LAST:
                    return
        except (EOFError, OSError, *_RUBBISH) as error:
            raise PlaceLost(self._why(error)) from error

    def _why(self, error: Exception) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_GRACE_S)
            return f"its process ended with {code}"
        return f"its answer could not be read: {type(error).__name__}"

    def close(self) -> None:
        """As `Line.close`. The lane ends its workers when its pipe is closed."""
        # A thread that waits to read is woken by that, not by closing the descriptor alone.
        with contextlib.suppress(OSError):
            other = socket.socket(fileno=os.dup(self._connection.fileno()))
            with other:
                other.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
