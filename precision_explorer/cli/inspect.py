"""``precision-explorer inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli.options import inspect_options


@click.command("inspect", short_help="Numerics per layer: where each format loses precision.")
@inspect_options
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Make the files of an earlier inspection again from its numerics.json; run nothing.",
)
def command(source: Path | None, **options: Any) -> int:
    """Where each format loses precision: per layer, the error of weights and outputs in decibels,
    values beyond the format's range, and the first layer that is not finite.

    Runs the first examples of one task through one model in float32 and in each format. Without
    options: the bundled demo model on the bundled sentiment task.
    """
    from precision_explorer.errors import UsageError
    from precision_explorer.records.numerics import read_numerics
    from precision_explorer.report.numerics_files import write_numerics

    given = {k: v for k, v in options.items() if v is not None and v != ()}
    if source is not None:
        if given:
            raise UsageError("--from runs nothing, so it takes no other option; leave them out")
        write_numerics(document := read_numerics(source), source)
        return _show(document, source)

    from precision_explorer.api.progress import progress
    from precision_explorer.runner.numerics import (
        inspection_folder,
        inspection_spec,
        prepare_inspection,
        run_inspection,
    )

    spec = inspection_spec(given)
    with progress() as on_event:
        prepared = prepare_inspection(spec, on_event)
        folder = inspection_folder(prepared)
        folder.mkdir(parents=True, exist_ok=True)
        document = run_inspection(prepared, on_event, lambda found: write_numerics(found, folder))
    return _show(document, folder)


def _show(document: Any, folder: Path) -> int:
    from precision_explorer.cli.show import console
    from precision_explorer.report.numerics_files import print_numerics

    print_numerics(document, console())
    click.echo(f"all layers: {folder}/numerics.csv; heat-map: {folder}/numerics.html", err=True)
    return 3 if any(found.status == "failed" for found in document.formats) else 0
