"""The report as one HTML file without scripts and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from precision_explorer.report.chart import make_chart
from precision_explorer.report.content import make_content
from precision_explorer.report.safety import KEY
from precision_explorer.table import Table

# Above so many cells a page leaves out details: with them a cell takes 5 kB, of 2 MB for 1,000.
MANY = 150


def to_html(table: Table) -> str:
    """The report of `table` as an HTML page; of a table of many cells without the details, which
    tradeoffs.md holds all the same."""
    content = make_content(table, brief=len(table.rows) > MANY)
    # Latencies at rates that differ from row to row are no axis to compare rows on.
    charts = [None if s.rates else make_chart(s.group) for s in content.sections]
    return render("report.html.j2", content=content, charts=charts, safety_key=KEY)


def render(template: str, **values: Any) -> str:
    """A page of this room's `template`; all that is put into it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
