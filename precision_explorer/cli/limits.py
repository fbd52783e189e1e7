"""The options of one who reads a run: price, objective, budget, limits; shared by `report`,
`export` and `decide`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.money import grid_option, money_options, slo_option

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
    "--objectives", metavar="a,b,...", shell_complete=completing.several_of(completing.OBJECTIVES),
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
    slo_option("p99=200ms", "Latency limit within which requests count."),
    click.option("--quality-budget", metavar="1%", help="The loss of quality that you accept."),
    click.option(
        "--metric", metavar="NAME",
        help="Count quality in this metric, for the tasks that have it: a built-in one, or one of "
        "evaluate that rescore computed.",
    ),
]  # fmt: skip


def reader_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all that a reader may decide for a table; `api.reader.table_reader` takes their
    values."""
    function = money_options(limit_options(objectives_option(function)))
    for option in reversed(_READER):
        function = option(function)
    return function
