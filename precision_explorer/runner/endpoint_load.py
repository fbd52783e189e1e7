"""The timed part of a server over HTTP whose requests come by their own clock. Runs in a worker; no
torch."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import EndpointError, PrecisionExplorerError
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.measure import EnergyWindow, offline
from precision_explorer.measure.open_loop import send_window
from precision_explorer.measure.sent import SentSeries
from precision_explorer.models.asked import Asked
from precision_explorer.records.record import Throughput
from precision_explorer.runner.timed import Subject
from precision_explorer.runner.window_length import first_window_s, longer_window_s
from precision_explorer.workload import Schedule, plan_schedule

Json = dict[str, Any]
_NOTE = (
    "the server puts requests together by its own rules, so the workload's max_batch and "
    "max_wait_s don't apply, and queue and service can't be told apart"
)


@dataclass(frozen=True)
class _Window:
    schedule: Schedule
    series: SentSeries

    @property
    def spent_s(self) -> float:
        """Seconds of the budget."""
        return max(self.series.cut_s, self.schedule.duration_s)


@dataclass(frozen=True)
class EndpointLoad:
    """A server under the workload of `subject`, asked by `adapter`."""

    adapter: Asked
    subject: Subject

    def measure(self) -> tuple[Json, list[Json]]:
        """(throughput and serving, as answered to the manager; the request rows). Capacity first,
        then windows, as of `runner.serving.Server`: once more where the client was late, longer
        ones while the workload's tail takes more; the last that kept time counts."""
        subject = self.subject
        throughput = self._offline()
        load = self._load(throughput)
        warm = self._warm_up()
        windows = self._windows(load.get("capacity_per_s"))
        last = next((w for w in reversed(windows) if w.series.refused() is None), windows[-1])
        rows = last.series.rows()
        for row in rows:
            row["index"] = int(last.schedule.items[row["position"]])
        serving = last.series.record(
            "server",
            note=_NOTE,
            windows=len(windows),
            generates=self.adapter.generates,
            cold_first_s=warm[0]["latency_s"] if warm and subject.first else None,
            warmup_requests=max(len(warm) - subject.first, 0),
            **load,
        )
        energy = EnergyWindow(UnavailableSensor("a server over HTTP tells of no energy"))
        energy.begin()
        energy.end()
        answer = {
            "latency": None,
            "serving": serving.model_dump(),
            "soak": None,
            "throughput": throughput.model_dump(),
            "energy": energy.record(requests=len(rows)).model_dump(),
        }
        return answer, [*warm, *rows]

    def _offline(self) -> Throughput:
        subject = self.subject
        return offline(
            self.adapter.offline,
            len(subject.examples),
            subject.request["batch_sizes"],
            subject.rules,
            warm_up=subject.first,
            skipped=subject.round * subject.rules.offline_min_batches,
        )

    def _load(self, throughput: Throughput) -> Json:
        """Share, whose and capacity where the arrivals declare a share; empty where a rate."""
        rules, request = self.subject.rules, self.subject.request
        assert rules.arrivals is not None
        if rules.arrivals.load is None:
            return {}
        shared = rules.load_of == "reference"
        capacity = request.get("capacity_per_s") if shared else None
        same = shared and (capacity is not None or request.get("is_reference", False))
        capacity = capacity or request.get("own_capacity_per_s") or _best(throughput)
        return {
            "load": rules.arrivals.load,
            "load_of": "reference" if same else "own",
            "capacity_per_s": capacity,
        }

    def _warm_up(self) -> list[Json]:
        """Rows of the requests before the first window, one after the other, the cold one first."""
        rules, count = self.subject.rules, len(self.subject.examples)
        rows: list[Json] = []
        begun = time.perf_counter()
        while (
            len(rows) < rules.warmup_requests or time.perf_counter() - begun < rules.warmup_seconds
        ):
            index = len(rows) % count
            spent = self._patiently(index)
            window = "warmup" if rows or not self.subject.first else "cold"
            rows.append({"index": index, "window": window, "latency_s": spent})
        return rows

    def _patiently(self, index: int) -> float:
        """Seconds that one request took, sent again after a pause where the server is too busy for
        it: its limit may be of requests in some time, of which the pass before took many."""
        limits = self.adapter.asking.client.limits
        for tried in range(limits.tries):
            start = time.perf_counter()
            try:
                self.adapter.offline([index])
                return time.perf_counter() - start
            except EndpointError as error:
                if not error.passing or tried + 1 == limits.tries:
                    raise
            time.sleep(limits.pause_s * 2**tried)
        raise AssertionError("a request is sent once at least")

    # -- windows -----------------------------------------------------------------------------

    def _windows(self, capacity_per_s: float | None) -> list[_Window]:
        """All that are sent, in their order."""
        rules = self.subject.rules
        assert rules.arrivals is not None
        rate = rules.arrivals.rate(capacity_per_s)
        plan: Schedule | None = self._plan(rate, first_window_s(rules, rate))
        found: list[_Window] = []
        while plan is not None:
            found.append(_Window(plan, self._window(plan)))
            plan = self._next(found, rate)
        return found

    def _next(self, windows: list[_Window], rate_per_s: float) -> Schedule | None:
        """The plan of one more window after these; None where there is to be none."""
        last, rules = windows[-1], self.subject.rules
        if last.series.refused() is not None:
            return last.schedule if len(windows) == 1 else None
        if last.series.saturated():
            return None
        spent = sum(w.spent_s for w in windows)
        longer_s = longer_window_s(rules, rate_per_s, last.series.counted_latency_s(), spent)
        if longer_s is None or longer_s <= last.schedule.duration_s:
            return None
        plan = self._plan(rate_per_s, longer_s)
        return plan if plan.duration_s > last.schedule.duration_s else None

    def _plan(self, rate_per_s: float, duration_s: float) -> Schedule:
        subject = self.subject
        groups = [example.get("group") for example in subject.examples]
        return plan_schedule(
            subject.rules, len(groups), subject.seed, rate_per_s, subject.round,
            duration_s=duration_s, groups=groups,
        )  # fmt: skip

    def _window(self, schedule: Schedule) -> SentSeries:
        rules, items = self.subject.rules, schedule.items.tolist()
        lengths = {
            name: values.tolist()
            for name in ("input_tokens", "output_tokens")
            if (values := getattr(schedule, name)) is not None
        }

        def send(place: int) -> Awaitable[Json]:
            own = {name: values[place] for name, values in lengths.items()}
            return self.adapter.send(items[place], **own)

        client = self.adapter.asking.client
        series = send_window(
            client.run,
            schedule.times_s,
            send,
            duration_s=schedule.duration_s,
            # Half the window again where the budget leaves less: a queue must have time to end.
            drain_s=max(rules.budget_seconds - schedule.duration_s, schedule.duration_s / 2),
            settle_s=min(rules.warmup_seconds, float(schedule.times_s[-1])),
        )
        if series.dropped:
            # A server that has ended is no overloaded one.
            client.run(client.still_there())
        return series


def _best(throughput: Throughput) -> float:
    """Requests per second at the best of the numbers of requests that were under way together."""
    if throughput.best_batch_size is None:
        raise PrecisionExplorerError(
            "no throughput was measured, so there is no capacity to take a share of; raise "
            "offline_budget_seconds, or give rate_per_s"
        )
    rate = throughput.by_batch_size[str(throughput.best_batch_size)].requests_per_s
    assert rate is not None
    return rate
