"""Columns of energy and efficiency, within the meter's boundary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.economics import carbon_g_per_1k, requests_per_joule

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry


def energy_columns(entry: Entry) -> None:
    """Fill an ok entry's, as far as its window was metered. Net is less what the idle device would
    have drawn in the same time; a window that drew no more than that has no net figure."""
    energy = entry.record.measurements.energy
    if energy is None:
        return
    row, joules, window_s = entry.row, energy.energy_j, energy.window_s
    row.update(power_source=energy.source, energy_boundary=energy.boundary)
    if joules is None or not window_s or not energy.requests:
        return
    row["power_w"] = joules / window_s
    row["energy_per_request_j"] = joules / energy.requests
    row["requests_per_joule"] = requests_per_joule(energy.requests, joules)
    row["energy_check"] = energy.cross_check
    grid = entry.reader.get("grid_g_per_kwh")
    if grid is not None and energy.source.startswith("measured:"):
        row["grid_g_per_kwh"] = grid
        row["carbon_g_per_1k_requests"] = carbon_g_per_1k(row["energy_per_request_j"], grid)
    if energy.idle_power_w is not None:
        above_idle = joules - energy.idle_power_w * window_s
        row["requests_per_joule_above_idle"] = requests_per_joule(energy.requests, above_idle)
        row["energy_net_per_request_j"] = above_idle / energy.requests if above_idle > 0 else None
    tokens = [t for t in entry.output_tokens if t is not None]
    if tokens and len(tokens) == len(entry.output_tokens):
        row["output_tokens_per_joule"] = requests_per_joule(sum(tokens), joules)
        if energy.idle_power_w is not None:
            above_idle = joules - energy.idle_power_w * window_s
            row["output_tokens_per_joule_above_idle"] = requests_per_joule(sum(tokens), above_idle)
