"""``precision-explorer diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing


@click.command("diagnose", short_help="Why a format is or is not faster.")
@click.argument(
    "run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completing.runs
)
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def command(run: Path, as_json: bool) -> int:
    """Why each format of RUN is or is not faster than the reference.

    Holds each cell's profile against what the device can do at most: arithmetic, memory and the
    starting of operators. Says what bounds it, what those limits promised and what came of it.
    """
    from precision_explorer.api.progress import progress
    from precision_explorer.errors import StoreError
    from precision_explorer.store import read_run
    from precision_explorer.table import build

    folder, sweep = read_run(run)
    cells = [folder.read_record(cell["cell_id"]) for cell in sweep["plan"]["cells"]]
    if not any(record and record.measurements.profile for record in cells):
        raise StoreError(
            f"{run} holds no profile to diagnose (it was made by an older release, or nothing in "
            "it was measured); run the sweep again with another --out"
        )
    missing = sum(record is None for record in cells)
    if missing:
        which = "1 cell has" if missing == 1 else f"{missing} cells have"
        click.echo(
            f"{which} no readable record and {'is' if missing == 1 else 'are'} left out; run the "
            "sweep again",
            err=True,
        )
    roof = None
    if folder.read_roof() is None:
        from precision_explorer.runner.roof import roof_of_run

        with progress() as on_event:
            roof = roof_of_run(sweep, on_event)
    table = build([run], roof=roof)
    if as_json:
        click.echo(_json(table))
        return 0
    from precision_explorer.cli.show import console
    from precision_explorer.report.terminal import print_why

    print_why(table, console())
    return 0


def _json(table: Any) -> str:
    import json
    from dataclasses import asdict

    document = []
    for why in table.why:
        whole = asdict(why)
        for place, cell in enumerate(why.cells):
            whole["cells"][place]["bound"] = cell.bound
            whole["cells"][place]["expected"] |= {
                "seconds": cell.expected.seconds,
                "bound": cell.expected.bound,
            }
        document.append(whole)
    return json.dumps({"diagnoses": document}, indent=1, allow_nan=False)
