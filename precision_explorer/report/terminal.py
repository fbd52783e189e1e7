"""The report on a terminal, by rich; all as `Text`, in which no markup is read."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from precision_explorer.report.columns import Cell, View
from precision_explorer.report.content import Content, Section, make_content
from precision_explorer.report.loads import Loads
from precision_explorer.report.safety import Safety
from precision_explorer.table import Table

_TONES = {"good": "green", "bad": "red", "unsure": "yellow", "strong": "bold"}
# Between columns, and between a cell and the rule of its column.
_GAP = 2


def print_table(table: Table, console: Console) -> None:
    """Print `table` with its findings, cautions and caveats on `console`."""
    content = make_content(table)
    if content.is_audited:
        badge = content.badge
        console.print(Text(f"{badge.text}.", style=_TONES.get(badge.tone, "")))
        console.print()
    _print_answers(content, console)
    for safety in content.safety:
        _print_overview(safety, console)
    for view in content.group_scores:
        console.print(Text(view.title, style="bold underline"))
        console.print()
        console.print(grid(view, console.width))
        console.print()
    for loads in content.loads:
        _print_overview(loads, console)
    for section in content.sections:
        _print_section(section, console)
    sentences = [f"{name}: {sentence}" for name, sentence in content.cautions.items()]
    _print_list("Cautions", sentences, console)
    _print_list("Caveats", list(content.caveats), console, "dim")
    _print_list("How to read", list(content.notes), console, "dim")


def _print_answers(content: Content, console: Console) -> None:
    answered = [section for section in content.sections if section.answers]
    if not answered:
        return
    console.print(Text("The answer", style="bold underline"))
    console.print(Text(content.held))
    for section in answered:
        if len(content.sections) > 1:
            console.print(Text(section.title, style="bold"))
        for answer in section.answers:
            _print_item(answer.topic, answer.text, console)
    console.print()


def print_why(table: Table, console: Console) -> None:
    """Print only why formats are or are not faster, group by group."""
    for section in make_content(table).sections:
        if section.why is None:
            continue
        console.print(Text(section.title, style="bold underline"))
        console.print(Text(section.line))
        for view in section.why.views:
            console.print()
            console.print(grid(view, console.width))
        console.print()
        for line in (*section.why.sentences, *section.why.lines):
            console.print(Padding(Text(line), (0, 0, 0, 2)))


def _print_overview(overview: Safety | Loads, console: Console) -> None:
    console.print(Text(overview.title, style="bold underline"))
    console.print()
    console.print(grid(overview.view, console.width))
    console.print()
    for line in overview.lines:
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print()


def _print_section(section: Section, console: Console) -> None:
    console.print(Text(section.title, style="bold underline"))
    console.print(Text(section.line))
    unmeasured = [section.unmeasured] if section.unmeasured else []
    rates = [section.rates.view] if section.rates else []
    for view in [*_packed(section.views, console.width), *rates, *unmeasured]:
        console.print()
        console.print(grid(view, console.width))
    if section.sensitivity is not None:
        console.print()
        console.print(grid(section.sensitivity, console.width))
    console.print()
    console.print(Text("Findings", style="bold"))
    for finding in section.findings:
        _print_item(finding.topic, finding.text, console)
    for question in [] if section.answers else section.questions:
        _print_item(question.topic, question.answer, console)
    if section.disturbed is not None:
        console.print()
        console.print(grid(section.disturbed.view, console.width))
        console.print()
        for line in section.disturbed.lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
    if section.audits is not None:
        console.print()
        console.print(grid(section.audits.view, console.width))
        console.print()
        for line in section.audits.lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print()


def _print_item(topic: str, text: str, console: Console) -> None:
    line = Text.assemble((f"{topic}: ", "bold"), text)
    console.print(Padding(line, (0, 0, 0, 2)))


def _print_list(title: str, lines: list[str], console: Console, style: str = "") -> None:
    if lines:
        console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Padding(Text(line, style=style), (0, 0, 0, 2)))


def _packed(views: list[View], width: int) -> list[View]:
    """Neighbouring views side by side as far as `width` allows: same rows, one table."""
    packed: list[View] = []
    for view in views:
        joined = _joined(packed[-1], view) if packed else view
        if packed and _total(joined) <= width:
            packed[-1] = joined
        else:
            packed.append(view)
    return packed


def _joined(left: View, right: View) -> View:
    return View(
        f"{left.title}; {right.title.lower()}",
        left.headings + right.headings[1:],
        tuple(a + b[1:] for a, b in zip(left.rows, right.rows, strict=True)),
        left.numeric + right.numeric[1:],
    )


def _widths(view: View) -> list[int]:
    """Columns wide enough for their cells and the words of their heading."""
    widths = [max(map(cell_len, heading.split())) for heading in view.headings]
    for row in view.rows:
        widths = [max(w, cell_len(c.text)) for w, c in zip(widths, row, strict=True)]
    return widths


def _total(view: View) -> int:
    return sum(_widths(view)) + _GAP * (len(view.headings) - 1)


def grid(view: View, width: int) -> Grid:
    """`view` as a table, its columns not folded where `width` allows."""
    made = Grid(
        title=Text(view.title, style="bold"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        header_style="",
        padding=(0, 0, 0, _GAP - 1),
    )
    fits = _total(view) <= width
    for heading, numeric, wide in zip(view.headings, view.numeric, _widths(view), strict=True):
        made.add_column(
            Text(heading),
            justify="right" if numeric else "left",
            vertical="top",
            overflow="fold",
            width=wide if fits else None,
        )
    for row in view.rows:
        made.add_row(*(_text(cell) for cell in row))
    return made


def _text(cell: Cell) -> Text:
    return Text(cell.text, style=_TONES.get(cell.tone, ""))
