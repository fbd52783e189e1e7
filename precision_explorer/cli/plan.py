"""``precision-explorer plan``."""

from __future__ import annotations

from typing import Any

import click

from precision_explorer.cli.options import spec_from, sweep_options


@click.command("plan", short_help="Print cells and skips; run nothing.")
@sweep_options
def command(**options: Any) -> int:
    """Print the cells and skips of a sweep with their reasons; run nothing.

    Takes the same options as sweep. Device answers that are not cached yet are asked for, except
    those for which kernels would have to be compiled: what they would tell is named.
    """
    from precision_explorer.cli.progress import progress
    from precision_explorer.runner.sweep import prepare_sweep, run_folder

    spec = spec_from(options)
    with progress() as on_event:
        prepared = prepare_sweep(spec, on_event, compiling=False)
    folder = run_folder(prepared)
    for planned in prepared.plan.cells:
        record = folder.read_record(planned.cell_id)
        if planned.skip is not None:
            state, why = "skip", planned.skip
        elif record is not None and record.status == "ok":
            state, why = "done", planned.support.reason
        else:
            state, why = "run", planned.support.reason
        click.echo(
            f"{state:5}{planned.ref.name}  {planned.task.card.name} (n={planned.task.identity.n})  "
            f"{planned.cell.format:17}{planned.support.execution:12}{planned.cell.runtime}  "
            f"{planned.cell.device}  {why}"
        )
    cells = prepared.plan.cells
    skipped = len(cells) - len(prepared.plan.to_run)
    click.echo(f"{len(cells)} cells, {skipped} skipped; results would go to {folder.path}")
    return 0
