"""Which metric a row's quality is counted in: the task's first, or the one that a reader asks for;
and where its score stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.records import AddedScores, CellRecord, metric_info
from precision_explorer.store import RunFolder
from precision_explorer.table.computed import Computed
from precision_explorer.table.quality import Quality
from precision_explorer.tasks import KINDS, external_label, is_external, is_harness_metric

Columns = Mapping[str, Sequence[Any]]


def known_label(wanted: str | None) -> str | None:
    """A reader's metric as files call it; UsageError for what can't be one."""
    try:
        return external_label(wanted) if wanted is not None and is_external(wanted) else wanted
    except ValueError as error:
        raise UsageError(str(error)) from error


def headline(sweep: dict[str, Any], record: CellRecord, wanted: str | None) -> str | None:
    """The metric of a row's quality; None for the one that the record was measured by. `wanted`, a
    reader's, counts where it fits the task's kind."""
    task = record.cell.task
    if wanted is not None and (is_external(wanted) or wanted in _fitting(record)):
        return wanted
    named = [t["metric"] for t in sweep["tasks"] if t["name"] == task.name]
    return named[0] if named and is_external(named[0]) else None


def _fitting(record: CellRecord) -> tuple[str, ...]:
    """The metrics of the record's kind; of a task of lm-evaluation-harness, which declares its own,
    those scored whose better end is known."""
    kind, measured = record.cell.task.kind, record.measurements.quality
    known = KINDS[kind].metrics if kind in KINDS else ()
    scored = [m for m in measured.scores if is_harness_metric(m)] if measured else []
    own = measured.metric if measured else None
    return (*known, *(m for m in scored if m == own or metric_info(m) is not None))


def check_metric(wanted: str | None, cells: list[tuple[RunFolder, CellRecord]]) -> None:
    """UsageError where no row could be counted in the metric that a reader asks for."""
    if wanted is None:
        return
    if is_external(wanted):
        added = [folder.read_scores(record.cell_id) for folder, record in cells]
        if not any(scores and wanted in scores.metrics for scores in added):
            raise UsageError(
                f"no cell holds a score of {wanted}; compute it by: precision-explorer rescore RUN "
                f"--metric {wanted}, or with the path of its module"
            )
        return
    kinds = dict.fromkeys(record.cell.task.kind for _, record in cells)
    known = list(dict.fromkeys(metric for _, record in cells for metric in _fitting(record)))
    if wanted not in known:
        raise UsageError(unknown_name(f"metric of {', '.join(kinds)}", wanted, known))


def quality_of(
    metric: str, columns: Columns, added: AddedScores | None, higher_is_better: bool | None = None
) -> tuple[Quality | Computed | None, str | None]:
    """(quality, None), or (None, why there is none) for a metric of `evaluate` without a score.
    `higher_is_better`: of a metric that the registry does not know."""
    score = added.metrics.get(metric) if added else None
    if not is_external(metric) and not (score and score.draws):
        return Quality.of(metric, columns, higher_is_better), None
    if score is not None and score.value is not None:
        return Computed(metric, columns, score), None
    if score is not None and score.error:
        return None, score.error
    return None, (
        f"no score of {metric} is stored; run the sweep again, or precision-explorer rescore RUN "
        "--metric with its path"
    )


def scores_text(measured: Mapping[str, float], added: AddedScores | None) -> str:
    """Every score of a cell as ``metric=value``, joined by ``;``: as measured, then those added."""
    later = added.metrics if added else {}
    found = dict(measured) | {n: s.value for n, s in later.items() if n not in measured}
    return ";".join(f"{name}={value!r}" for name, value in found.items() if value is not None)
