"""An open-loop serving window: planned arrivals, one queue, dynamic batching, on any clock.

Arrivals are planned before the run, so a request is in the queue from its scheduled moment, as one
that waits in a network card; no second thread that sends it competes with the model for the
interpreter. Latency counts from the scheduled arrival whatever the loop was doing then, so that a
server that stalls can't hide the requests that came meanwhile (MLPerf LoadGen's server scenario;
G. Tene's "coordinated omission", wrk2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from precision_explorer.measure.clock import Clock
from precision_explorer.measure.quiet import quiet_gc

if TYPE_CHECKING:
    import numpy as np

    from precision_explorer.measure.served import ServingSeries

Service = Callable[[list[int]], Sequence[dict[str, Any]]]
"""Serves the requests at these places of the schedule at once; extras for each one's row."""

# Between setting the window's start and its first possible arrival, so that this one is not late.
_LEAD_S = 0.002


@dataclass(frozen=True)
class ServingRules:
    """A batch starts when `max_batch` requests wait, or the oldest has waited `max_wait_s`, and the
    server is free; first come, first served. After the last arrival the queue is served on for
    `drain_s` at most.

    Warm-up, before the window: `warmup_requests` requests and `warmup_s` seconds at least, the
    first of them the cold one, at batch sizes 1, 2, 4 .. `max_batch`; both 0: none. The queue fills
    from empty in the window itself: requests that come in its first `settle_s` are not counted.
    """

    max_batch: int = 1
    max_wait_s: float = 0.0
    drain_s: float = 30.0
    warmup_requests: int = 0
    warmup_s: float = 0.0
    settle_s: float = 0.0

    def __post_init__(self) -> None:
        least = min(self.max_wait_s, self.drain_s, self.warmup_s, self.settle_s)
        if self.max_batch < 1 or least < 0:
            raise ValueError("max_batch is at least 1, and no time is below 0")


@dataclass(frozen=True)
class WarmUp:
    """One batch before the window: its first request, size and seconds."""

    position: int
    size: int
    seconds: float


class _Loop:
    """Serves one window; all moments are the clock's own until the series is made."""

    def __init__(
        self,
        times_s: list[float],
        service: Service,
        rules: ServingRules,
        clock: Clock,
        sync: Callable[[], None] | None,
    ) -> None:
        self._service, self._rules, self._clock, self._sync = service, rules, clock, sync
        self.origin = self._last = clock.now() + _LEAD_S
        # Moments are added up once: what a clock is asked to wait for it must then have reached.
        self._due = [self.origin + t for t in times_s]
        self.noticed: list[float] = []
        self.started: list[float] = []
        self.finished: list[float] = []
        self.sizes: list[int] = []
        self.extras: list[dict[str, Any]] = []
        self._served = 0
        self._inside = 0
        self.area = 0.0
        """Request-seconds spent in the system, counted as the loop goes (for Little's law)."""
        self.ended = self.origin

    def run(self, cut: float) -> None:
        """Serve until all are done, or until `cut` seconds since the start, when no batch begins
        any more."""
        end = self.origin + cut
        while self._served < len(self._due) and self._gather(end) < end:
            self._batch()
        self.ended = self._last

    def _look(self) -> float:
        """The clock now; whatever has arrived by then is in the queue."""
        now, due, noticed = self._clock.now(), self._due, self.noticed
        self._pass(now)
        while len(noticed) < len(due) and due[len(noticed)] <= now:
            self.area += now - due[len(noticed)]
            self._inside += 1
            noticed.append(now)
        return now

    def _pass(self, now: float) -> None:
        self.area += self._inside * (now - self._last)
        self._last = now

    def _gather(self, end: float) -> float:
        """Wait until a batch is due, or until `end`; returns the clock."""
        now = self._look()
        while now < end:
            waiting = len(self.noticed) - self._served
            limit = self._due[self._served] + self._rules.max_wait_s
            if waiting >= self._rules.max_batch or (waiting and now >= limit):
                break
            more = len(self.noticed) < len(self._due)
            events = [end, self._due[len(self.noticed)]] if more else [end]
            events += [limit] if waiting else []
            # The last part is spun here: what looks for arrivals is then in the core's caches when
            # one comes, which costs more than its instructions where they are not.
            self._clock.sleep_towards(min(events))
            now = self._look()
        return now

    def _batch(self) -> None:
        size = min(len(self.noticed) - self._served, self._rules.max_batch)
        positions = list(range(self._served, self._served + size))
        self.started.append(self._clock.now())
        extras = self._service(positions)
        if self._sync is not None:
            self._sync()
        now = self._clock.now()
        if len(extras) != size:
            raise ValueError(f"the service answered {len(extras)} of {size} requests")
        self.finished.append(now)
        self.sizes.append(size)
        self.extras.extend(extras)
        self._served += size
        self._pass(now)
        self._inside -= size

    def series(self, times: list[float], duration_s: float, warm: list[WarmUp]) -> ServingSeries:
        """What the window came to."""
        from precision_explorer.measure.served import ServingSeries

        return ServingSeries.of(times, duration_s, self._rules, warm, self)


def warm_up(
    service: Service,
    count: int,
    rules: ServingRules,
    clock: Clock,
    sync: Callable[[], None] | None = None,
) -> list[WarmUp]:
    """Serve requests 0 .. `count` - 1 over and over by the warm-up rules, the cold one first."""
    done: list[WarmUp] = []
    begun, served, size = clock.now(), 0, 1
    largest = not rules.warmup_requests and not rules.warmup_s
    while served < rules.warmup_requests or clock.now() - begun < rules.warmup_s or not largest:
        start = clock.now()
        service([(served + k) % count for k in range(size)])
        if sync is not None:
            sync()
        done.append(WarmUp(served % count, size, clock.now() - start))
        served += size
        largest = largest or size == rules.max_batch
        size = 1 if size == rules.max_batch else min(2 * size, rules.max_batch)
    return done


def serve(
    times_s: np.ndarray | Sequence[float],
    service: Service,
    rules: ServingRules,
    *,
    clock: Clock,
    duration_s: float | None = None,
    sync: Callable[[], None] | None = None,
    on_begin: Callable[[], Any] | None = None,
    on_end: Callable[[], Any] | None = None,
    watch: Callable[[float], AbstractContextManager[Any]] = nullcontext,
    loop: Callable[..., _Loop] = _Loop,
) -> ServingSeries:
    """Serve requests as they come.

    `times_s` (n,): scheduled arrivals in seconds since the window's start, ascending. `service`
    serves the requests at some places of it, at most ``max_batch``, and returns a dict of extras
    for each (`first_token_s` since the batch's start, `output_tokens`, ...). `duration_s`: how long
    requests could come; by default up to the last. `sync` is called before each batch's end is
    read. `on_begin` and `on_end` are called around the window (an energy meter), warm-up apart;
    `watch`, given the clock's value at the window's start, makes a context inside them. `loop`
    serves the window; `service` alone warms it up.
    Requests that had no turn before the drain's end stay in the series without an end. ValueError
    for no arrivals, arrivals that go backwards, are not finite or before 0, and none that counts.
    """
    times = [float(t) for t in times_s]
    if (
        not times
        or times[0] < 0
        or not all(a <= b < math.inf for a, b in pairwise([*times, times[-1]]))
    ):
        raise ValueError("arrivals are one or more finite seconds from 0 on that never go back")
    duration = times[-1] if duration_s is None else duration_s
    if duration < times[-1]:
        raise ValueError(
            f"the last arrival is at {times[-1]} s, after the {duration} s of arrivals"
        )
    if times[-1] < rules.settle_s:
        raise ValueError(f"no arrival after the first {rules.settle_s} s, which are not counted")
    warm = warm_up(service, len(times), rules, clock, sync)
    with quiet_gc():
        if on_begin is not None:
            on_begin()
        window = loop(times, service, rules, clock, sync)
        with watch(window.origin):
            window.run(duration + rules.drain_s)
        if on_end is not None:
            on_end()
    return window.series(times, duration, warm)
