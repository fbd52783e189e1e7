"""The options by which a reader says what an hour costs and what a result is worth, shared by
`report`, `decide` and `capacity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

price_option = click.option(
    "--price", type=click.Path(path_type=Path), metavar="FILE.yaml",
    help="A price model: an hourly price, a list price under another term, or ownership.",
)  # fmt: skip
grid_option = click.option(
    "--grid-g-per-kwh", type=float, metavar="GRAMS",
    help="Grams of CO2 equivalent per kWh of your grid, for carbon from measured energy.",
)  # fmt: skip
WORTH: list[Callable[..., Any]] = [
    click.option(
        "--value-per-correct", type=float, metavar="USD",
        help="What a correct result is worth, for net dollars.",
    ),
    click.option(
        "--cost-per-error", type=float, metavar="USD",
        help="What a wrong result costs, for net dollars.",
    ),
]  # fmt: skip


def money_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of prices and worth to a command."""
    for option in reversed([price_option, *WORTH]):
        function = option(function)
    return function
