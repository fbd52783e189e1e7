"""``precision-explorer report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli.limits import limit_options, objectives_option, reader_from
from precision_explorer.cli.money import money_from, money_options


@click.command("report", short_help="Make the tables again from the records.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write.")
@click.option("--price-per-hour", type=float, metavar="USD", help="Your price for the device.")
@click.option(
    "--grid-g-per-kwh", type=float, metavar="GRAMS",
    help="Grams of CO2 equivalent per kWh of your grid, for carbon from measured energy.",
)  # fmt: skip
@click.option("--slo", metavar="p99=200ms", help="Latency limit within which requests count.")
@click.option("--quality-budget", metavar="1%", help="The loss of quality that you accept.")
@click.option(
    "--metric", metavar="NAME",
    help="Count quality in this metric, for the tasks that have it: a built-in one, or one of "
    "evaluate that rescore computed.",
)  # fmt: skip
@money_options
@limit_options
@objectives_option
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    price_per_hour: float | None,
    price: Path | None,
    value_per_correct: float | None,
    cost_per_error: float | None,
    grid_g_per_kwh: float | None,
    slo: str | None,
    quality_budget: str | None,
    metric: str | None,
    **limits: Any,
) -> int:
    """Make tradeoffs.csv, tradeoffs.md and report.html again from the records of RUN.

    Several runs come into one table. That table, and one with a price, SLO, quality budget,
    metric, objectives or limits of your own, is written to the folder given by --out; without it,
    it is only printed: a run's own files always show what its sweep was given. Rows that are known
    to break a limit (--slo, --max-...) are left out of the Pareto front.
    """
    from precision_explorer.cli.show import show
    from precision_explorer.errors import UsageError
    from precision_explorer.table import build
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
    given |= money_from(price, price_per_hour, value_per_correct, cost_per_error)
    paths = list({path.resolve(): path for path in runs}.values())
    table = build(paths, given)
    target = out if out is not None or given or len(paths) > 1 else paths[0]
    try:
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
        show(table, target)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(
            f"can't write {target} ({error.strerror}); choose another --out"
        ) from error
    if target is None:
        click.echo(
            "nothing was written, since this is not the run's own table; --out DIR writes it",
            err=True,
        )
    return 0
