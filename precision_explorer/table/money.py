"""Columns of cost, efficiency and value: three numbers, each with its own inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precision_explorer.economics import (
    cost_per_1k,
    load_sheet,
    parse_slo,
    price_for,
    rate_within_slo,
    requests_per_usd,
    value_per_usd,
)
from precision_explorer.stats import tail
from precision_explorer.table.curve import best_rate_within
from precision_explorer.table.samples import placed_beside

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


def economics_columns(entry: Entry) -> None:
    """Fill those of an entry whose verdict stands."""
    row, reader = entry.row, entry.reader
    environment = entry.record.environment
    kind = environment.device.get("kind", "cpu") if environment else "cpu"
    price = price_for(
        kind,
        row["device"],
        entry.record.cell.threads,
        reader["price_per_hour"],
        load_sheet(None),
    )
    entry.slo = parse_slo(reader["slo"]) if reader.get("slo") else entry.searched
    if price is None:
        return
    entry.price = price
    within = _best_within_slo(entry)
    row.update(
        price_per_hour_usd=price.per_hour_usd,
        price_source=f"{price.source} ({price.date})",
        cost_per_1k_requests_usd=cost_per_1k(price.per_hour_usd, row["throughput_per_s"]),
    )
    quality = entry.quality
    if quality and quality.is_share:
        # Early examples may be easier or harder than all: beside the others stands what is placed.
        place = placed_beside(entry)
        quality_share = row["quality"] if place is None else place[0]
        row["value_per_usd"] = value_per_usd(quality_share, within, price.per_hour_usd)
    elif quality:
        # The reference, which has no verdict, loses nothing against itself.
        verdict = "within" if row["format"] == reader["reference"] else row["verdict"]
        row["value_per_usd"] = requests_per_usd(verdict, within, price.per_hour_usd)


def _best_within_slo(entry: Entry) -> float | None:
    """The highest rate within the objective over the batch sizes tried; a request takes as long as
    its batch. Of a row whose requests came by their own clock the rate that was achieved, if its
    latencies under that load meet the objective: what batches take when all are at hand says
    nothing of a queue; of a search at the largest rate tried that holds the objective. None there
    where no latency is shown or too few requests tell."""
    tried = entry.record.measurements.tried
    if entry.slo is not None and tried:
        rate, entry.value_latencies = best_rate_within(tried, entry.tried, entry.slo)
        return rate
    if entry.slo is not None and entry.record.measurements.serving:
        latencies = np.concatenate([*entry.latencies, np.array([])])
        if not len(latencies) or tail(latencies, entry.slo.quantile).value is None:
            return None
        return rate_within_slo(entry.row["achieved_rate_per_s"], latencies, entry.slo)
    throughput = entry.record.measurements.throughput
    if throughput is None:
        return None
    found = {
        int(size): rate_within_slo(s.requests_per_s, s.batch_s, entry.slo)
        for size, s in throughput.by_batch_size.items()
    }
    rates = {size: rate for size, rate in found.items() if rate is not None}
    entry.value_size = max(rates, key=lambda size: rates[size], default=None)
    return rates[entry.value_size] if entry.value_size is not None else None
