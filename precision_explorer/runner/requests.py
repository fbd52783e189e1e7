"""What a worker is asked with: a cell's model, and its task. No torch."""

from __future__ import annotations

from typing import Any

from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.footprint import COMPUTE_BYTES
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models.shapes import Synthetic
from precision_explorer.plan import PlannedCell, SweepSpec
from precision_explorer.plan.served import Served


def load_bytes(planned: PlannedCell) -> int:
    """Bytes that the weights take while they are loaded."""
    if planned.served is not None:
        return 0  # They are the server's.
    recipe = planned.cell.recipe
    return planned.ref.load_bytes(
        COMPUTE_BYTES[recipe["compute_dtype"]], recipe.get("widened", False)
    )


def load_request(
    planned: PlannedCell, spec: SweepSpec, facts: DeviceFacts, log: str
) -> dict[str, Any]:
    """Load the cell's model in its format. `log`: the file of the worker's output."""
    cell = planned.cell
    if planned.served is not None:
        return _endpoint_request(planned, planned.served, log)
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
        **_several(planned, facts),
        "threads": cell.threads,
        "seed": cell.seed,
        "trust_remote_code": cell.trust_remote_code,
        "pickled": planned.ref.pickled,
        "load_bytes": load_bytes(planned),
        "synthetic": _synthetic(planned.ref.synthetic),
        "memory_limit": spec.memory_limit if facts.kind == "cpu" else None,
        "log": log,
    }


def _several(planned: PlannedCell, facts: DeviceFacts) -> dict[str, Any]:
    """Of a model that is spread over several devices: those beside the first, what each is to hold
    in bytes, and each module's place among them, None where it is split by tensors."""
    split = planned.split
    if split is None:
        return {}
    used = facts.over(split.devices)
    return {
        "beside": [one.model_dump(mode="json") for one in used.beside],
        "device_map": split.device_map,
        "device_bytes": list(split.bytes_by_device),
        "by_tensors": split.by_tensors,
    }


def _synthetic(made: Synthetic | None) -> dict[str, Any] | None:
    """What random weights are made with; None for weights of the model's own."""
    return None if made is None else {"seed": made.seed, "tokenizer": str(made.tokenizer)}


def _endpoint_request(planned: PlannedCell, served: Served, log: str) -> dict[str, Any]:
    """Ask the cell's server. Its address and the key go to the worker and are written nowhere; the
    worker's environment has no keys."""
    from precision_explorer.endpoint.client import api_key

    can, tokenizer = served.capabilities, served.tokenizer
    return {
        "op": "load",
        "runtime": planned.cell.runtime,
        "format": planned.cell.format,
        "reason": planned.support.reason,
        "url": served.address.url,
        "key": api_key(),
        "model": served.model,
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "capabilities": None if can is None or served.remembered else can.document(),
        "recipe": planned.cell.recipe if served.remembered else None,
        "seed": planned.cell.seed,
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
