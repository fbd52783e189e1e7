"""The report as GitHub-flavoured Markdown: what must be known stands above the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable

from precision_explorer.report.audits import AuditSection
from precision_explorer.report.columns import View
from precision_explorer.report.content import Content, Fact, Section, make_content
from precision_explorer.report.disturbed import DisturbedSection
from precision_explorer.report.loads import Loads
from precision_explorer.report.safety import Safety
from precision_explorer.report.soak import SoakSection
from precision_explorer.report.why import WhySection
from precision_explorer.table import Table

_SPECIAL = re.compile(r"([\\`*|~]|\](?=[(\[:]))")
_EDGE_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")
# A heading, a list item or a rule; numbers with their sign or point are none.
_BLOCK_START = re.compile(r"^(#{1,6}(?=\s|$)|[-+](?=[\s-]|$)|=+$|\d+(?=[.)](?:\s|$)))")

_PLAIN = re.compile(r"[\w ./:-]+")


def escape(text: str) -> str:
    """`text` shown as it reads: no HTML, no table cell ended, no block or emphasis begun."""
    text = text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _EDGE_UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", text))
    start = _BLOCK_START.match(text)
    if start is None:
        return text
    at = start.end() if text[0].isdigit() else 0
    return f"{text[:at]}\\{text[at:]}"


def to_markdown(table: Table) -> str:
    """The report of `table` as Markdown."""
    content = make_content(table)
    # Runs from before there were audits keep their page.
    audited = [f"**{escape(content.badge.text)}.**"] if content.is_audited else []
    blocks = [f"# {escape(content.title)}", *audited, *_answers(content), *_context(content)]
    for safety in content.safety:
        blocks += _overview(safety)
    for view in content.group_scores:
        blocks += [f"## {escape(view.title)}", grid(view)]
    for loads in content.loads:
        blocks += _overview(loads)
    for section in content.sections:
        blocks += _section(section)
    cautions = [f"**{escape(k)}:** {escape(v)}" for k, v in content.cautions.items()]
    blocks += _titled("## Cautions", cautions)
    blocks += _unmeasured(content.sections)
    return "\n\n".join(blocks) + "\n"


def _answers(content: Content) -> list[str]:
    blocks: list[str] = []
    for section in content.sections:
        title = [f"### {escape(section.title)}"] if len(content.sections) > 1 else []
        lines = [f"**{escape(a.topic)}:** {escape(a.text)}" for a in section.answers]
        blocks += [*title, *_titled("", lines)[1:]] if lines else []
    return ["## The answer", escape(content.held), *blocks] if blocks else []


def _context(content: Content) -> list[str]:
    command = content.reproduce
    shown = f"`{command}`" if _PLAIN.fullmatch(command) else escape(command)
    again = (
        f"{shown}, called where the run's folder lies and with the options of this table, makes "
        "this page again from the records."
    )
    facts = [_fact(fact) for fact in [*content.compared, content.price, *content.method]]
    return [
        *_titled("## Context", [*facts, f"**Again:** {again}"]),
        *_titled("## Caveats", map(escape, content.caveats)),
        *_titled("## How to read the tables", map(escape, content.notes)),
    ]


def _fact(fact: Fact) -> str:
    if len(fact.lines) == 1:
        return f"**{escape(fact.label)}:** {escape(fact.lines[0])}"
    return "\n".join(
        [f"**{escape(fact.label)}:**", *(f"  - {escape(line)}" for line in fact.lines)]
    )


def _overview(shown: Safety | Loads) -> list[str]:
    return [f"## {escape(shown.title)}", *listing(None, shown.lines), grid(shown.view)]


def _section(section: Section) -> list[str]:
    points = [(f.topic, f.text) for f in section.findings]
    # Where there are answers above, they are these.
    points += [] if section.answers else [(q.topic, q.answer) for q in section.questions]
    found = [f"**{escape(topic)}:** {escape(text)}" for topic, text in points]
    rates = [section.rates.view, *section.rates.points] if section.rates else []
    more = (section.sensitivity, section.offline, section.detail, section.differences)
    views = [*section.views, *rates, *(view for view in more if view)]
    return [
        f"## {escape(section.title)}",
        escape(section.line),
        *_titled("### Findings", found),
        *(_disturbed(section.disturbed) if section.disturbed else []),
        *(block for view in views for block in (f"### {escape(view.title)}", grid(view))),
        *(block for soak in section.over_time for block in _soak(soak)),
        *(_audits(section.audits) if section.audits else []),
        *(_why(section.why) if section.why else []),
    ]


def _disturbed(disturbed: DisturbedSection) -> list[str]:
    view = disturbed.view
    return [*listing(f"### {escape(view.title)}", disturbed.lines), grid(view)]


def _soak(soak: SoakSection) -> list[str]:
    line = [escape(soak.line)] if soak.line else []
    return [f"### {escape(soak.view.title)}", *line, grid(soak.view)]


def _audits(audits: AuditSection) -> list[str]:
    view = audits.view
    return [f"### {escape(view.title)}", grid(view), *listing(None, audits.lines)]


def _why(why: WhySection) -> list[str]:
    tables = [block for v in why.views for block in (f"#### {escape(v.title)}", grid(v))]
    texts = _titled("", map(escape, [*why.sentences, *why.lines]))[1:]
    return ["### Why", *tables, *texts]


def _unmeasured(sections: list[Section]) -> list[str]:
    blocks: list[str] = []
    for section in sections:
        if section.unmeasured:
            title = f"### {escape(section.title)}"
            blocks += [*([title] if len(sections) > 1 else []), grid(section.unmeasured)]
    return ["## Skipped and failed", *blocks] if blocks else []


def _titled(heading: str, items: Iterable[str]) -> list[str]:
    """A heading and a list under it; nothing where the list is empty."""
    lines = [f"- {item}" for item in items]
    return [heading, "\n".join(lines)] if lines else []


def listing(heading: str | None, sentences: Iterable[str]) -> list[str]:
    """`sentences`, escaped, as a list under `heading`; nothing where there are none."""
    lines = [f"- {escape(sentence)}" for sentence in sentences]
    return [*([heading] if heading else []), "\n".join(lines)] if lines else []


def grid(view: View) -> str:
    """`view` as a table."""
    rule = ["--:" if numeric else ":--" for numeric in view.numeric]
    rows = [[escape(h) for h in view.headings], rule]
    rows += [[escape(cell.text) for cell in row] for row in view.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
