"""``precision-explorer sweep``."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from precision_explorer.cli.options import spec_from, sweep_options


@click.command("sweep", short_help="Measure and print the tradeoff table.")
@sweep_options
def command(**options: Any) -> int:
    """Measure a model on a task in each numeric format, and print the tradeoff table.

    Without options: the bundled demo model on the bundled sentiment task, in nine formats. A sweep
    that is run again resumes: finished cells are not run twice, failed ones are tried again.
    """
    from precision_explorer.cli.progress import progress
    from precision_explorer.cli.show import show
    from precision_explorer.runner.sweep import prepare_sweep, run_folder, run_sweep
    from precision_explorer.table import build

    spec = spec_from(options)
    with progress() as on_event:
        prepared = prepare_sweep(spec, on_event)
        path, tally = run_folder(prepared).path, None
        with suppress(KeyboardInterrupt):
            _, tally = run_sweep(prepared, on_event)
    if tally is None:
        _show_finished(path)
        return 130
    show(build([path]), path)
    click.echo(
        f"{tally.ran} measured, {tally.reused} already there, {tally.skipped} skipped, "
        f"{tally.failed} failed; report: {path}/report.html",
        err=True,
    )
    for line in tally.unscored:
        click.echo(f"not computed: {line}", err=True)
    return 3 if tally.failed or tally.unscored else 0


def _show_finished(path: Path) -> None:
    """The table of what an interrupted sweep has finished, if it has finished a cell."""
    from precision_explorer.cli.show import show
    from precision_explorer.errors import StoreError
    from precision_explorer.table import build

    try:
        table = build([path])
    except StoreError:
        table = None
    if table is not None and any(row["status"] != "skipped" for row in table.rows):
        show(table, path)
    click.echo(
        f"interrupted; what was done is kept in {path}: run the same command again to resume",
        err=True,
    )
