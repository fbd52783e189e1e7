"""`build`: the records of one or several runs to one table. Nothing here was measured; everything
can be computed again from records and samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from precision_explorer.economics import Price, Slo, parse_prices, parse_slo
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import NOT_SCORED, Caution, CellRecord, Roof
from precision_explorer.records.record import NO_BUDGET
from precision_explorer.stats import Divergence, Ratio, round_spread
from precision_explorer.stats.rate_search import Seen
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table.against import (
    against_reference,
    comparisons,
    lent_references,
    over_tasks,
)
from precision_explorer.table.aggregates import aggregates
from precision_explorer.table.audit import audit_columns
from precision_explorer.table.computed import Computed, computed_columns
from precision_explorer.table.context import Run, into_rows, make_context
from precision_explorer.table.curve import curve_columns
from precision_explorer.table.data import (
    COLUMNS,
    ROW_KEY,
    SPREAD_COLUMN,
    AuditTable,
    Curve,
    DisturbedTable,
    SoakTable,
    Table,
)
from precision_explorer.table.disturbed import background_names, disturbed_columns
from precision_explorer.table.energy import energy_columns
from precision_explorer.table.figures import in_words
from precision_explorer.table.front import Front, check_energy, fronts_of, mark_all_tasks
from precision_explorer.table.headline import (
    check_metric,
    headline,
    known_label,
    quality_of,
    scores_text,
)
from precision_explorer.table.latency import latency_columns
from precision_explorer.table.money import (
    check_money,
    check_priced,
    check_worth,
    economics_columns,
    sampled_money,
)
from precision_explorer.table.offline import over_sizes
from precision_explorer.table.quality import Margin, Quality, own_columns
from precision_explorer.table.rounds import mark_drift, mark_repeats
from precision_explorer.table.samples import Samples, sample
from precision_explorer.table.serving import served_columns
from precision_explorer.table.why import diagnoses
from precision_explorer.tasks import has_terms, is_harness_metric


def _check_measured(
    folder: RunFolder, record: CellRecord, seen: dict[str, tuple[Path, CellRecord]]
) -> None:
    """UsageError where a record of `seen` is the same measurement: of a folder that was copied and
    gone on with."""
    path, other = seen.setdefault(record.cell_id, (folder.path, record))
    if path != folder.path and other.measured_as() == record.measured_as():
        raise UsageError(
            f"{path} and {folder.path} hold one and the same measurement of {record.cell.format} "
            f"on {record.cell.task.name}; give the one that holds more"
        )


def _check_once(folder: RunFolder, roots: dict[str, Path]) -> None:
    """UsageError where a run is another of `roots` or its copy: rows would stand twice, and a copy
    is no second measurement."""
    for name in filter(None, (str(folder.path.resolve()), folder.manifest_root())):
        if name in roots:
            raise UsageError(
                f"{roots[name]} and {folder.path} hold the same run; give each run once"
            )
        roots[name] = folder.path


@dataclass
class Entry:
    """A record on its way to a row."""

    folder: RunFolder
    record: CellRecord
    reader: dict[str, Any]
    metric: str | None = None
    """What its quality is counted in, where that is not the record's own metric."""
    row: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(COLUMNS))
    quality: Quality | Computed | None = None
    margin: Margin | None = None
    """Whether its loss is within any budget, of one that was scored by a fixed plan."""
    base: Entry | None = None
    """The reference of a row that was scored until its verdict was clear."""
    latencies: list[np.ndarray] = field(default_factory=list)
    """Seconds of the measured requests, an array per round."""
    services: list[np.ndarray] = field(default_factory=list)
    """Of requests that came by their own clock: seconds from the start of their batch to its end,
    without the queue, an array per round."""
    output_tokens: list[int | None] = field(default_factory=list)
    soak: SoakTable | None = None
    disturbed: DisturbedTable | None = None
    searched: Slo | None = None
    """The objective at which its rate was searched."""
    tried: list[list[Seen]] = field(default_factory=list)
    """The windows of each rate that was tried."""
    curve: Curve | None = None
    audit: AuditTable | None = None
    price: Price | None = None
    slo: Slo | None = None
    value_size: int | None = None
    """The batch size whose rate its value rests on."""
    value_latencies: np.ndarray | None = None
    """Of a searched row, the latencies at the rate that its value rests on: by an objective of the
    reader's own another than the row's."""
    samples: Samples | None = None
    cautions: list[Caution] = field(default_factory=list)
    """What only the comparison with other rows shows, beside the record's own."""
    errors: Ratio | None = None
    perplexity: Ratio | None = None
    divergence: Divergence | None = None
    floor: Divergence | None = None
    """Of a reference: its KL to itself."""
    floor_unknown: bool = False
    """The reference was scored again, but its metric was not computed of that."""


def build(
    paths: list[Path], reader: dict[str, Any] | None = None, roof: Roof | None = None
) -> Table:
    """The table of the runs at `paths`.

    `reader`: price_per_hour or price (a document of `Prices`), grid_g_per_kwh, value_per_correct,
    cost_per_error (dollars), slo, quality_budget, reference, metric, objectives
    (names of `FIGURES`) and limits (a `Limits`) of the one who reads; by default what the first
    run's sweep was given, each run's own price and grid, each task's metric, and no limits.
    UsageError for one that can't be, StoreError when a path is no run or holds no record. `roof`:
    the device's roofs for runs that hold none.
    """
    wanted = known_label((reader or {}).get("metric"))
    entries: list[Entry] = []
    runs: list[Run] = []
    roots: dict[str, Path] = {}
    seen: dict[str, tuple[Path, CellRecord]] = {}
    for path in paths:
        folder, sweep = read_run(path)
        _check_once(folder, roots)
        first = runs[0][1]["reader"] if runs else sweep["reader"]
        own = {name: sweep["reader"].get(name) for name in _OF_A_RUN}
        options = first | own | _one_price(reader or {})
        _check(options)
        missing: list[str] = []
        for cell in sweep["plan"]["cells"]:
            record = folder.read_record(cell["cell_id"])
            if record is None:
                missing.append(f"{cell['format']} on {cell['task']}")
                continue
            if record.status == "ok":
                _check_measured(folder, record, seen)
            metric = headline(sweep, record, wanted)
            entries.append(Entry(folder, record, options, metric))
        runs.append((folder, sweep, options, missing))
    if not entries:
        raise StoreError(f"{paths[0]} holds no finished cell yet; run the sweep again")
    check_metric(wanted, [(e.folder, e.record) for e in entries])
    for entry in entries:
        _own_row(entry)
    if reader:
        check_worth(entries, reader)
    objectives = _across_rows(entries)
    if (reader or {}).get("price") is not None:
        check_priced(entries)
    context = make_context(runs, entries, {k: in_words(v) for k, v in objectives.items()})
    into_rows(context, runs, entries)
    return Table(
        [e.row for e in entries],
        context,
        why=diagnoses(entries, roof),
        comparisons=comparisons(entries),
        soaks=tuple(e.soak for e in entries if e.soak is not None),
        aggregates=tuple(
            made
            for folder, sweep, _, _ in runs
            for made in aggregates(
                sweep.get("groups", []), [e for e in entries if e.folder is folder]
            )
        ),
        disturbed=tuple(e.disturbed for e in entries if e.disturbed is not None),
        offline=tuple(made for e in entries if (made := over_sizes(e)) is not None),
        curves=tuple(e.curve for e in entries if e.curve is not None),
        audits=tuple(e.audit for e in entries if e.audit is not None),
        samples={tuple(e.row[name] for name in ROW_KEY): e.samples for e in entries if e.samples},
        objectives=objectives,
        columns=_columns(entries),
    )


def _columns(entries: list[Entry]) -> tuple[str, ...]:
    """Those of the table; fills `SPREAD_COLUMN` where it is one of them."""
    if all(entry.record.cell.devices is None for entry in entries):
        return COLUMNS
    for entry in entries:
        entry.row[SPREAD_COLUMN] = entry.record.cell.devices
    return (*COLUMNS, SPREAD_COLUMN)


# What each run was swept with, also beside other runs.
_OF_A_RUN = ("price_per_hour", "price", "grid_g_per_kwh")


def _one_price(reader: dict[str, Any]) -> dict[str, Any]:
    """`reader` with whichever price it names in place of the sweep's of the other kind."""
    pair = ("price_per_hour", "price")
    named = [name for name in pair if reader.get(name) is not None]
    return dict.fromkeys(pair) | reader if named else reader


def _check(reader: dict[str, Any]) -> None:
    price, budget = reader["price_per_hour"], reader["quality_budget"]
    if price is not None and not 0 < price < float("inf"):
        raise UsageError(f"price-per-hour {price} is no price; give dollars above 0")
    grid = reader["grid_g_per_kwh"]
    if grid is not None and not 0 <= grid < float("inf"):
        raise UsageError(f"grid-g-per-kwh {grid} can't be; give grams of CO2 equivalent per kWh")
    if not 0 < budget < 1:
        raise UsageError("quality-budget must be above 0 and below 100%; write it as 1%")
    if reader["slo"]:
        parse_slo(reader["slo"])
    check_money(reader)
    if reader.get("price") is not None:
        parse_prices(reader["price"])


def _own_row(entry: Entry) -> None:
    """All columns that need nothing but the cell itself."""
    record, row = entry.record, entry.row
    cell, measured, applied = record.cell, record.measurements, record.applied
    row.update(
        model=cell.model.name,
        task=cell.task.name,
        format=cell.format,
        runtime=cell.runtime,
        scenario=cell.workload.get("scenario"),
        workload=cell.workload.get("name"),
        background=background_names(cell.workload),
        device=cell.device_name,
        status=record.status,
        execution=applied.execution if applied else None,
        method_id=record.method_id,
        reason=record.skip_reason or (record.error.message if record.error else None),
        model_revision=cell.model.revision,
        task_version=cell.task.version,
        stack=" ".join(f"{k}={v}" for k, v in cell.libraries.items()),
        quality_budget=entry.reader["quality_budget"],
        manifest_root=entry.folder.manifest_root(),
    )
    if record.status == "skipped":
        row["execution"] = "unsupported"
    if applied:
        row.update(
            converted_share=applied.converted_share,
            executed_share=applied.certificate.executed_share if applied.certificate else None,
            weight_bytes=applied.weight_bytes,
            kernel=applied.kernel,
            compute_dtype=applied.compute_dtype,
        )
    if measured.memory and record.status == "ok":
        row["peak_memory_bytes"] = measured.memory.serving_peak_bytes
    if measured.load:
        load = measured.load
        row["load_s"] = load.import_s + load.load_s + load.apply_s
        row["compile_s"] = load.compile_s
    if measured.compilation:
        row["graph_breaks"] = measured.compilation.graph_breaks
    if record.status == "ok":
        latency_columns(entry)
        if measured.serving:
            served_columns(entry, measured.serving)
        if measured.tried:
            curve_columns(entry, measured.tried)
        _throughput(entry)
        disturbed_columns(entry)
        energy_columns(entry)
        _quality(entry)
        audit_columns(entry)


def _throughput(entry: Entry) -> None:
    throughput = entry.record.measurements.throughput
    if throughput is None or throughput.best_batch_size is None:
        return
    best = throughput.by_batch_size[str(throughput.best_batch_size)]
    entry.row.update(
        batch_size=throughput.best_batch_size,
        throughput_per_s=best.requests_per_s,
        output_tokens_per_s=best.output_tokens_per_s,
        throughput_round_spread=round_spread([r.requests_per_s for r in best.rounds or []]),
    )
    left = [size for size, rate in throughput.by_batch_size.items() if rate.note == NO_BUDGET]
    if left:
        entry.cautions.append(_batches_left_out(left, throughput.best_batch_size))


def _batches_left_out(sizes: Sequence[str], best: int) -> Caution:
    listed = ", ".join(sorted(sizes, key=int))
    text = (
        f"there was no time for offline batches of {listed}: throughput, cost and value are those "
        f"of batches of {best}, and rows that had larger ones look better for it; raise "
        "offline_budget_seconds in the workload, or --duration"
    )
    return Caution(id="batches-left-out", message=text)


def _quality(entry: Entry) -> None:
    measured = entry.record.measurements.quality
    if measured is None:
        if entry.record.cell.model.is_synthetic:
            entry.row["verdict_note"] = NOT_SCORED
        return
    row, cell = entry.row, entry.record.cell
    columns = entry.folder.read_samples(entry.record.cell_id, "example", entry.record.known_samples)
    row["unparsed"] = measured.unparsed
    added = entry.folder.read_scores(entry.record.cell_id)
    row["scores"] = scores_text(measured.scores, added)
    metric = entry.metric or measured.metric
    if is_harness_metric(metric) and not has_terms(metric, columns):
        # Its value is all there is: nothing can be said of its spread.
        value = measured.scores.get(metric)
        row.update(quality_metric=metric, quality=value, quality_n=measured.examples)
        return
    found, problem = quality_of(metric, columns, added, measured.higher_is_better)
    if found is None:
        # What the cell was measured for stays in the other columns.
        row.update(quality_metric=metric, quality_n=measured.examples, verdict_note=problem)
        return
    entry.quality = found
    row["quality_budget_unit"] = "points" if found.is_share else "relative"
    if isinstance(found, Computed):
        row.update(computed_columns(found))
        return
    try:
        row.update(own_columns(found, found.value(measured.scores), cell.seed))
    # Of rows that no scoring writes: shares that are neither 0 nor 1, losses of nothing.
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(
            f"the samples {entry.folder.samples_path(entry.record.cell_id)} are damaged: they give "
            f"no {metric} ({type(error).__name__}: {error}); get the original run"
        ) from error


def _across_rows(entries: list[Entry]) -> dict[str, tuple[str, ...]]:
    """Columns that need the reference or the other rows; {group: its front's objectives}."""
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in entries:
        cell, method = entry.record.cell, entry.record.method_id
        # Two folders of one name are two models: the method holds the revision. It holds no device,
        # so machines that measured alike share a front.
        groups[cell.model.name, cell.task.name, method].append(entry)
    objectives: dict[str, tuple[str, ...]] = {}
    fronts: list[Front] = []
    lent = lent_references(entries)
    for key, group in groups.items():
        ok = [e for e in group if e.record.status == "ok"]
        against_reference(ok, lent)
        for entry in ok:
            economics_columns(entry)
        sample(ok, group[0].record.cell.seed)
        sampled_money(ok)
        mark_drift(ok)
        mark_repeats(ok)
        for entry in ok:
            entry.row["cautions"] = _caution_ids(entry)
        found = fronts_of(ok)
        if found:
            objectives[", ".join(key)] = tuple(found[0].names)
            fronts += found
    if "energy" in (entries[0].reader.get("objectives") or ()):
        check_energy(
            fronts,
            [[e.row for e in group if e.record.status == "ok"] for group in groups.values()],
        )
    mark_all_tasks(fronts)
    over_tasks(entries)
    for entry in entries:
        if entry.floor_unknown and entry.row["different"] == "yes":
            entry.row["different"] = None
        entry.row["cautions"] = _caution_ids(entry)
    return objectives


def _caution_ids(entry: Entry) -> str:
    own = [*entry.record.cautions, *entry.cautions]
    return ";".join(dict.fromkeys(c.id for c in own))
