"""Scores from stored answers: the metrics of the `evaluate` library after a sweep, in one process
of their own. No torch, and the library is not imported here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer import scrub
from precision_explorer.plan import Plan
from precision_explorer.records import AddedScore, AddedScores
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import Event, OnEvent, asked_offline
from precision_explorer.store import RunFolder
from precision_explorer.tasks import ExternalMetric

# Of the whole process: many cells, each with a thousand resamples of at most 20 s per metric.
_TIME_LIMIT_S = 7200.0


@dataclass(frozen=True)
class CellToScore:
    """A finished cell, and what is to be computed from its answers; `direction` is the card's
    ``higher_is_better``."""

    cell_id: str
    kind: str
    seed: int
    metrics: tuple[ExternalMetric, ...]
    direction: bool | None


def cells_to_score(folder: RunFolder, plan: Plan) -> list[CellToScore]:
    """The finished cells of `plan` whose cards name metrics of `evaluate` that have no score yet,
    or one of another module."""
    found = []
    for planned in plan.to_run:
        record = folder.read_record(planned.cell_id) if planned.task.external else None
        if record is None or record.status != "ok" or not planned.has_quality:
            continue
        card, seed = planned.task.card, planned.cell.seed
        scores = folder.read_scores(planned.cell_id)
        missing = tuple(m for m in planned.task.external if not _is_there(scores, m))
        if missing:
            direction = card.higher_is_better
            found.append(CellToScore(planned.cell_id, card.kind, seed, missing, direction))
    return found


def _is_there(scores: AddedScores | None, metric: ExternalMetric) -> bool:
    found = scores.metrics.get(metric.label) if scores else None
    if found is None or found.value is None:
        return False
    return metric.hash is None or metric.hash == found.module


def score_cells(
    folder: RunFolder, cells: Sequence[CellToScore], on_event: OnEvent
) -> tuple[list[str], bool]:
    """Compute and store the scores of `cells`; returns what went wrong, one line each, said once,
    and whether all cells were reached. What can't be computed is stored as such, so that the
    tables can say why it is missing."""
    if not cells:
        return [], True
    wanted = _distinct((metric, cell.direction) for cell in cells for metric in cell.metrics)
    labels = ", ".join(dict.fromkeys(metric.label for metric, _ in wanted))
    on_event(Event("note", {"text": f"computing {labels} from the stored answers"}))
    request = _request(folder, cells, wanted)
    try:
        keep = scrub.PROXIES if fetches(request) else ()
        answer, _ = run_job("evaluate", request, 1, on_event, _TIME_LIMIT_S, keep)
    except JobFailed as error:
        return [f"{labels} could not be computed for every cell: {error}"], False
    errors = [s["error"] for scores in answer["cells"].values() for s in scores.values()]
    return list(dict.fromkeys(error for error in errors if error is not None)), True


def fetches(request: dict[str, Any]) -> bool:
    """Whether a request of the job ``evaluate`` may fetch: it has a metric that is not local."""
    return bool(request["online"]) and any(not m["local"] for m in request["metrics"])


def add_scores(folder: RunFolder, cell_id: str, scores: dict[str, AddedScore]) -> None:
    """Store `scores` beside those that the cell has; its record stays as it is."""
    before = folder.read_scores(cell_id)
    metrics = (before.metrics if before else {}) | scores
    samples = folder.samples_hash(cell_id)
    folder.write_scores(cell_id, AddedScores(samples=samples, metrics=metrics))


def _distinct(
    metrics: Iterable[tuple[ExternalMetric, bool | None]],
) -> list[tuple[ExternalMetric, bool | None]]:
    return list(dict.fromkeys(metrics))


def _request(
    folder: RunFolder,
    cells: Sequence[CellToScore],
    wanted: list[tuple[ExternalMetric, bool | None]],
) -> dict[str, Any]:
    metrics = [
        {
            "label": metric.label,
            "source": metric.source,
            "local": metric.local,
            "key": metric.key,
            "module": metric.hash,
            "direction": direction,
        }
        for metric, direction in wanted
    ]
    return {
        "device": None,
        "run": str(folder.path.absolute()),
        "metrics": metrics,
        "cells": [
            {
                "cell_id": cell.cell_id,
                "kind": cell.kind,
                "seed": cell.seed,
                "metrics": [wanted.index((metric, cell.direction)) for metric in cell.metrics],
            }
            for cell in cells
        ],
        "online": not asked_offline(),
    }
