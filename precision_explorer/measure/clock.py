"""The clock that a serving loop runs by: the machine's own, or one that only counts."""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Protocol

MOST_SPIN_S = 1e-3
"""The last part of a wait is spun, at most this long: the lateness that a serving window may have
whatever its latencies (`measure.served.LATENESS_S`). Longer, and a waiting loop would take a
noticeable share of a core, heat and power from what it measures."""
LEAST_SPIN_S = 50e-6
"""The spinning that is left on a machine that wakes its threads in time: what Linux's default timer
slack is (prctl(2), PR_SET_TIMERSLACK)."""
_FORGETS = 0.999
"""By what the spinning shrinks with each sleep, so that what befalls one sleep in a thousand is met
(the aim is a p99.9): a worst sleep is half forgotten after 700."""
_PR_SET_TIMERSLACK = 29


class Clock(Protocol):
    """Seconds from some moment on, never backwards."""

    def now(self) -> float:
        """The time now."""

    def sleep_until(self, moment: float) -> None:
        """Return at `moment`, at once if it has passed."""

    def sleep_towards(self, moment: float) -> None:
        """Return at `moment` or shortly before, for who looks at the clock from then on."""


class RealClock:
    """`time.perf_counter`; sleeps until shortly before the moment, then spins.

    How long before follows the machine: `spin_s`, at first `MOST_SPIN_S`, is how late its worst
    recent sleep was woken. A sleeping thread is late by its timer slack, which is set to the least
    for the calling thread, by the way out of the core's idle state, by the other threads that the
    scheduler lets run first and, in a virtual machine, by its host's scheduler.
    """

    def __init__(self) -> None:
        self.spin_s = MOST_SPIN_S
        _set_least_timer_slack()

    def now(self) -> float:
        """Seconds of `time.perf_counter`."""
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        """Return as soon after `moment` as one thread can."""
        self.sleep_towards(moment)
        while time.perf_counter() < moment:
            pass

    def sleep_towards(self, moment: float) -> None:
        """Return so long before `moment` that the machine's lateness is over by then."""
        wake = moment - self.spin_s
        left = wake - time.perf_counter()
        if left > 0:
            time.sleep(left)
            late = time.perf_counter() - wake
            self.spin_s = min(max(late, _FORGETS * self.spin_s, LEAST_SPIN_S), MOST_SPIN_S)


def _set_least_timer_slack() -> None:
    """1 ns for this thread, which any user may set; without Linux nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)


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

    def sleep_towards(self, moment: float) -> None:
        """The same: nothing here is late."""
        self.sleep_until(moment)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass: what a simulated service takes."""
        self._now += seconds
