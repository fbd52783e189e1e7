"""What `inspect` runs: each format beside the float32 reference, in a worker of its own each, so
that one that crashes costs one format. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.models import refuse_synthetic
from precision_explorer.paths import expand_user
from precision_explorer.plan import PlannedCell, SweepSpec
from precision_explorer.plan.spec import make_spec
from precision_explorer.records.numerics import FormatNumerics, NumericsDocument
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.sweep import Prepared, prepare_sweep, safe_name

Keep = Callable[[NumericsDocument], Any]

REFERENCE = "fp32"
# A declared choice, `--limit` takes more: a layer's errors are means over thousands of values each.
EXAMPLES = 8
# Longer inputs are cut: what a layer does to its values shows in hundreds of tokens, and one
# example's activations are held at once.
MAX_TOKENS = 512
_TIME_LIMIT_S = 3600.0


def inspection_spec(options: dict[str, Any]) -> SweepSpec:
    """The spec of an inspection from its options; UsageError unless it is of one model and task,
    and of a format beside the reference."""
    spec = make_spec({"limit": EXAMPLES} | options | {"reference": REFERENCE})
    for name, values in (("model", spec.model), ("task", spec.task)):
        if len(values) > 1:
            raise UsageError(
                f"inspect takes one {name}, not {', '.join(values)}; run it once for each"
            )
    if spec.formats == (REFERENCE,):
        raise UsageError(
            f"{REFERENCE} is what the other formats are held against; name another by --formats"
        )
    return spec


def prepare_inspection(spec: SweepSpec, on_event: OnEvent) -> Prepared:
    """Resolve and check all inputs and ask the device what it can do, as a sweep does.

    Raises UsageError where the reference can't run here.
    """
    refuse_synthetic(spec.model, "errors of a trained model's layers are other ones")
    # Its worker loads on one device.
    prepared = prepare_sweep(spec.model_copy(update={"devices": 1}), on_event, batches=False)
    shipped = prepared.refs[0].scheme
    if shipped is not None:
        raise UsageError(
            f"{prepared.refs[0].name} comes quantized ({shipped.words}), so there is no "
            f"{REFERENCE} to hold its layers against; inspect the original"
        )
    reference = prepared.supports[REFERENCE]
    if not reference.supported:
        raise UsageError(f"the reference {REFERENCE} can't run here: {reference.reason}")
    return prepared


def inspection_folder(prepared: Prepared) -> Path:
    """``--out``, or ``results/inspect-<model>-<task>-<device>``."""
    if prepared.spec.out:
        return expand_user(prepared.spec.out)
    names = (prepared.refs[0].name, prepared.tasks[0].card.name, prepared.facts.device)
    return Path("results") / "-".join(["inspect", *map(safe_name, names)])


def run_inspection(prepared: Prepared, on_event: OnEvent, keep: Keep) -> NumericsDocument:
    """Run every format that the device supports; skips and failures are part of the answer.

    `keep` is given what there is after each format, so that an interruption loses one at most.
    """
    formats: list[FormatNumerics] = []
    tokens = 0
    for planned in prepared.plan.cells:
        if planned.cell.format == REFERENCE:
            continue
        found, counted = _one(planned, prepared, on_event)
        formats.append(found)
        tokens = tokens or counted
        keep(_document(prepared, formats, tokens))
    return _document(prepared, formats, tokens)


def _document(prepared: Prepared, formats: list[FormatNumerics], tokens: int) -> NumericsDocument:
    ref, task = prepared.refs[0], prepared.tasks[0]
    return NumericsDocument(
        model=ref.name,
        revision=ref.identity.revision,
        task=task.card.name,
        task_version=task.card.version,
        device=prepared.facts.device,
        reference=REFERENCE,
        seed=prepared.spec.seed,
        max_tokens=min(task.card.max_length, MAX_TOKENS),
        examples=[str(example["id"]) for example in task.examples],
        tokens=tokens,
        cautions=list(ref.cautions),
        environment=prepared.environment,
        formats=list(formats),
    )


def _one(planned: PlannedCell, prepared: Prepared, on_event: OnEvent) -> tuple[FormatNumerics, int]:
    """(what was found of one format, tokens run)."""
    support = planned.support
    label = {
        "model": planned.ref.name,
        "task": planned.task.card.name,
        "format": support.format,
    }
    common: dict[str, Any] = {"format": support.format, "execution": support.execution}
    if planned.skip is not None:
        on_event(Event("skip", label | {"reason": planned.skip}))
        return FormatNumerics(**common, status="skipped", reason=planned.skip), 0
    common |= {k: support.recipe[k] for k in ("kernel", "compute_dtype")}
    on_event(Event("start", label))
    try:
        answer, _ = run_job(
            "numerics",
            _request(planned, prepared),
            planned.cell.threads,
            on_event,
            _TIME_LIMIT_S,
        )
    except JobFailed as error:
        on_event(
            Event("cell", label | {"status": "failed", "message": str(error), "reused": False})
        )
        return FormatNumerics(**common, status="failed", reason=str(error)), 0
    on_event(Event("cell", label | {"status": "ok", "reused": False}))
    found = FormatNumerics(
        **common,
        status="ok",
        reason=support.reason,
        layers=answer["layers"],
        first_non_finite=answer["first_non_finite"],
        cautions=answer["cautions"],
    )
    return found, answer["tokens"]


def _request(planned: PlannedCell, prepared: Prepared) -> dict[str, Any]:
    cell, card, calibration = planned.cell, planned.task.card, planned.task.calibration
    return {
        "device": cell.device,
        "path": str(planned.ref.path),
        "trust_remote_code": cell.trust_remote_code,
        "pickled": planned.ref.pickled,
        "format": cell.format,
        "recipe": cell.recipe,
        "execution": planned.support.execution,
        "reason": planned.support.reason,
        "seed": cell.seed,
        "card": card.asked() | {"max_length": min(card.max_length, MAX_TOKENS)},
        "examples": planned.task.examples,
        "calibration": calibration.examples if calibration else [],
        "label_ids": planned.label_ids,
        "workload": cell.workload,
    }
