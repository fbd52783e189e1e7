"""Each format alone and beside background work: figures of both, their ratios, and what the
background itself lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.records.record import BatchRate, Disturbed, Throughput
from precision_explorer.stats import tail
from precision_explorer.table.data import ROW_KEY, DisturbedTable, Figure, Kept
from precision_explorer.table.rounds import by_round
from precision_explorer.workload import Neighbour, names_of

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

Rounds = list[np.ndarray]


def background_names(workload: dict[str, Any]) -> str | None:
    """The background of a cell's workload as it was asked for; None without one."""
    declared = workload.get("background") or ()
    # Not validated: a newer release may know more of them.
    return names_of([Neighbour.model_construct(**one) for one in declared]) or None


def disturbed_columns(entry: Entry) -> None:
    """Fill an ok entry's columns of its disturbed part, if it has one, and its `DisturbedTable`.
    After its own columns."""
    row, found = entry.row, entry.record.measurements.disturbed
    if found is None:
        return
    entry.disturbed = made = _table(entry, found)
    row.update(
        disturbed_latency_p50_s=made.p50.disturbed,
        disturbed_latency_p99_s=made.p99.disturbed,
        disturbed_throughput_per_s=made.rate.disturbed,
    )


def _table(entry: Entry, found: Disturbed) -> DisturbedTable:
    row = entry.row
    key = tuple(row[name] for name in ROW_KEY)
    alone50, alone99 = row["latency_p50_s"], row["latency_p99_s"]
    if found.failed is not None:
        rate = Figure(row["throughput_per_s"], None)
        p50, p99 = Figure(alone50, None), Figure(alone99, None)
        return DisturbedTable(key, row["background"], p50, p99, rate, failed=found.failed)
    windows = found.serving or []
    saturated = any(w.saturated for w in windows)
    # A disturbed loop that was late is part of what is measured: latency counts from the plan.
    late = [w.lateness_p99_s for w in windows if w.refused]
    rounds = [] if saturated else _latencies(entry)
    shown = tail(np.concatenate(rounds), 0.99) if rounds else None
    median50 = float(np.median(np.concatenate(rounds))) if rounds else None
    taken = [max(w.ended_s, w.duration_s) - w.settle_s for w in windows]
    asked = sum(w.duration_s - w.settle_s for w in windows)
    served = sum(w.achieved_rate_per_s * s for w, s in zip(windows, taken, strict=True))
    return DisturbedTable(
        key,
        row["background"],
        _figure(alone50, median50, entry.latencies, rounds, _middle),
        _figure(alone99, shown.value if shown else None, entry.latencies, rounds, _p99,
                shown.note if shown else None),
        _rate(entry, found.throughput),
        tuple(
            Kept(n.label, n.what, n.operation, median(r.alone_per_s for r in n.rounds),
                 median(r.beside_per_s for r in n.rounds))
            for n in found.neighbours
        ),
        saturated,
        served / sum(taken) if taken else None,
        sum(w.requests for w in windows) / asked if asked else None,
        max(late, default=None),
    )  # fmt: skip


def _latencies(entry: Entry) -> Rounds:
    """Seconds of the requests that count, an array per round; none where all are at hand."""
    rows = entry.folder.read_samples(entry.record.cell_id, "disturbed", entry.record.known_samples)
    places = enumerate(zip(rows["window"], rows.get("latency_s") or [], strict=False))
    kept = [i for i, (window, took) in places if window == "measure" and took is not None]
    if not kept:
        return []
    values = np.array([rows["latency_s"][i] for i in kept], dtype=float)
    return by_round(values, [rows["round"][i] for i in kept])


def _figure(
    alone: float | None,
    disturbed: float | None,
    first: Rounds,
    second: Rounds,
    of: Callable[[np.ndarray], float],
    note: str | None = None,
) -> Figure:
    return Figure(alone, disturbed, tuple(map(of, first)), tuple(map(of, second)), note)


def _middle(values: np.ndarray) -> float:
    return float(np.median(values))


def _p99(values: np.ndarray) -> float:
    """Of one round, whose requests alone need not support it: to see how far rounds lie apart."""
    return float(np.quantile(values, 0.99, method="inverted_cdf"))


def _rate(entry: Entry, found: Throughput | None) -> Figure:
    """Offline throughput, at the batch size of the row."""
    size = entry.row["batch_size"]
    alone = entry.record.measurements.throughput
    if size is None or alone is None or found is None:
        return Figure(entry.row["throughput_per_s"], None)
    first, second = alone.by_batch_size[str(size)], found.by_batch_size.get(str(size))
    disturbed = second.requests_per_s if second is not None else None
    return Figure(first.requests_per_s, disturbed, _per_round(first), _per_round(second))


def _per_round(rate: BatchRate | None) -> tuple[float, ...]:
    rounds: Sequence = (rate.rounds or []) if rate is not None else []
    return tuple(r.requests_per_s for r in rounds)
