"""The table as an Excel workbook, with the context on its first sheet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from precision_explorer.export.document import finite, plain_rows
from precision_explorer.report.content import Content, make_content
from precision_explorer.report.csv_ import harmless
from precision_explorer.table import Table

CONTEXT_SHEET, TABLE_SHEET = "Context", "Table"
# Excel's limit (ECMA-376 has none; Microsoft, "Excel specifications and limits").
_CELL_CHARACTERS = 32_767
# Texts stay texts: nothing that a model is called becomes a formula, a link or a number.
_OPTIONS = {
    "in_memory": True,
    "strings_to_formulas": False,
    "strings_to_urls": False,
    "strings_to_numbers": False,
}
# XlsxWriter writes the present time into the file unless it is told one.
_NO_TIME = datetime(1980, 1, 1)


def to_xlsx(table: Table) -> bytes:
    """A sheet `CONTEXT_SHEET` of words, then `TABLE_SHEET`: one row per cell, columns by their
    names, numbers as numbers in SI units, empty where missing."""
    import xlsxwriter

    out = io.BytesIO()
    book = xlsxwriter.Workbook(out, _OPTIONS)
    book.set_properties({"title": harmless(make_content(table).title), "created": _NO_TIME})
    bold = book.add_format({"bold": True, "valign": "top"})
    wrapped = book.add_format({"text_wrap": True, "valign": "top"})
    words = book.add_worksheet(CONTEXT_SHEET)
    words.set_column(0, 0, 24)
    words.set_column(1, 1, 120)
    for line, (label, text) in enumerate(_words(make_content(table), table)):
        words.write_string(line, 0, _fitting(label), bold)
        words.write_string(line, 1, _fitting(text), wrapped)
    _grid(book.add_worksheet(TABLE_SHEET), table, bold)
    book.close()
    return out.getvalue()


def _words(content: Content, table: Table) -> Iterator[tuple[str, str]]:
    """(label, text), a label with several texts once."""
    yield "Title", content.title
    for section in content.sections:
        yield from ((f"{section.title}: {a.topic}", a.text) for a in section.answers)
    for fact in [*content.compared, content.price, *content.method]:
        yield from ((fact.label if n == 0 else "", text) for n, text in enumerate(fact.lines))
    yield from (("Caveat", text) for text in content.caveats)
    yield from ((f"Caution {name}", text) for name, text in content.cautions.items())
    yield from (("How to read it", text) for text in content.notes)
    yield "Again", f"{content.reproduce} (with the options of this table)"


def _grid(sheet: Any, table: Table, bold: Any) -> None:
    rows = plain_rows(table)
    for column, name in enumerate(table.columns):
        sheet.write_string(0, column, name, bold)
        sheet.set_column(column, column, max(10, min(len(name) + 3, 30)))
        for line, row in enumerate(rows, start=1):
            value = finite(row[name])
            if isinstance(value, str):
                sheet.write_string(line, column, _fitting(value))
            elif value is not None:
                sheet.write_number(line, column, value)
    # Model, task and format stay in sight.
    sheet.freeze_panes(1, 3)
    sheet.autofilter(0, 0, max(len(rows), 1), len(table.columns) - 1)


def _fitting(text: str) -> str:
    """`text` harmless, and cut where Excel would refuse it, which three dots show."""
    text = harmless(text)
    return text if len(text) <= _CELL_CHARACTERS else f"{text[: _CELL_CHARACTERS - 3]}..."
