"""``precision-explorer export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli.limits import reader_options, table_reader


@click.command("export", short_help="The table as a file for another program.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--to", required=True, metavar="FORMAT|FILE",
    help="parquet, json, xlsx, model-card, mlflow or png; or a file whose end says it, as in "
    "table.xlsx.",
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

    Several runs come into one table. Method, stack, prices with their dates and what the numbers do
    not say travel in every format. The same table gives the same bytes.
    """
    import os

    from precision_explorer.errors import UsageError
    from precision_explorer.export import STDOUT, export, make, target_of
    from precision_explorer.table import build

    paths = list({path.resolve(): path for path in runs}.values())
    target = target_of(to, out, paths, os.environ.get("MLFLOW_TRACKING_URI"))
    if source_url is not None and target.format != "model-card":
        raise UsageError("--source-url belongs to model-card; leave it away")
    if source_url is not None and not source_url.startswith(("https://", "http://")):
        raise UsageError(f"source-url {source_url} is no address; begin it with https://")
    table = build(paths, table_reader(**options))
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
