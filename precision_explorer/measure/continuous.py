"""An open-loop serving window whose requests join and leave a running batch at any step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from precision_explorer.measure.clock import Clock
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import ServingRules, WarmUp, _Loop, serve

Json = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What one step of the model did, by tickets: the requests that it worked on, those that got a
    token, and those whose last one that was."""

    served: list[int]
    made: list[int]
    finished: list[int]


class Stepper(Protocol):
    """A model that goes on with all requests in progress, step by step."""

    def join(self, position: int) -> tuple[int, Json]:
        """Take one more request, that of this place of the schedule: (its ticket, extras of its
        row)."""

    def step(self) -> Step:
        """Go on with all requests by a step."""


@dataclass(frozen=True)
class ContinuousSeries(ServingSeries):
    """The same of requests that were served step by step: what batches are there, steps are here.
    `started_s`, `finished_s` (b,): of the steps, `sizes` how many requests were in progress; of the
    m requests that had their turn `begun_s`, `done_s` and `first_step` (m,). `ready_s` (b,): when
    each step could have begun."""

    begun_s: np.ndarray
    done_s: np.ndarray
    first_step: np.ndarray
    ready_s: np.ndarray

    def begins_s(self) -> np.ndarray:
        """(m,) when the first step with each request began."""
        return self.begun_s

    def ends_s(self) -> np.ndarray:
        """(m,) when each request had its last token."""
        return self.done_s

    def batches_of(self) -> np.ndarray:
        """(m,) the first step with each request."""
        return self.first_step

    def overhead_s(self) -> np.ndarray:
        """(b,) from when each step could have begun to when it did."""
        return self.started_s - self.ready_s


@dataclass
class _Request:
    """Moments of one in progress, by the clock; None: not yet."""

    extras: Json
    begun: float | None = None
    step: int = -1
    first: float | None = None
    last: float = 0.0
    tokens: int = 0

    def row(self) -> Json:
        """Extras of its row, tokens counted from the first step's start."""
        assert self.begun is not None
        assert self.first is not None
        rest = self.tokens - 1
        return self.extras | {
            "first_token_s": self.first - self.begun,
            "tpot_s": (self.last - self.first) / rest if rest else None,
        }


class _Steps(_Loop):
    """Serves one window; the requests that had their turn are the first ones of the schedule."""

    def __init__(
        self,
        stepper: Stepper,
        times_s: list[float],
        service: Any,
        rules: ServingRules,
        clock: Clock,
        sync: Callable[[], None] | None,
    ) -> None:
        super().__init__(times_s, service, rules, clock, sync)
        self._stepper = stepper
        self._open: dict[int, _Request] = {}
        self.requests: list[_Request] = []
        self.ready: list[float] = []

    def run(self, cut: float) -> None:
        """Serve until all are done, or until `cut` seconds since the start, when no request joins
        any more and those in progress are served to their end."""
        end = self.origin + cut
        while len(self.requests) < len(self._due) or self._open:
            now = self._look()
            waiting = len(self.noticed) - len(self.requests) if now < end else 0
            if waiting or self._open:
                self._step(min(waiting, self._rules.max_batch - len(self._open)))
            elif now >= end:
                break
            else:
                self._clock.sleep_towards(min(end, self._due[len(self.noticed)]))
        self.ended = self._last

    def _step(self, joining: int) -> None:
        """Let so many join, and go on with all by a step."""
        place, before = len(self.requests), self.finished[-1] if self.finished else self.origin
        self.ready.append(before if self._open else max(before, self._due[place]))
        started = self._clock.now()
        for position in range(place, place + joining):
            ticket, extras = self._stepper.join(position)
            self._open[ticket] = _Request(extras)
            self.requests.append(self._open[ticket])
        size = len(self._open)
        done = self._stepper.step()
        if self._sync is not None:
            self._sync()
        now = self._clock.now()
        self._tell(done, started, now)
        self.started.append(started)
        self.finished.append(now)
        self.sizes.append(size)
        self._pass(now)
        self._inside -= len(done.finished)

    def _tell(self, done: Step, started: float, now: float) -> None:
        for ticket in done.served:
            request = self._open[ticket]
            if request.begun is None:
                request.begun, request.step = started, len(self.started)
        for ticket in done.made:
            request = self._open[ticket]
            request.first = now if request.first is None else request.first
            request.last, request.tokens = now, request.tokens + 1
        for ticket in done.finished:
            del self._open[ticket]

    def series(self, times: list[float], duration_s: float, warm: list[WarmUp]) -> ServingSeries:
        """What the window came to."""
        moments = {
            "noticed_s": self.noticed,
            "started_s": self.started,
            "finished_s": self.finished,
            "begun_s": [request.begun for request in self.requests],
            "done_s": [request.last for request in self.requests],
            "ready_s": self.ready,
        }
        arrays = {name: np.array(v, dtype=np.float64) - self.origin for name, v in moments.items()}
        return ContinuousSeries(
            scheduled_s=np.array(times),
            sizes=np.array(self.sizes, dtype=np.int64),
            extras=[request.row() for request in self.requests],
            warm=warm,
            rules=self._rules,
            duration_s=duration_s,
            ended_s=self.ended - self.origin,
            area=self.area,
            first_step=np.array([request.step for request in self.requests], dtype=np.int64),
            **arrays,
        )


def serve_continuously(
    times_s: np.ndarray | Sequence[float], stepper: Stepper, rules: ServingRules, **window: Any
) -> ServingSeries:
    """Serve requests as they come: each joins as soon as fewer than ``max_batch`` are in progress,
    first come, first served. All else as in `serve`, a request's service beginning with the first
    step that it is in; ``max_wait_s`` has no meaning."""
    service = partial(_all_at_once, stepper)
    return serve(times_s, service, rules, loop=partial(_Steps, stepper), **window)


def _all_at_once(stepper: Stepper, positions: list[int]) -> list[Json]:
    """Serve these requests to their end, for the warm-up."""
    joined = [stepper.join(position) for position in positions]
    left = len(joined)
    while left:
        left -= len(stepper.step().finished)
    return [extras for _, extras in joined]


def full_rate(
    stepper: Stepper,
    count: int,
    max_batch: int,
    *,
    least_requests: int,
    least_s: float,
    budget_s: float,
    clock: Callable[[], float],
    sync: Callable[[], None] | None = None,
) -> float:
    """Requests per second while `max_batch` are in progress all the time, each followed by the next
    of 0 .. `count` - 1, over and over: the capacity.

    The first `max_batch` requests to be done are warm-up. Then both leasts are met, or `budget_s`
    seconds are spent since the beginning and a request is done. Those in progress at the end are
    left unfinished.
    """
    begun = clock()
    joined = warm = done = 0
    start = now = begun
    open_ = 0
    while not done or not (
        now - begun >= budget_s or (done >= least_requests and now - start >= least_s)
    ):
        for _ in range(max_batch - open_):
            stepper.join(joined % count)
            joined += 1
        open_ = max_batch
        finished = len(stepper.step().finished)
        if sync is not None:
            sync()
        now, open_ = clock(), open_ - finished
        if warm < max_batch:
            warm, start = warm + finished, now
        else:
            done += finished
    return done / (now - start)
