"""The timed part of a cell whose rate is searched: windows at one rate after the other. Runs in a
worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.hardware import EnergySensor
from precision_explorer.measure import EnergyWindow
from precision_explorer.records.record import Energy, Throughput
from precision_explorer.records.serving import Serving, TriedRate
from precision_explorer.runner.rate_search import Point, chosen, drain_s, find_rate, settle_s
from precision_explorer.runner.serving import ServedWindow, Server

Json = dict[str, Any]


@dataclass(frozen=True)
class Searched:
    """What a search gave. `serving` and `energy`: of the windows at the rate that stands for it;
    `tried`: all of them; `rows`: the requests of all."""

    serving: list[Serving]
    tried: list[TriedRate]
    throughput: Throughput
    energy: list[Energy]
    rows: list[Json]


class SearchingServer(Server):
    """A server that is asked at the rates of a search."""

    def search(
        self,
        batch_sizes: Sequence[int],
        sensor: EnergySensor,
        round: int,
        first: bool,
        on_window: Callable[[float], None] = lambda left_s: None,
    ) -> Searched:
        """Capacity first, then windows until the workload's search is over. `on_window`: told what
        is left of the budget. DoesNotFit as `Server.measure`."""
        throughput = self._throughput(batch_sizes, round, first, sensor)

        def serve_at(rate: float, seconds: float, draw: tuple[int, ...]) -> ServedWindow:
            return self._window(self._plan(rate, round, seconds, draw), EnergyWindow(sensor))

        points = find_rate(self.workload, self._capacity(throughput), serve_at, on_window)
        best = chosen(points)
        cold = points[0].windows[0].series.warm
        tried = [self._tried(point) for point in points]
        kept = [k for k, window in enumerate(best.windows) if not window.is_refused]
        kept = kept or list(range(len(best.windows)))
        serving = [tried[points.index(best)].windows[k] for k in kept]
        serving[0] = serving[0].model_copy(
            update={"cold_first_s": cold[0].seconds if cold else None}
        )
        return Searched(
            serving=serving,
            tried=tried,
            throughput=throughput,
            energy=[
                best.windows[k].energy.record(requests=best.windows[k].series.served) for k in kept
            ],
            rows=[
                row
                for number, point in enumerate(points)
                for row in self._point_rows(number, point, kept if point is best else [])
            ],
        )

    def _settle_s(self, duration_s: float) -> float:
        return settle_s(self.workload, duration_s)

    def _drain_s(self, duration_s: float) -> float:
        return drain_s(self.workload, duration_s)

    def _tried(self, point: Point[ServedWindow]) -> TriedRate:
        windows = []
        for window in point.windows:
            rows = self._rows(window.series, window.schedule)
            windows.append(self._record(window, rows).model_copy(update={"cold_first_s": None}))
        return TriedRate(rung=point.rung, rate_per_s=point.rate_per_s, windows=windows)

    def _point_rows(
        self, number: int, point: Point[ServedWindow], kept: Sequence[int]
    ) -> list[Json]:
        """The requests of a rate's windows. Those that count are ``measure`` in the windows `kept`,
        which stand for the row, and ``tried`` in all others."""
        found = []
        for attempt, window in enumerate(point.windows):
            for row in self._rows(window.series, window.schedule):
                counts = row["window"] == "measure" and attempt not in kept
                label = {"window": "tried"} if counts else {}
                found.append(row | label | {"point": number, "attempt": attempt})
        return found
