"""How many weights a model has and in what layers, counted before any is loaded. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from precision_explorer.errors import ModelError
from precision_explorer.formats.architectures import decoder_sizes
from precision_explorer.formats.catalog import AS_SHIPPED, spec_of
from precision_explorer.formats.footprint import (
    LayerSizes,
    layer_sizes,
    usual_recipe,
    weight_bytes,
)
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.models.splitting import Block, TensorPlan
from precision_explorer.plan import Plan, PlannedCell
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.tasks import KINDS

# A model without weights is built in a second or two.
_TIME_LIMIT_S = 300.0


def counted(
    refs: Sequence[ModelRef],
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> list[ModelRef]:
    """`refs` with the number of weights and the layers' sizes of those that are shapes alone or
    pickled, whose files don't say: by arithmetic where the architecture is known, else a worker
    builds each with the head of the task `kind`, without weights. ModelError where the config makes
    no model."""

    def count(ref: ModelRef) -> ModelRef:
        if ref.synthetic is None and not ref.pickled:
            return ref
        sizes = _by_arithmetic(ref, kind, trust_remote_code)
        if sizes is not None:
            return replace(ref, elements=sizes.elements, sizes=sizes)
        try:
            sizes = _sizes(ref, kind, facts, threads, trust_remote_code, on_event)
        except JobFailed as error:
            raise ModelError(f"{ref.name}: its config.json makes no model ({error})") from error
        return replace(ref, elements=sizes.elements, sizes=sizes)

    return [count(ref) for ref in refs]


def sizes_of(
    ref: ModelRef,
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> LayerSizes | None:
    """The layers' sizes of a model with the head of the task `kind`, by its config; None where
    that tells nothing of what is stored (a checkpoint that comes quantized) or makes no model."""
    if ref.sizes is not None or ref.scheme is not None:
        return ref.sizes
    known = _by_arithmetic(ref, kind, trust_remote_code)
    if known is not None:
        return known
    with contextlib.suppress(JobFailed):
        return _sizes(ref, kind, facts, threads, trust_remote_code, on_event)
    return None


def footprints(
    plan: Plan, facts: DeviceFacts, first: str, on_event: OnEvent
) -> dict[str, int | None]:
    """{cell id: bytes that its weights will take}; None where that can't be said. Of a format that
    this device does not run, as it would be held elsewhere, the rest of the model in bfloat16.
    `first`: the kind of the first task, with whose head models were counted."""
    found: dict[str, int | None] = {}
    known: dict[str, LayerSizes | None] = {}
    for planned in plan.cells:
        cell, ref = planned.cell, planned.ref
        if planned.served is not None or spec_of(cell.format).storage == AS_SHIPPED:
            found[planned.cell_id] = None
            continue
        kind = planned.task.card.kind
        key = f"{ref.path} {kind}"
        if key not in known:
            # What was counted already has the first task's head.
            own = ref if kind == first else replace(ref, sizes=None)
            known[key] = sizes_of(own, kind, facts, cell.threads, cell.trust_remote_code, on_event)
        sizes = known[key]
        recipe = cell.recipe if "compute_dtype" in cell.recipe else usual_recipe(cell.format)
        found[planned.cell_id] = (
            None if sizes is None else weight_bytes(cell.format, recipe, sizes, facts.cpu_flags)
        )
    return found


def blocks_of(
    ref: ModelRef,
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> tuple[Block, ...] | None:
    """What stays on one device each where the model is spread over several, as a worker finds that
    builds it without weights; None where it can't be cut, or not be built so, which is said."""
    request = _built(ref, kind, facts, trust_remote_code)
    try:
        answer, _ = run_job("blocks", request, threads, on_event, _TIME_LIMIT_S)
    except JobFailed as error:
        text = f"{ref.name} can't be built without weights, and so not be spread ({error})"
        on_event(Event("note", {"text": text}))
        return None
    found = answer["blocks"]
    return None if found is None else tuple(Block(tuple(n), e, layer) for n, e, layer in found)


def tensors_of(
    ref: ModelRef,
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> TensorPlan | str:
    """What transformers' plan for splitting the model's tensors comes to, as a worker finds that
    builds it without weights; why there is none, else."""
    request = _built(ref, kind, facts, trust_remote_code)
    try:
        answer, _ = run_job("tensors", request, threads, on_event, _TIME_LIMIT_S)
    except JobFailed as error:
        return f"it can't be built without weights ({error}); use --split layers"
    if answer["why"] is not None:
        return f"{answer['why']}; use --split layers"
    return TensorPlan(answer["heads"], answer["split"], answer["whole"])


def _built(ref: ModelRef, kind: str, facts: DeviceFacts, trust_remote_code: bool) -> dict[str, Any]:
    """What a job is asked with that builds the model without weights."""
    return {
        "device": facts.device,
        "path": str(ref.path),
        "kind": kind,
        "trust_remote_code": trust_remote_code,
    }


def left_in(planned: PlannedCell) -> str | None:
    """What a cell's format leaves its other layers in; None for one that converts none."""
    return compute_type(planned) if spec_of(planned.cell.format).quantizes else None


def compute_type(planned: PlannedCell) -> str | None:
    """The number type in which a cell's activations and cache are held, the usual one where its
    device does not run the format; None where a server's or a checkpoint's is not known."""
    cell = planned.cell
    if planned.served is not None or (
        "compute_dtype" not in cell.recipe and spec_of(cell.format).storage == AS_SHIPPED
    ):
        return None
    recipe = cell.recipe if "compute_dtype" in cell.recipe else usual_recipe(cell.format)
    return str(recipe["compute_dtype"])


def _by_arithmetic(ref: ModelRef, kind: str, trust_remote_code: bool) -> LayerSizes | None:
    """None for what only a model that is built can tell: another head, code of the model's own."""
    if KINDS[kind].head != "causal-lm" or (trust_remote_code and "auto_map" in ref.config):
        return None
    return decoder_sizes(ref.config)


def _sizes(
    ref: ModelRef,
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> LayerSizes:
    request = _built(ref, kind, facts, trust_remote_code)
    answer, _ = run_job("layer-names", request, threads, on_event, _TIME_LIMIT_S)
    return layer_sizes(answer["linear"], int(answer["elements"]))
