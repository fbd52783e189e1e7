"""`capacity_of`: the machines that each measured format of a run needs for a demand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precision_explorer.economics import HOURS_PER_MONTH, Capacity, Demand, plan_capacity
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import CellRecord
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table.build import build
from precision_explorer.table.data import Context
from precision_explorer.table.rounds import batches_by_round
from precision_explorer.table.samples import FEW_REQUESTS
from precision_explorer.units import rate, seconds, significant
from precision_explorer.workload.service_times import ServiceTimes

_DISPATCH_WORDS = {
    "round-robin": "requests are dealt to the machines in turn, each with a queue of its own",
    "random": "each request is sent to a machine by chance, each with a queue of its own",
    "shared": "all machines take from one queue",
}


@dataclass(frozen=True)
class CapacityRow:
    """One format of one model and task. `verdict`: of its quality against the reference, which is
    ``reference`` itself. `price_per_hour_usd` of one machine, None where there is no price, made of
    `price_inputs` as the table has them;
    `peak_memory_bytes` of one machine. `measured_n`: the fewest service times
    of a batch size that were measured; `steady`: of the latencies among them, as in the table."""

    model: str
    task: str
    format: str
    runtime: str
    device: str
    execution: str | None
    verdict: str | None
    capacity: Capacity
    price_per_hour_usd: float | None
    price_source: str | None
    price_inputs: str | None
    peak_memory_bytes: int | None
    measured_n: int
    steady: str | None
    price_utilisation: float = 1.0
    """The share of its life in which an owned machine is used: its price is of an hour of use."""
    is_busy: bool = False
    """Whether other processes were at work while its service times were measured."""

    @property
    def per_hour_usd(self) -> tuple[float, float] | None:
        """What the fleet costs per hour, for the least and the most machines."""
        if self.capacity.machines is None or self.price_per_hour_usd is None:
            return None
        least, most = self.capacity.machines
        return least * self.price_per_hour_usd, most * self.price_per_hour_usd

    @property
    def per_month_usd(self) -> tuple[float, float] | None:
        """The same for a month of `HOURS_PER_MONTH`, of which an owned machine is used its share:
        the capital of all of them stands in the price of those hours."""
        cost, hours = self.per_hour_usd, HOURS_PER_MONTH * self.price_utilisation
        return None if cost is None else (hours * cost[0], hours * cost[1])

    @property
    def fleet_memory_bytes(self) -> int | None:
        """What the most machines take together."""
        if self.capacity.machines is None or self.peak_memory_bytes is None:
            return None
        return self.capacity.machines[1] * self.peak_memory_bytes


@dataclass(frozen=True)
class CapacityTable:
    """`rows`: the formats that were measured; `left_out`: name, status and reason of all others.
    `assumptions`: what the answers rest on, in sentences."""

    run: str
    demand: Demand
    rows: tuple[CapacityRow, ...]
    left_out: tuple[tuple[str, str, str], ...]
    assumptions: tuple[str, ...]


def capacity_of(
    path: Path,
    demand: Demand,
    money: dict[str, Any] | None = None,
    on_cell: Callable[[str], Any] | None = None,
) -> CapacityTable:
    """Machines per model, task, format and runtime of the run at `path`.

    `money`: the reader's price_per_hour or price of one machine, as `build` takes them, else that
    of the run's sweep or the price sheet.
    `on_cell` is told each row's name before it is simulated. StoreError for a folder that is no run
    or holds no service times; UsageError for a largest batch above all that were measured.
    """
    folder, sweep = read_run(path)
    table = build([path], money)
    known = [folder.read_record(cell["cell_id"]) for cell in sweep["plan"]["cells"]]
    both = list(zip(table.rows, [r for r in known if r is not None], strict=True))
    unfit = [_not_simulated(record) for _, record in both]
    services = [
        service_times(folder, record) if record.status == "ok" and why is None else None
        for (_, record), why in zip(both, unfit, strict=True)
    ]
    _check(path, demand, [s for s in services if s is not None], next(filter(None, unfit), None))
    rows, left_out = [], []
    for (row, record), service, unlike in zip(both, services, unfit, strict=True):
        if service is None:
            why = unlike or row["reason"] or "no service times were measured"
            left_out.append((_name(row), record.status, why))
            continue
        if on_cell is not None:
            on_cell(_name(row))
        rows.append(_row(row, service, demand, table.context.reference))
    return CapacityTable(
        run=folder.name,
        demand=demand,
        rows=tuple(rows),
        left_out=tuple(left_out),
        assumptions=_assumptions(
            demand,
            table.context,
            any(r.measurements.serving for _, r in both),
            _own_workload(record for _, record in both),
        ),
    )


def _not_simulated(record: CellRecord) -> str | None:
    """Why the row's machines are none that the simulation knows, which serve whole batches, one
    after the other; None where they are."""
    found = {w.batching for w in record.measurements.serving or []}
    if "server" in found:
        return (
            "how a server behind an endpoint puts requests together can't be seen, so its queue "
            "can't be simulated; offer it your rate by sweep --workload"
        )
    if "continuous" in found:
        return (
            "requests were batched continuously, and whole batches are what is simulated; find the "
            "largest rate of one machine by sweep --find-rate, or sweep with batching: static"
        )
    return None


def service_times(folder: RunFolder, record: CellRecord) -> ServiceTimes | None:
    """Seconds of whole batches by size, with the round of each: single-stream requests for a batch
    of one, offline batches for all others; of a server's cell its own batches for the sizes of
    which it had as many, and `FEW_REQUESTS` at least. None where nothing was measured.

    Offline batches are of the data's own lengths, so they say nothing of a workload that draws
    others. Windows whose loop was late are left out: something else used the processor."""
    scenario = record.cell.workload.get("scenario", "single-stream")
    found = {} if _draws_lengths(record) else _offline(record)
    # Of other scenarios a row is a query of several, or holds its time in a queue.
    if scenario == "single-stream" and record.measurements.latency is not None:
        rows = folder.read_samples(record.cell_id, "request", record.known_samples)
        timed = [
            (number, value)
            for value, window, number in zip(
                rows["latency_s"], rows["window"], _numbers(rows), strict=True
            )
            if window == "measure"
        ]
        found |= {1: timed} if timed else {}
    if scenario == "server":
        for size, pairs in _served(folder, record).items():
            if len(pairs) >= max(len(found.get(size, [])), FEW_REQUESTS):
                found[size] = pairs
    measured = {size: pairs for size, pairs in sorted(found.items()) if pairs}
    if not measured:
        return None
    return ServiceTimes(
        {size: [value for _, value in pairs] for size, pairs in measured.items()},
        {size: [number for number, _ in pairs] for size, pairs in measured.items()},
    )


_Times = dict[int, list[tuple[int, float]]]
"""By batch size: round and seconds of each batch."""


def _draws_lengths(record: CellRecord) -> bool:
    """Whether its requests had other lengths than the data's."""
    workload = record.cell.workload
    arrivals = workload.get("arrivals") or {}
    traced = arrivals.get("kind") == "trace" and arrivals.get("use_lengths", True)
    given = [workload, *(workload.get("mix") or ())]
    drawn = traced or any(part.get("lengths") for part in given)
    return drawn and any(w.generates for w in record.measurements.serving or [])


def _offline(record: CellRecord) -> _Times:
    throughput = record.measurements.throughput
    # A size that failed in one of the rounds has no rate, and is none to serve at.
    known = [] if throughput is None else throughput.by_batch_size.items()
    return {
        int(size): [
            (number, float(value))
            for number, times in zip(
                [r.round for r in done.rounds or ()] or [0], batches_by_round(done), strict=True
            )
            for value in times
        ]
        for size, done in known
        if done.requests_per_s
    }


def _served(folder: RunFolder, record: CellRecord) -> _Times:
    """The batches of the windows that kept time."""
    rows = folder.read_samples(record.cell_id, "request", record.known_samples)
    late, places = _late_windows(record), _windows(rows)
    found: _Times = {}
    seen = set()
    for number, place, batch, size, value in zip(
        _numbers(rows), places, rows["batch"], rows["batch_size"], rows["service_s"], strict=True
    ):
        # Those of the warm-up have none, nor has a request without a turn.
        if batch is None or value is None or place in late or (place, batch) in seen:
            continue
        seen.add((place, batch))
        found.setdefault(int(size), []).append((number, float(value)))
    return found


_Window = tuple[int, int | None, int | None]
"""Round; of a search the place of the rate and of the window at it."""


def _windows(rows: dict[str, list[Any]]) -> list[_Window]:
    """Of each request the window that it was served in: batches are counted anew in each."""
    numbers = _numbers(rows)
    none = [None] * len(numbers)
    places = zip(numbers, rows.get("point") or none, rows.get("attempt") or none, strict=True)
    return [(number, point, attempt) for number, point, attempt in places]


def _late_windows(record: CellRecord) -> set[_Window]:
    """Those whose loop was late."""
    measured = record.measurements
    if measured.tried:
        return {
            (0, point, attempt)
            for point, rate in enumerate(measured.tried)
            for attempt, window in enumerate(rate.windows)
            if window.refused
        }
    windows = measured.serving or []
    return {(w.round.round if w.round else 0, None, None) for w in windows if w.refused}


def _numbers(rows: dict[str, list[Any]]) -> list[int]:
    return rows.get("round") or [0] * len(rows["window"])


def _check(path: Path, demand: Demand, services: list[ServiceTimes], why: str | None) -> None:
    if not services and why is not None:
        raise StoreError(f"{path}: {why}")
    if not services:
        raise StoreError(f"{path} holds no service times of a cell that is ok; run the sweep again")
    largest = max(service.largest for service in services)
    if demand.max_batch is not None and demand.max_batch > largest:
        raise UsageError(
            f"no batch of {demand.max_batch} was measured, the largest is {largest}; lower "
            "--max-batch, or sweep again with that --batch-size"
        )


def _row(row: dict[str, Any], service: ServiceTimes, demand: Demand, reference: str) -> CapacityRow:
    # A format that took no larger batch is held to what it took.
    limit = None if demand.max_batch is None else min(demand.max_batch, service.largest)
    capacity = plan_capacity(service, replace(demand, max_batch=limit))
    return CapacityRow(
        model=row["model"],
        task=row["task"],
        format=row["format"],
        runtime=row["runtime"],
        device=row["device"],
        execution=row["execution"],
        verdict="reference" if row["format"] == reference else row["verdict"],
        capacity=capacity,
        price_per_hour_usd=row["price_per_hour_usd"],
        price_source=row["price_source"],
        price_inputs=row["price_inputs"],
        peak_memory_bytes=row["peak_memory_bytes"],
        measured_n=min(service.count(n) for n in service.sizes if n <= capacity.max_batch),
        steady=row["steady"],
        price_utilisation=_utilisation(row),
        is_busy="machine-busy" in (row["cautions"] or "").split(";"),
    )


def _utilisation(row: dict[str, Any]) -> float:
    inputs = dict(part.split("=", 1) for part in (row["price_inputs"] or "").split(";") if part)
    return float(inputs["utilisation"]) if row["price_kind"] == "ownership" else 1.0


def _name(row: dict[str, Any]) -> str:
    runtime = "" if row["runtime"] == "eager" else f" ({row['runtime']})"
    return f"{row['model']} on {row['task']}, {row['format']}{runtime}"


def _own_workload(records: Iterable[CellRecord]) -> str | None:
    """The workload in which the run's own requests came otherwise than as a Poisson process."""
    for record in records:
        arrivals = record.cell.workload.get("arrivals") or {}
        if arrivals and arrivals.get("kind") != "poisson":
            return str(record.cell.workload.get("name") or "a file")
    return None


def _assumptions(
    demand: Demand, context: Context, served: bool, own: str | None
) -> tuple[str, ...]:
    """What the answers rest on; `served`: whether requests came by their own clock, `own`: in
    which workload, where not as a Poisson process."""
    how = "Requests come as a Poisson process"
    if own is not None and demand.arrivals is None and demand.cv == 1:
        how += f" (those of the run came otherwise, by the workload {own}: --workload plans for it)"
    if demand.arrivals is not None:
        how = f"Requests come as those of the workload {demand.workload}"
    elif demand.cv != 1:
        how = (
            "Times between requests are gamma distributed with a coefficient of variation of "
            f"{demand.cv:g}"
        )
    wait = "as soon as a machine is free"
    if demand.max_wait_s > 0:
        wait = f"when full or after {seconds(demand.max_wait_s)}, once a machine is free"
    measured = "measured alone, one request or batch after the other"
    if served:
        measured = (
            "in the batches that its server put together by their own clock, or one batch after "
            "the other where those were fewer"
        )
    return (
        f"{how}, at a rate that stays the same; the fleet holds the objective at "
        f"{significant(demand.head_room)} times that rate, {rate(demand.peak_per_s)}, and when "
        "idle.",
        f"One machine is the device that was measured: {'; '.join(context.devices)}.",
        f"A batch begins {wait}, with what is queued then; {_DISPATCH_WORDS[demand.dispatch]}.",
        f"Service times are those of the run's own requests, {measured}, and drawn independently; "
        "sizes between two measured ones are interpolated. Network, balancer, failures and the "
        "starting of machines are not in it.",
        f"Simulated, not measured: {demand.draws} draws of resampled rounds, service times in "
        f"them, and arrivals of {demand.requests:,} requests each; where they disagree, the range "
        "is shown.",
    )
