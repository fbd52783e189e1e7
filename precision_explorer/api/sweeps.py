"""A sweep from its options to its tables: the one way that the command line and Python share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precision_explorer.api.options import SweepOptions, given
from precision_explorer.errors import StoreError
from precision_explorer.paths import expand_user
from precision_explorer.plan import SweepSpec
from precision_explorer.plan.spec import spec_from
from precision_explorer.runner.local import Tally
from precision_explorer.runner.manager import Event, OnEvent, environment_restored
from precision_explorer.store import read_run
from precision_explorer.table import Table, build

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from precision_explorer.api.run import Run


def sweep(
    *,
    progress: bool = False,
    on_event: OnEvent | None = None,
    **options: Unpack[SweepOptions],
) -> Run:
    """Measure models on tasks in each numeric format; the stored run, opened.

    Does what ``precision-explorer sweep`` does, with its options as keywords (`SweepOptions`): a
    sweep that is run again resumes, and the run's folder (`out`, else ``results/<name>``) holds the
    records and all tables. Cells that fail don't raise: their rows and `Run.failed` say why.
    Prints nothing; `progress` shows what is done on stderr, `on_event` is called with each
    `Event` while it happens.

    Raises UsageError for an option that is unknown or can't be, ModelError, TaskError and
    StoreError for a model, a task or a folder that can't be used. After KeyboardInterrupt what was
    done is kept. The process's environment variables are afterwards what they were.
    """
    from precision_explorer.api.run import Run

    spec = spec_from(_plain(given(options, SweepOptions.__annotations__)))
    opened: list[Path] = []
    with environment_restored(), _listener(progress, on_event) as listen:
        try:
            # Of several types of devices a run each.
            for one in spec.by_type():
                path, _ = measure(one, listen, opened.append)
                write_tables(path)
        except KeyboardInterrupt:
            if opened:
                with contextlib.suppress(StoreError, OSError):
                    write_finished(opened[-1], finished(opened[-1]) is not None)
            raise
    if len(opened) > 1 and spec.out is not None:
        write_joined(opened, expand_user(spec.out))
    return Run(*opened)


def measure(
    spec: SweepSpec, on_event: OnEvent, opened: Callable[[Path], object]
) -> tuple[Path, Tally]:
    """Measure what `spec` asks for and has no finished record yet; the run's folder, and what was
    done. `opened` is told the folder before anything is measured. The tables are left to
    `write_tables`; where a KeyboardInterrupt ends it, the manifest too (`write_finished`)."""
    from precision_explorer.runner.sweep import prepare_sweep, run_folder, run_sweep

    prepared = prepare_sweep(spec, on_event)
    path = run_folder(prepared).path
    opened(path)
    _, tally = run_sweep(prepared, on_event, manifest_if_stopped=False)
    return path, tally


def write_tables(path: Path) -> Table:
    """The table of the run at `path`, written to its folder."""
    from precision_explorer.report import write_all

    table = build([path])
    write_all(table, path)
    return table


def write_joined(paths: Sequence[Path], folder: Path | None) -> Table:
    """The table of runs on several types of devices, as `report` makes it, written to `folder`."""
    from precision_explorer.report import write_all

    table = build(list(paths))
    if folder is not None:
        write_all(table, folder)
    return table


def finished(path: Path) -> Table | None:
    """The table of what a run that was interrupted has finished; None where that is nothing but
    skips. StoreError where it holds no record at all."""
    table = build([path])
    return None if all(row["status"] == "skipped" for row in table.rows) else table


def write_finished(path: Path, with_tables: bool) -> None:
    """The manifest of a run that was interrupted, then the tables' files, which show its root. It
    hashes all that the run holds, which takes a large one longer than those who ask a program to
    end may wait: so it comes last."""
    folder, _ = read_run(path)
    folder.open()
    try:
        folder.write_manifest()
    finally:
        folder.close()
    if with_tables:
        write_tables(path)


@contextlib.contextmanager
def _listener(progress: bool, on_event: OnEvent | None) -> Iterator[OnEvent]:
    """What is told of events: the display, the caller's function, both or nobody."""
    told = [] if on_event is None else [on_event]
    with contextlib.ExitStack() as stack:
        if progress:
            from precision_explorer.api.progress import progress as display

            told.append(stack.enter_context(display()))

        def listen(event: Event) -> None:
            for one in told:
                one(event)

        yield listen


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Paths as texts, which a spec file would hold."""

    def text(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(map(text, value))
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    return {name: text(value) for name, value in options.items()}
