"""The direct answer above all numbers: one line per question, each for the formats that hold the
table's limits. Cost, efficiency and value stay three questions."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.decision import Decision, Question, decide
from precision_explorer.decision.candidates import asked_of, of_group
from precision_explorer.report.groups import Group
from precision_explorer.report.headline import headline
from precision_explorer.report.ranking import (
    COST,
    EFFICIENCY,
    LARGEST_RATE,
    LATENCY,
    NET,
    RESULTS,
    Measure,
)
from precision_explorer.report.text import clean
from precision_explorer.table import Table
from precision_explorer.table.groups import at_own_rates, is_synthetic
from precision_explorer.table.limits import Limits, limits_of


@dataclass(frozen=True)
class Answer:
    """`question`: ``cost``, ``efficiency``, ``value``, ``latency``, ``net`` or
    ``rate``; `text` names a
    format, or says that none qualifies or that it can't be told."""

    question: str
    topic: str
    text: str


_ASKED = (
    ("cost", "Lowest cost", "cost", COST),
    ("efficiency", "Most efficient", "energy", EFFICIENCY),
    ("value", "Most value", "value", RESULTS),
    ("latency", "Lowest latency", "latency", LATENCY),
)
_NET = ("net", "Most net dollars", "net", NET)
_SEARCHED = ("rate", "Largest rate", "rate", LARGEST_RATE)


def answers(table: Table, group: Group) -> list[Answer]:
    """The answers for a group; none for a table without samples, which can't say how sure."""
    if not group.ok or not table.samples:
        return []
    limits = limits_of(table.context)
    asked = [*_ASKED]
    if group.is_synthetic:
        # A result of random weights is worth nothing.
        asked = [one for one in asked if one[0] != "value"]
    if at_own_rates(group.ok):
        # Latencies at different rates rank nothing.
        asked = [one for one in asked if one[0] != "latency"]
    if any(row["net_usd_per_1k_requests"] is not None for row in group.ok):
        asked.append(_NET)
    if any(row["search_slo"] is not None for row in group.ok):
        asked.append(_SEARCHED)
    return [
        Answer(question, topic, _text(table, group, objective, measure, limits))
        for question, topic, objective, measure in asked
    ]


def limits_line(table: Table) -> str:
    """What the formats that are named hold."""
    synthetic = {is_synthetic(row) for row in table.rows}
    words = "; ".join(limits_of(table.context, scored=(False in synthetic)).words)
    line = f"Of the formats known to hold: {words}." if words else "Of all formats."
    if True not in synthetic:
        return line
    whose = "models with synthetic weights" if False in synthetic else "synthetic weights"
    return f"{line} Of {whose} quality is not measured, so it limits nothing."


def _text(table: Table, group: Group, objective: str, measure: Measure, limits: Limits) -> str:
    question = asked_of(table, group, Question(objective, limits))
    decision = decide(group, question, of_group(table, group, question))
    # Notes in the samples are as they were stored.
    return clean(headline(decision, short=True)) + _beside(decision, group, measure)


def _beside(decision: Decision, group: Group, measure: Measure) -> str:
    """The reference's figure and the ratio to it."""
    chosen = decision.chosen
    if chosen is None:
        return ""
    row = next(r for r in group.ok if group.named(r) == chosen.name)
    reference = group.reference_of(row)
    base = reference[measure.column] if reference is not None else None
    if reference is None or reference is row or not base or not row[measure.column]:
        return ""
    ratio = measure.ratio(row[measure.column], base)
    return f" Against {measure.show(base)} for {group.named(reference)}, the reference: {ratio}."
