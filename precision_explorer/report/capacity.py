"""The machines that each format needs, on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from precision_explorer.economics import Demand, Spread
from precision_explorer.records import NOT_SCORED, SYNTHETIC
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.terminal import grid
from precision_explorer.report.text import cleaned, listed
from precision_explorer.stats import needed_n, supports
from precision_explorer.table.capacity import CapacityRow, CapacityTable
from precision_explorer.units import MISSING, bytes_, rate, seconds, share, significant, usd

_TONES = {"within": "good", "outside": "bad", "cannot-tell": "unsure"}


def print_capacity(table: CapacityTable, console: Console) -> None:
    """Print `table` on `console`: what it assumes, a table per model and task, and what each
    answer rests on."""
    table = cleaned(table)
    demand = table.demand
    title = f"Machines for {rate(demand.rate_per_s)} within {_objective(demand)}"
    console.print(Text(title, style="bold underline"))
    for line in table.assumptions:
        _item(line, console)
    for title, rows in _by_task(table).items():
        console.print()
        console.print(grid(_view(table, title, rows), console.width))
        console.print()
        for line in (_finding(rows), *_notes(rows, demand)):
            _item(line, console)
    for name, status, why in table.left_out:
        _item(f"{name}: {status}, {why}", console)
    for line in dict.fromkeys(_price_line(row) for row in table.rows):
        _item(line, console)


def unmet(row: CapacityRow, demand: Demand) -> str:
    """Why no number of machines is enough, with the best that was found."""
    slo, found = demand.slo, row.capacity
    best = f"{_named(row)}: no number of machines meets {_objective(demand)}"
    if found.idle_s <= slo.limit_s:
        return f"{best}, not even when they are hardly ever busy"
    waits = ""
    if found.max_batch > 1 and demand.max_wait_s > 0:
        waits = f", {seconds(demand.max_wait_s)} of it waiting for a batch to fill"
    return f"{best}; its {slo.name} is {seconds(found.idle_s)} even when idle{waits}"


def machines_text(row: CapacityRow) -> str:
    """``3``, ``4 to 5`` where the draws disagree, ``none``."""
    if row.capacity.machines is None:
        return "none"
    least, most = row.capacity.machines
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _by_task(table: CapacityTable) -> dict[str, list[CapacityRow]]:
    found: dict[str, list[CapacityRow]] = {}
    for row in table.rows:
        found.setdefault(f"{row.model} on {row.task}", []).append(row)
    return found


def _view(table: CapacityTable, title: str, rows: list[CapacityRow]) -> View:
    demand, name = table.demand, table.demand.slo.name
    # Without head-room the two rates are one.
    rates = dict.fromkeys((demand.rate_per_s, demand.peak_per_s))
    headings = (
        "Format", "Quality", "Batch up to", "Machines", "Busy",
        *(f"{name} at {rate(r)}" for r in rates),
        "Best rate of one", "Fleet per hour", "per month", "Memory of one",
    )  # fmt: skip
    numeric = (False, False, *[True] * (len(headings) - 2))
    return View(title, headings, tuple(_cells(row, len(rates)) for row in rows), numeric)


def _cells(row: CapacityRow, rates: int) -> tuple[Cell, ...]:
    found = row.capacity
    return (
        Cell(_named(row)),
        Cell(row.verdict or MISSING, _TONES.get(row.verdict or "", "")),
        Cell(str(found.max_batch)),
        Cell(machines_text(row), "bad" if found.machines is None else "strong"),
        Cell(share(found.utilisation, 0)),
        *(Cell(_median(s)) for s in (found.latency_s, found.peak_latency_s)[:rates]),
        Cell(_rates(found.best_rate_per_s)),
        Cell(_usd(row.per_hour_usd)),
        Cell(_usd(row.per_month_usd)),
        Cell(bytes_(row.peak_memory_bytes)),
    )


def _finding(rows: list[CapacityRow]) -> str:
    """Which format within the quality budget needs the cheapest fleet, or the fewest machines where
    there are no prices. Where quality was not measured, which of all formats."""
    synthetic = any(row.model.startswith(SYNTHETIC) for row in rows)
    kept = ("within", "reference")
    fit = [r for r in rows if r.capacity.machines and (synthetic or r.verdict in kept)]
    if not fit and synthetic:
        return f"No format meets the objective ({NOT_SCORED})."
    if not fit:
        return "No format both meets the objective and is shown to keep the quality budget."
    whose = f", of all formats ({NOT_SCORED})" if synthetic else " that keeps the quality budget"
    costs = {id(row): row.per_hour_usd for row in fit}
    priced = all(cost is not None for cost in costs.values())
    keys = {id(row): (costs[id(row)] if priced else row.capacity.machines) for row in fit}
    best = min(max(key) for key in keys.values() if key)
    names = [_named(row) for row in fit if max(keys[id(row)] or (0,)) == best]
    busy = any(row.is_busy for row in fit)
    rough = ", as far as times that were taken beside other work tell" if busy else ""
    if priced:
        return f"Cheapest fleet{whose}{rough}: {listed(names)}, {usd(best)} per hour."
    whose = whose.replace("keeps", "keep")
    return f"Fewest machines{whose}{rough}: {listed(names)}, {significant(best)}."


def _price_line(row: CapacityRow) -> str:
    if row.price_per_hour_usd is None:
        return f"No price is known for {row.device}; give yours by --price-per-hour or --price."
    price = significant(row.price_per_hour_usd, 4)
    inputs = (row.price_inputs or "").replace(";", ", ").replace("=", " ")
    return f"{row.device}: ${price} per machine and hour ({row.price_source}; from {inputs})."


def _notes(rows: list[CapacityRow], demand: Demand) -> list[str]:
    """What the rows' answers rest on, those that say the same together."""
    slo, notes = demand.slo, [unmet(row, demand) for row in rows if row.capacity.machines is None]
    for row in rows:
        missed = row.capacity.draws - row.capacity.met_draws
        if row.capacity.machines and missed:
            notes.append(
                f"{_named(row)}: in {missed} of {row.capacity.draws} draws of its service times no "
                "number of machines meets the objective; measure more requests"
            )
        if demand.max_batch is not None and row.capacity.max_batch < demand.max_batch:
            notes.append(f"{_named(row)}: no larger batch was measured")
    few = [f"{_named(r)} {r.measured_n}" for r in rows if not supports(r.measured_n, slo.quantile)]
    if few:
        notes.append(
            f"The {slo.name} of service times needs {needed_n(slo.quantile)} measurements of each "
            f"batch size; fewer were taken of {listed(few)}: slower ones may be missing there, so "
            "take these machines as the least."
        )
    busy = [_named(row) for row in rows if row.is_busy]
    if busy:
        notes.append(
            f"Other processes were at work in the timing of {listed(busy)}: take these machines as "
            "rough, and measure again on an idle one."
        )
    for label in dict.fromkeys(r.steady for r in rows if r.steady not in (None, "steady")):
        names = listed([_named(row) for row in rows if row.steady == label])
        notes.append(f"Latencies were {label} when they were measured: {names}.")
    return notes


def _named(row: CapacityRow) -> str:
    """The format, with its runtime unless eager, and marked where slow software computes it."""
    marks = [row.runtime] if row.runtime != "eager" else []
    marks += ["emulated"] if row.execution == "emulated" else []
    return f"{row.format} ({', '.join(marks)})" if marks else row.format


def _objective(demand: Demand) -> str:
    return f"{demand.slo.name}={seconds(demand.slo.limit_s)}"


def _median(spread: Spread | None) -> str:
    return MISSING if spread is None else seconds(spread.median)


def _rates(spread: Spread) -> str:
    if spread.high == 0:
        return "none"
    low, high = significant(spread.low), significant(spread.high)
    return f"{rate(spread.median)} [{low}, {high}]"


def _usd(cost: tuple[float, float] | None) -> str:
    if cost is None:
        return MISSING
    low, high = usd(cost[0]), usd(cost[1])
    return low if low == high else f"{low} to {high}"


def _item(line: str, console: Console) -> None:
    console.print(Padding(Text(line), (0, 0, 0, 2)))
