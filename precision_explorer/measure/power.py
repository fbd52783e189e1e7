"""A GPU's power read again and again beside its counter of joules, in a thread of its own, so that
the one can be held against the other."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from precision_explorer.hardware import PowerMeter

SAMPLE_EVERY_S = 0.05
"""How often counter and power are read: twice as often as an A100 or H100 renews them (every
100 ms; Yang, Adamek, Armour, "Part-time power measurements", arXiv 2312.02741, 2023). A declared
choice: the calls are made without Python's global lock (ctypes), 20 times a second."""
MIN_UPDATES = 50
"""How often the counter must have been renewed within a window: one renewal more or less at either
end is then 2 % at most."""
MIN_SAMPLES = 50
"""Fewer power readings than these are not integrated against the counter. A declared choice."""
_LARGEST_GAP = 0.05
# Of the window: what happens in a longer one is unknown by as much as is judged.
_KEPT_RATE = 0.8
# Of the readings due: a sampler that made fewer may have missed renewals of the counter.
_AVERAGES = 20
# An average over s seconds lags by s / 2 at both ends of a window: at most 2.5 % of one of 20 s.

Ticker = Callable[[Callable[[], None], float], Callable[[], None]]
"""``ticker(action, every_s)`` calls `action` again and again; what it returns ends that."""


def in_a_thread(action: Callable[[], None], every_s: float) -> Callable[[], None]:
    """Call the method `action` every `every_s` seconds in a thread, until what is returned is
    called or the method's object is gone (after an error, nobody else would end it)."""
    ended = threading.Event()
    reference = weakref.WeakMethod(action)

    def run() -> None:
        while not ended.wait(every_s):
            method = reference()
            if method is None:
                return
            method()
            del method

    thread = threading.Thread(target=run, name="power-sampler", daemon=True)
    thread.start()

    def stop() -> None:
        ended.set()
        thread.join()

    return stop


class PowerTrace:
    """Counter and power of a `meter` as looked at: `times_s` on the `clock`, `watts`, and how often
    the counter was seen to change (`updates`: at least so often was it renewed). `failed`: the
    error that ended it, by its class."""

    def __init__(self, meter: PowerMeter, clock: Callable[[], float] = time.perf_counter) -> None:
        if meter.power is None:
            raise ValueError("this meter tells no power; ask for `power` first")
        self._meter, self._clock = meter, clock
        self.power = meter.power
        self.times_s: list[float] = []
        self.watts: list[float] = []
        self.updates = 0
        self.fell = False
        self.failed: str | None = None
        self._last_j: float | None = None

    def look(self) -> None:
        """Read both now. An error ends the trace, and nothing else."""
        if self.failed is not None:
            return
        try:
            joules, watts = self._meter.energy_j(), self.power.watts()
        except Exception as error:  # It must not cost the latency beside it.
            self.failed = type(error).__name__
            return
        self.times_s.append(self._clock())
        self.watts.append(watts)
        if self._last_j is not None and joules != self._last_j:
            self.updates += 1
            self.fell = self.fell or joules < self._last_j
        self._last_j = joules

    @property
    def samples(self) -> int:
        """How many readings there are."""
        return len(self.times_s)

    @property
    def longest_gap_s(self) -> float | None:
        """Seconds; None with fewer than two readings."""
        return max((b - a for a, b in zip(self.times_s, self.times_s[1:], strict=False)),
                   default=None)  # fmt: skip

    @property
    def integrated_j(self) -> float | None:
        """Joules from the first reading to the last by the trapezoid rule; None with fewer than
        two, or after an error."""
        if self.failed is not None or self.samples < 2:
            return None
        steps = zip(self.times_s, self.times_s[1:], self.watts, self.watts[1:], strict=False)
        return sum((b - a) * (p + q) / 2 for a, b, p, q in steps)

    def not_comparable(self, window_s: float) -> str | None:
        """Why the integral over a window of `window_s` says nothing of the counter; None where it
        does."""
        if self.failed is not None:
            return f"the power readings ended early ({self.failed})"
        if self.samples < MIN_SAMPLES:
            return f"{self.samples} power readings are fewer than the {MIN_SAMPLES} that it takes"
        gap = self.longest_gap_s or 0.0
        if gap > _LARGEST_GAP * window_s:
            return f"{gap:.2f} s went by without a power reading in a window of {window_s:.1f} s"
        if window_s < _AVERAGES * self.power.averaged_s:
            return (
                f"{self.power.name} is an average over {self.power.averaged_s:g} s here, too long "
                f"for a window of {window_s:.1f} s"
            )
        return None

    def too_few_updates(self, window_s: float) -> bool:
        """Whether the counter was renewed less than `MIN_UPDATES` times; False where the readings
        came too slowly to tell."""
        kept_rate = self.samples >= _KEPT_RATE * window_s / SAMPLE_EVERY_S
        return self.updates < MIN_UPDATES and kept_rate and self.failed is None
