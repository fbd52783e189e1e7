"""What a table shows, apart from how: terminal, CSV, Markdown, HTML."""

from __future__ import annotations

from pathlib import Path

from precision_explorer.report.csv_ import to_csv
from precision_explorer.report.html import to_html
from precision_explorer.report.markdown import to_markdown
from precision_explorer.store.atomic import write_bytes
from precision_explorer.table import Table

__all__ = ["to_csv", "to_html", "to_markdown", "write_all"]


def write_all(table: Table, folder: Path) -> list[Path]:
    """Write tradeoffs.csv, tradeoffs.md and report.html in `folder`; the same table gives the same
    bytes. Returns their paths. Raises OSError where `folder` can't be written."""
    written = []
    for name, make in (
        ("tradeoffs.csv", to_csv),
        ("tradeoffs.md", to_markdown),
        ("report.html", to_html),
    ):
        path = folder / name
        write_bytes(path, make(table).encode())
        written.append(path)
    return written
