"""Joules over a window of requests, from any meter of `hardware.sensors`, and what can be said of
how true they are: the power integrated beside a GPU's counter, how often that was renewed, and the
idle device before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from precision_explorer.hardware import EnergySensor, PowerMeter
from precision_explorer.measure.power import (
    MIN_UPDATES,
    SAMPLE_EVERY_S,
    PowerTrace,
    Ticker,
    in_a_thread,
)
from precision_explorer.records.record import Energy
from precision_explorer.units import seconds as seconds_text

# The longest time between two updates of a counter that is waited for, and the step of waiting:
# NVML's counter is seen to change every 20 to 100 ms, so two and a half of the longest and a
# quarter of the shortest.
_UPDATE_S = 0.25
_POLL_S = 0.005

IDLE_S = 0.75
"""How long the idle device is read, before a block's window and after it: seven renewals of a
counter that is renewed every 100 ms, and read at such renewals."""
SETTLE_S = 0.5
"""How long a device rests after the work before it is read again. Clocks stay up for longer, which
is why there are two readings; more would cost each block more than it tells. Both are declared
choices: together they add at most 3 s to a block (2.5 s with a
counter renewed every 100 ms)."""
FAILED_METER = "the meter failed"
"""How the note of a window begins in which it did."""
LONGEST_S = 12.0
"""A latency window is not made longer than this for a meter: one that is renewed less than every
240 ms gives no joules, rather than take the budget of the latency. A declared choice."""


class EnergyWindow:
    """`begin` and `end` around the work; the latency window and this one are then the same.

    `record` gives the `Energy` to store: None joules, with a note, where there is no meter, where
    its counter fell, or where the window was shorter than the meter needs: its seconds, or, where
    the device tells its power and both are read meanwhile, `MIN_UPDATES` renewals of the counter.
    `longer`: what a user would raise to have a longer one.
    """

    def __init__(
        self,
        sensor: EnergySensor,
        *,
        clock: Callable[[], float] = time.perf_counter,
        ticker: Ticker = in_a_thread,
        longer: str = "energy_seconds (of a server duration_seconds)",
    ) -> None:
        self._sensor, self._clock, self._ticker = sensor, clock, ticker
        self._longer = longer
        self._supported = sensor.supported()
        self._begin: tuple[float, float | None] | None = None
        self._energy_j: float | None = None
        self._window_s: float | None = None
        self._note: str | None = None
        self._trace: PowerTrace | None = None
        self._stop: Callable[[], None] = _nothing

    def _read(self) -> float | None:
        if not self._supported:
            return None
        try:
            return self._sensor.energy_j()
        except Exception as error:  # A meter that fails must not cost the latency beside it.
            self._note = f"{FAILED_METER} while read ({type(error).__name__})"
            return None

    def begin(self) -> None:
        """Read the counter; the window starts now."""
        self._stop()
        self._energy_j = self._window_s = self._note = self._trace = None
        self._stop = _nothing
        if self._supported and isinstance(self._sensor, PowerMeter) and self._sensor.power:
            self._trace = PowerTrace(self._sensor, self._clock)
            self._trace.look()
            self._stop = self._ticker(self._trace.look, SAMPLE_EVERY_S)
        self._begin = (self._clock(), self._read())

    def end(self) -> dict[str, Any]:
        """Read the counter; the window is over. {source, boundary, energy_j, window_s}."""
        if self._begin is None:
            raise RuntimeError("an energy window ended before it began")
        after = self._read()
        start, before = self._begin
        self._window_s = self._clock() - start
        self._stop()
        self._stop = _nothing
        if self._trace is not None:
            self._trace.look()
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
        self._note = self._unfit(before, after)
        return None if self._note else after - before

    def _unfit(self, before: float, after: float) -> str | None:
        """Why the counter's difference is no energy of the window; None where it is."""
        assert self._window_s is not None
        have = seconds_text(self._window_s)
        if self._window_s < self._sensor.min_window_s:
            need = seconds_text(self._sensor.min_window_s)
            return (
                f"the window of {have} is shorter than the {need} that the counter needs; raise "
                f"{self._longer}"
            )
        trace = self._trace
        if after < before or (trace is not None and trace.fell):
            return "the counter fell within the window: it was reset"
        if trace is not None and trace.too_few_updates(self._window_s):
            return (
                f"the counter was renewed {trace.updates} times in the window of {have}, fewer "
                f"than the {MIN_UPDATES} that it needs; raise {self._longer}"
            )
        return None

    def record(self, requests: int | None = None, idle: IdlePower | None = None) -> Energy:
        """What is stored of the window; `requests` were served in it, and `idle` is what the device
        drew without them."""
        idle = idle or IdlePower()
        return Energy(
            source=self._source(),
            boundary=self._sensor.boundary if self._supported else None,
            energy_j=self._energy_j,
            window_s=self._window_s,
            requests=requests,
            note=self._note,
            **idle.fields(),
            **self._checked(),
        )

    def _checked(self) -> dict[str, Any]:
        """The integral beside the counter; nothing where the device tells no power."""
        trace = self._trace
        if trace is None or self._window_s is None:
            return {}
        return {
            "integrated_j": trace.integrated_j,
            "power_reading": trace.power.name,
            "power_averaged_s": trace.power.averaged_s,
            "power_every_s": SAMPLE_EVERY_S,
            "power_samples": trace.samples,
            "power_longest_gap_s": trace.longest_gap_s,
            "counter_updates": trace.updates,
            "check_note": trace.not_comparable(self._window_s),
        }


def _nothing() -> None:
    """Nothing runs that were to be stopped."""


def measure(
    sensor: EnergySensor,
    run: Callable[[float], int],
    window_s: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    ticker: Ticker = in_a_thread,
) -> Energy:
    """Energy of ``run(seconds)``, which serves requests until at least so many seconds have passed
    and returns how many it served. The window is `window_s`, or longer where the meter needs it."""
    window = EnergyWindow(sensor, clock=clock, ticker=ticker)
    window.begin()
    requests = run(max(window_s, sensor.min_window_s))
    window.end()
    return window.record(requests=requests)


# -- the idle device ---------------------------------------------------------------------------


@dataclass(frozen=True)
class IdleReading:
    """Watts while the process waited, and seconds between two renewals of the counter then; None
    where it was not seen to be renewed."""

    power_w: float
    update_s: float | None


@dataclass(frozen=True)
class IdlePower:
    """Watts of the idle device with the model loaded, before and after the work; None where not
    read."""

    before_w: float | None = None
    after_w: float | None = None

    @property
    def mean_w(self) -> float | None:
        """Of those that were read."""
        known = [w for w in (self.before_w, self.after_w) if w is not None]
        return fmean(known) if known else None

    def fields(self) -> dict[str, Any]:
        """As `Energy` names them."""
        return {
            "idle_power_w": self.mean_w,
            "idle_power_before_w": self.before_w,
            "idle_power_after_w": self.after_w,
        }


class IdleBaseline:
    """The idle device around a block: `before` the work and `after` it."""

    def __init__(
        self,
        sensor: EnergySensor,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._sensor, self._clock, self._sleep = sensor, clock, sleep
        self._before: IdleReading | None = None
        self._after: IdleReading | None = None

    def before(self) -> None:
        """Read the device now; nothing where there is no meter."""
        self._before = self._read()

    def after(self) -> None:
        """Let the device settle, then read it; nothing where there was no reading before."""
        if self._before is not None:
            self._sleep(SETTLE_S)
            self._after = self._read()

    def _read(self) -> IdleReading | None:
        try:
            return idle_reading(self._sensor, IDLE_S, clock=self._clock, sleep=self._sleep)
        except Exception:  # As in a window: a meter that fails costs only its own number.
            return None

    @property
    def power(self) -> IdlePower:
        """What was read so far."""
        return IdlePower(
            self._before.power_w if self._before else None,
            self._after.power_w if self._after else None,
        )

    @property
    def min_window_s(self) -> float:
        """The least window for this meter: its seconds, and as long as the counter takes for
        `MIN_UPDATES` renewals and one that the window's begin cuts, by their pace when idle; at
        most `LONGEST_S` for these."""
        pace = self._before.update_s if self._before else None
        if pace is None:
            return self._sensor.min_window_s
        return max(self._sensor.min_window_s, min((MIN_UPDATES + 1) * pace, LONGEST_S))


def idle_reading(
    sensor: EnergySensor,
    seconds: float,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> IdleReading | None:
    """The device while this process waits for `seconds`, the model loaded; None for an estimate
    (which counts only work) and where there is no meter.

    Both readings are taken just after an update of the counter: over a second, updates 100 ms
    apart would else be an error of 10 %.
    """
    if not sensor.source.startswith("measured:") or not sensor.supported():
        return None
    start, before = _next_update(sensor, clock, sleep)
    updates, last = 0, before
    while clock() - start < seconds:
        sleep(_POLL_S)
        value = sensor.energy_j()
        updates, last = updates + (value != last), value
    end, after = _next_update(sensor, clock, sleep)
    updates += after != last
    if end <= start or after < before:
        return None
    return IdleReading(
        power_w=(after - before) / (end - start),
        update_s=(end - start) / updates if updates else None,
    )


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
