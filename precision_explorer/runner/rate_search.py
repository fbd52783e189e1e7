"""The largest rate that a server holds an objective at, searched with real windows. No torch: any
server that makes windows will do, also one on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from precision_explorer.measure.served import ServingSeries
from precision_explorer.stats import needed_n, rate_search
from precision_explorer.stats.rate_search import Judgement, Search, Seen, judge
from precision_explorer.workload import PERCENTILES, Workload
from precision_explorer.workload.rate_search import RateSearch

FIRST_LOAD = 0.5
"""Share of the capacity at which a search begins."""
LEAST_LOAD = 1 / 8
"""The lowest share that is tried: a request waits there for a seventh of a service time on average
(M/M/1), so that a rate which misses misses by the service itself."""
SETTLE_SHARE = 0.1
"""Part of a window in which the queue fills from empty, which does not count; as in the simulation
of `capacity`."""
MOST_WINDOWS = 8
"""Windows at one rate; each doubles what is known of it, so the last is 64 times the first."""
RATE_SHARE = 0.25
"""Part of the budget that a rate gets before the others had theirs."""
STRIDE = 0.2
"""How far from a rate that could not be told the next one is, as a share: an interval of a p99 from
as many requests as make one is about that wide in the rate (M/M/1 at 0.5 to 0.7)."""
_FIRST_WORTH = 4.0
# Independent requests that a rate's first window should hold: enough to see what is far above the
# limit.
_LOOK = 50
# What is left to full load at the least: at it the square would be without end.
_LEAST_LEFT = 0.05


class Window(Protocol):
    """A window that was served."""

    @property
    def series(self) -> ServingSeries:
        """What came of it."""

    @property
    def spent_s(self) -> float:
        """Seconds of the budget."""


W = TypeVar("W", bound=Window)


@dataclass
class Point(Generic[W]):
    """A rate that was tried, with its windows in their order and what they say together."""

    rung: int
    rate_per_s: float
    windows: list[W] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    found: Judgement | None = None

    def add(self, window: W, goal: RateSearch) -> Judgement:
        """One window more, and what all of them say now."""
        self.windows.append(window)
        self.seen.append(_seen(window.series))
        self.found = judge(self.seen, PERCENTILES[goal.percentile], goal.limit_s)
        return self.found


def _seen(series: ServingSeries) -> Seen:
    """What a search looks at."""
    return Seen(
        series.counted_latency_s(),
        refused=series.refused() is not None,
        grew=series.saturated(),
        unserved=series.unfinished > 0,
    )


def find_rate(
    rules: Workload,
    capacity_per_s: float,
    serve_at: Callable[[float, float, tuple[int, ...]], W],
    on_window: Callable[[float], None] = lambda left_s: None,
) -> list[Point[W]]:
    """The rates that were tried, in their order, until the bracket is as narrow as it gets or
    `budget_seconds` are spent. `serve_at`: (rate per second, seconds of the window, what its draws
    are told apart by) to a window; the same three give the same arrivals. `on_window` is told what
    is left of the budget after each."""
    goal = rules.search
    assert goal is not None
    first, floor, top = (
        rate_search.rung_below(share * capacity_per_s, goal.resolution)
        for share in (FIRST_LOAD, LEAST_LOAD, 1.0)
    )
    stride = max(rate_search.rung_below(1 + STRIDE, goal.resolution), 1)
    search = Search(first, min(floor, first), max(top, first), MOST_WINDOWS, stride)
    points: dict[int, Point[W]] = {}
    left, rung = rules.budget_seconds, search.next(first)
    while rung is not None and left > 0:
        rate = rate_search.rate_at(rung, goal.resolution)
        point = points.setdefault(rung, Point(rung, rate))
        seconds = _window_s(rules, point, list(points.values()), capacity_per_s)
        if len(points) > 1 and left < seconds / 2:
            break
        seconds = min(seconds, max(left, rules.duration_seconds))
        window = serve_at(rate, seconds, (rung % 2**32, len(point.windows)))
        left -= window.spent_s
        on_window(left)
        found = point.add(window, goal)
        search.told(rung, found)
        if not _goes_on(point, found, rules):
            rung = search.next(_guess(point, goal, capacity_per_s))
    return [point for point in points.values() if point.windows]


def chosen(points: Sequence[Point[W]]) -> Point[W]:
    """The rate that stands for a search: the largest that held, else the lowest."""
    held = [point for point in points if point.found and point.found.verdict == "held"]
    return max(held, key=_rung) if held else min(points, key=_rung)


def _rung(point: Point[W]) -> int:
    return point.rung


def drain_s(rules: Workload, duration_s: float) -> float:
    """How long a window's queue is served on: longer than the limit, so that what waits too long
    is seen to."""
    assert rules.search is not None
    return max(rules.search.limit_s, duration_s / 2)


def settle_s(rules: Workload, duration_s: float) -> float:
    """The first seconds of a window that don't count."""
    return max(rules.warmup_seconds, SETTLE_SHARE * duration_s)


def _guess(point: Point[W], goal: RateSearch, capacity_per_s: float) -> int:
    """The rung at which the percentile would be the limit if its inverse fell in a line from what
    it is at `point` to 0 at the capacity: it does in M/M/1 (Kleinrock 1975, section 3.2)."""
    kept = [one.latencies_s for one in point.seen if not one.refused]
    values = np.concatenate([np.zeros(0), *kept])
    if not len(values):
        return point.rung
    found = float(np.quantile(values, PERCENTILES[goal.percentile], method="inverted_cdf"))
    rate = capacity_per_s - (capacity_per_s - point.rate_per_s) * found / goal.limit_s
    return rate_search.rung_below(max(rate, LEAST_LOAD * capacity_per_s), goal.resolution)


def _goes_on(point: Point[W], found: Judgement, rules: Workload) -> bool:
    """Whether the next window is one more at the same rate: nobody knows of it yet, and it has had
    neither enough independent requests for an interval nor its part of the budget."""
    assert rules.search is not None
    least = needed_n(PERCENTILES[rules.search.percentile], 0.975)
    spent = sum(window.spent_s for window in point.windows)
    few = found.tail.n_eff < least and len(point.windows) < MOST_WINDOWS
    return found.verdict == "unsure" and few and spent < RATE_SHARE * rules.budget_seconds


def _window_s(
    rules: Workload, point: Point[W], points: Sequence[Point[W]], capacity_per_s: float
) -> float:
    """Seconds of the next window at a rate: as long as those before it together. The first holds
    `_LOOK` independent requests, and limit / resolution, in which more than is served by the
    resolution shows as a latency beyond the limit, whatever a trend test makes of it."""
    goal = rules.search
    assert goal is not None
    before_s = sum(w.series.duration_s for w in point.windows)
    if before_s:
        return before_s
    count = _LOOK * _worth(point.rate_per_s / capacity_per_s, points, capacity_per_s)
    span_s = max(count / point.rate_per_s, goal.limit_s / goal.resolution)
    return max(span_s / (1 - SETTLE_SHARE) + rules.warmup_seconds, rules.duration_seconds)


def _worth(load: float, points: Sequence[Point[W]], capacity_per_s: float) -> float:
    """How many requests are about to be worth an independent one: as many as at the nearest load
    below, times the square of the ratio of what is left to full load, as in heavy traffic (Whitt
    1989, Planning queueing simulations)."""
    known = {p.rate_per_s / capacity_per_s: p.found.tail for p in points if p.found}
    below = max((x for x in known if x < load and known[x].n), default=None)
    worth, at = _FIRST_WORTH, FIRST_LOAD
    if below is not None:
        worth, at = known[below].n / max(known[below].n_eff, 1.0), below
    ratio = max(1 - at, _LEAST_LEFT) / max(1 - load, _LEAST_LEFT)
    return max(worth * ratio**2, 1.0)
