"""Joules over a window of requests, from any meter of `hardware.sensors`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from precision_explorer.hardware import EnergySensor
from precision_explorer.records.record import Energy
from precision_explorer.units import seconds as seconds_text

# The longest time between two updates of a counter that is waited for, and the step of waiting:
# NVML's counter is seen to change every 20 to 100 ms, so two and a half of the longest and a
# quarter of the shortest.
_UPDATE_S = 0.25
_POLL_S = 0.005


class EnergyWindow:
    """`begin` and `end` around the work; the latency window and this one are then the same.

    `record` gives the `Energy` to store: None joules, with a note, where there is no meter, where
    its counter fell, or where the window was shorter than the meter needs.
    """

    def __init__(
        self, sensor: EnergySensor, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._sensor, self._clock = sensor, clock
        self._supported = sensor.supported()
        self._begin: tuple[float, float | None] | None = None
        self._energy_j: float | None = None
        self._window_s: float | None = None
        self._note: str | None = None

    def _read(self) -> float | None:
        if not self._supported:
            return None
        try:
            return self._sensor.energy_j()
        except Exception as error:  # A meter that fails must not cost the latency beside it.
            self._note = f"the meter failed while read ({type(error).__name__})"
            return None

    def begin(self) -> None:
        """Read the counter; the window starts now."""
        self._energy_j = self._window_s = self._note = None
        self._begin = (self._clock(), self._read())

    def end(self) -> dict[str, Any]:
        """Read the counter; the window is over. {source, boundary, energy_j, window_s}."""
        if self._begin is None:
            raise RuntimeError("an energy window ended before it began")
        after = self._read()
        start, before = self._begin
        self._window_s = self._clock() - start
        self._energy_j = self._joules(before, after)
        return {
            "source": self._source(),
            "boundary": self._sensor.boundary,
            "energy_j": self._energy_j,
            "window_s": self._window_s,
        }

    def _source(self) -> str:
        return self._sensor.source if self._supported else "unavailable"

    def _joules(self, before: float | None, after: float | None) -> float | None:
        if not self._supported:
            self._note = self._sensor.boundary
            return None
        if before is None or after is None:
            return None
        assert self._window_s is not None
        if self._window_s < self._sensor.min_window_s:
            have, need = seconds_text(self._window_s), seconds_text(self._sensor.min_window_s)
            self._note = f"the window of {have} is shorter than the {need} that the counter needs"
            return None
        if after < before:
            self._note = "the counter fell within the window: it was reset"
            return None
        return after - before

    def record(self, requests: int | None = None, idle_power_w: float | None = None) -> Energy:
        """What is stored of the window; `requests` were served in it."""
        return Energy(
            source=self._source(),
            boundary=self._sensor.boundary if self._supported else None,
            energy_j=self._energy_j,
            window_s=self._window_s,
            requests=requests,
            idle_power_w=idle_power_w,
            note=self._note,
        )


def measure(
    sensor: EnergySensor,
    run: Callable[[float], int],
    window_s: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Energy:
    """Energy of ``run(seconds)``, which serves requests until at least so many seconds have passed
    and returns how many it served. The window is `window_s`, or longer where the meter needs it."""
    window = EnergyWindow(sensor, clock=clock)
    window.begin()
    requests = run(max(window_s, sensor.min_window_s))
    window.end()
    return window.record(requests=requests)


def idle_power(
    sensor: EnergySensor,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float | None:
    """Watts while this process waits for `seconds`, the model loaded; None for an estimate (which
    counts only work) and where there is no meter.

    Both readings are taken just after an update of the counter: over a second, updates 100 ms
    apart would else be an error of 10 %.
    """
    if not sensor.source.startswith("measured:") or not sensor.supported():
        return None
    start, before = _next_update(sensor, clock, sleep)
    sleep(seconds)
    end, after = _next_update(sensor, clock, sleep)
    if end <= start or after < before:
        return None
    return (after - before) / (end - start)


def _next_update(
    sensor: EnergySensor, clock: Callable[[], float], sleep: Callable[[float], None]
) -> tuple[float, float]:
    """(clock, joules) when the counter has just changed, or after `_UPDATE_S` without a change."""
    begun, first = clock(), sensor.energy_j()
    while True:
        now, value = clock(), sensor.energy_j()
        if value != first or now - begun >= _UPDATE_S:
            return now, value
        sleep(_POLL_S)
