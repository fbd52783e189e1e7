"""``precision-explorer capacity``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.money import price_option, slo_option


@click.command("capacity", short_help="Machines per format for a rate within a latency objective.")
@click.argument(
    "run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completing.runs
)
@click.option("--rate", metavar="200/s", required=True, help="Requests that come, per s, min or h.")
@slo_option("p99=200ms", "The latency objective (that of RUN's sweep).")
@click.option("--price-per-hour", type=float, metavar="USD", help="Your price for one machine.")
@price_option
@click.option(
    "--arrivals", metavar="poisson|gamma:CV",
    help="How requests come (poisson); gamma:3 comes in bursts: the times between requests vary "
    "three times as much.",
)  # fmt: skip
@click.option(
    "--head-room", type=float, metavar="FACTOR", default=1.3,
    help="The objective holds still at this many times the rate (1.3).",
)  # fmt: skip
@click.option(
    "--workload",
    metavar="NAME|FILE",
    help="Arrivals, largest batch and longest wait of a server workload, at the given rate.",
)
@click.option("--max-batch", type=int, metavar="N", help="Largest batch (each format's best).")
@click.option("--max-wait", metavar="5ms", help="How long a request waits for a batch (0ms).")
@click.option(
    "--dispatch", metavar="round-robin|random|shared", default="round-robin",
    help="How requests reach the machines (round-robin); shared is one queue for all.",
)  # fmt: skip
@click.option("--seed", type=int, metavar="N", default=0, help="Seed of every draw (0).")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def command(
    run: Path, as_json: bool, price_per_hour: float | None, price: Path | None, **options: Any
) -> int:
    """How many machines each format of RUN needs for a rate of requests within a latency objective,
    and what that fleet costs.

    Simulates the machines' queues with the service times that RUN measured; runs no model.
    """
    from precision_explorer.api.reader import money_from
    from precision_explorer.table.capacity import capacity_of

    demand = _demand(run, options)
    table = capacity_of(
        run,
        demand,
        money_from(price, price_per_hour),
        lambda name: click.echo(f"simulating {name}", err=True),
    )
    if as_json:
        click.echo(_json(table))
    else:
        from precision_explorer.cli.show import console
        from precision_explorer.report.capacity import print_capacity

        print_capacity(table, console())
    if any(row.capacity.machines for row in table.rows):
        return 0
    from precision_explorer.report.capacity import unmet

    nearest = min(table.rows, key=lambda row: row.capacity.idle_s)
    click.echo(f"no format can; the nearest is {unmet(nearest, demand)}", err=True)
    return 5


def _demand(run: Path, options: dict[str, Any]) -> Any:
    from precision_explorer.economics import Demand, parse_slo
    from precision_explorer.errors import UsageError
    from precision_explorer.store import read_run
    from precision_explorer.units import parse_duration, parse_rate

    slo = options["slo"] or read_run(run)[1]["reader"].get("slo")
    if not slo:
        raise UsageError(
            f"{run} was swept without a latency objective; give one by --slo p99=200ms"
        )
    try:
        rate_per_s = parse_rate(options["rate"])
        max_wait_s = parse_duration(options["max_wait"] or "0s")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return Demand(
        rate_per_s=rate_per_s,
        slo=parse_slo(slo),
        head_room=options["head_room"],
        dispatch=options["dispatch"],
        seed=options["seed"],
        **_traffic(options, max_wait_s),
    )


def _traffic(options: dict[str, Any], max_wait_s: float) -> dict[str, Any]:
    """How requests come and are put together: the options', else the workload's."""
    from precision_explorer.economics import declared_arrivals, parse_arrivals
    from precision_explorer.errors import UsageError
    from precision_explorer.workload import load_workload

    own = {"max_batch": options["max_batch"], "max_wait_s": max_wait_s}
    if options["workload"] is None:
        return own | {"cv": parse_arrivals(options["arrivals"] or "poisson")}
    if options["arrivals"] is not None:
        raise UsageError("--workload says how requests come, and so does --arrivals; give one")
    workload = load_workload(options["workload"])
    if workload.arrivals is None:
        raise UsageError(
            f"in the workload '{workload.name}' no requests come by a clock; give one with the "
            "scenario server, such as bursty"
        )
    return {
        "arrivals": declared_arrivals(workload.arrivals),
        "workload": workload.name,
        "max_batch": options["max_batch"] or workload.max_batch,
        "max_wait_s": max_wait_s if options["max_wait"] else workload.max_wait_s,
    }


def _json(table: Any) -> str:
    import json
    from dataclasses import asdict

    document = {"schema_version": 1, **asdict(table)}
    document["demand"].pop("arrivals")
    document["demand"] |= {
        "slo": {"percentile": table.demand.slo.name, "limit_s": table.demand.slo.limit_s},
        "peak_per_s": table.demand.peak_per_s,
        "requests": table.demand.requests,
    }
    for cell, row in zip(document["rows"], table.rows, strict=True):
        cell["per_hour_usd"] = row.per_hour_usd
        cell["per_month_usd"] = row.per_month_usd
        cell["fleet_memory_bytes"] = row.fleet_memory_bytes
    document["left_out"] = [
        {"name": name, "status": status, "reason": why} for name, status, why in table.left_out
    ]
    return json.dumps(document, indent=1, allow_nan=False)
