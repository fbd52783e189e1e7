"""What all exporters start from: the table's rows as plain values, the type of each column, and the
context as one JSON document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from numbers import Integral, Real
from typing import Any

from precision_explorer.report.content import make_content
from precision_explorer.report.text import cleaned, printable
from precision_explorer.table import Table

SCHEMA_VERSION = 1
"""Of the JSON document and of what Parquet files hold as metadata: keys and columns are added,
never renamed, within a version."""

# A column's type must not depend on whether a run happens to fill it; all others are numbers.
TEXT_COLUMNS = frozenset(
    (
        "model", "task", "format", "runtime", "device", "status", "execution", "quality_metric",
        "verdict", "steady", "power_source", "pareto", "method_id", "cautions", "verdict_note",
        "kernel", "compute_dtype", "reason", "model_revision", "price_source", "stack",
        "manifest_root", "quality_budget_unit", "energy_boundary", "scores", "different",
        "kl_note", "scenario", "workload", "batching", "background", "pareto_note",
        "pareto_all_tasks", "search_slo", "search_note", "price_kind", "price_term", "audit",
        "price_inputs", "pareto_devices", "reference_device", "run", "measured_on", "limits",
        "caveats",
    )
)  # fmt: skip
INTEGER_COLUMNS = frozenset(
    (
        "batch_size", "quality_n", "flips", "latency_n", "task_version", "graph_breaks",
        "unparsed", "looks", "noise_floor_flips", "flips_to_wrong", "flips_to_right",
        "weight_bytes", "peak_memory_bytes", "latency_p90_needed_n", "latency_p99_needed_n",
        "latency_p999_needed_n", "rounds",
    )
)  # fmt: skip


def plain_rows(table: Table) -> list[dict[str, Any]]:
    """The rows with every column of the table: texts without control characters, Python's own
    numbers, None where missing."""
    return [{name: _plain(row[name]) for name in table.columns} for row in table.rows]


def _plain(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    return printable(str(value))


def finite(value: Any) -> Any:
    """`value`, or None for NaN and infinity, which JSON, Excel and MLflow's charts can't hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kind_of(name: str, values: Iterable[Any]) -> type:
    """``str``, ``int`` or ``float``: the type of the column `name`, whose `values` are plain."""
    if name in TEXT_COLUMNS or any(isinstance(value, str) for value in values):
        return str
    return int if name in INTEGER_COLUMNS else float


def context_document(table: Table) -> dict[str, Any]:
    """What must be known of `table` before any of its numbers is read: lists and objects of texts
    and numbers, None where there is none."""
    content, context = make_content(table), cleaned(table.context)
    document = asdict(context) | {
        "title": content.title,
        "limits": None if context.limits is None else context.limits.words,
        "caveats": content.caveats,
        "notes": content.notes,
        "reproduce": f"{content.reproduce} (with the options of this table)",
    }
    # Tuples become lists, so that the document is the same before and after it is written.
    return dict(json.loads(json.dumps(document)))
