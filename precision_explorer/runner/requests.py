"""What a worker is asked with: a cell's model, and its task. No torch."""

from __future__ import annotations

from typing import Any

from precision_explorer.formats.catalog import spec_of
from precision_explorer.hardware import DeviceFacts
from precision_explorer.plan import PlannedCell, SweepSpec

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def load_request(
    planned: PlannedCell, spec: SweepSpec, facts: DeviceFacts, log: str
) -> dict[str, Any]:
    """Load the cell's model in its format. `log`: the file of the worker's output."""
    cell = planned.cell
    return {
        "op": "load",
        "path": str(planned.ref.path),
        "kind": planned.task.card.kind,
        "format": cell.format,
        "runtime": cell.runtime,
        "recipe": cell.recipe,
        "calibration": _calibration(planned, log),
        "execution": planned.support.execution,
        "reason": planned.support.reason,
        "device": cell.device,
        "facts": facts.model_dump(mode="json"),
        "threads": cell.threads,
        "seed": cell.seed,
        "trust_remote_code": cell.trust_remote_code,
        "load_bytes": planned.ref.load_bytes(
            _BYTES[cell.recipe["compute_dtype"]], cell.recipe.get("widened", False)
        ),
        "memory_limit": spec.memory_limit if facts.kind == "cpu" else None,
        "log": log,
    }


def task_request(planned: PlannedCell, log: str) -> dict[str, Any]:
    """Make the cell's task; what it is asked to do with it stands beside."""
    cell = planned.cell
    return {
        "card": planned.task.card.asked(),
        "examples": planned.task.examples,
        "corpus": planned.task.corpus,
        "label_ids": planned.label_ids,
        "workload": cell.workload,
        "batch_plan": cell.batch_plan,
        "batch_sizes": list(cell.batch_sizes),
        "log": log,
    }


def _calibration(planned: PlannedCell, log: str) -> dict[str, Any] | None:
    """The task with its calibration examples for test examples; None for other formats."""
    found = planned.task.calibration
    if found is None or not spec_of(planned.cell.format).calibrates:
        return None
    # The corpus is test data.
    return task_request(planned, log) | {"examples": found.examples, "corpus": []}
