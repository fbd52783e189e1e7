"""Print a table on stdout and write its files."""

from __future__ import annotations

from pathlib import Path

from precision_explorer.table import Table


def show(table: Table, folder: Path) -> None:
    """The terminal table on stdout, and tradeoffs.csv, tradeoffs.md, report.html in `folder`."""
    from rich.console import Console

    from precision_explorer.report import write_all
    from precision_explorer.report.terminal import print_table

    write_all(table, folder)
    print_table(table, Console())
