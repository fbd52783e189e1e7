"""The tables that everyone reads, for a notebook's cell: what must be known stands above them, and
the rest stays in the report."""

from __future__ import annotations

from precision_explorer.report.content import Content, make_content
from precision_explorer.report.html import render
from precision_explorer.report.markdown import escape, grid, listing
from precision_explorer.table import Table


def excerpt_markdown(table: Table) -> str:
    """The answers and main tables of `table` as Markdown."""
    content = make_content(table, brief=True)
    blocks = [f"**{escape(content.title)}**", *_lines(content)]
    for section in content.sections:
        blocks += [f"**{escape(section.title)}**"] if len(content.sections) > 1 else []
        blocks.append(escape(section.line))
        blocks += listing(None, (f"{a.topic}: {a.text}" for a in section.answers))
        views = [*section.views, *([section.unmeasured] if section.unmeasured else [])]
        blocks += [grid(view) for view in views]
    return "\n\n".join(blocks) + "\n"


def _lines(content: Content) -> list[str]:
    cautions = [f"{name}: {sentence}" for name, sentence in content.cautions.items()]
    return listing(None, [*content.price.lines, *cautions])


def excerpt_html(table: Table) -> str:
    """The same as a piece of HTML without scripts, style sheets or anything from elsewhere; all
    that is put into it is escaped."""
    return render("excerpt.html.j2", content=make_content(table, brief=True))
