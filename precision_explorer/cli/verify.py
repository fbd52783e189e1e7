"""``precision-explorer verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from precision_explorer.cli import completing

if TYPE_CHECKING:
    from precision_explorer.audit import Verified

_SHOWN = 20


@click.command("verify", short_help="Whether a run still is what was measured.")
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    metavar="RUN...",
    shell_complete=completing.runs,
)
@click.option(
    "--root", metavar="HASH",
    help="The run's root hash as you know it from elsewhere: 16 hex digits or more.",
)  # fmt: skip
@click.option(
    "--max-size", metavar="SIZE",
    help="Most that a bundle may take unpacked (4GB).",
)  # fmt: skip
def command(runs: tuple[Path, ...], root: str | None, max_size: str | None) -> int:
    """Check that RUN, a run's folder or a bundle of one (FILE.zip), is unchanged: every file
    against the manifest, and every table, byte for byte, against the one that its records give.

    Names the first thing that does not hold and ends with 5. Without --root a run that was changed
    together with its manifest and tables can't be told from one that was measured so.
    """
    from precision_explorer.audit import check_root, verify, verify_bundle
    from precision_explorer.errors import UsageError
    from precision_explorer.store.bundle import MAX_BYTES
    from precision_explorer.units import parse_size

    known = check_root(root) if root is not None else None
    if known is not None and len(runs) > 1:
        raise UsageError("--root is that of one run; verify them one by one")
    try:
        most = parse_size(max_size) if max_size is not None else MAX_BYTES
    except ValueError as error:
        raise UsageError(f"max-size: {error}") from error
    holds = True
    for path in runs:
        if not path.exists():
            raise UsageError(f"{path} is not there; give a run's folder or a bundle")
        found = verify(path, known) if path.is_dir() else verify_bundle(path, known, most)
        _print(found)
        holds = holds and found.holds
    if holds and known is None:
        click.echo(
            "what a rewritten run can't have is the root that it had: keep it elsewhere, and give "
            "it by --root",
            err=True,
        )
    return 0 if holds else 5


def _print(found: Verified) -> None:
    from precision_explorer.report.text import clean

    # Names of files may be anybody's.
    run = clean(found.run)
    if found.holds:
        click.echo(f"{run}: holds; {found.files} files, root {found.root}")
    else:
        first, *others = found.faults
        click.echo(f"{run}: does not hold")
        click.echo(f"  {clean(str(first))}")
        for fault in others[:_SHOWN]:
            click.echo(f"  also {clean(f'{fault.file}: {fault.found}')}")
        if len(others) > _SHOWN:
            click.echo(f"  and {len(others) - _SHOWN} more")
    for note in found.notes:
        click.echo(f"  note: {clean(note)}")
