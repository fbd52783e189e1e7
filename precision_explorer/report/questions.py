"""Cost, efficiency and value: three questions with an answer each, never blended into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from precision_explorer.report.answers import Answer
from precision_explorer.report.columns import is_estimated
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.ranking import (
    COST,
    EFFICIENCY,
    REQUESTS,
    RESULTS,
    Measure,
    outcome,
    rank,
)
from precision_explorer.report.text import listed


@dataclass(frozen=True)
class Bar:
    """One row's answer. `percent` of the largest for a bar's length, None where there is no bar;
    `tag` marks the winner."""

    label: str
    text: str
    percent: float | None
    tag: str


@dataclass(frozen=True)
class Question:
    """`answer` names the winner or says why there is none; `unit` heads the bars."""

    topic: str
    question: str
    answer: str
    unit: str
    bars: tuple[Bar, ...]


def questions(group: Group, answers: Sequence[Answer] = ()) -> list[Question]:
    """The three questions of a group; none without a row that has results. `answers`: what is known
    of the formats that hold the limits, else the ranking of all."""
    if not group.ok:
        return []
    found = [_cost(group), _efficiency(group), _value(group)]
    texts = {answer.question: answer.text for answer in answers}
    return [replace(q, answer=texts.get(q.topic.lower(), q.answer)) for q in found]


def _cost(group: Group) -> Question:
    answer = _answer(group, group.ok, COST)
    if not any(r[COST.column] is not None for r in group.ok):
        answer = "Not measured: cost needs a price per hour and a throughput."
    return Question(
        "Cost",
        "What does a request cost?",
        answer,
        "dollars per 1,000 requests; less is better",
        _bars(group, group.ok, COST),
    )


def _efficiency(group: Group) -> Question:
    obstacle = _no_energy(group.ok)
    return Question(
        "Efficiency",
        "How much work does a joule do?",
        obstacle or _answer(group, group.ok, EFFICIENCY),
        "requests per joule; more is better" if not obstacle else "requests per joule",
        _bars(group, group.ok, EFFICIENCY, ranked=not obstacle),
    )


def _no_energy(rows: list[Row]) -> str:
    """Why energy can't be ranked, or nothing."""
    sources = list(dict.fromkeys(r["power_source"] for r in rows if r["power_source"]))
    if any(is_estimated(r) for r in rows):
        return (
            f"Not ranked: energy is an estimate ({listed(sources)}), not a measurement, and can't "
            "tell which format is the most efficient."
        )
    if all(r["requests_per_joule"] is None for r in rows):
        return "Not measured: no power sensor could be read."
    if len(sources) > 1:
        return f"Can't tell: energy comes from different sources ({listed(sources)})."
    return ""


def _value(group: Group) -> Question:
    if group.is_share:
        measure, rows = RESULTS, group.ok
        unit = "correct results in time per dollar; more is better"
    else:
        # Without a share of right answers only rows within the budget have a value at all.
        measure = REQUESTS
        rows = [r for r in group.ok if group.is_reference(r) or r["verdict"] == "within"]
        unit = "requests in time per dollar, where the loss is within the budget; more is better"
    answer = _answer(group, rows, measure)
    if group.is_synthetic:
        answer = "Not measured: a result of synthetic weights is worth nothing."
    elif not any(r[measure.column] is not None for r in rows):
        answer = "Not measured: value needs a price per hour, a throughput and a quality."
    elif len(rows) < len(group.ok):
        left = listed([group.named(r) for r in group.ok if r not in rows])
        answer += f" Not counted, as their loss is not known to be within the budget: {left}."
    return Question(
        "Value",
        "How much useful work does a dollar buy?",
        answer,
        unit,
        _bars(group, rows, measure),
    )


def _answer(group: Group, rows: Sequence[Row], measure: Measure) -> str:
    """The outcome, with the winner's quality verdict: cheap and wrong is no bargain."""
    winner = rank(rows, measure).winner
    verdict = winner["verdict"] if winner else None
    notes = {
        "within": " Its quality loss is within the budget.",
        "outside": " But its quality loss is outside the budget.",
        "cannot-tell": " Whether its quality loss is within the budget can't be told yet.",
    }
    return outcome(group, rows, measure) + notes.get(verdict or "", "")


def _bars(
    group: Group, rows: Sequence[Row], measure: Measure, ranked: bool = True
) -> tuple[Bar, ...]:
    """No bar where values must not be ranked: a length would rank them."""
    values = [r[measure.column] for r in rows if r[measure.column] is not None]
    top = max(values, default=0)
    winner = rank(rows, measure).winner if ranked else None
    bars = []
    for row in rows:
        value = row[measure.column]
        mark = " est." if measure is EFFICIENCY and is_estimated(row) and value is not None else ""
        percent = round(100 * value / top, 1) if ranked and value is not None and top > 0 else None
        tag = measure.superlative if row is winner else ""
        bars.append(Bar(group.named(row), measure.show(value) + mark, percent, tag))
    return tuple(bars)
