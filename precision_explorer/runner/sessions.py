"""Which cells share a worker, and which are measured beside each other. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import PlannedCell
from precision_explorer.records import SYNTHETIC, canonical_hash
from precision_explorer.tasks import KINDS, PreparedTask

Session = list[PlannedCell]


def sessions(cells: Sequence[PlannedCell]) -> list[Session]:
    """Cells that can share a loaded model: the same model, head, format, recipe and runtime. A
    calibrated recipe is that of one task, whose card says how its texts become tokens. Compiled
    cells share none: what the first compiled would be missing in the second's seconds. Nor do those
    whose kind needs libraries of its own, which would count as memory of the other's."""
    found: dict[tuple[str, ...], Session] = {}
    for planned in cells:
        cell = planned.cell
        card = cell.task.card_hash if spec_of(cell.format).calibrates else ""
        recipe = canonical_hash(cell.recipe)
        alone = planned.cell_id if RUNTIMES[cell.runtime].compiles else ""
        # A model is spread by the longest cache of one task.
        where = planned.split and (planned.split.device_map or planned.split.devices)
        spread = "" if where is None else canonical_hash(where)
        key = (*_model(planned), cell.format, recipe, card, cell.runtime, alone, spread)
        found.setdefault(key, []).append(planned)
    return list(found.values())


def groups(cells: Sequence[PlannedCell]) -> list[list[Session]]:
    """The sessions of each model under one head: the cells of a task in them are timed in turn."""
    found: dict[tuple[str, ...], list[Session]] = {}
    for session in sessions(cells):
        found.setdefault(_model(session[0]), []).append(session)
    return list(found.values())


def tasks_of(group: Sequence[Session]) -> Iterator[PreparedTask]:
    """The tasks of a group's cells, in the order of the plan."""
    seen: list[PreparedTask] = []
    for session in group:
        for planned in session:
            if not any(planned.task is task for task in seen):
                seen.append(planned.task)
                yield planned.task


def _model(planned: PlannedCell) -> tuple[str, ...]:
    kind = KINDS[planned.task.card.kind]
    # A shape's folder may hold weights, which are another model.
    made = SYNTHETIC if planned.ref.synthetic is not None else ""
    return (f"{made}{planned.ref.path}", *kind.imports, kind.head)
