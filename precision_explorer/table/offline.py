"""A row over the batch sizes of its offline part: rates, and joules where a meter told them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.table.data import ROW_KEY, OfflineSize, OfflineTable

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


def over_sizes(entry: Entry) -> OfflineTable | None:
    """The batch sizes that were measured, the smallest first; None without any, and of rows that
    are not ok."""
    throughput = entry.record.measurements.throughput
    if throughput is None or entry.record.status != "ok":
        return None
    sizes = tuple(
        OfflineSize(
            size=int(size),
            requests_per_s=rate.requests_per_s,
            output_tokens_per_s=rate.output_tokens_per_s,
            energy_per_request_j=rate.energy_j / rate.requests
            if rate.energy_j is not None and rate.requests
            else None,
            energy_note=rate.energy_note,
            batches=rate.batches,
        )
        for size, rate in sorted(throughput.by_batch_size.items(), key=lambda item: int(item[0]))
        if rate.requests_per_s is not None
    )
    return OfflineTable(tuple(entry.row[name] for name in ROW_KEY), sizes) if sizes else None
