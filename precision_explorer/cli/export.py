"""``precision-explorer export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing
from precision_explorer.cli.limits import reader_options


@click.command("export", short_help="The table as a file for another program.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN...",
    shell_complete=completing.runs,
)
@click.option(
    "--to", required=True, metavar="FORMAT|FILE",
    help="parquet, json, xlsx, model-card, mlflow or png; bundle for the run itself; or a file "
    "whose end says it, as in table.xlsx or run.zip.",
)  # fmt: skip
@click.option(
    "--out", metavar="FILE",
    help="Where to write (the run's name, in this folder); - prints json and model-card. For "
    "mlflow a SQLite file or the URI of a tracking server.",
)  # fmt: skip
@click.option(
    "--source-url", metavar="URL",
    help="Where the run's folder can be seen, for the model card to name as its source.",
)  # fmt: skip
@reader_options
def command(
    runs: tuple[Path, ...], to: str, out: str | None, source_url: str | None, **options: Any
) -> int:
    """Write the table of RUN for another program: a notebook (parquet, json), Excel (xlsx), a model
    card on the Hugging Face hub (model-card), MLflow (mlflow) or slides (png).

    A bundle is the whole run in one file, for verify. Several runs come into one table. Method,
    stack, prices with their dates and what the numbers do not say travel in every format. The same
    table gives the same bytes.
    """
    import os

    from precision_explorer.api.reader import table_reader
    from precision_explorer.errors import UsageError
    from precision_explorer.export import BUNDLE, STDOUT, export, make, target_of
    from precision_explorer.table import build

    paths = list({path.resolve(): path for path in runs}.values())
    target = target_of(to, out, paths, os.environ.get("MLFLOW_TRACKING_URI"))
    if source_url is not None and target.format != "model-card":
        raise UsageError("--source-url belongs to model-card; leave it away")
    if source_url is not None and not source_url.startswith(("https://", "http://")):
        raise UsageError(f"source-url {source_url} is no address; begin it with https://")
    reader = table_reader(**options)
    if target.format == BUNDLE:
        return _bundle(paths, Path(str(target.place)), bool(reader))
    table = build(paths, reader)
    if target.place == STDOUT:
        click.echo(make(table, target.format, source_url).decode(), nl=False)
        return 0
    try:
        lines = export(table, target, source_url)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(
            f"can't write {target.place} ({error.strerror}); choose another --out"
        ) from error
    for line in lines:
        click.echo(line)
    return 0


def _bundle(runs: list[Path], path: Path, changed: bool) -> int:
    """Write the bundle of one run; 5 where the run does not hold, so that none is written."""
    from precision_explorer.audit import pack
    from precision_explorer.errors import UsageError
    from precision_explorer.export import check_outside_of_runs
    from precision_explorer.report.text import clean

    if len(runs) > 1:
        raise UsageError("a bundle is of one run; export them one by one")
    if changed:
        raise UsageError("a bundle holds the run with its own tables; leave the reader's options")
    check_outside_of_runs(path)
    try:
        found = pack(runs[0], path)
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}); choose another --out") from error
    if not found.holds:
        text = f"no bundle was written, as {found.run} does not hold: {found.faults[0]}"
        click.echo(clean(text))
        return 5
    click.echo(f"{path}: root {found.root}")
    return 0
