"""The cells of servers: one per endpoint, model and task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from precision_explorer.endpoint import ENDPOINT
from precision_explorer.endpoint.address import without_host
from precision_explorer.endpoint.completions import AT_ONCE
from precision_explorer.errors import UsageError
from precision_explorer.formats import Support
from precision_explorer.models import ModelRef
from precision_explorer.models.reference import shown_name
from precision_explorer.paths import without_paths
from precision_explorer.plan.expand import RULES, PlannedCell
from precision_explorer.plan.protocol import NO_ENERGY, protocol_of
from precision_explorer.plan.served import Served
from precision_explorer.plan.spec import SweepSpec
from precision_explorer.records import Cell, ModelIdentity
from precision_explorer.tasks import PreparedTask, metric_libraries
from precision_explorer.workload import Workload

KINDS_ASKED = ("generation", "multiple-choice", "language-modeling")
"""Kinds of task that a server which completes texts can answer."""
_ASKED_LATENCY = {
    "single-stream": "single-stream, request sent to last token received, over HTTP",
    "multi-stream": "multi-stream, requests sent at once to the last one's last token, over HTTP",
    "offline": "none: all requests are at hand",
    "server": "server, planned arrival to last token received, over HTTP",
}
_BATCHES = {
    "rule": "each example is asked by itself, and the server puts them together as it likes",
    "at_once": AT_ONCE,
}
_RELEVANT = ("aiohttp", "precision-explorer")
_TOKENIZING = ("tokenizers", "transformers")


def check_asked(tasks: Iterable[PreparedTask], workload: Workload) -> None:
    """UsageError for a kind of task that no endpoint answers, and for what is done to requests only
    where the model runs here."""
    here = {
        "background": workload.background,
        "a search for the largest rate": workload.search,
        "a mix of tasks": [part for part in workload.mix or () if part.task is not None],
        "batching": workload.batching,
    }
    unfit = next((name for name, given in here.items() if given), None)
    if unfit is not None:
        raise UsageError(f"{unfit} is not for endpoints; leave it out of the workload")
    for task in tasks:
        if task.card.kind not in KINDS_ASKED:
            raise UsageError(
                f"an endpoint completes texts, and {task.card.name} is {task.card.kind}; use a "
                f"task of the kind {', '.join(KINDS_ASKED[:-1])} or {KINDS_ASKED[-1]}"
            )


def served_ref(name: str) -> ModelRef:
    """A model as a server's: its weights are pinned by nothing."""
    shown = shown_name(name)
    identity = ModelIdentity(name=shown, revision=f"served:{shown}")
    # The path tells its session from those of a model of this name that is run here.
    return ModelRef(shown, Path(ENDPOINT) / shown, identity, {}, (), 0)


def endpoint_cells(
    spec: SweepSpec,
    servers: Sequence[tuple[ModelRef, list[Served]]],
    tasks: list[PreparedTask],
    workload: Workload,
    versions: dict[str, str],
    draws_input: bool,
) -> list[PlannedCell]:
    """One cell for each model with its `servers`, and each task. `draws_input`: whether the
    workload says how long prompts are."""
    cells: dict[str, PlannedCell] = {}
    for ref, found in servers:
        for task in tasks:
            for served in found:
                skip = _why_not(served, task, draws_input)
                support = Support(
                    served.address.format,
                    "unverified",
                    "declared by the user: nothing proves what a server computes in",
                    served.recipe(),
                )
                cell = _cell(spec, ref, served, task, workload, support, versions)
                planned = PlannedCell(cell, ref, task, support, None, skip, (), served)
                cells.setdefault(planned.cell_id, planned)
    return list(cells.values())


def _why_not(served: Served, task: PreparedTask, draws_input: bool) -> str | None:
    """What the server lacks for the task; None where it lacks nothing, or has not answered."""
    can, kind = served.capabilities, task.card.kind
    if can is None:
        return None
    if kind != "generation" and not can.scores:
        # The server's own words, which may name its files and its host.
        why = without_paths(without_host(can.why or "", served.address.url))
        return (
            f"{why}, which {kind} needs: serve the model by one that does (vLLM), or ask a "
            "task of the kind generation"
        )
    if kind == "language-modeling" or draws_input:
        what = f"{kind} cuts documents" if not draws_input else "the workload cuts prompts"
        if not can.token_ids:
            return f"{what} by tokens, and the endpoint takes no token ids"
        if served.tokenizer is None:
            return (
                f"{what} by tokens, and the model's tokenizer is not here: give the model's folder "
                "as --model, and its name on the server behind the address, as in "
                "endpoint:http://host:8000/v1#NAME"
            )
        if draws_input and kind == "generation" and task.card.rules.chat:
            return f"{what} by tokens, and the turns of a chat are text"
    return None


def _cell(
    spec: SweepSpec,
    ref: ModelRef,
    served: Served,
    task: PreparedTask,
    workload: Workload,
    support: Support,
    versions: dict[str, str],
) -> Cell:
    names = _RELEVANT + (_TOKENIZING if served.takes_ids else ())
    libraries = {name: versions[name] for name in names if name in versions}
    return Cell(
        model=ref.identity,
        task=task.identity,
        format=support.format,
        recipe=support.recipe,
        runtime=ENDPOINT,
        device=ENDPOINT,
        device_name=ENDPOINT,
        threads=1,
        workload=workload.rules(),
        batch_plan=_BATCHES,
        batch_sizes=spec.batch_size,
        rules=_rules(workload),
        seed=spec.seed,
        libraries=libraries | metric_libraries(task.card.metrics, versions),
        protocol=protocol_of(task, NO_ENERGY),
    )


def _rules(workload: Workload) -> dict[str, Any]:
    latency = _ASKED_LATENCY[workload.scenario]
    return RULES | {"latency": latency, "memory": "not measured"}
