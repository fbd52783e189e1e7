"""What a gate found: on a terminal, as Markdown for a pull request, as JUnit XML for a server."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from precision_explorer.comparison import Check, Gated, Refused
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.comparison import figure_words, label, refused_view, shown_value
from precision_explorer.report.markdown import escape, listing
from precision_explorer.report.markdown import grid as markdown_grid
from precision_explorer.report.terminal import grid
from precision_explorer.report.text import cleaned, listed
from precision_explorer.units import MISSING, points, share

_WORDS = {"passed": "within", "regressed": "WORSE", "cannot-tell": "can't tell"}
_TONES = {"passed": "good", "regressed": "bad", "cannot-tell": "unsure"}
_ORDER = ("regressed", "cannot-tell", "passed")


def answer(gated: Gated, strict: bool = False) -> str:
    """One sentence: whether the run holds, and what does not."""
    bad, open_ = gated.having("regressed"), gated.having("cannot-tell")
    name, base = gated.compared.other, gated.compared.one
    if not gated.checks and not gated.compared.lost:
        why = (
            f"the methods of {name} and {base} differ"
            if gated.compared.refused
            else (f"no figure of {name} could be held to {base}")
        )
        return f"Not judged: {why}."
    counted = f"{len(gated.having('passed'))} of {len(gated.checks)} figures are within budget"
    rest = f"{counted}, {len(open_)} can't be told"
    refused = sum(len(one.rows) for one in gated.compared.refused)
    if refused:
        rest += f", and {refused} {'row is' if refused == 1 else 'rows are'} refused: other methods"
    faults = [f"{_label(gated, c)}: {_figure(c)} {_loss(c)}" for c in bad]
    lost = [f"{name} lacks rows of {base}: {'; '.join(gated.compared.lost)}"]
    said = [f"{name} is worse than {base} beyond the budget in {listed(faults)}"] if faults else []
    said += lost if gated.compared.lost else []
    if said:
        return f"{'. '.join(said)}. {rest}."
    if strict and open_:
        return f"{name} is not shown to hold to {base}: {rest}, which --strict does not accept."
    held = f"What could be compared of {name}" if refused else name
    return f"{held} is not shown to be worse than {base}: {rest}."


def print_gate(gated: Gated, console: Console, strict: bool = False) -> None:
    """Print the answer, then every check, the worst first."""
    gated = cleaned(gated)
    console.print(Text(answer(gated, strict), style="bold"))
    for line in _facts(gated):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    for view in _views(gated):
        console.print()
        console.print(grid(view, console.width))


def to_markdown(gated: Gated, strict: bool = False) -> str:
    """The same as Markdown, as a summary of a job shows it."""
    gated = cleaned(gated)
    mark = "✅" if gated.passes(strict) else "❌"
    blocks = ["## Precision gate", f"{mark} **{escape(answer(gated, strict))}**"]
    blocks += listing(None, _facts(gated))
    for view in _views(gated):
        blocks += [f"### {escape(view.title)}", markdown_grid(view)]
    return "\n\n".join(blocks) + "\n"


def to_junit(gated: Gated, strict: bool = False) -> str:
    """JUnit XML: a test case per figure and row; failed where it is worse beyond its budget, and
    where a row is lost; skipped where it can't be told, or failed where `strict`."""
    gated = cleaned(gated)
    suite = ElementTree.Element("testsuite", name=f"precision-explorer gate: {gated.compared.one}")
    failures = skipped = 0
    for check in gated.checks:
        row = check.row
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{row.model}.{row.task}",
            name=f"{row.format} ({row.runtime}): {_figure(check)}",
        )
        failed = check.outcome == "regressed" or (strict and check.outcome == "cannot-tell")
        if failed:
            failures += 1
            ElementTree.SubElement(case, "failure", message=_sentence(check))
        elif check.outcome == "cannot-tell":
            skipped += 1
            ElementTree.SubElement(case, "skipped", message=_sentence(check))
    for text in (*gated.compared.lost, *map(_refusal, gated.compared.refused)):
        failures += 1
        case = ElementTree.SubElement(suite, "testcase", classname="rows", name=text)
        ElementTree.SubElement(case, "failure", message=text)
    if not len(suite):
        failures, text = 1, answer(gated, strict)
        case = ElementTree.SubElement(suite, "testcase", classname="rows", name="anything")
        ElementTree.SubElement(case, "failure", message=text)
    suite.attrib |= {"tests": str(len(suite)), "failures": str(failures), "skipped": str(skipped)}
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


# -- parts ------------------------------------------------------------------------------------


def _facts(gated: Gated) -> tuple[str, ...]:
    budgets, compared = gated.budgets, gated.compared
    ratio = "as ratios to the reference of the same run"
    speed = {"ratio": ratio, "time": "as measured", "both": f"as measured and {ratio}"}
    lines = [
        f"Budgets: quality {share(budgets.quality)}, slower {share(budgets.slowdown)} "
        f"({speed[budgets.speed]}), memory {share(budgets.memory)}. Worse: the whole 95 % interval "
        "is beyond the budget; within: the whole of it is inside, or no example flipped and the "
        "score is the same."
    ]
    if compared.system:
        lines.append(f"The systems differ in {listed([f.words for f in compared.system])}.")
    if compared.asked:
        lines.append(f"Allowed to differ: {listed(list(compared.asked))}.")
    others = [text for text in compared.unmatched if text not in compared.lost]
    return (*lines, *(f"Not checked: {text}." for text in others))


def _views(gated: Gated) -> list[View]:
    views = []
    if gated.checks:
        rows = sorted(gated.checks, key=lambda check: _ORDER.index(check.outcome))
        headings = (
            "Format",
            "Figure",
            "Baseline",
            "Run",
            "Worse by [95 % CI]",
            "Budget",
            "Outcome",
        )
        numeric = (False, False, True, True, True, True, False)
        cells = tuple(_row(gated, check) for check in rows)
        views.append(View("Checks", headings, cells, numeric))
    return views + [refused_view(one) for one in gated.compared.refused]


def _row(gated: Gated, check: Check) -> tuple[Cell, ...]:
    show = shown_value(check.change)
    outcome = _WORDS[check.outcome]
    # A figure that is within may have been told by other examples than the scores beside it.
    if check.note and (check.outcome == "cannot-tell" or check.change.figure == "quality"):
        outcome = f"{outcome}: {check.note}"
    return (
        Cell(_label(gated, check)),
        Cell(_figure(check)),
        Cell(show(check.change.one)),
        Cell(show(check.change.other)),
        Cell(_interval(check)),
        Cell(_amount(check, check.budget)),
        Cell(outcome, _TONES[check.outcome]),
    )


def _label(gated: Gated, check: Check) -> str:
    return label(gated.compared, check.row)


def _figure(check: Check) -> str:
    return figure_words(check.change)


def _amount(check: Check, value: float | None) -> str:
    if value is None:
        return MISSING
    value += 0.0  # No -0.
    return points(value) if check.change.is_points else f"{100 * value:+.1f} %"


def _interval(check: Check) -> str:
    if check.low is None or check.high is None:
        return _amount(check, check.loss)
    ends = ", ".join(f"{100 * end:+.1f}" for end in (check.low, check.high))
    return f"{_amount(check, check.loss)} [{ends}]"


def _loss(check: Check) -> str:
    if check.loss is None:
        return check.note or "can't be told"
    return f"worse by {_interval(check)}, budget {_amount(check, check.budget)}"


def _sentence(check: Check) -> str:
    text = f"{check.row.format}: {_figure(check)} {_loss(check)}"
    return f"{text} ({check.note})" if check.note and check.loss is not None else text


def _refusal(refused: Refused) -> str:
    fields = listed([f"{field.words}" for field in refused.fields])
    return f"{listed(list(refused.rows))}: other methods ({fields})"


def outcomes(checks: Sequence[Check]) -> list[dict[str, object]]:
    """The checks as plain values for programs: relative losses and points as shares."""
    return [
        {
            "model": check.row.model,
            "task": check.row.task,
            "format": check.row.format,
            "runtime": check.row.runtime,
            "figure": check.change.figure,
            "baseline": check.change.one,
            "run": check.change.other,
            "loss": check.loss,
            "low": check.low,
            "high": check.high,
            "is_points": check.change.is_points,
            "budget": check.budget,
            "outcome": check.outcome,
            "note": check.note,
        }
        for check in checks
    ]
