"""A decision on a terminal, and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from precision_explorer.decision import Decision, Option
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.headline import asked, headline
from precision_explorer.report.sensitivity import decision_view
from precision_explorer.report.terminal import grid
from precision_explorer.report.text import cleaned, listed
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.limits import Check
from precision_explorer.units import MISSING, share

_SHOWN = ("cost", "latency", "throughput", "memory", "energy", "value", "net")
_STATES = {"yes": "yes", "no": "no", "cannot-tell": "can't tell", "barred": "may not compete"}
_TONES = {"yes": "good", "no": "bad", "cannot-tell": "unsure", "barred": "bad"}


def print_decisions(
    decisions: list[Decision], console: Console, prices: Sequence[str] = ()
) -> None:
    """Print each decision with its formats, and before them the `prices` that money is of."""
    for price in cleaned(tuple(prices)):
        console.print(Text(f"Price: {price}"))
    if prices:
        console.print()
    for decision in map(cleaned, decisions):
        _print(decision, console)


def document(decisions: list[Decision]) -> list[dict[str, Any]]:
    """The decisions as plain values; SI units, what is not known None."""
    return [{**asdict(decision), "answer": headline(decision)} for decision in decisions]


def _print(decision: Decision, console: Console) -> None:
    console.print(Text(decision.title, style="bold underline"))
    limits = "; ".join(decision.limits) or "none"
    console.print(Text(f"Asked: {asked(decision)}. Limits: {limits}. Device: {decision.device}."))
    console.print()
    console.print(Padding(Text(headline(decision), style="bold"), (0, 0, 0, 2)))
    sure = [_sure(check) for check in _doubted(decision.chosen)]
    if sure:
        line = f"How sure it is to hold the limits: {', '.join(sure)}."
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    console.print()
    console.print(grid(_view(decision), console.width))
    moves = decision_view(decision)
    if moves is not None:
        console.print()
        console.print(grid(moves, console.width))
    _list("Not qualified", _reasons(decision), console)
    _list("What would change it", decision.changes, console)
    _list("What this does not cover", decision.uncovered, console)
    console.print()


def _doubted(chosen: Option | None) -> list[Check]:
    """The checks that chance may have moved: not what the reference loses to itself, nor memory,
    which was measured once."""
    found = []
    for check in chosen.checks if chosen is not None else ():
        limit = check.limit.partition(" on ")[0]
        exact = limit == "memory" or (limit == "quality" and not check.at_least)
        if check.probability is not None and not exact:
            found.append(check)
    return found


def _sure(check: Check) -> str:
    assert check.probability is not None
    if check.at_least:
        return f"{check.limit} at least {share(check.probability, 0)}"
    # All of some hundred draws are not all that could be.
    over = check.probability > 0.99
    return f"{check.limit} {'over 99 %' if over else share(check.probability, 0)}"


def _list(title: str, lines: tuple[str, ...] | list[str], console: Console) -> None:
    if not lines:
        return
    console.print()
    console.print(Text(title, style="bold"))
    for line in lines:
        console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))


def _reasons(decision: Decision) -> list[str]:
    """Why each other format does not qualify."""
    lines = []
    for option in decision.options:
        if option.state == "yes":
            continue
        why = [option.reason] if option.reason else []
        for check in option.checks:
            if check.state != "yes":
                needs = f"; {check.needs}" if check.needs else ""
                why.append(f"{check.limit}: {check.found}{needs}")
        lines.append(f"{option.name}: {' | '.join(why)}")
    return lines


def _view(decision: Decision) -> View:
    names = [n for n in _SHOWN if any(o.figures[n] is not None for o in decision.options)]
    if decision.objective not in names:
        names.insert(0, decision.objective)
    headings = (
        "Format",
        "Qualifies",
        "Quality",
        "Best in resamples",
        *(_heading(decision, n) for n in names),
    )
    numeric = (False, False, False, *[True] * (len(names) + 1))
    rows = tuple(_cells(option, names) for option in decision.options)
    return View("Formats, the choice first", headings, rows, numeric)


def _heading(decision: Decision, name: str) -> str:
    words = decision.words if name == decision.objective else FIGURES[name].words
    return words[0].upper() + words[1:]


def _cells(option: Option, names: list[str]) -> tuple[Cell, ...]:
    verdicts = listed([v or "no verdict" for v in dict.fromkeys(option.verdicts)])
    chance = option.best_probability
    return (
        Cell(option.name),
        Cell(_STATES[option.state], _TONES[option.state]),
        Cell(verdicts),
        Cell(MISSING if chance is None else share(chance, 0)),
        *(Cell(FIGURES[n].show(option.figures[n])) for n in names),
    )
