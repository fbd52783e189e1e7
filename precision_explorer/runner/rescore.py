"""Metrics again from a run's stored answers: no model, no torch. What was measured stays as it is;
further scores are stored beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer import __version__
from precision_explorer.errors import PrecisionExplorerError, StoreError, UsageError, unknown_name
from precision_explorer.records import NOT_SCORED, AddedScore, CellRecord, metric_info
from precision_explorer.runner.answers import has_pairs
from precision_explorer.runner.manager import OnEvent
from precision_explorer.runner.scoring import CellToScore, add_scores, score_cells
from precision_explorer.stats import cluster_labels, draws_of, group_sums, resample_counts
from precision_explorer.store import RunFolder, read_run
from precision_explorer.table.quality import DRAWS
from precision_explorer.tasks import (
    KINDS,
    ExternalMetric,
    GenerationRules,
    answer_columns,
    check_allowed,
    external_metric,
    has_terms,
    is_external,
    is_harness_metric,
    scores,
    sufficient,
)

Columns = dict[str, list[Any]]
_UNTOLD = "no mean of its documents' scores, so it stands as lm-evaluation-harness computed it"
# Sums differ in their last digits between machines and versions of numpy.
_SAME = 1e-9


@dataclass(frozen=True)
class Rescored:
    """One metric of one cell. `stored` is None for one that the cell did not have; `value` None
    where it could not be computed, `problem` says why; `untold` where no rows were to tell it."""

    record: CellRecord
    metric: str
    stored: float | None
    value: float | None
    problem: str | None = None
    untold: bool = False

    @property
    def differs(self) -> bool:
        """Whether the stored score is not the one that its answers give."""
        if self.stored is None or self.value is None:
            return False
        return not math.isclose(self.stored, self.value, rel_tol=_SAME, abs_tol=_SAME)


def rescore(
    path: Path,
    metrics: tuple[str, ...],
    higher_is_better: bool | None,
    allowed: tuple[str, ...],
    on_event: OnEvent,
) -> list[Rescored]:
    """Every built-in metric that the run's cells were scored by, computed again; and `metrics`,
    which are stored: built-in ones for the tasks that they fit, those of `evaluate` with
    `higher_is_better`.

    UsageError for a metric that fits no cell, StoreError where `path` is no run; a cell that can't
    be read is answered with its problem. The folder's lock is held.
    """
    folder, sweep = read_run(path)
    records = _finished(folder, sweep)
    external = [external_metric(m, Path.cwd()) for m in metrics if is_external(m)]
    check_allowed(external, allowed)
    own = tuple(dict.fromkeys(m for m in metrics if not is_external(m)))
    _check_fit(own, records)
    paired = _with_pairs(folder, records) if external else []
    folder.open()
    try:
        found = [one for record in records for one in _own(folder, record, own)]
        found += _external(folder, paired, external, higher_is_better, on_event)
        folder.write_manifest()
    finally:
        folder.close()
    return found


def _finished(folder: RunFolder, sweep: dict[str, Any]) -> list[CellRecord]:
    known = [folder.read_record(cell["cell_id"]) for cell in sweep["plan"]["cells"]]
    records = [r for r in known if r is not None and r.status == "ok"]
    found = [r for r in records if r.measurements.quality]
    if records and all(r.cell.model.is_synthetic for r in records):
        raise UsageError(
            f"{folder.path} holds models with random weights alone ({NOT_SCORED}): there is "
            "nothing to compute scores from"
        )
    if not found:
        raise StoreError(f"{folder.path} holds no scored cell; run the sweep again")
    return found


def _check_fit(own: tuple[str, ...], records: list[CellRecord]) -> None:
    kinds = dict.fromkeys(record.cell.task.kind for record in records)
    known = dict.fromkeys(metric for kind in kinds for metric in KINDS[kind].metrics)
    for metric in own:
        if metric not in known:
            text = unknown_name(f"metric of {', '.join(kinds)}", metric, known)
            raise UsageError(f"{text}; or give evaluate: and a path")


def _own(folder: RunFolder, record: CellRecord, more: tuple[str, ...]) -> list[Rescored]:
    """The cell's own metrics and those of `more` that fit its kind, which are stored."""
    kind, quality = record.cell.task.kind, record.measurements.quality
    assert quality is not None
    wanted = list(dict.fromkeys([*quality.scores, *(m for m in more if m in KINDS[kind].metrics)]))
    try:
        columns = folder.read_samples(record.cell_id, "example", record.known_samples)
        whole = _with_answers(kind, [m for m in more if m in wanted], columns)
        rows = _rows(whole)
    except PrecisionExplorerError as error:
        return [Rescored(record, m, quality.scores.get(m), None, str(error)) for m in wanted]
    found = []
    for metric in wanted:
        stored = quality.scores.get(metric)
        if is_harness_metric(metric) and not has_terms(metric, columns):
            found.append(Rescored(record, metric, stored, None, _UNTOLD, untold=True))
            continue
        try:
            value = scores(kind, [metric], rows)[metric]
        except PrecisionExplorerError as error:
            found.append(Rescored(record, metric, stored, None, str(error)))
            continue
        found.append(Rescored(record, metric, stored, value))
    _store(folder, record, found, whole if whole is not columns else None)
    return found


def _with_answers(kind: str, metrics: list[str], columns: Columns) -> Columns:
    """`columns` with those that `metrics` of generated texts are made of, from the stored answers;
    the same where there is nothing to make. ROUGE is without the card's stemmer, and exact_match
    needs its extraction rule: neither is stored."""
    wanted = [m for m in metrics if m != "exact_match"]
    if not KINDS[kind].answers or not wanted:
        return columns
    made = answer_columns(wanted, columns["prediction"], columns["references"], GenerationRules())
    return made | columns


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    count = len(next(iter(columns.values()), []))
    return [{name: values[i] for name, values in columns.items()} for i in range(count)]


def _store(
    folder: RunFolder, record: CellRecord, found: list[Rescored], made: Columns | None
) -> None:
    """Store the scores that the cell did not have; with their values on resamples where they rest
    on columns that were `made`, which no samples hold."""
    added = {
        one.metric: AddedScore(
            value=one.value,
            by=f"precision-explorer {__version__}",
            **(_drawn(folder, one, made) if made is not None else {}),
        )
        for one in found
        if one.stored is None and one.value is not None
    }
    if added:
        add_scores(folder, record.cell_id, added)


def _drawn(folder: RunFolder, one: Rescored, columns: Columns) -> dict[str, Any]:
    """The metric's values on the resamples that the tables use and on the reference's second pass,
    and its direction."""
    metric, cell = one.metric, one.record.cell
    seed = cell.seed
    terms, finish = sufficient(metric, columns)
    repeat = folder.read_samples(one.record.cell_id, "repeat", one.record.known_samples)
    again = None
    if repeat["id"] and repeat["id"] == columns["id"]:
        second, _ = sufficient(metric, _with_answers(cell.task.kind, [metric], repeat))
        again = float(finish(second.sum(0)))
    units = group_sums(terms, cluster_labels(columns.get("group")))
    values = draws_of(units, finish, resample_counts(len(units), DRAWS, seed))
    info = metric_info(metric)
    return {
        "draws": [float(value) for value in values],
        "again": again,
        "draws_of": DRAWS,
        "seed": seed,
        "higher_is_better": info.higher_is_better if info else None,
    }


def _external(
    folder: RunFolder,
    records: list[CellRecord],
    metrics: list[ExternalMetric],
    direction: bool | None,
    on_event: OnEvent,
) -> list[Rescored]:
    if not metrics:
        return []
    before = {r.cell_id: _values(folder, r) for r in records}
    cells = [
        CellToScore(r.cell_id, r.cell.task.kind, r.cell.seed, tuple(metrics), direction)
        for r in records
    ]
    failed, whole = score_cells(folder, cells, on_event)
    found = []
    for record in records:
        now = folder.read_scores(record.cell_id)
        for metric in metrics:
            score = now.metrics.get(metric.label) if now else None
            earlier = before[record.cell_id].get(metric.label)
            stored = earlier.value if earlier else None
            if score is None or (not whole and score == earlier):
                # One that stands from before says nothing of this time.
                found.append(Rescored(record, metric.label, stored, None, "; ".join(failed)))
                continue
            found.append(Rescored(record, metric.label, stored, score.value, score.error))
    return found


def _with_pairs(folder: RunFolder, records: list[CellRecord]) -> list[CellRecord]:
    """Those whose samples hold predictions and references, and those that can't be read, which is
    said of them later; UsageError without any."""
    kept = []
    for record in records:
        try:
            fits = has_pairs(folder.read_samples(record.cell_id, "example", record.known_samples))
        except StoreError:
            fits = True
        if fits:
            kept.append(record)
    if not kept:
        kinds = ", ".join(dict.fromkeys(record.cell.task.kind for record in records))
        raise UsageError(
            f"a metric of evaluate compares predictions with references, and {kinds} stores none; "
            "give a built-in metric"
        )
    return kept


def _values(folder: RunFolder, record: CellRecord) -> dict[str, AddedScore]:
    scores_before = folder.read_scores(record.cell_id)
    return scores_before.metrics if scores_before else {}
