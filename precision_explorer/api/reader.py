"""What the one who reads a run may decide, from how it is written to what `table.build` takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Of a bare number below, the unit was forgotten.
_LEAST_MEMORY = 1_000_000


def table_reader(
    price_per_hour: float | None = None,
    price: Path | str | None = None,
    value_per_correct: float | None = None,
    cost_per_error: float | None = None,
    grid_g_per_kwh: float | None = None,
    slo: str | None = None,
    quality_budget: str | float | None = None,
    metric: str | None = None,
    **limits: Any,
) -> dict[str, Any]:
    """What `table.build` takes of these (`limits` as in `reader_from`), without those that were not
    given; UsageError for what can't be."""
    from precision_explorer.errors import UsageError

    budget = _share(quality_budget, "quality-budget")
    if budget is not None and limits.get("max_quality_loss") is not None:
        raise UsageError("--max-quality-loss is a quality budget too; give one of the two")
    reader = {
        "grid_g_per_kwh": grid_g_per_kwh,
        "quality_budget": budget,
        "metric": metric,
    }
    given = {k: v for k, v in reader.items() if v is not None} | reader_from(slo, **limits)
    return given | money_from(price, price_per_hour, value_per_correct, cost_per_error)


def reader_from(
    slo: str | None = None,
    max_quality_loss: str | float | None = None,
    max_memory: str | int | None = None,
    max_cost: float | None = None,
    objectives: str | Iterable[str] | None = None,
) -> dict[str, Any]:
    """What `table.build` takes of these: slo, quality_budget, objectives and limits, without those
    that were not given; UsageError for what can't be. A share is a text (``1%``) or a number
    (0.01), a size a text (``8GB``) or bytes, objectives a text with commas or names."""
    from precision_explorer.economics import parse_slo
    from precision_explorer.errors import UsageError
    from precision_explorer.table.figures import parse_objectives
    from precision_explorer.table.limits import Limits
    from precision_explorer.units import parse_size

    loss = _share(max_quality_loss, "max-quality-loss")
    if loss is not None and not 0 < loss < 1:
        raise UsageError("max-quality-loss must be above 0 and below 100%; write it as 1%")
    try:
        memory = parse_size(str(max_memory)) if max_memory is not None else None
    except ValueError as error:
        raise UsageError(f"max-memory: {error}") from error
    bare = isinstance(max_memory, str) and max_memory.strip().isdecimal()
    if bare and memory and memory < _LEAST_MEMORY:
        raise UsageError(f"max-memory: {max_memory} is {memory:,} bytes; write it as 8GB")
    limits = Limits(loss, parse_slo(slo) if slo is not None else None, memory, max_cost)
    if objectives is not None and not isinstance(objectives, str):
        objectives = ",".join(objectives)
    found = {
        "slo": slo,
        "quality_budget": loss,
        "objectives": parse_objectives(objectives) if objectives is not None else None,
        "limits": limits if limits.words else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _share(given: str | float | None, name: str) -> float | None:
    from precision_explorer.errors import UsageError
    from precision_explorer.units import parse_share

    try:
        return parse_share(given) if isinstance(given, str) else given
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def money_from(
    price: Path | str | None = None,
    price_per_hour: float | None = None,
    value_per_correct: float | None = None,
    cost_per_error: float | None = None,
) -> dict[str, Any]:
    """What `table.build` takes of these, without those that were not given; UsageError for a price
    file that can't be."""
    from precision_explorer.economics import load_prices

    found = {
        "price": load_prices(price).model_dump(mode="json") if price is not None else None,
        "price_per_hour": price_per_hour,
        "value_per_correct": value_per_correct,
        "cost_per_error": cost_per_error,
    }
    return {name: value for name, value in found.items() if value is not None}
