"""The table as files for other programs; each carries the context of its numbers."""

from __future__ import annotations

from pathlib import Path

from precision_explorer.errors import UsageError
from precision_explorer.export.json_ import to_json
from precision_explorer.export.mlflow_ import log_rows
from precision_explorer.export.model_card import MARK, to_model_card
from precision_explorer.export.parquet import to_parquet
from precision_explorer.export.png import to_pngs
from precision_explorer.export.targets import BUNDLE, STDOUT, SUFFIXES, Target, target_of
from precision_explorer.export.xlsx import to_xlsx
from precision_explorer.store.atomic import write_bytes
from precision_explorer.table import Table

__all__ = [
    "BUNDLE",
    "STDOUT",
    "SUFFIXES",
    "Target",
    "check_outside_of_runs",
    "export",
    "make",
    "target_of",
]


def make(table: Table, name: str, source_url: str | None = None) -> bytes:
    """`table` in a format of one file: all of `SUFFIXES` but ``mlflow``,
    ``png`` and `BUNDLE`."""
    if name == "model-card":
        return to_model_card(table, source_url)
    return {"json": to_json, "parquet": to_parquet, "xlsx": to_xlsx}[name](table)


def export(table: Table, target: Target, source_url: str | None = None) -> list[str]:
    """Write `table` where `target` says, which is not `STDOUT`; what was written, a line each.

    UsageError where an extra is missing, there is nothing to draw, or a file would be replaced that
    is not this program's. OSError where the place can't be written.
    """
    if target.format == "mlflow":
        return log_rows(table, target.place)
    path = Path(str(target.place))
    check_outside_of_runs(path)
    if target.format == "png":
        return _write_pngs(table, path)
    content = make(table, target.format, source_url)
    if target.format == "model-card":
        _check_replaceable(path)
    _write(path, content)
    return [f"{path}: {len(table.rows)} rows"]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)


def _write_pngs(table: Table, path: Path) -> list[str]:
    """The first chart at `path`, further ones beside it by number."""
    lines = []
    for number, (title, content) in enumerate(to_pngs(table), start=1):
        one = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        _write(one, content)
        lines.append(f"{one}: {title}")
    return lines


def check_outside_of_runs(path: Path) -> None:
    """UsageError for a file in a run's folder, which holds what was measured and the tables made of
    it, and nothing else."""
    for folder in path.resolve().parents:
        if (folder / "sweep.json").is_file() and (folder / "cells").is_dir():
            raise UsageError(f"{path} is inside the run {folder.name}; give an --out outside of it")


def _check_replaceable(path: Path) -> None:
    """A model card that somebody wrote is nothing to write over."""
    if path.exists() and MARK.encode() not in path.read_bytes():
        raise UsageError(
            f"{path} was not written by export; give another --out and paste the section"
        )
