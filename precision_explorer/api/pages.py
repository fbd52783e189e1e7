"""Where the tables of runs are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.table import Table


def report_folder(
    paths: Sequence[Path], reader: Mapping[str, Any], out: Path | None
) -> Path | None:
    """Where the table of `paths` as `reader` sees it is written: `out`, else a run's own folder;
    None where it is not the run's own table. UsageError where it would take the own one's place."""
    others = bool(reader) or len(paths) > 1
    if others and out is not None and out.resolve() in {path.resolve() for path in paths}:
        raise UsageError(
            f"{out} holds the run's own tables, which show what its sweep was given; give another "
            "--out"
        )
    return out if out is not None or others else paths[0]


def write_report(table: Table, folder: Path) -> None:
    """All files of `table` in `folder`, which is made; UsageError where it can't be written."""
    from precision_explorer.report import write_all

    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_all(table, folder)
    except OSError as error:
        raise UsageError(
            f"can't write {folder} ({error.strerror}); choose another --out"
        ) from error
