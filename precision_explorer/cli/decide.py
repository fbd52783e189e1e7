"""``precision-explorer decide``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.limits import limit_options
from precision_explorer.cli.money import money_options, slo_option


@click.command("decide", short_help="Which format, from limits and one objective.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN...",
    shell_complete=completing.runs,
)
@click.option(
    "--objective", metavar="NAME", default="cost",
    shell_complete=completing.one_of(completing.OBJECTIVES),
    help="What the best is asked for (cost): cost, latency, latency_p90, latency_p99, "
    "latency_p999, rate (where it was searched), throughput, memory, weights, energy (or "
    "efficiency), value, net (with --value-per-correct), quality.",
)  # fmt: skip
@slo_option("p99=50ms", "The latency that a format must hold.")
@click.option("--task", metavar="NAME", help="Only this task of the runs.")
@click.option("--price-per-hour", type=float, metavar="USD", help="Your price for the device.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
@money_options
@limit_options
def command(
    runs: tuple[Path, ...],
    objective: str,
    slo: str | None,
    task: str | None,
    price_per_hour: float | None,
    price: Path | None,
    value_per_correct: float | None,
    cost_per_error: float | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Recommend a format from what RUN measured: the best in one objective of those that are known
    to hold all limits.

    Runs no model. Without --max-quality-loss the run's own quality budget is the limit, and without
    --slo its own latency objective, if it has one. Exit code 5: no format qualifies, that can't
    be told yet, or what ran was not verified.
    """
    from precision_explorer.api.answers import decide
    from precision_explorer.api.reader import money_from, reader_from
    from precision_explorer.report.decision import print_decisions
    from precision_explorer.table import build

    reader = reader_from(slo, **limits)
    reader |= money_from(price, price_per_hour, value_per_correct, cost_per_error)
    table = build(list({path.resolve(): path for path in runs}.values()), reader)
    found = list(decide(table, objective, task))
    if not found:
        click.echo("no format has a result here; precision-explorer report says why", err=True)
    if as_json:
        click.echo(_json(found, table))
    else:
        from precision_explorer.cli.show import console

        print_decisions(found, console(), table.context.prices)
    return 0 if found and all(decision.chosen for decision in found) else 5


def _json(found: list[Any], table: Any) -> str:
    import json

    from precision_explorer.report.decision import document

    context = table.context
    return json.dumps(
        {
            "schema_version": 1,
            "run": context.run,
            "reference": context.reference,
            "method_ids": context.method_ids,
            "manifest_root": context.manifest_root,
            "prices": context.prices,
            "decisions": document(found),
        },
        indent=1,
        allow_nan=False,
    )
