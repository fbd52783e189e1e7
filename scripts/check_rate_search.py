"""The search for the largest rate within a latency objective, against queueing theory.

The whole search runs on a virtual clock, with a service whose times are drawn: exponential ones at
`CAPACITY` per second, requests one at a time (M/M/1). Sojourn times are then exponential with mean
1 / (capacity - rate) (Kleinrock 1975, section 3.2), so that the largest rate with p99 <= T is
exactly capacity - ln(100) / T. For several such rates and many seeds: how often it lies between the
rate that held and the one that missed, how far these are apart, and how far the first is below it.
Exits with 1 where an end is on the wrong side too often.

    python scripts/check_rate_search.py              # some minutes
    python scripts/check_rate_search.py --seeds 3 --budget 600
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from precision_explorer.measure.clock import VirtualClock
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import ServingRules, serve
from precision_explorer.runner.rate_search import Point, drain_s, find_rate, settle_s
from precision_explorer.stats.rate_search import Bracket, bracket, rate_at
from precision_explorer.workload import Workload, plan_schedule

CAPACITY, RESOLUTION = 200.0, 0.05
MOST_WRONG = 0.1
"""Of all searches, for each rate: an end on the wrong side. A window's interval is wrong in 2.5 %
at that end, and a search looks at a rate that is near the largest several times."""


@dataclass(frozen=True)
class Window:
    """One on the virtual clock."""

    series: ServingSeries

    @property
    def spent_s(self) -> float:
        """Seconds of the budget."""
        return max(self.series.ended_s, self.series.duration_s)


def rules_for(limit_s: float, budget_s: float) -> Workload:
    """A search of the rate with p99 <= `limit_s`, a request at a time."""
    search = {"limit_s": limit_s, "resolution": RESOLUTION}
    return Workload.model_validate(
        {
            "scenario": "server",
            "arrivals": {"kind": "poisson", "search": search},
            "budget_seconds": budget_s,
            "max_batch": 1,
        }
    )


def search(rules: Workload, seed: int, shape: float = 1.0) -> list[Point[Window]]:
    """The rates tried; services are gamma distributed with this `shape` (1: exponential)."""

    def serve_at(rate: float, seconds: float, draw: tuple[int, ...]) -> Window:
        plan = plan_schedule(rules, 1, seed, rate, duration_s=seconds, draw=draw)
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(99, *draw)))
        services, clock = rng.gamma(shape, 1 / (shape * CAPACITY), plan.n), VirtualClock()

        def service(places: list[int]) -> list[dict[str, Any]]:
            clock.advance(services[places[0]])
            return [{}]

        serving = ServingRules(
            drain_s=drain_s(rules, seconds),
            settle_s=min(settle_s(rules, seconds), float(plan.times_s[-1])),
        )
        return Window(serve(plan.times_s, service, serving, clock=clock, duration_s=seconds))

    return find_rate(rules, CAPACITY, serve_at)


def ends_of(points: list[Point[Window]]) -> Bracket:
    """Between which rungs the answer lies."""
    return bracket({point.rung: point.found.verdict for point in points if point.found})


def check(load: float, budget_s: float, seeds: int) -> float:
    """The share of searches with an end on the wrong side of `load` of the capacity; prints it."""
    truth = load * CAPACITY
    limit_s = math.log(100) / (CAPACITY - truth)
    wrong, widths, below, spent = 0, [], [], []
    for seed in range(seeds):
        points = search(rules_for(limit_s, budget_s), seed)
        ends = ends_of(points)
        held, missed = (
            None if rung is None else rate_at(rung, RESOLUTION) for rung in (ends.held, ends.missed)
        )
        wrong += (held is not None and held > truth) or (missed is not None and missed < truth)
        spent.append(sum(w.spent_s for point in points for w in point.windows))
        if held is not None:
            below.append(held / truth - 1)
        if held is not None and missed is not None:
            widths.append(missed / held - 1)
    print(
        f"load {load}, p99 <= {limit_s * 1e3:.0f} ms, {budget_s:.0f} s: the largest rate is "
        f"{truth:.0f}/s; wrong {wrong} of {seeds}, both ends in {len(widths)}, width "
        f"{_middle(widths)}, held below it by {_middle(below)} (median), {np.median(spent):.0f} s "
        "spent",
        flush=True,
    )
    return wrong / seeds


def _middle(values: list[float]) -> str:
    return f"{np.median(values):+.1%}" if values else "none"


def main() -> int:
    """Print all checks; 1 where the ends are wrong too often."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--budget", type=float, nargs="+", default=[180.0, 1200.0])
    options = parser.parse_args()
    found = [
        check(load, budget, options.seeds) for load in (0.5, 0.7, 0.9) for budget in options.budget
    ]
    return int(max(found) > MOST_WRONG)


if __name__ == "__main__":
    sys.exit(main())
