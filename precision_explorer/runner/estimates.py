"""A sweep's estimate: made before it runs, kept with it, held against what it took. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_explorer.diagnose.roofline import share_of_roof
from precision_explorer.economics import Price, load_sheet, parse_prices, price_by, price_for
from precision_explorer.errors import StoreError
from precision_explorer.hardware import RaplSensor
from precision_explorer.hardware.sensors import WATTS_PER_CORE
from precision_explorer.paths import without_paths
from precision_explorer.plan import PlannedCell
from precision_explorer.plan.estimate import Asked, cell_estimate
from precision_explorer.plan.expand import reference_of
from precision_explorer.plan.speeds import Speeds, by_record, by_roof, is_like, share_reached
from precision_explorer.records import CellRecord, Roof
from precision_explorer.records.estimate import Estimate, Took
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.roof import cached, device_roof, roof_key
from precision_explorer.store import RunFolder, read_run
from precision_explorer.units import clock

if TYPE_CHECKING:
    from precision_explorer.runner.sweep import Prepared

# Folders that are looked through for earlier runs, and cells of each: reading a record takes some
# milliseconds, of each sweep's start.
_MOST_RUNS, _MOST_CELLS = 12, 40


@dataclass
class Earlier:
    """What runs beside this one tell: records by their run's name, and the shares of its roof that
    each format's passes reached on this device."""

    records: list[tuple[str, CellRecord]] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)

    def like(self, planned: PlannedCell) -> Speeds | None:
        """By the newest record of such a cell."""
        found = [pair for pair in self.records if is_like(planned, pair[1])]
        for run, record in sorted(found, key=lambda pair: pair[1].started_at, reverse=True):
            speeds = by_record(planned, record, run)
            if speeds is not None:
                return speeds
        return None


def earlier_runs(
    folder: RunFolder, device_name: str, threads: int | None, formats: Collection[str]
) -> Earlier:
    """Of these `formats`, from the runs in the folder that this one lies in, its own finished cells
    included, made on a device of this name with as many threads. What can't be read tells
    nothing."""
    found = Earlier()
    parent = folder.path.resolve().parent
    for path in _newest(parent.glob("*/sweep.json")):
        try:
            run, sweep = read_run(path.parent)
        except (StoreError, OSError):
            continue
        environment = sweep.get("environment", {})
        same = (environment.get("device_name"), environment.get("threads"))
        if same == (device_name, threads):
            _learn(found, run, sweep, formats)
    return found


def _newest(paths: Iterable[Path]) -> list[Path]:
    """The `_MOST_RUNS` of them that were written last, the newest first."""

    def written(path: Path) -> float:
        with suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    return sorted(paths, key=written, reverse=True)[:_MOST_RUNS]


def _learn(found: Earlier, run: RunFolder, sweep: dict[str, Any], formats: Collection[str]) -> None:
    roof = run.read_roof()
    cells = [cell for cell in sweep["plan"]["cells"] if cell["format"] in formats]
    for planned in cells[:_MOST_CELLS]:
        try:
            record = run.read_record(planned["cell_id"])
        except (StoreError, OSError):
            continue
        if record is None or record.status != "ok":
            continue
        found.records.append((run.name, record))
        profile = record.measurements.profile
        if roof is None or profile is None:
            continue
        for phase in (profile.prefill, profile.decode):
            share = None if phase is None else share_of_roof(phase, roof, 1)
            if share:
                found.shares.setdefault(record.cell.format, []).append(share)


def make_estimate(
    folder: RunFolder, prepared: Prepared, roof: Roof | None, roof_source: str
) -> Estimate | None:
    """Of the cells that have no finished record yet. None where there are none, or where neither a
    roof nor an earlier record tells how fast one of them is. `roof_source`: where the roof comes
    from, in words. Nothing is measured for it, and no model is built."""
    plan, environment = prepared.plan, prepared.environment
    to_do = [p for p in plan.to_run if p.served is None and not _is_done(folder, p)]
    if not to_do:
        return None
    formats = {planned.cell.format for planned in to_do}
    earlier = earlier_runs(folder, environment.device_name, environment.threads, formats)
    metered = prepared.facts.kind == "cuda" or RaplSensor().supported()
    made = []
    for planned in to_do:
        speeds = earlier.like(planned)
        if speeds is None and roof is not None:
            reached = share_reached(earlier.shares.get(planned.cell.format, ()))
            speeds = by_roof(planned, planned.ref, prepared.workload, roof, reached)
        if speeds is None:
            return None
        asked = Asked(
            workload=prepared.workload,
            metered=metered,
            audit=prepared.spec.audit,
            reference=planned.cell.format == reference_of(prepared.spec, planned.ref),
        )
        made.append(cell_estimate(planned, _powered(speeds, planned, metered), asked))
    price = _price(prepared)
    return Estimate(
        device_name=environment.device_name,
        roof=roof_source,
        cells=made,
        usd_per_hour=price.per_hour_usd if price else None,
        price_basis=price.basis if price else None,
    )


def _is_done(folder: RunFolder, planned: PlannedCell) -> bool:
    record = folder.read_record(planned.cell_id)
    return record is not None and record.status == "ok"


def _powered(speeds: Speeds, planned: PlannedCell, metered: bool) -> Speeds:
    """With the constant of processors without a meter, where no record tells a power; a metered
    device's is not known before it was measured."""
    if speeds.power_w is not None or metered:
        return speeds
    watts = planned.cell.threads * WATTS_PER_CORE
    return replace(speeds, power_w=watts, power_source="estimated:cpu-time")


def _price(prepared: Prepared) -> Price | None:
    spec, environment = prepared.spec, prepared.environment
    kind, name, threads = prepared.facts.kind, environment.device_name, environment.threads or 1
    if spec.price is not None:
        return price_by(parse_prices(spec.price), kind, name, threads, None)
    return price_for(kind, name, threads, spec.price_per_hour, load_sheet(None))


# Phases that a worker tells of, and the part whose time passes from then on; at the end of one of
# the last row's nothing is timed any more until a block begins.
_BEGINS = {"load": "load", "compile": "load", "calibrate": "load", "quality": "quality"}
_TIMED = ("latency", "offline", "serve", "search")


class Stopwatch:
    """Hears the events of a sweep, passes them on, and keeps how long each part took. All time from
    the first event of a cell to the last one's is in some part."""

    def __init__(self, on_event: OnEvent, clock: Callable[[], float] = time.monotonic) -> None:
        self._told, self._clock = on_event, clock
        self._part: str | None = None
        self._since = self._began = clock()
        self.parts: dict[str, float] = {}
        self.cells: list[str] = []

    def __call__(self, event: Event) -> None:
        """See and pass on one event."""
        part = self._next(event)
        now = self._clock()
        if self._part is not None:
            self.parts[self._part] = self.parts.get(self._part, 0.0) + now - self._since
        self._part, self._since = part, now
        self._told(event)

    def _next(self, event: Event) -> str | None:
        data = event.data
        if event.name == "progress":
            phase = data.get("phase")
            if self._part in (None, "compare", "audit"):
                return self._part
            if phase in _TIMED:
                return "closing" if data["done"] >= data["total"] else "timed"
            return _BEGINS.get(str(phase), self._part)
        if event.name == "cell":
            if not data["reused"] and data["status"] == "ok":
                self.cells.append(str(data["cell_id"]))
            return self._part
        begun = {"start": "load", "round": "timed", "compare": "compare", "audit": "audit"}
        return begun.get(event.name, self._part)

    def took(self) -> Took | None:
        """What has passed; None where no cell was finished."""
        if not self.cells:
            return None
        return Took(wall_s=self._clock() - self._began, parts=dict(self.parts), cells=self.cells)


@contextmanager
def estimated(
    folder: RunFolder, prepared: Prepared, roof: Roof | None, on_event: OnEvent
) -> Iterator[OnEvent]:
    """While the cells of a sweep run: their estimate stands in the folder before the first one, and
    at the end, however that comes, what they took. A sweep that is gone on with keeps the estimate
    of its first session, to which cells are added that it did not have."""
    if prepared.pool is not None or any(c.split is not None for c in prepared.plan.to_run):
        # What is known of speeds, power and price is of one device.
        yield on_event  # Cells that are measured at once don't add up to the time that passes.
        return
    made = _made(folder, prepared, roof, on_event)
    if made is not None and made.seconds:
        on_event(Event("note", {"text": expected(made.seconds)}))
    estimate = joined(folder.read_estimate(), made)
    if estimate is not None and estimate != folder.read_estimate():
        folder.write_estimate(estimate)
    watch = Stopwatch(on_event)
    try:
        yield watch
    except BaseException:
        # What the sweep ended by, a full disk say, is not to be hidden by another error.
        with suppress(OSError):
            _keep(folder, estimate, watch)
        raise
    _keep(folder, estimate, watch)


def expected(seconds: float) -> str:
    """What a sweep says at its start."""
    unit = "hours:minutes:seconds" if round(seconds) >= 3600 else "minutes:seconds"
    return f"expected to take about {clock(seconds)} ({unit})"


def _keep(folder: RunFolder, estimate: Estimate | None, watch: Stopwatch) -> None:
    took = watch.took()
    if estimate is not None and took is not None:
        folder.write_estimate(estimate.model_copy(update={"took": [*estimate.took, took]}))


def _made(
    folder: RunFolder, prepared: Prepared, roof: Roof | None, on_event: OnEvent
) -> Estimate | None:
    """`make_estimate`, or a note: what can't be foreseen is measured all the same."""
    try:
        return make_estimate(folder, prepared, roof, "the run's own roof.json")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        text = f"no estimate of this sweep is kept ({type(error).__name__}: {error})"
        on_event(Event("note", {"text": without_paths(text)}))
        return None


def joined(stored: Estimate | None, made: Estimate | None) -> Estimate | None:
    """The `stored` estimate with the cells of the new one that it does not have."""
    if stored is None or made is None:
        return stored or made
    known = {cell.cell_id for cell in stored.cells}
    more = [cell for cell in made.cells if cell.cell_id not in known]
    return stored.model_copy(update={"cells": [*stored.cells, *more]}) if more else stored


def estimate_now(folder: RunFolder, prepared: Prepared, on_event: OnEvent) -> Estimate | None:
    """For a plan: by the roof that the run's folder holds, else the cached one of this device, else
    one that is measured now. None as of `make_estimate`."""
    environment = prepared.environment
    assert environment.threads is not None
    key = roof_key(prepared.facts, environment.libraries, environment.threads)
    stored, source = folder.read_roof(), "the run's own roof.json"
    if stored is None or stored.key != key:
        known = cached(key)
        source = "measured now" if known is None else "measured here before, and cached"
        stored = device_roof(prepared.facts, environment.libraries, environment.threads, on_event)
    return make_estimate(folder, prepared, stored, source)
