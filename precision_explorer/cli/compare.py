"""``precision-explorer compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing


@click.command("compare", short_help="What changed between runs of the same method.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN_A RUN_B...",
    shell_complete=completing.runs,
)
@click.option(
    "--allow", multiple=True, metavar="FIELD",
    help="A field of the method that may differ, as the refusal names it; the output says so. May "
    "be repeated.",
)  # fmt: skip
@click.option(
    "--unfinished",
    is_flag=True,
    help="Compare the rows that have a result, of unfinished runs too.",
)
@click.option("--out", metavar="FILE.md", type=click.Path(path_type=Path), help="As Markdown too.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def command(
    runs: tuple[Path, ...],
    allow: tuple[str, ...],
    unfinished: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Hold RUN_B, and each further run, against RUN_A: the same formats on another machine, with
    other versions of libraries, or again.

    Rows are compared only where they declare the same method. Runs no model. Exit code 5: rows were
    refused, as their methods differ.
    """
    from precision_explorer.api.answers import compare
    from precision_explorer.report.comparison import print_comparisons, to_markdown

    found = compare(runs, allow, unfinished)
    if out is not None:
        _write(out, to_markdown(found))
    if as_json:
        click.echo(_json(found, allow))
    else:
        from precision_explorer.cli.show import console

        print_comparisons(found, console())
    return 0 if found.is_answered else 5


def _write(path: Path, text: str) -> None:
    from precision_explorer.errors import UsageError

    try:
        path.write_text(text, encoding="utf8")
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror}); choose another --out") from error


def _json(found: Sequence[Any], allow: tuple[str, ...]) -> str:
    import json

    from precision_explorer.report.comparison import document

    made = {"schema_version": 1, "allow": list(allow), "comparisons": document(found)}
    return json.dumps(made, indent=1, allow_nan=False)
