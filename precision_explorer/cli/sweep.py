"""``precision-explorer sweep``."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precision_explorer.cli.options import spec_from, sweep_options

if TYPE_CHECKING:
    from precision_explorer.plan import SweepSpec


@click.command("sweep", short_help="Measure and print the tradeoff table.")
@sweep_options
def command(**options: Any) -> int:
    """Measure a model on a task in each numeric format, and print the tradeoff table.

    Without options: the bundled demo model on the bundled sentiment task, in nine formats. A sweep
    that is run again resumes: finished cells are not run twice, failed ones are tried again.
    """
    asked, paths = spec_from(options), list[Path]()
    specs = asked.by_type()
    worst = 0
    for spec in specs:
        code = _sweep(spec, paths)
        if code >= 128:  # It was asked to end.
            return code
        worst = max(worst, code)
    if len(specs) > 1:
        _show_joined(paths, asked.out)
    return worst


def _show_joined(paths: list[Path], out: str | None) -> None:
    """The table of the runs on several types of devices, as `report` makes it."""
    from precision_explorer.api.sweeps import write_joined
    from precision_explorer.cli.show import console
    from precision_explorer.paths import expand_user
    from precision_explorer.report.terminal import print_table

    print_table(write_joined(paths, None if out is None else expand_user(out)), console())


def _sweep(spec: SweepSpec, paths: list[Path]) -> int:
    """Run one sweep and show its table; its folder is added to `paths`. Returns the exit code."""
    from precision_explorer.api.progress import progress
    from precision_explorer.api.sweeps import measure, write_tables
    from precision_explorer.cli.show import console
    from precision_explorer.cli.stopping import exit_code, was_asked
    from precision_explorer.report.terminal import print_table

    opened: list[Path] = []
    try:
        with progress() as on_event:
            path, tally = measure(spec, on_event, opened.append)
        paths.append(path)
        print_table(write_tables(path), console())
    except (KeyboardInterrupt, OSError) as error:
        # A lost terminal may refuse what is written to it before its signal is seen.
        if not opened or not (was_asked() or isinstance(error, KeyboardInterrupt)):
            raise
        _show_finished(opened[0])
        return exit_code()
    click.echo(
        f"{tally.ran} measured, {tally.reused} already there, {tally.skipped} skipped, "
        f"{tally.failed} failed; report: {path}/report.html",
        err=True,
    )
    if tally.ran:
        _tell_estimate(path)
    for line in tally.unscored:
        click.echo(f"not computed: {line}", err=True)
    return 3 if tally.failed or tally.unscored else 0


def _tell_estimate(path: Path) -> None:
    """How far the estimate that was made before a sweep was off, if there was one."""
    from precision_explorer.store import RunFolder

    expected = RunFolder(path).read_estimate()
    if expected is None:
        return
    from precision_explorer.report.estimate import summary

    line = summary(expected)
    if line is not None:
        click.echo(f"{line}; by part: precision-explorer plan --error-of {path}", err=True)


def _show_finished(path: Path) -> None:
    """The table of what an interrupted sweep has finished, if it has finished a cell: first where
    somebody waits for it, then in its files. Its terminal may be gone."""
    from precision_explorer.api.sweeps import write_finished
    from precision_explorer.errors import StoreError

    printed = False
    with suppress(StoreError, OSError):
        printed = _print_finished(path)
    with suppress(OSError):
        click.echo(
            f"interrupted; what was done is kept in {path}: run the same command again to resume",
            err=True,
        )
    with suppress(StoreError, OSError):
        write_finished(path, printed)


def _print_finished(path: Path) -> bool:
    """Print the table; whether there is one."""
    from precision_explorer.api.sweeps import finished
    from precision_explorer.cli.show import console
    from precision_explorer.report.terminal import print_table

    table = finished(path)
    if table is None:
        return False
    with suppress(OSError):
        print_table(table, console())
        sys.stdout.flush()
    return True
