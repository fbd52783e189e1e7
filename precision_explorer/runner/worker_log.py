"""A worker's output on its way into a cell's log, of bounded length. In the manager; no torch."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from multiprocessing.connection import Connection

MOST_BYTES = 8 << 20
"""Of a log: its beginning. A traceback is kilobytes, a chatty library's remarks on a long sweep are
some hundred; a worker that floods its output would else fill the disk. A declared choice."""
TAIL_BYTES = 64 << 10
"""What is kept of the end of a flood, where the reason for it may stand."""
_SPARE_BYTES = 1 << 20
# For the ends of several floods; when they fill it, the last ones take the place of the first.
_READ_BYTES = 1 << 16


class WorkerLog:
    """Reads a pipe as fast as it fills, so that a worker never waits to write, and keeps what a log
    may hold. `to`: the log from now on. `settle`: all that was written so far is in it.

    The thread is a daemon's: a worker's own child may hold the pipe open for ever.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()
        self._file: int | None = None
        self._room = self._left_out = 0
        self._tail = b""
        self._ended = False
        os.set_blocking(pipe.fileno(), False)
        threading.Thread(target=self._run, name="worker-log", daemon=True).start()

    def to(self, path: str) -> None:
        """Append to the log at `path`. One that can't be written is done without: what the worker
        says is no measurement."""
        with self._lock:
            self._drain()
            self._settle()
            self._close_file()
            with contextlib.suppress(OSError):
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                self._room = max(MOST_BYTES - os.fstat(self._file).st_size, 0)

    def settle(self) -> None:
        """Write down what has come, and how much was left out of it."""
        with self._lock:
            self._drain()
            self._settle()

    def close(self) -> None:
        """Of a worker that has ended."""
        with self._lock:
            self._drain()
            self._settle()
            self._close_file()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._pipe.fileno(), select.POLLIN)
        while not self._ended:
            poll.poll()
            with self._lock:
                self._drain()
        self._pipe.close()

    def _drain(self) -> None:
        while not self._ended:
            try:
                content = os.read(self._pipe.fileno(), _READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                content = b""
            self._ended = not content
            self._keep(content)

    def _keep(self, content: bytes) -> None:
        whole, rest = content[: self._room], content[self._room :]
        self._room -= len(whole)
        self._write(whole)
        if rest:
            self._left_out += len(rest)
            self._tail = (self._tail + rest)[-TAIL_BYTES:]

    def _settle(self) -> None:
        if not self._left_out or self._file is None:
            return
        tail, left_out = self._tail, self._left_out - len(self._tail)
        note = f"\n[{left_out:,} bytes of output are left out here: a log holds no more]\n"
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size + len(tail) > MOST_BYTES + _SPARE_BYTES:
                os.ftruncate(self._file, MOST_BYTES)
        self._write((note.encode() if left_out else b"") + tail)
        self._tail, self._left_out = b"", 0

    def _write(self, content: bytes) -> None:
        # A full disk costs the log and nothing else.
        with contextlib.suppress(OSError):
            while content and self._file is not None:
                content = content[os.write(self._file, content) :]

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = None
