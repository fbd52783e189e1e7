"""The clock that a serving loop runs by: the machine's own, or one that only counts."""

from __future__ import annotations

import time
from typing import Protocol

SPIN_S = 200e-6
"""The last part of a wait, which is spun. A sleeping thread is woken up to 50 microseconds late by
Linux's default timer slack (prctl(2), PR_SET_TIMERSLACK) and by the time that the scheduler and a
core's idle state take on top; the spinning costs that much CPU time for each event."""


class Clock(Protocol):
    """Seconds from some moment on, never backwards."""

    def now(self) -> float:
        """The time now."""

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, at once if it has passed."""


class RealClock:
    """`time.perf_counter`; sleeps until `SPIN_S` before the moment, then spins."""

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return as soon after `moment` as one thread can."""
        left = moment - time.perf_counter() - SPIN_S
        if left > 0:
            time.sleep(left)
        while time.perf_counter() < moment:
            pass


class VirtualClock:
    """Time that passes only by `sleep_until` and `advance`: hours of arrivals in seconds, the same
    at each run."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Seconds that have passed."""
        return self._now

    def sleep_until(self, moment: float) -> None:
        """Go on to `moment`."""
        self._now = max(self._now, moment)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: what a simulated service takes."""
        self._now += seconds
