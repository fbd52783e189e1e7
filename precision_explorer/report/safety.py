"""Which format is safe for which task: the verdicts of one model's tasks side by side, as a table
and as a heat-map."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from precision_explorer.report.columns import Cell, View, change, change_text, verdict_cell
from precision_explorer.report.findings import all_tasks
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.heat import HeatCell, HeatRow
from precision_explorer.report.text import listed
from precision_explorer.units import MISSING, share, significant

# Ends of the colours, in losses as multiples of the quality budget, worst first: 1 is the budget
# itself, 0.1 of it either way is as good as none.
STEPS = (4.0, 2.0, 1.0, 0.5, 0.1, -0.1, -1.0)
KEY = (
    ("c0", "loss of more than 4 budgets"),
    ("c1", "2 to 4"),
    ("c2", "1 to 2"),
    ("c3", "0.5 to 1"),
    ("c4", "0.1 to 0.5"),
    ("c5", "about none"),
    ("c6", "gain of 0.1 to 1"),
    ("c7", "gain of more than 1"),
    ("none", "reference, or not known"),
    ("unsure", "hatched, without a colour and with a ?: cannot tell yet"),
)
# Before the text of a loss that is not sure.
UNSURE = "?"


@dataclass(frozen=True)
class Safety:
    """One model on one device. `tasks` head the heat-map's columns, `rows` are its formats; `view`
    says the same without colours, and `lines` in sentences."""

    title: str
    tasks: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    view: View
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Grid:
    """Groups by the heading of their task, and in each the rows by label."""

    columns: dict[str, Group]
    rows: dict[str, dict[str, Row]]

    @property
    def labels(self) -> list[str]:
        """The formats of all tasks in order of appearance."""
        return list(dict.fromkeys(label for rows in self.rows.values() for label in rows))

    def cells(self, label: str) -> list[tuple[str, Group, Row | None]]:
        """(task, group, row) of one format."""
        return [(t, g, self.rows[t].get(label)) for t, g in self.columns.items()]


def safeties(groups: list[Group]) -> list[Safety]:
    """One for each model and device with more than one task and a result on any; none for others.
    A task without a result of any format is a column all the same: nothing is safe for it."""
    found: dict[tuple[str, ...], list[Group]] = {}
    for group in (one for joined in groups for one in joined.per_device):
        if group.is_synthetic:
            continue  # Nothing is known to be safe of random weights.
        row = group.rows[0]
        key = (row["model"], str(row["model_revision"]), row["device"])
        found.setdefault(key, []).append(group)
    kept = {key: _columns_of(members) for key, members in found.items()}
    several = {
        key: members
        for key, members in kept.items()
        if len({g.rows[0]["task"] for g in members}) > 1 and any(g.ok for g in members)
    }
    models = Counter(model for model, _, _ in several)
    return [
        _safety(model if models[model] == 1 else f"{model} on {device}", members)
        for (model, _, device), members in several.items()
    ]


def _columns_of(members: list[Group]) -> list[Group]:
    """`members` less those without a result whose task has one by another method."""
    answered = {g.rows[0]["task"] for g in members if g.ok}
    return [g for g in members if g.ok or g.rows[0]["task"] not in answered]


def _safety(title: str, members: list[Group]) -> Safety:
    grid = _grid(members)
    words = {label: _words(grid.cells(label)) for label in grid.labels}
    return Safety(
        title=f"{title}: which format is safe for which task",
        tasks=tuple(grid.columns),
        rows=tuple(
            HeatRow("", 0, label, tuple(_heat_cell(*cell) for cell in grid.cells(label)))
            for label in grid.labels
        ),
        view=_view(grid, words),
        lines=(*_lines(grid, words), *_front_line(members)),
    )


def _front_line(members: list[Group]) -> list[str]:
    return list(dict.fromkeys(text for group in members if (text := all_tasks(group))))[:1]


def _grid(members: list[Group]) -> _Grid:
    tasks = Counter(group.rows[0]["task"] for group in members)
    columns = {}
    for group in members:
        row = group.rows[0]
        twice = tasks[row["task"]] > 1
        columns[f"{row['task']} ({row['method_id']})" if twice else str(row["task"])] = group
    rows = {t: {g.named(r): r for r in g.ok} for t, g in columns.items()}
    return _Grid(columns, rows)


def _view(grid: _Grid, words: dict[str, str]) -> View:
    rows = []
    for label in grid.labels:
        cells = [_cell(group, row) for _, group, row in grid.cells(label)]
        rows.append((Cell(label), *cells, Cell(words[label], _tone(words[label]))))
    return View(
        "Verdict and change against the reference",
        ("Format", *grid.columns, "Safe?"),
        tuple(rows),
        (False, *(False for _ in grid.columns), False),
    )


def _cell(group: Group, row: Row | None) -> Cell:
    if row is None:
        return Cell("no result")
    verdict = verdict_cell(group, row)
    moved = change_text(group, change(group, row))
    text = verdict.text if moved == MISSING else f"{verdict.text}, {moved}"
    return Cell(f"{UNSURE} {text}" if _is_unsure(row) else text, verdict.tone)


def _is_unsure(row: Row) -> bool:
    return bool(row["verdict"] == "cannot-tell")


def _words(cells: list[tuple[str, Group, Row | None]]) -> str:
    """What a format is safe for, in words; ``reference`` for that itself."""
    known = [(task, group, row) for task, group, row in cells if row is not None]
    if all(group.is_reference(row) for _, group, row in known):
        return "reference"
    by: dict[str, list[str]] = {}
    for task, _, row in cells:
        by.setdefault(str(row["verdict"]) if row is not None else "None", []).append(task)
    if set(by) == {"within"}:
        return "safe for all"
    starts = (("outside", "not for"), ("cannot-tell", "can't tell for"), ("None", "not known for"))
    return "; ".join(
        f"{start}: {', '.join(by[verdict])}" for verdict, start in starts if verdict in by
    )


def _tone(words: str) -> str:
    if words.startswith("not for"):
        return "bad"
    return {"safe for all": "good", "reference": ""}.get(words, "unsure")


def _lines(grid: _Grid, words: dict[str, str]) -> list[str]:
    """The same format by format, those that are safe for all together."""
    count = len(grid.columns)
    safe = [label for label, text in words.items() if text == "safe for all"]
    if set(words.values()) == {"reference"}:
        return ["Only the reference has results, so nothing is known of any format."]
    lines = [
        f"Within the quality budget on all {count} tasks: {listed(safe)}."
        if safe
        else f"No format is known to be within the quality budget on all {count} tasks."
    ]
    return lines + [
        f"{label}: {text}."
        for label, text in words.items()
        if text not in ("safe for all", "reference")
    ]


def loss_in_budgets(group: Group, row: Row) -> float | None:
    """The loss against the reference as a multiple of the quality budget, negative for a gain; None
    where it, or which end of the metric is better, is not known."""
    moved, budget = change(group, row), row["quality_budget"]
    known = group.task is None or group.task.higher_is_better is not None
    if moved is None or not budget or not known:
        return None
    return (-moved if group.higher_is_better else moved) / float(budget)


def _heat_cell(task: str, group: Group, row: Row | None) -> HeatCell:
    if row is None:
        return HeatCell("none", "no result", f"{task}: no result")
    text = _cell(group, row).text
    loss = loss_in_budgets(group, row)
    if loss is None:
        return HeatCell("none", text, f"{group.named(row)} on {task}: {text}")
    # The colour of a loss that is not sure would read as a verdict.
    css = "none unsure" if _is_unsure(row) else f"c{sum(loss <= step for step in STEPS)}"
    return HeatCell(css, text, f"{group.named(row)} on {task}: {_in_full(group, row, loss)}")


def _in_full(group: Group, row: Row, loss: float) -> str:
    kind = "a loss" if loss >= 0 else "a gain"
    parts = [
        f"{row['verdict'] or 'no verdict'}, {change_text(group, change(group, row))}",
        f"{kind} of {significant(abs(loss), 2)} of the budget of {share(row['quality_budget'])}",
    ]
    if row["p_value"] is not None:
        parts.append(f"p {significant(row['p_value'], 2)}")
    if row.get("p_value_holm") is not None:
        parts.append(f"p {significant(row['p_value_holm'], 2)} after Holm's correction")
    return "; ".join(parts)
