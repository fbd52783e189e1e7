"""Scores over groups of tasks, as a table."""

from __future__ import annotations

from precision_explorer.records import metric_info
from precision_explorer.report.columns import Cell, View
from precision_explorer.table import Aggregate, Table
from precision_explorer.units import MISSING, points, share, signed, significant

_HEADINGS = ("Group", "Metric", "Format", "Score", "Change against the reference [95% CI]", "Over")


def group_scores(table: Table) -> list[View]:
    """A table for each model and device; none where no group of tasks was asked for."""
    found: dict[tuple[str, str, str], list[Aggregate]] = {}
    for made in table.aggregates:
        found.setdefault((made.model, made.model_revision, made.device), []).append(made)
    models = [model for model, _, _ in found]
    return [
        View(
            f"{model if models.count(model) == 1 else f'{model} on {device}'}: groups of tasks",
            _HEADINGS,
            tuple(map(_row, rows)),
            (False, False, False, True, True, False),
        )
        for (model, _, device), rows in found.items()
    ]


def _row(made: Aggregate) -> tuple[Cell, ...]:
    runtime = "" if made.runtime == "eager" else f" ({made.runtime})"
    info = metric_info(made.metric)
    is_share = info is not None and info.is_share
    weighted = "weighted by size" if made.by_size else "each task alike"
    return (
        Cell(made.group),
        Cell(made.metric),
        Cell(f"{made.format}{runtime}"),
        Cell(share(made.value) if is_share else significant(made.value)),
        Cell(_change(made, is_share)),
        Cell(f"{made.tasks:,} tasks, {made.examples:,} examples, {weighted}"),
    )


def _change(made: Aggregate, is_share: bool) -> str:
    if made.delta is None:
        return "reference" if made.is_reference else MISSING

    def text(value: float) -> str:
        return points(value) if is_share else signed(value, significant(value))

    if made.low is None or made.high is None:
        return text(made.delta)
    ends = ", ".join(text(value).removesuffix(" pp") for value in (made.low, made.high))
    return f"{text(made.delta)} [{ends}]"
