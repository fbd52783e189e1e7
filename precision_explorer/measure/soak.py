"""The device and the machine in windows of time, read by a thread beside a long measurement.

    monitor = SoakMonitor(facts, window_seconds=60, origin_s=clock_at_the_first_request)
    with monitor:
        while windows_owed(monitor.windows(), planned):
            ...  # serve; `windows` grows as time passes
    soak = monitor.soak(ends_s, planned)

A thread reads once a second; per request nothing is done, since the requests of a window are
counted from their ends afterwards.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from statistics import fmean
from types import TracebackType
from typing import Protocol

from precision_explorer.hardware import DeviceFacts, process_bytes
from precision_explorer.hardware.readings import THROTTLES, Reading, Readings, open_readings
from precision_explorer.measure.memory import own_bytes
from precision_explorer.measure.others import OtherWork
from precision_explorer.records.soak import Soak, SoakWindow, with_repeats

DISTURBED = 0.05
"""Share of the usable cores' time, or of the GPU's, that others took from which a window is
disturbed; the same as that of a whole row's caution `machine-busy`."""
# NVML's own sampling period is between 1/6 s and 1 s (NVML API Reference, nvmlUtilization_t).
_PERIOD_S = 1.0


class Others(Protocol):
    """`measure.OtherWork`, or a stand-in."""

    def begin(self) -> None:
        """Note the counters now."""

    def end(self) -> float | None:
        """The others' share since then."""


class SoakMonitor:
    """Reads the device every `period_s` and closes a window every `window_seconds`.

    `origin_s`: the time of `clock` that the requests' `start_s` count from; windows begin at
    `begin`, which the thread calls `after_s` seconds after `origin_s` (0: at once), and end after
    `most`. `memory`: the bytes held now. `kept_bytes`: how many of a processor's are this program's
    own rows of the requests so far, which are no growth of what it measures. The arguments from
    `readings` on, but for `kept_bytes`, are for tests and callers with meters of their own. `tick`
    is what the thread calls; a test may call it instead.
    """

    def __init__(
        self,
        facts: DeviceFacts,
        window_seconds: float,
        origin_s: float,
        *,
        after_s: float = 0.0,
        most: int | None = None,
        readings: Readings | None = None,
        memory: Callable[[], int | None] | None = None,
        kept_bytes: Callable[[], int] | None = None,
        others: Others | None = None,
        clock: Callable[[], float] = time.perf_counter,
        period_s: float = _PERIOD_S,
    ) -> None:
        if not window_seconds > 0:
            raise ValueError(f"a window of {window_seconds} s is none; give seconds above 0")
        self.window_seconds, self._origin = window_seconds, origin_s
        self._after_s, self._most = after_s, most
        self._readings = open_readings(facts) if readings is None else readings
        self._memory = _held_bytes(facts) if memory is None else memory
        on_device = facts.kind == "cuda"
        self._kept_bytes = (lambda: 0) if kept_bytes is None or on_device else kept_bytes
        self._others: Others = OtherWork() if others is None else others
        self._clock, self._period_s = clock, min(period_s, window_seconds / 4)
        self._seen: list[Reading] = []
        self._windows: list[SoakWindow] = []
        self._begun = 0.0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    # -- watching ----------------------------------------------------------------------------

    def begin(self) -> None:
        """Open the first window now, without a thread."""
        self._begun = self._clock()
        self._others.begin()
        self._readings.read()  # Power and throttling count from here.

    def tick(self) -> None:
        """Read once; close the window if its time is over."""
        self._seen.append(self._readings.read())
        now = self._clock()
        if now - self._begun < self.window_seconds:
            return
        window = self._closed(now)
        self._begun = now
        self._others.begin()
        with self._lock:
            self._windows.append(window)

    def _closed(self, now: float) -> SoakWindow:
        seen, self._seen = self._seen, []
        share = self._others.end()
        reasons = sorted(frozenset[str]().union(*(r.throttle_reasons for r in seen)))
        beside = _mean([r.other_share for r in seen])
        return SoakWindow(
            start_s=self._begun - self._origin,
            seconds=now - self._begun,
            memory_bytes=self._held(),
            temperature_c=max(
                (t for r in seen if (t := r.temperature_c) is not None), default=None
            ),
            clock_hz=_mean([r.clock_hz for r in seen]),
            power_w=_mean([r.power_w for r in seen]),
            throttle_reasons=reasons,
            throttled=not THROTTLES.isdisjoint(reasons),
            other_work_share=share,
            other_gpu_share=beside,
            disturbed=max(share or 0.0, beside or 0.0) > DISTURBED,
        )

    def _held(self) -> int | None:
        found = self._memory()
        return None if found is None else found - self._kept_bytes()

    def _watch(self) -> None:
        if self._after_s > 0:
            left = self._origin + self._after_s - self._clock()
            if self._stop.wait(max(left, 0.0)):
                return
            self.begin()
        while not self._is_full() and not self._stop.wait(self._wait_s()):
            self.tick()

    def _is_full(self) -> bool:
        return self._most is not None and len(self._windows) >= self._most

    def _wait_s(self) -> float:
        """Until the next reading, or the window's end where that comes first."""
        left = self._begun + self.window_seconds - self._clock()
        return max(min(self._period_s, left), 0.0)

    def __enter__(self) -> SoakMonitor:
        if self._after_s <= 0:
            self.begin()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    # -- what came of it -----------------------------------------------------------------------

    def windows(self) -> list[SoakWindow]:
        """The windows that are over, without their requests; safe to ask while they are taken."""
        with self._lock:
            return list(self._windows)

    def soak(self, ends_s: Sequence[float], planned: int) -> Soak:
        """The record. `ends_s`: when each request ended, since `origin_s`; windows after the
        `planned` ones are repeats. A window that was not over is left out."""
        ends = sorted(ends_s)
        counted = [
            w.model_copy(
                update={
                    "requests": bisect_left(ends, w.start_s + w.seconds)
                    - bisect_left(ends, w.start_s)
                }
            )
            for w in self.windows()
        ]
        return Soak(
            window_seconds=self.window_seconds,
            windows=with_repeats(counted, planned),
            sources=dict(self._readings.sources),
        )


def _held_bytes(facts: DeviceFacts) -> Callable[[], int | None]:
    """What tells how much memory this process holds on the device."""
    if facts.kind == "cuda":
        return lambda: process_bytes(facts)
    return own_bytes


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
