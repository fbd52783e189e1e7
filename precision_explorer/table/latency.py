"""Columns of a row's latencies: percentiles as far as the sample supports them, steady state, and
the first minute against what came after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.records import Caution, Soak
from precision_explorer.stats import (
    assess,
    cut_windows,
    peak_and_sustained,
    round_spread,
    spans,
    tails,
)
from precision_explorer.table.data import ROW_KEY, SoakTable
from precision_explorer.table.rounds import by_round, end_to_end
from precision_explorer.workload import LEAST_WINDOWS, WINDOW_S

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

Rows = Mapping[str, Sequence[Any]]

_NAMES = ("p50", "p90", "p99", "p999")


def latency_columns(entry: Entry) -> None:
    """Fill the latency columns of an entry's row from its samples, if it has any."""
    latency = entry.record.measurements.latency
    if latency is None:
        return
    rows = entry.folder.read_samples(entry.record.cell_id, "request", entry.record.known_samples)
    soak = entry.record.measurements.soak
    kept = _counted(rows, soak)
    values = np.array([rows["latency_s"][i] for i in kept])
    labels = [rows["round"][i] for i in kept] if latency.rounds else [0] * len(kept)
    fill_rounds(entry, values, labels, len(latency.rounds or []))
    made = rows.get("output_tokens") or []
    entry.output_tokens = [made[i] for i in kept] if made else []
    row = entry.row
    row.update(tail_columns(values))
    row.update(latency_n=len(values), cold_first_s=latency.cold_first_s)
    row["steady"] = assess(values, latency.stopped_by == "budget").label
    if latency.generates:
        row.update(token_columns(rows, kept))
    over_time(entry, rows, soak)


def fill_rounds(entry: Entry, values: np.ndarray, labels: Sequence[int], rounds: int) -> None:
    """The latencies `values` (n,) of an entry by the round in `labels`, and how far its `rounds`
    differ; 0 of a record from before there were any."""
    entry.latencies = by_round(values, labels)
    if rounds:
        entry.row["rounds"] = rounds
        medians = [float(np.median(of_round)) for of_round in entry.latencies]
        entry.row["latency_p50_round_spread"] = round_spread(medians)


def token_columns(rows: Rows, kept: Sequence[int]) -> dict[str, Any]:
    """Medians of the time to the first token and of that between tokens, over the requests that
    have one: one of a single output token has no time between tokens."""
    between = [t for i in kept if (t := rows["tpot_s"][i]) is not None]
    return {
        "ttft_s": float(np.median([rows["ttft_s"][i] for i in kept])),
        "tpot_s": float(np.median(between)) if between else None,
    }


def tail_columns(values: np.ndarray) -> dict[str, Any]:
    """Percentiles, intervals, and what those that are missing would take."""
    found: dict[str, Any] = {}
    for name, tail in zip(_NAMES, tails(values), strict=True):
        found[f"latency_{name}_s"] = tail.value
        if name in ("p50", "p99"):
            found |= {f"latency_{name}_ci_low_s": tail.low, f"latency_{name}_ci_high_s": tail.high}
        if name != "p50":
            found[f"latency_{name}_needed_n"] = tail.needed_n
        if name == "p99":
            found["latency_n_eff"] = tail.n_eff if len(values) else None
    return found


def _measured(rows: Rows) -> list[int]:
    return [i for i, window in enumerate(rows["window"]) if window == "measure"]


def _counted(rows: Rows, soak: Soak | None) -> list[int]:
    """The measured requests, without those of windows that were measured again."""
    kept = _measured(rows)
    ends = _ends(rows, kept)
    if soak is None or ends is None:
        return kept
    out: np.ndarray = np.zeros(len(kept), dtype=bool)
    for index in soak.skipped():
        window = soak.windows[index]
        out |= (ends >= window.start_s) & (ends < window.start_s + window.seconds)
    return [i for i, skip in zip(kept, out, strict=True) if not skip]


def _ends(rows: Rows, kept: Sequence[int]) -> np.ndarray | None:
    """When the requests `kept` ended, on the clock of their `start_s`; None where no time is
    stored."""
    if any(t is not None for t in rows.get("finished_s") or ()):
        ends = [rows["finished_s"][i] for i in kept]
    elif any(t is not None for t in rows.get("start_s") or ()):
        begun = [rows["start_s"][i] for i in kept]
        taken = [rows["latency_s"][i] for i in kept]
        ends = [None if b is None else b + t for b, t in zip(begun, taken, strict=True)]
    else:
        return None
    return None if None in ends else np.array(ends, dtype=float)


def over_time(entry: Entry, rows: Rows, soak: Soak | None) -> None:
    """Windows of a long series; first minute against the rest."""
    kept = _measured(rows)
    ends = _ends(rows, kept)
    if ends is None or not len(ends):
        return
    latencies = np.array([rows["latency_s"][i] for i in kept], dtype=float)
    if len(entry.latencies) > 1:
        ends = end_to_end(ends, latencies, [rows["round"][i] for i in kept])
    seen = tuple(soak.windows) if soak else ()
    if soak:
        cuts = [(w.start_s, w.seconds) for w in seen]
    else:
        cuts = spans(float((ends - latencies).min()), float(ends.max()), WINDOW_S)
    rates = peak_and_sustained(ends, cuts, skipped=soak.skipped() if soak else ())
    if rates is not None:
        entry.row.update(
            peak_rate_per_s=rates.peak_per_s, sustained_rate_per_s=rates.sustained_per_s
        )
    if soak:
        _warn(entry, soak)
    if seen or len(cuts) >= LEAST_WINDOWS:
        memory = [w.memory_bytes for w in seen] if seen else None
        windows = cut_windows(ends, latencies, cuts, memory)
        key = tuple(entry.row[name] for name in ROW_KEY)
        entry.soak = SoakTable(key, windows, seen, rates)


def _warn(entry: Entry, soak: Soak) -> None:
    """Say which flagged windows count, as none that is calm stands in for them."""
    skipped = set(soak.skipped())
    counted = [w for k, w in enumerate(soak.windows) if k not in skipped]
    disturbed, throttled = sum(w.disturbed for w in counted), sum(w.throttled for w in counted)
    if disturbed:
        message = (
            f"other processes were at work in {disturbed} of the {len(counted)} windows that "
            "count: measure again on an idle machine"
        )
        entry.cautions.append(Caution(id="windows-disturbed", message=message))
    if throttled:
        message = (
            f"heat or the power supply slowed the device down in {throttled} of the "
            f"{len(counted)} windows that count: this is what it sustains as it is cooled here"
        )
        entry.cautions.append(Caution(id="windows-throttled", message=message))
