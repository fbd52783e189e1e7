"""What a table shows, apart from how: terminal, CSV, Markdown, HTML."""

from __future__ import annotations

from pathlib import Path

from precision_explorer import __version__
from precision_explorer.hardware import library_versions
from precision_explorer.report.csv_ import to_csv
from precision_explorer.report.html import to_html
from precision_explorer.report.markdown import to_markdown
from precision_explorer.store import RunFolder
from precision_explorer.store.atomic import write_bytes
from precision_explorer.table import Table

__all__ = ["made_tables", "to_csv", "to_html", "to_markdown", "write_all"]


_MAKERS = {"tradeoffs.csv": to_csv, "tradeoffs.md": to_markdown, "report.html": to_html}
# The figures are derived with these: their releases may differ in the last digits.
_DERIVED_WITH = ("numpy", "scipy")


def made_tables(table: Table) -> dict[str, bytes]:
    """The files of `table` by name; the same table gives the same bytes."""
    return {name: make(table).encode() for name, make in _MAKERS.items()}


def write_all(table: Table, folder: Path) -> list[Path]:
    """Write tradeoffs.csv, tradeoffs.md and report.html in `folder`; the same table gives the same
    bytes. In the folder of the run that they are of its manifest notes who wrote them. Returns
    their paths. Raises OSError where `folder` can't be written."""
    written = []
    for name, content in made_tables(table).items():
        path = folder / name
        write_bytes(path, content)
        written.append(path)
    run = RunFolder(folder)
    if table.context.manifest_root and run.manifest_root() == table.context.manifest_root:
        run.note_tables(__version__, library_versions(_DERIVED_WITH))
    return written
