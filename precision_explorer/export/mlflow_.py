"""The table as runs of MLflow's tracking store: one per row."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.export.document import (
    SCHEMA_VERSION,
    TEXT_COLUMNS,
    context_document,
    finite,
    plain_rows,
)
from precision_explorer.report.markdown import escape, to_markdown
from precision_explorer.report.text import clean
from precision_explorer.table import Table

# What was set before anything was measured; all other texts of a row are tags.
PARAMS = (
    "model", "model_revision", "task", "task_version", "format", "runtime", "device", "batch_size",
    "workload", "scenario", "batching", "background", "quality_metric", "quality_budget",
    "quality_budget_unit", "search_slo", "kernel", "compute_dtype", "method_id",
    "price_per_hour_usd", "price_source", "price_kind", "price_term", "price_inputs",
    "reference_device", "grid_g_per_kwh", "power_source", "energy_boundary",
    "stack",
)  # fmt: skip
ROW_ID = "precision_explorer.row_id"
"""The tag by which a row that is there already is found again."""
# MLflow's own limits are 6,000 characters of a parameter and 8,000 of a tag, 5,000 in earlier ones.
_CHARACTERS = 5_000


@dataclass(frozen=True)
class Logged:
    """What MLflow is told of one row."""

    name: str
    ok: bool
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def logged_rows(table: Table) -> list[Logged]:
    """Every value of every row once: as a parameter, a metric (numbers) or a tag (texts), under its
    column's name. Missing values are left out."""
    context = context_document(table)
    note = "\n".join(f"- {escape(text)}" for text in context["caveats"])
    shared = {
        "mlflow.note.content": f"{escape(context['title'])}\n\n{note}",
        "precision_explorer.schema_version": str(SCHEMA_VERSION),
        "precision_explorer.run": context["run"],
        "precision_explorer.measured_on": ", ".join(context["measured_on"]),
    }
    found = []
    for row in plain_rows(table):
        known = {name: v for name, v in row.items() if finite(v) not in (None, "")}
        texts = {n for n, v in known.items() if n in TEXT_COLUMNS or isinstance(v, str)}
        digest = hashlib.sha256(json.dumps([context, row]).encode()).hexdigest()
        tags = shared | {ROW_ID: digest[:32]}
        tags |= {n: known[n] for n in known if n in texts and n not in PARAMS}
        found.append(
            Logged(
                name=clean(f"{row['format']} {row['runtime']} {row['model']} {row['task']}"),
                ok=row["status"] in ("ok", "skipped"),
                params={n: _fitting(str(known[n])) for n in PARAMS if n in known},
                metrics={n: v for n, v in known.items() if n not in texts and n not in PARAMS},
                tags={name: _fitting(text) for name, text in tags.items()},
            )
        )
    return found


def _fitting(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 3]}..."


def log_rows(table: Table, place: str | None) -> list[str]:
    """Log `table` to the SQLite file or tracking URI `place`, None for the one that
    ``MLFLOW_TRACKING_URI`` names, and say so in a line. Rows that are there already stay as they
    are. UsageError where MLflow is not installed or refuses."""
    named = place or str(os.environ.get("MLFLOW_TRACKING_URI"))
    try:
        new, there = _log_all(table, place)
    except ImportError as error:
        raise UsageError(
            f"mlflow needs a package that is missing ({error.name}); install it by: "
            "pip install 'precision-explorer[mlflow]'"
        ) from error
    except _refusals() as error:
        raise UsageError(f"MLflow refused at {named} ({str(error)[:200]}); check --out") from error
    kept = f", {there} were there already" if there else ""
    return [f"{named}: {new} runs in the experiment {clean(table.context.run)}{kept}"]


def _refusals() -> tuple[type[Exception], ...]:
    """How MLflow, and the database below it, refuse; asked for only once they are imported."""
    from mlflow.exceptions import MlflowException

    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        return (MlflowException,)
    return MlflowException, SQLAlchemyError


def _log_all(table: Table, place: str | None) -> tuple[int, int]:
    """(how many rows were logged, how many were there already)."""
    client = _client(None if place is None else _uri(place))
    context = json.dumps(context_document(table), indent=1, ensure_ascii=False)
    artifacts = {"tradeoffs.md": to_markdown(table), "context.json": context}
    experiment = _experiment(client, clean(table.context.run), place)
    there = 0
    for logged in logged_rows(table):
        if client.search_runs([experiment], f"tags.`{ROW_ID}` = '{logged.tags[ROW_ID]}'"):
            there += 1
        else:
            _log(client, experiment, logged, artifacts)
    return len(table.rows) - there, there


def _uri(place: str) -> str:
    if "://" in place:
        return place
    path = Path(place).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{path}"


def _client(uri: str | None) -> Any:
    """MLflow's client of a store."""
    # Sending usage figures elsewhere is nothing that an export was asked for.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    # After the import, which sets levels of its own.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, name: str, place: str | None) -> str:
    """The id of the experiment `name`, made where it is missing; of a SQLite file the artifacts lie
    beside it, wherever the program was called."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    own = place is not None and "://" not in place
    beside = Path(f"{Path(str(place)).resolve()}.artifacts").as_uri() if own else None
    return str(client.create_experiment(name, artifact_location=beside))


def _log(client: Any, experiment: str, logged: Logged, artifacts: dict[str, str]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    run_id = client.create_run(experiment, run_name=logged.name).info.run_id
    now = int(1000 * time.time())
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now, 0) for name, value in logged.metrics.items()],
        params=[Param(name, text) for name, text in logged.params.items()],
        tags=[RunTag(name, text) for name, text in logged.tags.items()],
    )
    for name, text in artifacts.items():
        client.log_text(run_id, text, name)
    client.set_terminated(run_id, "FINISHED" if logged.ok else "FAILED")
