"""Rows whose rate was searched: the curve of what was tried, and between which rates the largest
lies that holds the objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from precision_explorer.economics import Slo, rate_within_slo
from precision_explorer.records import Caution
from precision_explorer.records.serving import TriedRate
from precision_explorer.stats.rate_search import Bracket, Seen, bracket, judge
from precision_explorer.stats.tails import tail
from precision_explorer.table.data import ROW_KEY, Curve, CurvePoint
from precision_explorer.table.serving import load_columns
from precision_explorer.units import rate, seconds
from precision_explorer.workload import PERCENTILES

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

# Request rows that count: of the windows that stand for the row, and of all others.
_COUNTED = ("measure", "tried")


def curve_columns(entry: Entry, tried: Sequence[TriedRate]) -> None:
    """Fill the columns of an entry whose rate was searched, and its curve."""
    goal = entry.record.cell.workload["arrivals"]["search"]
    slo = Slo(PERCENTILES[goal["percentile"]], goal["limit_s"])
    entry.searched = slo
    entry.tried = _windows(entry, tried)
    points = points_of(tried, entry.tried, slo)
    ends = bracket_of(tried, points)
    place = {rate.rung: point for rate, point in zip(tried, points, strict=True)}
    held, missed = (None if rung is None else place[rung] for rung in (ends.held, ends.missed))
    note = _note(points, held, missed, slo)
    entry.row.update(
        search_slo=f"{slo.name}={slo.limit_s:g}s",
        held_rate_per_s=held.rate_per_s if held else None,
        missed_rate_per_s=missed.rate_per_s if missed else None,
        search_note=note,
    )
    if held is None:
        entry.cautions.append(Caution(id="no-rate-held", message=f"{note}: {_ADVICE}"))
    key = tuple(entry.row[name] for name in ROW_KEY)
    ordered = sorted(points, key=lambda point: point.rate_per_s)
    entry.curve = Curve(key, slo, tuple(ordered), held, missed, note)


_ADVICE = (
    "raise the limit where that is the format's own time, budget_seconds where requests were too "
    "few, and measure on an idle machine where the loop was late"
)


def points_of(
    tried: Sequence[TriedRate], windows: Sequence[list[Seen]], slo: Slo
) -> list[CurvePoint]:
    """One point for each rate, in the order in which they were tried, judged by `slo`."""
    return [_point(one, seen, slo) for one, seen in zip(tried, windows, strict=True)]


def bracket_of(tried: Sequence[TriedRate], points: Sequence[CurvePoint]) -> Bracket:
    """Between which rungs the largest lies that holds."""
    return bracket({one.rung: point.verdict for one, point in zip(tried, points, strict=True)})


def is_below(row: dict[str, Any], best: dict[str, Any]) -> bool:
    """Whether the answer of a row's search lies wholly below what `best` held: where neither does,
    the two can't be told apart."""
    missed, held = row["missed_rate_per_s"], best["held_rate_per_s"]
    return missed is not None and held is not None and bool(missed <= held)


def best_rate_within(
    tried: Sequence[TriedRate], windows: Sequence[list[Seen]], slo: Slo
) -> tuple[float | None, np.ndarray | None]:
    """Requests per second that meet `slo` at the largest rate that held it, the rate achieved times
    their share, and the latencies there (n,) in seconds. 0 where the lowest rate missed it, None
    where no rate can be told to hold it, both without latencies."""
    points = points_of(tried, windows, slo)
    held = bracket_of(tried, points).held
    if held is None:
        lowest = min(points, key=lambda point: point.rate_per_s)
        return (0.0 if lowest.verdict == "missed" else None), None
    place = next(k for k, one in enumerate(tried) if one.rung == held)
    latencies = _pooled(windows[place])
    return rate_within_slo(points[place].achieved_rate_per_s, latencies, slo), latencies


def _windows(entry: Entry, tried: Sequence[TriedRate]) -> list[list[Seen]]:
    """The windows of each rate, from the request rows."""
    rows = entry.folder.read_samples(entry.record.cell_id, "request", entry.record.known_samples)
    found: dict[tuple[int, int], list[float]] = {}
    columns = (rows["point"], rows["attempt"], rows["window"], rows["latency_s"])
    for point, attempt, window, latency in zip(*columns, strict=True):
        if window in _COUNTED and latency is not None:
            found.setdefault((point, attempt), []).append(latency)
    return [
        [
            Seen(
                np.array(found.get((number, attempt), [])),
                refused=window.refused is not None,
                grew=window.saturated,
                unserved=window.unfinished > 0,
            )
            for attempt, window in enumerate(one.windows)
        ]
        for number, one in enumerate(tried)
    ]


def _pooled(windows: Sequence[Seen]) -> np.ndarray:
    kept = [window.latencies_s for window in windows if not window.refused]
    return np.concatenate([np.zeros(0), *kept])


def _point(one: TriedRate, windows: list[Seen], slo: Slo) -> CurvePoint:
    values = _pooled(windows)
    found = judge(windows, slo.quantile, slo.limit_s)
    kept = [w for w in one.windows if not w.refused]
    load: dict[str, Any] = load_columns(kept or one.windows)
    return CurvePoint(
        rate_per_s=one.rate_per_s,
        offered_rate_per_s=load["offered_rate_per_s"],
        achieved_rate_per_s=load["achieved_rate_per_s"],
        utilisation=load["utilisation"],
        requests=len(values),
        seconds=sum(w.duration_s for w in one.windows),
        p50=tail(values, 0.5) if len(values) else None,
        percentile=found.tail if len(values) else None,
        verdict=found.verdict,
        why=found.why,
        saturated=sum(w.saturated for w in kept),
        refused=len(one.windows) - len(kept),
        windows=len(one.windows),
    )


def _note(
    points: Sequence[CurvePoint], held: CurvePoint | None, missed: CurvePoint | None, slo: Slo
) -> str | None:
    """What the two rates leave unsaid; None where both are there."""
    lowest, highest = (pick(points, key=lambda point: point.rate_per_s) for pick in (min, max))
    if held is None:
        return f"no rate {_even(lowest, slo)}"
    if missed is None:
        return f"no rate missed it; the highest that was tried is {rate(highest.rate_per_s)}"
    return None


def _even(lowest: CurvePoint, slo: Slo) -> str:
    """That no rate held, or that none could be shown to, with what is known of the lowest."""
    limit = f"{slo.name} within {seconds(slo.limit_s)}"
    found, at = lowest.percentile, f"{rate(lowest.rate_per_s)}, the lowest that was tried"
    if lowest.verdict != "missed":
        return f"was shown to hold {limit}: at {at}: {lowest.why}"
    if found is None or found.value is None:
        return f"held {limit}: missed even at {at}, too far to tell by how much"
    return f"held {limit}: even at {at}, it is {seconds(found.value)}"
