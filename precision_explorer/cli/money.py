"""The options by which a reader says what an hour costs and what a result is worth, shared by
`report`, `decide` and `capacity`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from precision_explorer.errors import UsageError

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


def slo_option(metavar: str, words: str) -> Callable[..., Any]:
    """``--slo``, which is given once: of two the first would be dropped in silence."""
    return click.option("--slo", metavar=metavar, multiple=True, callback=_once, help=words)


def _once(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> str | None:
    if len(given) > 1:
        raise UsageError(
            f"--slo is given {len(given)} times ({', '.join(given)}), and one objective is held at "
            "a time; give one"
        )
    return given[0] if given else None


def money_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of prices and worth to a command."""
    for option in reversed([price_option, *WORTH]):
        function = option(function)
    return function
