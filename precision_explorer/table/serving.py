"""Columns of a row whose requests came by their own clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from precision_explorer.records.serving import Serving

Columns = dict[str, list[Any]]


def load_columns(windows: Sequence[Serving]) -> dict[str, Any]:
    """What was asked of a cell in its windows, and what it made of it: rates over all of them, the
    utilisation weighted by their time, the largest lateness."""
    asked = sum(w.duration_s - w.settle_s for w in windows)
    taken = [max(w.ended_s, w.duration_s) - w.settle_s for w in windows]
    done = sum(w.achieved_rate_per_s * s for w, s in zip(windows, taken, strict=True))
    busy = sum(w.utilisation * s for w, s in zip(windows, taken, strict=True))
    return {
        "offered_rate_per_s": sum(w.requests for w in windows) / asked if asked else None,
        "achieved_rate_per_s": done / sum(taken) if sum(taken) else None,
        "utilisation": busy / sum(taken) if sum(taken) else None,
        "lateness_p99_s": max(w.lateness_p99_s for w in windows),
    }


def is_steady_load(windows: Sequence[Serving]) -> bool:
    """Whether a percentile may be read from the windows: their loops kept time, and no queue grew
    from beginning to end."""
    return not any(w.refused or w.saturated for w in windows)


def counted(rows: Columns) -> list[int]:
    """Places of the request rows that count and were finished."""
    places = enumerate(zip(rows["window"], rows["latency_s"], strict=True))
    return [i for i, (window, latency) in places if window == "measure" and latency is not None]


def split_columns(rows: Columns, kept: list[int]) -> dict[str, Any]:
    """Medians of the time in the queue and in service, in seconds."""
    names = {"queue_p50_s": "queue_s", "service_p50_s": "service_s"}
    return {column: median(rows[name], kept) for column, name in names.items()}


def median(values: Sequence[Any], kept: list[int]) -> float | None:
    """The median of `values` at the places `kept`; None without any."""
    return float(np.median([values[i] for i in kept])) if kept else None
