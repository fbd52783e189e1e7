"""A cell's timed part, whatever its scenario: latency with its energy, and offline throughput. Runs
in a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precision_explorer.hardware import DeviceFacts, EnergySensor
from precision_explorer.measure import EnergyWindow, IdleBaseline, LatencySeries, offline
from precision_explorer.records import Soak
from precision_explorer.records.record import Throughput
from precision_explorer.runner.closed_loop import closed_loop
from precision_explorer.runner.offered import told_of
from precision_explorer.runner.rounds import joined_energy
from precision_explorer.runner.searched import SearchingServer
from precision_explorer.runner.serving import Server
from precision_explorer.runner.watch import Watch
from precision_explorer.workload import Workload

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Adapter

Json = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is timed: a task's `adapter`, and the manager's `request`. `facts`: of the device, to
    watch a long time; None: it is not watched."""

    adapter: Adapter
    request: Json
    seed: int
    sync: Callable[[], None]
    progress: Callable[[str, int, int], None]
    facts: DeviceFacts | None = None

    @property
    def first(self) -> bool:
        """Whether this process has not served the cell before."""
        return self.request["first"]

    @property
    def round(self) -> int:
        """The number of the round, from 0."""
        return self.request["round"]

    @property
    def rules(self) -> Workload:
        """The workload's rules for one round."""
        return Workload.model_validate(self.request["workload"]).one_round(self.first)

    @property
    def examples(self) -> list[Json]:
        """What is asked."""
        return self.request["examples"]


def timed_part(subject: Subject, sensor: EnergySensor) -> tuple[Json, list[Json]]:
    """(latency or serving, throughput and energy, as answered to the manager; the request rows)."""
    idle = IdleBaseline(sensor)
    idle.before()
    timed = _served if subject.rules.scenario == "server" else _in_turn
    answer, rows = (_searched if subject.rules.search else timed)(subject, sensor, idle)
    return answer, [_request_row(row, subject) for row in rows]


def _in_turn(subject: Subject, sensor: EnergySensor, idle: IdleBaseline) -> tuple[Json, list[Json]]:
    """Requests that wait for one another, then offline throughput."""
    adapter, window, rules = subject.adapter, EnergyWindow(sensor), subject.rules
    watch = Watch(subject.facts, rules, rules.min_seconds)
    subject.progress("latency", 0, 1)
    series = closed_loop(
        adapter,
        len(subject.examples),
        rules,
        sync=subject.sync,
        on_begin=window.begin,
        on_end=window.end,
        min_seconds=idle.min_window_s,
        cold=subject.first,
        first=subject.round * rules.min_requests,
        watch=watch.at,
        owed=watch.owed,
    )
    if series is not None:
        idle.after()
    subject.progress("latency", 1, 1)
    throughput = _offline(subject, sensor, None if series else window)
    if series is None:
        idle.after()
    # A query of several may tell of no tokens though each request alone does.
    tells = series is not None and "ttft_s" in series.rows[-1]
    latency = series.record(generates=adapter.generates and tells) if series else None
    requests = _requests(series, throughput, subject.first)
    energy = window.record(requests=requests, idle=idle.power)
    answer = {
        "latency": latency.model_dump() if latency else None,
        "soak": _soak(watch.soak(series.ends_s() if series else [])),
        "throughput": throughput.model_dump(),
        "energy": energy.model_dump(),
    }
    return answer, series.rows if series else []


def _offline(subject: Subject, sensor: EnergySensor, window: EnergyWindow | None) -> Throughput:
    """Offline throughput with the energy of each batch size, and the energy `window` around it all
    where there is no other."""
    adapter, rules = subject.adapter, subject.rules
    subject.progress("offline", 0, 1)
    if window is not None:
        window.begin()
    throughput = offline(
        lambda indices: adapter.offline(indices),
        len(subject.examples),
        subject.request["batch_sizes"],
        rules,
        sync=subject.sync,
        warm_up=subject.first,
        skipped=subject.round * rules.offline_min_batches,
        sensor=sensor,
    )
    if window is not None:
        window.end()
    subject.progress("offline", 1, 1)
    return throughput


def _served(subject: Subject, sensor: EnergySensor, idle: IdleBaseline) -> tuple[Json, list[Json]]:
    """Offline throughput, then requests that come by their own clock."""
    groups, owners = told_of(subject.examples)
    own = subject.adapter, subject.rules, subject.seed, subject.sync, groups
    server = Server(*own, facts=subject.facts, owners=owners)
    request = subject.request
    subject.progress("serve", 0, 1)
    made = server.measure(request["batch_sizes"], request, sensor, subject.round, subject.first)
    idle.after()
    subject.progress("serve", 1, 1)
    energy = made.window.record(requests=made.served, idle=idle.power)
    answer = {
        "latency": None,
        "serving": made.serving.model_dump(),
        "soak": _soak(made.soak),
        "throughput": made.throughput.model_dump(),
        "energy": energy.model_dump(),
    }
    return answer, made.rows


def _searched(
    subject: Subject, sensor: EnergySensor, idle: IdleBaseline
) -> tuple[Json, list[Json]]:
    """Offline throughput, then a search of the largest rate that holds an objective."""
    groups, owners = told_of(subject.examples)
    own = subject.adapter, subject.rules, subject.seed, subject.sync, groups
    server = SearchingServer(*own, facts=subject.facts, owners=owners)
    budget = subject.rules.budget_seconds

    def on_window(left_s: float) -> None:
        subject.progress("search", min(round(budget - left_s), round(budget)), round(budget))

    on_window(budget)
    sizes = subject.request["batch_sizes"]
    made = server.search(sizes, sensor, subject.round, subject.first, on_window)
    idle.after()
    energy = [e.model_copy(update=idle.power.fields()).model_dump() for e in made.energy]
    answer = {
        "latency": None,
        "serving": [window.model_dump() for window in made.serving],
        "tried": [rate.model_dump() for rate in made.tried],
        "soak": None,
        "throughput": made.throughput.model_dump(),
        "energy": joined_energy(energy),
    }
    return answer, made.rows


def _soak(soak: Soak | None) -> Json | None:
    return None if soak is None else soak.model_dump()


def _requests(series: LatencySeries | None, throughput: Throughput, warm_up: bool) -> int:
    """How many requests the energy window held: samples of queries; of offline batches also the
    one that warms each size up, if there was one."""
    if series is not None:
        return sum(row.get("samples", 1) for row in series.measured())
    tried = throughput.by_batch_size.items()
    return sum(int(size) * (rate.batches + warm_up) for size, rate in tried if rate.requests_per_s)


def _request_row(row: Json, subject: Subject) -> Json:
    flat = {k: v for k, v in row.items() if k != "phases"}
    flat |= {"id": subject.examples[row["index"]]["id"], "round": subject.round}
    return flat | {f"{name}_s": value for name, value in row.get("phases", {}).items()}
