"""The options of one who reads a run: price, objective, budget, limits; shared by `report`,
`export` and `decide`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from precision_explorer.cli.money import grid_option, money_from, money_options

_OPTIONS: list[Callable[..., Any]] = [
    click.option(
        "--max-quality-loss", metavar="1%",
        help="Largest loss of quality: points for shares, relative otherwise.",
    ),
    click.option("--max-memory", metavar="8GB", help="Largest peak memory of serving."),
    click.option(
        "--max-cost", type=float, metavar="USD", help="Most dollars per 1,000 requests.",
    ),
]  # fmt: skip

objectives_option = click.option(
    "--objectives", metavar="a,b,...",
    help="What the Pareto front is taken over: quality, latency, latency_p90, latency_p99, "
    "latency_p999, rate (where it was searched), throughput, memory, weights, cost, value, net, "
    "energy (where it was measured).",
)  # fmt: skip


def limit_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of limits to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


_READER: list[Callable[..., Any]] = [
    click.option("--price-per-hour", type=float, metavar="USD", help="Your price for the device."),
    grid_option,
    click.option("--slo", metavar="p99=200ms", help="Latency limit within which requests count."),
    click.option("--quality-budget", metavar="1%", help="The loss of quality that you accept."),
    click.option(
        "--metric", metavar="NAME",
        help="Count quality in this metric, for the tasks that have it: a built-in one, or one of "
        "evaluate that rescore computed.",
    ),
]  # fmt: skip


def reader_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all that a reader may decide for a table; `table_reader` takes their values."""
    function = money_options(limit_options(objectives_option(function)))
    for option in reversed(_READER):
        function = option(function)
    return function


def table_reader(
    price_per_hour: float | None,
    price: Path | None,
    value_per_correct: float | None,
    cost_per_error: float | None,
    grid_g_per_kwh: float | None,
    slo: str | None,
    quality_budget: str | None,
    metric: str | None,
    **limits: Any,
) -> dict[str, Any]:
    """What `table.build` takes of `reader_options`, without those that were not given; UsageError
    for what can't be."""
    from precision_explorer.errors import UsageError
    from precision_explorer.units import parse_share

    try:
        budget = parse_share(quality_budget) if quality_budget is not None else None
    except ValueError as error:
        raise UsageError(f"quality-budget: {error}") from error
    if budget is not None and limits["max_quality_loss"] is not None:
        raise UsageError("--max-quality-loss is a quality budget too; give one of the two")
    reader = {
        "grid_g_per_kwh": grid_g_per_kwh,
        "quality_budget": budget,
        "metric": metric,
    }
    given = {k: v for k, v in reader.items() if v is not None} | reader_from(slo, **limits)
    return given | money_from(price, price_per_hour, value_per_correct, cost_per_error)


def reader_from(
    slo: str | None,
    max_quality_loss: str | None,
    max_memory: str | None,
    max_cost: float | None,
    objectives: str | None = None,
) -> dict[str, Any]:
    """What `table.build` takes of these: slo, quality_budget, objectives and limits, without those
    that were not given; UsageError for what can't be."""
    from precision_explorer.economics import parse_slo
    from precision_explorer.errors import UsageError
    from precision_explorer.table.figures import parse_objectives
    from precision_explorer.table.limits import Limits
    from precision_explorer.units import parse_share, parse_size

    try:
        loss = parse_share(max_quality_loss) if max_quality_loss is not None else None
    except ValueError as error:
        raise UsageError(f"max-quality-loss: {error}") from error
    if loss is not None and not 0 < loss < 1:
        raise UsageError("max-quality-loss must be above 0 and below 100%; write it as 1%")
    try:
        memory = parse_size(max_memory) if max_memory is not None else None
    except ValueError as error:
        raise UsageError(f"max-memory: {error}") from error
    limits = Limits(loss, parse_slo(slo) if slo is not None else None, memory, max_cost)
    found = {
        "slo": slo,
        "quality_budget": loss,
        "objectives": parse_objectives(objectives) if objectives is not None else None,
        "limits": limits if limits.words else None,
    }
    return {name: value for name, value in found.items() if value is not None}
