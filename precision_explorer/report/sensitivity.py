"""Which input, moved alone by how much, would change a choice: as tables."""

from __future__ import annotations

from collections.abc import Callable

from precision_explorer.decision import Decision, Question, Sensitivity, decide
from precision_explorer.decision.candidates import asked_of, of_group
from precision_explorer.decision.data import Change
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group
from precision_explorer.report.text import cleaned
from precision_explorer.table import Table
from precision_explorer.table.limits import limits_of
from precision_explorer.units import (
    bytes_,
    duration_option,
    number_option,
    seconds,
    share,
    share_option,
    significant,
    size_option,
    usd,
    watts,
)

TITLE = "What would change the choice, each input moved alone"
LABELS = {
    "price_per_hour_usd": "Price per hour",
    "purchase_usd": "Purchase price",
    "life_years": "Life",
    "utilisation": "Utilisation (share of its life in use)",
    "power_w": "Power",
    "pue": "PUE",
    "usd_per_kwh": "Price per kWh",
    "usd_per_correct": "Worth of a correct result",
    "usd_per_error": "Cost of an error",
    "slo": "Latency limit (SLO)",
    "quality_budget": "Quality budget",
    "max_memory_bytes": "Memory limit",
    "max_cost_per_1k_usd": "Cost limit per 1,000 requests",
}
_SHOW: dict[str, Callable[[float], str]] = {
    "usd": usd,
    "share": lambda value: share(value, 2),
    "seconds": seconds,
    "bytes": bytes_,
    "years": lambda value: f"{significant(value)} years",
    "watts": watts,
    "": significant,
}
_WIDE: dict[str, Callable[[float], str]] = {
    "slo": duration_option,
    "quality_budget": share_option,
    "max_memory_bytes": size_option,
    "max_cost_per_1k_usd": lambda value: f"${number_option(value)}",
}
_QUESTIONS = (("cost", "Cost"), ("energy", "Efficiency"), ("value", "Value"), ("net", "Net"))


def decision_view(decision: Decision) -> View | None:
    """The inputs of one choice; None where there are none."""
    if not decision.sensitivity or decision.chosen is None:
        return None
    rows = tuple(
        (
            Cell(_label(one)),
            Cell(_SHOW[one.unit](one.value)),
            Cell(_side(one, one.lower, one.least)),
            Cell(_side(one, one.higher, one.most)),
        )
        for one in decision.sensitivity
    )
    headings = ("Input", "Now", "Lowered", "Raised")
    title = f"{TITLE} ({decision.chosen.name} now)"
    return View(title, headings, rows, (False, True, False, False))


def group_view(table: Table, group: Group) -> View | None:
    """The inputs of the choices by cost, efficiency, value and net dollars, side by side; None
    where no question has a choice."""
    if not group.ok or not table.samples:
        return None
    made = {title: _decided(table, group, name) for name, title in _QUESTIONS}
    found = {title: one for title, one in made.items() if one.chosen and one.sensitivity}
    if not found:
        return None
    # Every question has the same inputs.
    inputs = next(iter(found.values())).sensitivity
    rows = [
        (
            Cell(_label(one)),
            Cell(_SHOW[one.unit](one.value)),
            *(Cell(_both(decision, one)) for decision in found.values()),
        )
        for one in inputs
    ]
    names = [f"{title}: {one.chosen.name if one.chosen else ''}" for title, one in found.items()]
    return View(TITLE, ("Input", "Now", *names), tuple(rows), (False, True, *[False] * len(names)))


def _decided(table: Table, group: Group, objective: str) -> Decision:
    question = asked_of(table, group, Question(objective, limits_of(table.context)))
    candidates = of_group(table, group, question)
    return cleaned(decide(group, question, candidates, with_moves=True))


def _label(one: Sensitivity) -> str:
    return LABELS[one.input] if one.device is None else f"{LABELS[one.input]}, {one.device}"


def _both(decision: Decision, like: Sensitivity) -> str:
    key = (like.input, like.device)
    one = next(one for one in decision.sensitivity if (one.input, one.device) == key)
    if one.note is not None:
        return "not in it" if one.note.startswith("not in ") else _noted(one.note)
    if one.lower is None and one.higher is None:
        return f"no change within x{_times(one, one.least)} to x{_times(one, one.most)}"
    sides = [_side(one, one.lower, one.least), _side(one, one.higher, one.most)]
    return "; ".join(side for side in sides if not side.startswith("no change"))


def _side(one: Sensitivity, change: Change | None, end: float) -> str:
    if one.note is not None:
        return _noted(one.note)
    if change is None:
        return f"no change to x{_times(one, end)}"
    where = "below" if change.factor < 1 else "from"
    # Rounded up, so that a limit set to what is read is wide enough; of one that is lowered more
    # digits are shown, so that what is read is near enough.
    show = _WIDE.get(one.input)
    value = (show or _SHOW[one.unit])(change.value)
    where = "below about" if change.factor < 1 and show is not None else where
    choice = change.choice or f"no format is named: {change.why}"
    return f"{where} {value} (x{change.factor:.3g}): {choice}"


def _noted(note: str) -> str:
    return note if note.startswith("not ") else f"no change: {note}"


def _times(one: Sensitivity, value: float) -> str:
    return f"{value / one.value:.3g}"
