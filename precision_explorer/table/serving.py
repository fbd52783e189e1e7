"""Columns of a row whose requests came by their own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.records.serving import Serving
from precision_explorer.stats import assess
from precision_explorer.table.latency import (
    fill_rounds,
    over_time,
    tail_columns,
    token_columns,
)
from precision_explorer.table.rounds import by_round

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

Columns = dict[str, list[Any]]
# Windows of requests that came by the plan.
_SERVED = ("settle", "measure")


def load_columns(windows: Sequence[Serving]) -> dict[str, Any]:
    """What was asked of a cell in its windows, and what it made of it: rates over all of them, the
    utilisation weighted by their time, the largest lateness, how they were batched."""
    asked = sum(w.duration_s - w.settle_s for w in windows)
    taken = [max(w.ended_s, w.duration_s) - w.settle_s for w in windows]
    done = sum(w.achieved_rate_per_s * s for w, s in zip(windows, taken, strict=True))
    pairs = zip(windows, taken, strict=True)
    busy = [w.utilisation * s for w, s in pairs if w.utilisation is not None]
    over_s = sum(taken) if len(busy) == len(windows) else 0.0
    return {
        "offered_rate_per_s": sum(w.requests for w in windows) / asked if asked else None,
        "achieved_rate_per_s": done / sum(taken) if sum(taken) else None,
        "utilisation": sum(busy) / over_s if over_s else None,
        "lateness_p99_s": max(w.lateness_p99_s for w in windows),
        "batching": ", ".join(dict.fromkeys(w.batching for w in windows)),
    }


def is_steady_load(windows: Sequence[Serving]) -> bool:
    """Whether a percentile may be read from the windows: their loops kept time, and no queue grew
    from beginning to end."""
    return not any(w.refused or w.saturated for w in windows)


def served_columns(entry: Entry, windows: Sequence[Serving]) -> None:
    """Fill the columns of an entry whose requests came by their own clock: nothing that supposes a
    steady state where there was none, and nothing of the latency where the loop was late."""
    rows = entry.folder.read_samples(entry.record.cell_id, "request", entry.record.known_samples)
    kept = _counted(rows)
    made = rows.get("output_tokens") or []
    # Those of all requests that the meter's window held.
    places = zip(made, rows["window"], rows["latency_s"], strict=False)
    entry.output_tokens = [t for t, w, s in places if w in _SERVED and s is not None]
    row = entry.row
    row.update(load_columns(windows) | {"cold_first_s": windows[0].cold_first_s})
    rounds = len({window.round.round for window in windows if window.round})
    row["rounds"] = rounds or None
    if any(w.refused for w in windows):
        return
    row["latency_n"] = sum(w.requests for w in windows)
    if not is_steady_load(windows) or not kept:
        row["steady"] = "drifting"
        return
    values = np.array([rows["latency_s"][i] for i in kept])
    numbers = rows.get("round") or [0] * len(rows["window"])
    fill_rounds(entry, values, [numbers[i] for i in kept], rounds)
    row.update(tail_columns(values))
    row["steady"] = assess(values, False).label
    if "service_s" in rows:
        # A server's own queue is not seen from outside.
        services = np.array([rows["service_s"][i] for i in kept])
        entry.services = by_round(services, [numbers[i] for i in kept])
        row["queue_p50_s"] = float(np.median([rows["queue_s"][i] for i in kept]))
        row["service_p50_s"] = float(np.median(services))
    if windows[0].generates:
        row.update(token_columns(rows, kept))
    if len(windows) == 1:
        over_time(entry, rows, entry.record.measurements.soak)


def _counted(rows: Columns) -> list[int]:
    """Places of the request rows that count and were finished."""
    places = enumerate(zip(rows["window"], rows["latency_s"], strict=True))
    return [i for i, (window, latency) in places if window == "measure" and latency is not None]
