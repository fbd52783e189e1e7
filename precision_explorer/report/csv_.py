"""The table as plain CSV, exact enough to compute with, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from precision_explorer.report.text import printable
from precision_explorer.table import Table

# What makes a spreadsheet take a text for a formula (OWASP, "CSV Injection"), full width included.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def to_csv(table: Table) -> str:
    """Header, then one row per cell; missing is empty, floats have every digit."""
    return csv_text(table.columns, table.rows)


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """`columns` as the header, then one line per row."""
    cells = ([_text(row[name]) for name in columns] for row in rows)
    return "".join(map(_line, [columns, *cells]))


def _line(cells: Sequence[str]) -> str:
    """One row. The module quotes line breaks in a cell only if they are part of its line end."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue().removesuffix("\r\n") + "\n"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    return harmless(str(value))


def harmless(text: str) -> str:
    """`text` without control characters, and with a ``'`` before what a spreadsheet would take for
    a formula."""
    text = printable(text)
    return f"'{text}" if _is_risky(text) else text


def _is_risky(text: str) -> bool:
    """Whether `text` could start a formula, at once or after white space."""
    start = text.lstrip()
    return text.startswith(("\t", "\r", "\n")) or start.startswith(_FORMULA)
