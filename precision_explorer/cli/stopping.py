"""Ending by a signal: once in order, with what is done kept and shown; at a second one, which is no
SIGHUP, at once.

Ctrl-C (SIGINT), what batch systems, containers and service managers send (SIGTERM), and the end of
a terminal (SIGHUP) do the same. The exit code is a shell's, 128 and the signal's number: 130 for
Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal that asks this process to end."""


def was_asked() -> bool:
    """Whether a signal has asked this process to end."""
    return bool(_received)


def exit_code() -> int:
    """Of a process that was asked to end: by the first signal; by Ctrl-C where none was seen."""
    return 128 + (_received[0] if _received else signal.SIGINT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Turn signals into `Stopped`. One that was ignored stays so, as nohup and shells ask for it;
    outside the main thread nothing is changed, as no signal comes there."""
    _received.clear()
    before = {}
    for number in _SIGNALS:
        known = signal.getsignal(number)
        if known in (signal.SIG_DFL, signal.default_int_handler):
            with contextlib.suppress(ValueError):
                before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _received and number == signal.SIGHUP:
        # Nobody's impatience: a shell and the system each send one for the same lost terminal,
        # systemd one after its SIGTERM (SendSIGHUP).
        return
    _received.append(number)
    if len(_received) > 1:
        _end_at_once()
    raise Stopped


def _end_at_once() -> None:
    """Without waiting for anything. Every file is whole or not there at any moment."""
    # Nothing was started where it was not imported.
    manager = sys.modules.get("precision_explorer.runner.manager")
    if manager is not None:
        manager.kill_workers()
    with contextlib.suppress(OSError):
        os.write(2, b"ended at once; what was done is kept: run the same command again to resume\n")
    os._exit(exit_code())
