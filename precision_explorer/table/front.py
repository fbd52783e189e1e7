"""The Pareto columns of the rows of one (model, task, device): front and probability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from precision_explorer.pareto import front, front_probability
from precision_explorer.records import CellRecord
from precision_explorer.records.record import EnergyRound
from precision_explorer.stats import effective_n, resample_counts, round_draws
from precision_explorer.table.computed import Computed
from precision_explorer.table.quality import Quality, quality_draws
from precision_explorer.table.rounds import batches_by_round

DRAWS = 500
"""A probability of 50 % is then known to 2.2 points (binomial, one standard deviation)."""
FEW_REQUESTS = 6
"""Below so many independent requests not even the median has an interval at 95 %
(`order_interval`): resampling them would show no doubt where there is much."""
# The columns that are objectives, in words.
_WORDS = {
    "quality": "quality",
    "latency_p50_s": "median latency",
    "held_rate_per_s": "largest rate that held",
    "peak_memory_bytes": "peak memory",
    "cost_per_1k_requests_usd": "cost per 1,000 requests",
    "energy_per_request_j": "energy per request",
}


def objectives(rows: list[dict[str, Any]]) -> list[str]:
    """Columns that can be compared: those that every ok row has. Energy only where all rows
    measured it with the same source; an estimate is never an objective. Nor is latency where each
    row's is that at a rate of its own, which a search found."""
    names = [name for name in _WORDS if all(row[name] is not None for row in rows)]
    if any(row["search_slo"] is not None for row in rows):
        names = [name for name in names if name != "latency_p50_s"]
    sources = {row["power_source"] or "unavailable" for row in rows}
    measured = len(sources) == 1 and sources.pop().startswith("measured")
    return [n for n in names if n != "energy_per_request_j" or measured]


def in_words(names: list[str]) -> str:
    """The objectives as a reader would name them."""
    return ", ".join(_WORDS[name] for name in names)


def mark_front(
    rows: list[dict[str, Any]],
    records: list[CellRecord],
    qualities: list[Quality | Computed | None],
    latencies: list[list[np.ndarray]],
    seed: int,
    placed: list[tuple[float, np.ndarray] | None],
    with_quality: bool = True,
) -> list[str]:
    """Fill `pareto` and `pareto_probability` of `rows` (all ok, none of them saturated or refused,
    which stay without); returns the objectives used. No probability where a row's latency rests on
    fewer than `FEW_REQUESTS`.

    `placed`: value and (DRAWS,) draws of the quality of a row whose own is that of fewer examples
    than the others'; None for all others. `with_quality`: False where the rows' quality can't be
    compared.
    """
    higher = qualities[0].higher_is_better if qualities and qualities[0] else True
    # A metric without a better end is no objective.
    known = higher is not None and with_quality
    names = [name for name in objectives(rows) if name != "quality" or known]
    if not rows or not names:
        return []
    maximise = [bool(higher) if name == "quality" else name == "held_rate_per_s" for name in names]
    values = np.array([[row[name] for name in names] for row in rows], dtype=float)
    if "quality" in names:
        for index, place in enumerate(placed):
            if place is not None:
                values[index, names.index("quality")] = place[0]
    on_front = front(values, maximise)
    draws = np.repeat(values[None], DRAWS, axis=0)
    for index, row in enumerate(rows):
        for column, name in enumerate(names):
            drawn = _drawn(name, row, records[index], qualities[index], latencies[index], seed)
            place = placed[index] if name == "quality" else None
            drawn = place[1] if place is not None else drawn
            if drawn is not None:
                draws[:, index, column] = drawn
    told = "latency_p50_s" not in names or all(map(_enough, latencies))
    probability = front_probability(draws, maximise) if told else None
    for index, row in enumerate(rows):
        row["pareto"] = "yes" if on_front[index] else "no"
        row["pareto_probability"] = None if probability is None else float(probability[index])
    return names


def _enough(latencies: list[np.ndarray]) -> bool:
    return sum(effective_n(values, 0.5) for values in latencies) >= FEW_REQUESTS


def _drawn(
    name: str,
    row: dict[str, Any],
    record: CellRecord,
    quality: Quality | Computed | None,
    latencies: list[np.ndarray],
    seed: int,
) -> np.ndarray | None:
    """(DRAWS,) bootstrap values of one row's objective; None for those without a sample.

    Examples are drawn as pairs (one seed for all rows), and so are rounds; requests and batches
    within them per row, of requests as many as they are worth independent ones.
    """
    if isinstance(quality, Computed):
        if name == "quality":
            enough = len(quality.score.draws) >= DRAWS
            return np.array(quality.score.draws[:DRAWS]) if enough else None
    elif name == "quality" and quality is not None:
        return quality_draws(quality, seed, DRAWS)
    own = _own_seed(record, seed)
    if name == "latency_p50_s" and latencies:
        # As many as they are worth: each draw of dependent requests would vary too little.
        sizes = [max(round(effective_n(values, 0.5)), 1) for values in latencies]
        if len(latencies) > 1:
            return round_draws(latencies, _pooled_median, DRAWS, seed, own, sizes)
        (one,), (size,) = latencies, sizes
        index = np.random.default_rng(own).integers(0, len(one), (DRAWS, size))
        return np.median(one[index], axis=1)
    throughput = record.measurements.throughput
    if name == "cost_per_1k_requests_usd" and throughput and throughput.best_batch_size:
        best = throughput.by_batch_size[str(throughput.best_batch_size)]
        batches = batches_by_round(best)
        if len(batches) > 1:
            drawn = round_draws(batches, _middle_rate, DRAWS, seed, own)
            return row[name] * _middle_rate(batches) / drawn
        (seconds,) = batches
        counts = resample_counts(len(seconds), DRAWS, own)
        return row[name] * (counts @ seconds) / seconds.sum()
    energy = record.measurements.energy
    if name == "energy_per_request_j" and energy and energy.rounds and len(energy.rounds) > 1:
        return _energy_draws(energy.rounds, seed)
    return None


def _pooled_median(rounds: Sequence[np.ndarray]) -> float:
    """The median over all requests, which the table shows."""
    return float(np.median(np.concatenate(list(rounds))))


def _middle_rate(rounds: Sequence[np.ndarray]) -> float:
    """The median of the rounds' batches per second, which the table's rate rests on."""
    return float(np.median([len(seconds) / seconds.sum() for seconds in rounds]))


def _energy_draws(rounds: Sequence[EnergyRound], seed: int) -> np.ndarray:
    """(DRAWS,) joules per request; of a round only its sum is known, so rounds alone are drawn."""
    joules, requests = (
        np.array([getattr(r, n) for r in rounds], dtype=float) for n in ("energy_j", "requests")
    )

    def drawn(places: Sequence[np.ndarray]) -> float:
        at = np.concatenate(list(places))
        return float(joules[at].sum() / requests[at].sum())

    return round_draws([np.array([k]) for k in range(len(rounds))], drawn, DRAWS, seed, seed)


def _own_seed(record: CellRecord, seed: int) -> int:
    return (int(record.cell_id[:8], 16) + seed) % 2**32
