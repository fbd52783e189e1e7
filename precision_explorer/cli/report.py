"""``precision-explorer report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.limits import reader_options


@click.command("report", short_help="Make the tables again from the records.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN...",
    shell_complete=completing.runs,
)
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write.")
@reader_options
def command(
    runs: tuple[Path, ...],
    out: Path | None,
    **options: Any,
) -> int:
    """Make tradeoffs.csv, tradeoffs.md and report.html again from the records of RUN.

    Several runs come into one table. That table, and one with a price, SLO, quality budget,
    metric, objectives or limits of your own, is written to the folder given by --out; without it,
    it is only printed: a run's own files always show what its sweep was given. Rows that are known
    to break a limit (--slo, --max-...) are left out of the Pareto front.
    """
    from precision_explorer.api.pages import report_folder, write_report
    from precision_explorer.api.reader import table_reader
    from precision_explorer.cli.show import console
    from precision_explorer.report.terminal import print_table
    from precision_explorer.store import unrecorded
    from precision_explorer.table import build

    given = table_reader(**options)
    paths = list({path.resolve(): path for path in runs}.values())
    for line in filter(None, map(unrecorded, paths)):
        click.echo(line, err=True)
    table = build(paths, given)
    target = report_folder(paths, given, out)
    if target is not None:
        write_report(table, target)
    print_table(table, console())
    if target is None:
        click.echo(
            "nothing was written, since this is not the run's own table; --out DIR writes it",
            err=True,
        )
    return 0
