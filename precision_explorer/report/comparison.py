"""A comparison of runs on a terminal, as Markdown, and as a document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from precision_explorer.comparison import Change, Compared, Refused, RowChanges
from precision_explorer.comparison.figures import TO_REFERENCE
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.markdown import escape, listing
from precision_explorer.report.markdown import grid as markdown_grid
from precision_explorer.report.terminal import grid
from precision_explorer.report.text import cleaned, listed
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.methods import Field, words_of
from precision_explorer.units import MISSING, points, share, significant

_TONES = {"better": "good", "worse": "bad", "cannot-tell": "unsure", "not-different": ""}
# So many changes are named in the answer; the table has them all.
_NAMED = 4
_SHORT = {
    "latency": "Latency p50",
    "latency_p90": "Latency p90",
    "latency_p99": "Latency p99",
    "latency_p999": "Latency p99.9",
    "rate": "Largest rate",
    "throughput": "Throughput",
    "memory": "Peak memory",
    "weights": "Weights",
    "energy": "Energy a request",
    "cost": "Cost per 1k",
}
_TIMED = ("latency", "throughput")


@dataclass(frozen=True)
class Shown:
    """A comparison ready to print. `facts` and the lists are lines of text."""

    title: str
    answer: str
    facts: tuple[str, ...]
    views: tuple[View, ...]
    footnotes: tuple[str, ...]
    untold: tuple[str, ...]
    unmatched: tuple[str, ...]
    notes: tuple[str, ...]


def make_shown(compared: Compared) -> Shown:
    """What to show of a comparison."""
    compared = cleaned(compared)
    told, untold = _told(compared)
    numbers = _numbered(told)
    return Shown(
        title=f"{compared.other} (B) against {compared.one} (A)",
        answer=answer(compared),
        facts=_facts(compared),
        views=(
            *([_view(compared, told, numbers)] if told else []),
            *map(refused_view, compared.refused),
            *_system(compared),
        ),
        footnotes=tuple(f"({number}) {note}" for note, number in numbers.items()),
        untold=untold,
        unmatched=compared.unmatched,
        notes=_notes(compared) if compared.rows else (),
    )


def print_comparisons(comparisons: Sequence[Compared], console: Console) -> None:
    """Print each comparison, its answer first."""
    for one in map(make_shown, comparisons):
        console.print(Text(one.title, style="bold underline"))
        console.print(Padding(Text(one.answer, style="bold"), (0, 0, 0, 2)))
        for line in one.facts:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        for view in one.views:
            console.print()
            console.print(grid(view, console.width))
        for title, lines, style in _lists(one):
            if lines:
                console.print()
                console.print(Text(title, style="bold"))
            for line in lines:
                console.print(Padding(Text(f"- {line}", style=style), (0, 0, 0, 2)))
        console.print()


def to_markdown(comparisons: Sequence[Compared]) -> str:
    """The comparisons as Markdown."""
    blocks = ["# Comparison of runs"]
    for one in map(make_shown, comparisons):
        blocks += [f"## {escape(one.title)}", f"**{escape(one.answer)}**"]
        blocks += listing(None, one.facts)
        for view in one.views:
            blocks += [f"### {escape(view.title)}", markdown_grid(view)]
        for title, lines, _ in _lists(one):
            blocks += listing(f"### {title}", lines) if lines else []
    return "\n\n".join(blocks) + "\n"


def document(comparisons: Sequence[Compared]) -> list[dict[str, Any]]:
    """The comparisons as plain values: SI units, ratios and shares; what is not known None."""
    return [{"answer": answer(one), **asdict(one)} for one in comparisons]


def _lists(one: Shown) -> list[tuple[str, tuple[str, ...], str]]:
    return [
        ("Notes", one.footnotes, ""),
        ("Can't be told in any row", one.untold, ""),
        ("Not in both", one.unmatched, ""),
        ("How to read", one.notes, "dim"),
    ]


# -- the answer -------------------------------------------------------------------------------


def answer(compared: Compared) -> str:
    """One sentence: what is worse, what is better, or that nothing is shown to differ."""
    if not compared.rows:
        return "Not compared: " + (
            "the methods differ." if compared.refused else "no row has a result in both runs."
        )
    every = [change for row in compared.rows for change in row.changes]
    same = sum(change.verdict == "not-different" for change in every)
    rest = f"{same} {'is' if same == 1 else 'are'} not different, {_open(every)}"
    changed = [
        f"{verdict} in {_named(compared, verdict)}"
        for verdict in ("worse", "better")
        if any(change.verdict == verdict for change in every)
    ]
    count = f"{len(every)} figures in {len(compared.rows)} row{'s' * (len(compared.rows) != 1)}"
    said = (
        f"B is {'; '.join(changed)}. Of {count} {rest}."
        if changed
        else f"Nothing is shown to differ: of {count} {rest}."
    )
    return f"{said}{_left_out(compared)}"


def _open(changes: Sequence[Change]) -> str:
    """How many can't be told, and the reason that holds for most of them where one does."""
    open_ = [change for change in changes if change.verdict == "cannot-tell"]
    reasons = Counter(change.note for change in open_)
    text = f"{len(open_)} can't be told"
    reason, count = reasons.most_common(1)[0] if open_ else (None, 0)
    return f"{text}, mostly as {reason}" if reason and 2 * count > len(open_) else text


def _left_out(compared: Compared) -> str:
    refused = sum(len(one.rows) for one in compared.refused)
    parts = []
    if refused:
        parts.append(
            f" {refused} {'row is' if refused == 1 else 'rows are'} refused: other methods."
        )
    if compared.allowed:
        parts.append(f" The methods differ, with leave, in {_fields_in_words(compared)}.")
    return "".join(parts)


def _fields_in_words(compared: Compared) -> str:
    """The fields, or the parts that several of them stand in."""
    parts: dict[str, list[Field]] = {}
    for one in compared.allowed:
        parts.setdefault(one.field.name.partition(".")[0], []).append(one.field)
    words = []
    for part, fields in parts.items():
        names = dict.fromkeys(field.words for field in fields)
        several = f"{words_of(part)} ({len(names)} fields)"
        words.append(next(iter(names)) if len(names) == 1 else several)
    return listed(words)


def _named(compared: Compared, verdict: str) -> str:
    """The figures with that verdict, each with its rows; the largest changes first."""
    found: dict[str, list[tuple[float, str]]] = {}
    for row in compared.rows:
        for change in row.changes:
            if change.verdict == verdict:
                size = abs(change.change or 0.0)
                text = f"{label(compared, row)} ({change.word}, {_amount(change)})"
                found.setdefault(change.figure, []).append((size, text))
    parts = []
    for figure, rows in found.items():
        rows.sort(key=lambda item: -item[0])
        texts = [text for _, text in rows[:_NAMED]]
        more = [f"{len(rows) - _NAMED} more"] if len(rows) > _NAMED else []
        parts.append(f"{_words(figure)}: {listed([*texts, *more])}")
    return "; ".join(parts)


# -- the table --------------------------------------------------------------------------------


def _told(compared: Compared) -> tuple[list[tuple[RowChanges, Change]], tuple[str, ...]]:
    """(row, change) by figure, for the table; and figures that no row tells, for one and the same
    reason, or that are the same in all, in a line each."""
    told: list[tuple[RowChanges, Change]] = []
    lines = []
    for figure in dict.fromkeys(c.figure for row in compared.rows for c in row.changes):
        of = [(r, c) for r in compared.rows for c in r.changes if c.figure == figure]
        words = _words(figure)
        if all(c.verdict == "cannot-tell" and c.change is None for _, c in of):
            notes: dict[str, list[str]] = {}
            for row, change in of:
                notes.setdefault(change.note or "not measured", []).append(label(compared, row))
            reasons = [f"{note} ({listed(rows)})" for note, rows in notes.items()]
            lines.append(
                f"{words}: {'; '.join(reasons) if len(reasons) > 1 else next(iter(notes))}"
            )
        elif figure == "energy" and len({c.note for _, c in of}) == 1 and of[0][1].p_value is None:
            lines.append(f"{words}: {of[0][1].note}")
        else:
            told += of
    return told, tuple(lines)


def _numbered(told: Sequence[tuple[RowChanges, Change]]) -> dict[str, int]:
    """{note: its number}, in the table's order."""
    notes = dict.fromkeys(change.note for _, change in told if change.note)
    return {note: number for number, note in enumerate(notes, 1)}


def _view(
    compared: Compared, told: Sequence[tuple[RowChanges, Change]], numbers: dict[str, int]
) -> View:
    rows, last = [], ""
    for row, change in told:
        name = figure_words(change)
        rows.append(
            (
                Cell("" if name == last else name, "strong"),
                Cell(label(compared, row)),
                Cell(shown_value(change)(change.one)),
                Cell(shown_value(change)(change.other)),
                Cell(_moved(change)),
                Cell(_verdict(change, numbers), _TONES[change.verdict]),
            )
        )
        last = name
    headings = ("Figure", "Format", "A", "B", "B / A [95 % CI]", "Verdict")
    return View("Changes", headings, tuple(rows), (False, False, True, True, True, False))


def figure_words(change: Change) -> str:
    if change.figure == "quality":
        return change.metric or "quality"
    name, of_reference, _ = change.figure.partition(TO_REFERENCE)
    return f"{_SHORT[name]} / ref." if of_reference else _SHORT[name]


def _words(figure: str) -> str:
    name, of_reference, _ = figure.partition(TO_REFERENCE)
    return f"{FIGURES[name].words}{' over that of the reference' if of_reference else ''}"


def label(compared: Compared, row: RowChanges) -> str:
    """The format, with what else tells it from the other rows."""
    extra = [
        value
        for value, values in (
            (row.runtime, {r.runtime for r in compared.rows}),
            (row.task, {r.task for r in compared.rows}),
            (row.model, {r.model for r in compared.rows}),
        )
        if len(values) > 1
    ]
    return f"{row.format} ({', '.join(extra)})" if extra else row.format


def shown_value(change: Change) -> Callable[[float | None], str]:
    if change.figure == "quality":
        return share if change.is_points else lambda value: significant(value, 4)
    if change.figure.endswith(TO_REFERENCE):
        return significant
    return FIGURES[change.figure].show


def _amount(change: Change) -> str:
    """What it changed by, in words: points of a share, else a ratio."""
    if change.change is None:
        return MISSING
    if change.is_points:
        return points(change.change)
    return f"{significant(1 + change.change)} times"


def _moved(change: Change) -> str:
    """The change with its interval; a ratio of B to A, or a difference in points."""
    if change.change is None:
        return MISSING
    show: Callable[[float], str] = (
        points if change.is_points else lambda value: significant(1 + value)
    )
    if change.is_points and change.low is not None and change.high is not None:
        low, high = (f"{100 * end:+.2f}" for end in (change.low, change.high))
        return f"{show(change.change)} [{low}, {high}]"
    if change.low is None or change.high is None:
        return show(change.change)
    return f"{show(change.change)} [{show(change.low)}, {show(change.high)}]"


def _verdict(change: Change, numbers: dict[str, int]) -> str:
    return f"{change.word} ({numbers[change.note]})" if change.note else change.word


# -- the lines --------------------------------------------------------------------------------


def _facts(compared: Compared) -> tuple[str, ...]:
    first, second = compared.devices
    lines = [
        f"A: {compared.one}, {listed(first)}, measured on {listed(compared.measured_on[0])}. "
        f"B: {compared.other}, {listed(second)}, measured on {listed(compared.measured_on[1])}."
    ]
    accepted: dict[tuple[str, ...], list[str]] = {}
    for one in compared.allowed:
        accepted.setdefault(one.rows, []).append(str(one.field))
    for rows, fields in accepted.items():
        where = "all rows" if len(rows) == len(compared.rows) else listed(rows)
        lines.append(f"Accepted by the reader (--allow), in {where}: {'; '.join(fields)}.")
    if not compared.rows:
        return tuple(lines)
    methods = dict.fromkeys(row.method_ids for row in compared.rows)
    shared = [a for a, b in methods if a == b]
    if shared and not compared.allowed:
        lines.append(f"Same method in all rows compared ({listed(shared)}).")
    if not compared.system and not any(row.system for row in compared.rows):
        same = ": what differs is chance, or what the machine did" if compared.same_cells else ""
        lines.append(f"Nothing that is recorded differs in the system{same}.")
    wide = _widest(compared)
    if wide:
        lines.append(f"Where not different, its interval leaves room for up to {listed(wide)}.")
    return tuple(lines)


def _widest(compared: Compared) -> list[str]:
    """How large a change the intervals leave possible where none was shown."""
    found = []
    for figure in _TIMED:
        ends = [
            max(1 + c.high, 1 / (1 + c.low))
            for row in compared.rows
            for c in row.changes
            if c.figure == figure and c.verdict == "not-different"
            if c.low is not None and c.high is not None and c.low > -1
        ]
        if ends:
            found.append(f"{significant(max(ends))} times in the {FIGURES[figure].words}")
    return found


def refused_view(one: Refused) -> View:
    title = f"Refused, as the methods differ: {listed(one.rows)}"
    rows = [(f.name, f.words, *f.texts) for f in one.fields]
    return _fields("--allow FIELD", title, rows)


def _system(compared: Compared) -> list[View]:
    """In what the systems differ, and the making of single rows; none where nothing does."""
    rows = [("all", f.words, *f.texts) for f in compared.system]
    own: dict[tuple[str, str, str], list[str]] = {}
    for row in compared.rows:
        for f in row.system:
            key = (f.words, *f.texts)
            own.setdefault(key, []).append(label(compared, row))
    rows += [(listed(labels), *key) for key, labels in own.items()]
    return [_fields("Rows", "What differs in the system", rows)] if rows else []


def _fields(first: str, title: str, rows: Sequence[tuple[str, ...]]) -> View:
    headings = (first, "Field", "A", "B")
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    return View(title, headings, cells, (False,) * len(headings))


def _notes(compared: Compared) -> tuple[str, ...]:
    """How to read what is there."""
    rounds = listed([MISSING if r is None else str(r) for r in compared.rounds])
    figures = {change.figure for row in compared.rows for change in row.changes}
    notes = [
        "B / A: the figure of B over that of A, 1 is no change; of a quality that is a share the "
        "difference in percentage points, on the examples that both runs asked, as pairs.",
    ]
    if any(figure.endswith(TO_REFERENCE) for figure in figures):
        notes.append(
            "/ ref.: the figure over that of the reference of its own run, timed in the same "
            "rounds: what a machine does to both alike cancels out."
        )
    notes.append(
        f"Intervals of latency, throughput, energy and cost rest on the rounds within each run "
        f"({rounds} in A and B). What differs between machines and between days, but not between "
        "the rounds of one run, is not in them: run both again to see it."
    )
    if compared.tests:
        notes.append(
            f"A change is called one where p <= 5 % after Holm's adjustment over all "
            f"{compared.tests} tests here: where nothing differs beyond what differs between "
            "rounds, any is called so in at most 5 % of such comparisons. Not different: the "
            "interval holds no change, which is no proof that there is none."
        )
    notes.append("Peak memory is measured once in a run and has no interval; weights are counted.")
    return tuple(notes)
