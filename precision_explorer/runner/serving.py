"""The timed part of a cell whose requests come by their own clock. Runs in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import DoesNotFit, PrecisionExplorerError
from precision_explorer.hardware import DeviceFacts, EnergySensor
from precision_explorer.measure import EnergyWindow, offline
from precision_explorer.measure.clock import RealClock
from precision_explorer.measure.continuous import serve_continuously
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import Service, ServingRules, serve
from precision_explorer.measure.throughput import OUT_OF_MEMORY, SKIPPED
from precision_explorer.records.record import Throughput
from precision_explorer.records.serving import Serving
from precision_explorer.records.soak import Soak
from precision_explorer.runner.continuous import (
    Batching,
    choose_batching,
    continuous_capacity,
    stepping,
)
from precision_explorer.runner.watch import Watch
from precision_explorer.runner.window_length import first_window_s, longer_window_s
from precision_explorer.workload import Schedule, Workload, plan_schedule

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Adapter

Json = dict[str, Any]
# Requests whose lengths are looked at for a capacity: their mean is then known to a few percent.
_CAPACITY_REQUESTS = 256


@dataclass(frozen=True)
class Served:
    """What the timed part gave: the window that counts, its record, what was measured before it,
    and the request rows."""

    serving: Serving
    throughput: Throughput
    window: EnergyWindow
    rows: list[Json]
    served: int
    """How many requests had their turn in the window."""
    soak: Soak | None
    """The device in windows of time, where the window was long."""


@dataclass(frozen=True)
class ServedWindow:
    """One that was served, with what a meter read over it."""

    schedule: Schedule
    series: ServingSeries
    energy: EnergyWindow
    soak: Soak | None

    @property
    def is_refused(self) -> bool:
        """Whether its loop was late."""
        return self.series.refused() is not None

    @property
    def spent_s(self) -> float:
        """Seconds of the budget."""
        return max(self.series.ended_s, self.schedule.duration_s)


@dataclass(frozen=True)
class Server:
    """A cell's model as a server by the rules of `workload`; `groups`: of each example, or None;
    `facts`: of the device, to watch a long window; `owners`: of each example the task of the mix
    that it is of, or None: the cell's own, which stand first."""

    adapter: Adapter
    workload: Workload
    seed: int
    sync: Callable[[], None]
    groups: Sequence[str | None]
    facts: DeviceFacts | None = None
    owners: Sequence[str | None] = ()

    def measure(
        self,
        batch_sizes: Sequence[int],
        reference: Json,
        sensor: EnergySensor,
        round: int,
        first: bool,
    ) -> Served:
        """Capacity first, then a window at the rate that the workload declares: once more where its
        loop was late, and longer ones while the workload's tail takes more requests than it had and
        budget is left. The last that kept time counts. `reference`: its `capacity_per_s`, or that
        it `is_reference`, where the load is a share of that, and the cell's `own_capacity_per_s`
        from its first round. `first`: whether this process has not served before.

        DoesNotFit where memory does not hold the largest batch that a window may have."""
        throughput = self._throughput(batch_sizes, round, first, sensor)
        load = self._load(throughput, reference)
        windows = self._windows(load.get("capacity_per_s"), round, sensor)
        # A longer one that came late takes nothing from the one before it.
        last = next((w for w in reversed(windows) if not w.is_refused), windows[-1])
        rows = self._rows(last.series, last.schedule)
        serving = self._record(last, rows, windows=len(windows), **load)
        warm = windows[0].series.warm
        # In later windows the first request is cold no more.
        serving = serving.model_copy(update={"cold_first_s": warm[0].seconds if warm else None})
        return Served(serving, throughput, last.energy, rows, last.series.served, last.soak)

    def _record(self, window: ServedWindow, rows: list[Json], **more: Any) -> Serving:
        """The window's summary; `rows`: its requests."""
        return window.series.record(
            "server",
            batching=self._batching.name,
            note=self._batching.note,
            batching_fallback=self._batching.is_fallback,
            generates=self._streams,
            cut_requests=_cut(rows, window.schedule),
            **more,
        )

    @property
    def _own(self) -> int:
        """How many examples are of the cell's own task."""
        return len(self.groups) - sum(owner is not None for owner in self.owners)

    @property
    def _streams(self) -> bool:
        """Whether the adapter tells of each request's tokens."""
        return hasattr(self.adapter, "serve_batch")

    @cached_property
    def _batching(self) -> Batching:
        return choose_batching(self.adapter, self.workload)

    # -- how fast ------------------------------------------------------------------------------

    def _throughput(
        self, batch_sizes: Sequence[int], round: int, first: bool, sensor: EnergySensor
    ) -> Throughput:
        """At these sizes and the window's largest; DoesNotFit where memory does not hold that."""
        _ = self._batching  # What can't be served so is said before anything is measured.
        throughput = offline(
            lambda indices: self.adapter.offline(indices),
            self._own,
            sorted({*batch_sizes, self.workload.max_batch}),
            self.workload,
            sync=self.sync,
            warm_up=first,
            skipped=round * self.workload.offline_min_batches,
            sensor=sensor,
        )
        self._check_fits(throughput)
        return throughput

    def _load(self, throughput: Throughput, reference: Json) -> Json:
        """Share, whose and capacity where the arrivals declare a share; empty where a rate."""
        arrivals = self.workload.arrivals
        assert arrivals is not None
        if arrivals.load is None:
            return {}
        shared = self.workload.load_of == "reference"
        capacity = reference.get("capacity_per_s") if shared else None
        same = shared and (capacity is not None or reference.get("is_reference", False))
        if capacity is None:
            # Measured once: each round would else ask at another rate.
            capacity = reference.get("own_capacity_per_s") or self._capacity(throughput)
        return {
            "load": arrivals.load,
            "load_of": "reference" if same else "own",
            "capacity_per_s": capacity,
        }

    def _capacity(self, throughput: Throughput) -> float:
        """Requests per second at the largest batch that a window may have, of its own lengths."""
        window_s = self.workload.duration_seconds
        probe = self._plan(_CAPACITY_REQUESTS / window_s, 0, window_s)
        if self._batching.is_continuous:
            return continuous_capacity(self.adapter, probe, self.workload, self.sync)
        drawn = probe.input_tokens is not None or probe.output_tokens is not None
        if not drawn and self._own == len(self.groups):
            rates = throughput.by_batch_size
        else:
            serve_all = self._service(probe)

            def batch(positions: list[int]) -> Json:
                serve_all(positions)
                return {}

            sizes = [self.workload.max_batch]
            found = offline(batch, probe.n, sizes, self.workload, sync=self.sync)
            self._check_fits(found)
            rates = found.by_batch_size
        fitting = [int(size) for size in rates if int(size) <= self.workload.max_batch]
        known = [rates[str(size)].requests_per_s for size in sorted(fitting)]
        capacity = next((rate for rate in reversed(known) if rate), None)
        if capacity is None:
            raise PrecisionExplorerError(
                f"no batch of up to {self.workload.max_batch} was measured, so there is no "
                "capacity to take a share of; raise offline_budget_seconds, or give rate_per_s"
            )
        return capacity

    def _check_fits(self, throughput: Throughput) -> None:
        """DoesNotFit where the window's largest batch met the end of memory, as its warm-up then
        would; one that the offline budget had no time for may fit."""
        most = self.workload.max_batch
        rate = throughput.by_batch_size[str(most)]
        if rate.requests_per_s is None and rate.note in (OUT_OF_MEMORY, SKIPPED):
            raise DoesNotFit(
                f"a batch of {most} requests, which the workload lets a window put together, does "
                "not fit into memory; lower max_batch"
            )

    # -- the window ----------------------------------------------------------------------------

    def _windows(
        self, capacity_per_s: float | None, round: int, sensor: EnergySensor
    ) -> list[ServedWindow]:
        """All that are served, in their order."""
        arrivals = self.workload.arrivals
        assert arrivals is not None
        rate = arrivals.rate(capacity_per_s)
        plan: Schedule | None = self._plan(rate, round, first_window_s(self.workload, rate))
        found: list[ServedWindow] = []
        while plan is not None:
            found.append(self._window(plan, EnergyWindow(sensor)))
            plan = self._next(found, rate, round)
        return found

    def _next(self, windows: list[ServedWindow], rate_per_s: float, round: int) -> Schedule | None:
        """The plan of one more window after these; None where there is to be none."""
        last = windows[-1]
        if last.is_refused:
            return last.schedule if len(windows) == 1 else None
        if last.series.saturated():
            return None  # However long it lasted, no percentile would be a steady one.
        latencies, spent = last.series.counted_latency_s(), sum(w.spent_s for w in windows)
        longer_s = longer_window_s(self.workload, rate_per_s, latencies, spent)
        if longer_s is None or longer_s <= last.schedule.duration_s:
            return None
        plan = self._plan(rate_per_s, round, longer_s)
        # A replay ends with its trace.
        return plan if plan.duration_s > last.schedule.duration_s else None

    def _plan(
        self, rate_per_s: float, round: int, duration_s: float, draw: tuple[int, ...] = ()
    ) -> Schedule:
        return plan_schedule(
            self.workload,
            len(self.groups),
            self.seed,
            rate_per_s,
            round,
            duration_s=duration_s,
            groups=self.groups,
            owners=self.owners,
            draw=draw,
        )

    def _settle_s(self, duration_s: float) -> float:
        """The first seconds of a window, which don't count."""
        return self.workload.warmup_seconds

    def _drain_s(self, duration_s: float) -> float:
        """Half the window again where the budget leaves less: a queue must have time to end."""
        return max(self.workload.budget_seconds - duration_s, duration_s / 2)

    def _window(self, schedule: Schedule, energy: EnergyWindow) -> ServedWindow:
        rules, duration = self.workload, schedule.duration_s
        # A request that counts there must be.
        settle_s = min(self._settle_s(duration), float(schedule.times_s[-1]))
        # Arrivals are planned as a whole: there are none to measure a flagged window again with.
        watch = Watch(self.facts, rules, duration - settle_s, after_s=settle_s, repeats=False)
        with self._serving(schedule) as serve_window:
            series = serve_window(
                ServingRules(
                    max_batch=rules.max_batch,
                    max_wait_s=rules.max_wait_s,
                    drain_s=self._drain_s(duration),
                    warmup_requests=rules.warmup_requests,
                    warmup_s=rules.warmup_seconds,
                    settle_s=settle_s,
                ),
                clock=RealClock(),
                duration_s=duration,
                sync=self.sync,
                on_begin=energy.begin,
                on_end=energy.end,
                watch=watch.at,
            )
        counted = series.counted[: series.served]
        soak = watch.soak(series.ends_s()[counted].tolist())
        return ServedWindow(schedule, series, energy, soak)

    @contextmanager
    def _serving(self, schedule: Schedule) -> Iterator[Callable[..., ServingSeries]]:
        """Serves the window of `schedule` in the way that was chosen."""
        if not self._batching.is_continuous:
            yield partial(serve, schedule.times_s, self._service(schedule))
            return
        with stepping(self.adapter, schedule, self.workload.max_batch) as stepper:
            yield partial(serve_continuously, schedule.times_s, stepper)

    def _service(self, schedule: Schedule) -> Service:
        items = schedule.items.tolist()
        own = getattr(self.adapter, "serve_batch", None)
        if own is None:

            def at_once(positions: list[int]) -> list[Json]:
                answers = self.adapter.offline([items[p] for p in positions]).get("answers")
                given = answers if answers is not None else [None] * len(positions)
                return [{} if a is None else {"answer": str(a)} for a in given]

            return at_once

        lengths = {
            name: values.tolist()
            for name in ("input_tokens", "output_tokens")
            if (values := getattr(schedule, name)) is not None
        }

        def generating(positions: list[int]) -> list[Json]:
            asked = {name: [values[p] for p in positions] for name, values in lengths.items()}
            return own([items[p] for p in positions], **asked)

        return generating

    def _rows(self, series: ServingSeries, schedule: Schedule) -> list[Json]:
        rows = series.rows()
        for row in rows:
            row["index"] = int(schedule.items[row["position"]])
            if schedule.parts is not None and self.workload.mix is not None:
                row["part"] = self.workload.mix[schedule.parts[row["position"]]].name
        return rows


def _cut(rows: Sequence[Json], schedule: Schedule) -> int:
    """How many requests of the window had other lengths than were drawn for them."""
    cut = set()
    for name in ("input_tokens", "output_tokens"):
        drawn = getattr(schedule, name)
        if drawn is not None:
            told = ((row["position"], row.get(name)) for row in rows if "batch" in row)
            cut |= {place for place, found in told if found not in (None, drawn[place])}
    return len(cut)


def batch_sizes(offline_sizes: Sequence[int], workload: Json) -> list[int]:
    """The batch sizes that a cell of this workload uses, for a compiler to know: those of the
    offline part, and what a window may put together, in powers of two."""
    rules = Workload.model_validate(workload)
    most = {"server": rules.max_batch, "multi-stream": rules.streams}.get(rules.scenario)
    if most is None:
        return list(offline_sizes)
    powers = {1 << k for k in range(most.bit_length()) if 1 << k <= most}
    return sorted({*offline_sizes, *powers, most})
