"""``precision-explorer rescore``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from precision_explorer.cli import completing

if TYPE_CHECKING:
    from precision_explorer.runner.rescore import Rescored


@click.command("rescore", short_help="Compute metrics again from stored predictions.")
@click.argument(
    "run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completing.runs
)
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME",
    help="A further metric to compute and store: a built-in one, or evaluate:PATH for a module of "
    "the evaluate library.",
)  # fmt: skip
@click.option(
    "--allow-metric", "allowed", multiple=True, metavar="NAME",
    help="A metric evaluate:NAME that may be fetched: its Python is run.",
)  # fmt: skip
@click.option(
    "--higher-is-better/--lower-is-better", "higher_is_better", default=None,
    help="The direction of the evaluate metrics given by --metric; without it they get no verdict.",
)  # fmt: skip
def command(
    run: Path,
    metrics: tuple[str, ...],
    allowed: tuple[str, ...],
    higher_is_better: bool | None,
) -> int:
    """Compute the metrics of RUN again from its stored predictions, without a model.

    Scores must come out as they are stored; those that don't are named. Further metrics are stored
    beside what was measured: report RUN --metric NAME then counts quality in one of them.
    """
    from precision_explorer.api.progress import progress
    from precision_explorer.report import write_all
    from precision_explorer.runner.rescore import rescore
    from precision_explorer.table import build

    with progress() as on_event:
        found = rescore(run, metrics, higher_is_better, allowed, on_event)
    _print(found)
    # The tables name the root hash of the files, which the added scores are among.
    write_all(build([run]), run)
    differing = sum(one.differs for one in found)
    untold = sum(one.untold for one in found)
    missing = [one for one in found if one.value is None and not one.untold]
    click.echo(
        f"{len(found) - untold} scores computed from stored predictions, {differing} differ from "
        f"what is stored, {len(missing)} could not be computed"
        + (f"; {untold} can't be, and stand as they are" if untold else ""),
        err=True,
    )
    if differing:
        return 5
    return 3 if missing else 0


def _print(found: list[Rescored]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.units import MISSING, significant

    table = Table()
    for heading in ("model", "task", "format", "metric", "stored", "again", "outcome"):
        right = heading in ("stored", "again")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for one in found:
        cell = one.record.cell
        digits = 12 if one.differs else 4
        values = [MISSING if v is None else significant(v, digits) for v in (one.stored, one.value)]
        label = cell.format if cell.runtime == "eager" else f"{cell.format} ({cell.runtime})"
        texts = (cell.model.name, cell.task.name, label, one.metric, *values, _outcome(one))
        table.add_row(*(escape(text) for text in texts))
    console().print(table)


def _outcome(one: Rescored) -> str:
    if one.untold:
        return f"as stored: {one.problem}"
    if one.value is None:
        return f"not computed: {one.problem}"
    if one.stored is None:
        return "added"
    return "differs" if one.differs else "same"
