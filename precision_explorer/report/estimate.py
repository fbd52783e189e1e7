"""What a sweep will take, and how far that was off, as lines of text."""

from __future__ import annotations

from precision_explorer.plan.speeds import BUSY
from precision_explorer.records.estimate import PARTS, CellEstimate, Estimate
from precision_explorer.units import MISSING, clock, joules, share, significant, usd

NOTHING = "nothing to estimate: every cell is there, skipped, or of a server"


def estimate_lines(estimate: Estimate | None) -> list[str]:
    """A table of cells by part, the totals with their interval, and where the figures come from."""
    if estimate is None:
        return ["", NOTHING]
    shown = [part for part in PARTS if estimate.of_part(part)[0] > 0]
    rows = [["cell", *shown, "all", "from", "to", "energy", "cost"]]
    rows += [_row(cell, shown, estimate) for cell in estimate.cells]
    return ["", *_aligned(rows), *_totals(estimate), *_sources(estimate)]


def _row(cell: CellEstimate, shown: list[str], estimate: Estimate) -> list[str]:
    took = {part.part: part.seconds for part in cell.parts}
    low, high = (sum(getattr(p, end) for p in cell.parts) for end in ("low_s", "high_s"))
    price = estimate.usd_per_hour
    return [
        _name(cell),
        *(clock(took.get(part)) for part in shown),
        clock(cell.seconds), clock(low), clock(high),
        joules(cell.energy_j),
        usd(None if price is None else price * cell.seconds / 3600),
    ]  # fmt: skip


def _name(cell: CellEstimate) -> str:
    runtime = "" if cell.runtime == "eager" else f" {cell.runtime}"
    return f"{cell.model} {cell.task} {cell.format}{runtime}"


def _totals(estimate: Estimate) -> list[str]:
    low, high = (sum(estimate.of_part(part)[place] for part in PARTS) for place in (1, 2))
    return [
        f"{len(estimate.cells)} cells to measure: {clock(estimate.seconds)} (between {clock(low)} "
        f"and {clock(high)}), {joules(estimate.energy_j)}, {usd(estimate.usd)}; probing the device "
        "and fetching come on top"
    ]


def _sources(estimate: Estimate) -> list[str]:
    found: dict[str, list[str]] = {}
    for cell in estimate.cells:
        # A worker's load is part of every cell, by the speeds of all else.
        for source in {part.source for part in cell.parts if part.part == "load"}:
            found.setdefault(source, []).append(cell.format)
    lines = [f"speeds: {source}: {', '.join(dict.fromkeys(f))}" for source, f in found.items()]
    powers = ", ".join(sorted({cell.power_source for cell in estimate.cells}))
    lines.append(f"roof: {estimate.roof} ({estimate.device_name}); power: {powers}")
    basis = estimate.price_basis or "no price is known for the device; give --price-per-hour"
    return [*lines, f"price: {basis}"]


def error_lines(estimate: Estimate, others: float | None = None) -> list[str]:
    """Expected against taken, by part, with the ratio, and whether it lay in the interval.
    `others`: the mean share of the processors that other processes took meanwhile, where known."""
    if not estimate.took:
        return ["no session of this run has finished a cell that was expected"]
    rows = [["part", "expected", "from", "to", "took", "took/expected", "inside"]]
    low_all = high_all = 0.0
    for part in PARTS:
        seconds, low, high = estimate.of_part(part)
        took = estimate.took_part(part)
        low_all, high_all = low_all + low, high_all + high
        if seconds or took:
            rows.append([part, *_held(seconds, low, high, took)])
    rows.append(["all", *_held(estimate.seconds, low_all, high_all, estimate.took_s)])
    lines = _aligned(rows)
    if estimate.unfinished:
        lines.append(
            f"{len(estimate.unfinished)} of {len(estimate.cells)} cells are not finished, so that "
            "less was taken than was expected of all"
        )
    price = estimate.usd_per_hour
    if price is not None:
        paid = price * estimate.took_s / 3600
        lines.append(f"cost: {usd(estimate.usd)} expected, {usd(paid)} at the time that it took")
    if others is not None and others >= BUSY:
        lines.append(
            f"other processes took {share(others)} of the processors meanwhile, which nobody "
            "expected: what was taken is more than this sweep's own"
        )
    if len(estimate.took) > 1:
        lines.append(f"in {len(estimate.took)} sessions")
    return lines


def _held(seconds: float, low: float, high: float, took: float) -> list[str]:
    ratio = MISSING if not seconds else significant(took / seconds)
    inside = "yes" if low <= took <= high else "no"
    return [clock(seconds), clock(low), clock(high), clock(took), ratio, inside]


def summary(estimate: Estimate) -> str | None:
    """One line for a sweep that is done; None where it can't be said of all cells."""
    if not estimate.took or estimate.unfinished or not estimate.seconds:
        return None
    ratio = significant(estimate.took_s / estimate.seconds)
    return (
        f"expected {clock(estimate.seconds)}, took {clock(estimate.took_s)} ({ratio} times as long)"
    )


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
