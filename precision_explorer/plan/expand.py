"""The plan: cells to run and cells to skip, with reasons, from resolved inputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats import AS_SHIPPED, Support
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.recipe import parts_of
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import DeviceFacts, compiler, relevant_variables
from precision_explorer.models import ModelRef, check_head
from precision_explorer.models.heads import HEADS
from precision_explorer.models.shipped import not_shipped, shipped_support
from precision_explorer.models.splitting import Split
from precision_explorer.plan.batches import batch_plan, budget_key, ladder
from precision_explorer.plan.placing import Blocks, place
from precision_explorer.plan.protocol import protocol_of
from precision_explorer.plan.served import Served
from precision_explorer.plan.spec import SweepSpec
from precision_explorer.records import NOT_SCORED, Caution, Cell
from precision_explorer.stats.sequential import ALPHA_END, ALPHA_LOOKS, FIRST_LOOK
from precision_explorer.tasks import (
    KINDS,
    PreparedTask,
    is_external,
    label_ids,
    metric_libraries,
    without_calibration,
)
from precision_explorer.workload import Workload

# How the numbers come about, beyond the workload's own rules: part of each cell's method.
RULES: dict[str, Any] = {
    "version": 1,
    "latency": "single-stream, text to answer: tokenise, copy, forward, post-process",
    "memory": "peak while serving, over own memory before the load",
    "order": "numpy default_rng(seed).permutation of the examples",
    "rounds": "the formats of a model and task in turn, in a drawn order in which all have the "
    "same mean place, the reference first and last; latency over all rounds, throughput their "
    "median",
    "percentile": "linear interpolation up to the median, nearest rank above it; printed where n "
    "supports it at 95 %",
}
# What a latency is, where it is not that of one request after the other.
_LATENCY = {
    "multi-stream": "multi-stream, texts to answers of one batch: tokenise, copy, forward, "
    "post-process",
    "offline": "none: all requests are at hand",
    "server": "server, planned arrival to answer: queue, tokenise, copy, forward, post-process",
}
# The same for rows that are scored until their verdict is clear; see `stats.sequential`.
UNTIL_DECIDED: dict[str, Any] = {
    "version": 1,
    "looks": f"at {FIRST_LOOK} examples, then at an eighth more each time (at least {FIRST_LOOK}), "
    "each look's new examples batched by themselves",
    "decision": "e-process against either side of the margin: mixture of constant bets, else "
    "half-normal mixture over running variance",
    "alpha_looks": ALPHA_LOOKS,
    "alpha_end": ALPHA_END,
}
# Set by the manager for every worker, from options that are in the identity already.
OWN_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
# Whether there is a GPU torch then asks NVML: asking CUDA would break it in forked workers. The
# manager sets it too, and it changes no result.
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# scikit-learn sets the first two when it is imported, and torch the third when it compiles, which
# the parent does on some runs and not on others. Workers are told a compiler cache of their own.
SET_BY_LIBRARIES = ("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR")
_RELEVANT = {
    "torch": ("torch", "transformers", "tokenizers", "precision-explorer"),
    "torchao": ("torchao",),
    "bitsandbytes": ("bitsandbytes",),
}


@dataclass(frozen=True)
class PlannedCell:
    """A cell with what a worker needs to run it. `skip` is the reason where it is not run."""

    cell: Cell
    ref: ModelRef
    task: PreparedTask
    support: Support
    label_ids: dict[str, int] | None
    skip: str | None
    cautions: tuple[Caution, ...]
    served: Served | None = None
    """The server that is asked, where the model is not run here."""
    split: Split | None = None
    """What is on which device, where the model is spread over several."""

    @property
    def has_quality(self) -> bool:
        """Whether its examples are scored at all: random weights have no right answers."""
        return self.ref.synthetic is None

    @property
    def in_looks(self) -> bool:
        """Whether its examples are scored in looks until its verdict is clear."""
        return self.cell.until_decided is not None

    @property
    def cell_id(self) -> str:
        """The hash of the cell's identity."""
        return self.cell.cell_id


@dataclass(frozen=True)
class Plan:
    """All cells of a sweep, in the order in which they are run."""

    cells: tuple[PlannedCell, ...]

    @property
    def to_run(self) -> list[PlannedCell]:
        """The cells that are not skipped."""
        return [cell for cell in self.cells if cell.skip is None]

    def document(self) -> dict[str, Any]:
        """The plan as stored in sweep.json."""
        cells = [
            {
                "cell_id": c.cell_id,
                "model": c.ref.name,
                "task": c.task.card.name,
                "format": c.cell.format,
                "runtime": c.cell.runtime,
                "device": c.cell.device,
                "execution": c.support.execution,
                "reason": c.support.reason,
                "skip": c.skip,
            }
            | ({"devices": c.split.devices} if c.split is not None else {})
            | ({"split": c.cell.split} if c.cell.split is not None else {})
            for c in self.cells
        ]
        return {"cells": cells, "method_ids": sorted({c.cell.method_id for c in self.cells})}


def relevant_libraries(format_id: str, recipe: dict[str, Any], versions: dict[str, str]) -> dict:
    """The libraries whose version can change a cell's result."""
    names = _RELEVANT["torch"] + tuple(recipe.get("requires", ()))
    for part, made in parts_of(format_id, recipe).items():
        names += _RELEVANT.get(made.get("library", spec_of(part).library), ())
    return {name: versions[name] for name in names if name in versions}


def _image_libraries(task: PreparedTask, versions: dict[str, str]) -> dict[str, str]:
    """What decodes and resizes images, of tasks that have any."""
    sees = HEADS[KINDS[task.card.kind].head].sees
    return {"pillow": versions["pillow"]} if sees and "pillow" in versions else {}


def expand(
    spec: SweepSpec,
    refs: list[ModelRef],
    tasks: list[PreparedTask],
    workload: Workload,
    facts: DeviceFacts,
    supports: dict[str, Support],
    versions: dict[str, str],
    threads: int,
    compiled: dict[str, dict[str, Support]] | None = None,
    budgets: dict[str, int] | None = None,
    blocks: Blocks | None = None,
) -> Plan:
    """Multiply models, tasks, runtimes and formats into cells; a cell that comes out twice (a task
    by its name and by its path, say) is taken once. `compiled`: by runtime, the support of those
    formats for which it differs from the eager one's in `supports`. `budgets`: padded tokens of a
    batch, by `budget_key`; the device's constant for tasks that are not among them. `blocks`: of
    the models that one device does not hold, for those that may be spread over more.

    Raises ModelError or TaskError where a model has no head or no labels for a task, or where a
    metric's library is missing.
    """
    cells: dict[str, PlannedCell] = {}
    for ref in refs:
        for task in tasks:
            check_head(ref, task.card.kind)
            if spec.until_decided:
                _check_scored(ref)
                _check_looks(task)
            labels = label_ids(task.card, task.examples, ref.id2label)
            key = budget_key(ref, task, facts, versions, threads)
            tokens = spec.batch_tokens or (budgets or {}).get(key)
            if tokens is None and ref.synthetic is not None:
                # Nothing is scored in them: one is run to see what multiplies, beside other models.
                tokens = ladder(facts.kind)[0]
            batch = batch_plan(facts.kind, tokens)
            for runtime in spec.local_runtimes:
                tools, missing = _tools(runtime, facts, versions)
                tools = tools | metric_libraries(task.card.metrics, versions)
                own = supports | (compiled or {}).get(runtime, {})
                for format_id in formats_of(spec, ref):
                    support = _calibrated(_support(format_id, ref, facts, own), task)
                    cell = _cell(
                        spec, ref, task, workload, facts, support, versions, threads, runtime,
                        tools, batch,
                    )  # fmt: skip
                    skip = _skip_reason(support, task) or missing or not_compiled(runtime, task)
                    placing = place(ref, task, workload, spec, support, facts, runtime, blocks)
                    planned = PlannedCell(
                        cell, ref, task, support, labels, skip or placing.skip, ref.cautions
                    )
                    if planned.skip is None and placing.split is not None:
                        planned = _over_several(planned, placing.split)
                    cells.setdefault(planned.cell_id, planned)
    return Plan(tuple(cells.values()))


def _check_scored(ref: ModelRef) -> None:
    """UsageError where the model's examples are not scored at all."""
    if ref.synthetic is not None:
        raise UsageError(
            f"--until-decided scores examples, and {ref.name} has random weights, whose quality is "
            "not measured; leave it out"
        )


def _check_looks(task: PreparedTask) -> None:
    """UsageError where examples can't be scored a few at a time: they share a passage, so that a
    new one of an old group is no new draw; or documents, which each look would encode anew; or
    their metric is known of all together only."""
    why = None
    if any(example.get("group") is not None for example in task.examples):
        why = "its examples come in groups, and what holds at every look holds for independent ones"
    elif task.corpus:
        why = "its documents would be encoded again at every look"
    elif is_external(task.card.metrics[0]) or task.card.kind == "lm-eval":
        why = f"{task.card.metrics[0]} is computed from all its examples at once"
    if why is not None:
        raise UsageError(f"--until-decided is not for {task.card.name}: {why}; leave it out")


def _calibrated(support: Support, task: PreparedTask) -> Support:
    """`support` with the calibration set of `task` in its recipe and reason, where one is used."""
    calibration = task.calibration
    used = spec_of(support.format).calibrates and support.supported
    if calibration is None or not used:
        return support
    recipe = support.recipe | {"calibration": calibration.hash, "calibration_n": calibration.n}
    reason = (
        f"{support.reason}; calibrated on {calibration.n} texts ({calibration.hash}), none of them "
        "in the test data"
    )
    return replace(support, recipe=recipe, reason=reason)


def _skip_reason(support: Support, task: PreparedTask) -> str | None:
    if not support.supported:
        return support.why
    if spec_of(support.format).calibrates and task.calibration is None:
        return without_calibration(task.card)
    return None


def _over_several(planned: PlannedCell, split: Split) -> PlannedCell:
    how = (
        f"each of {split.devices} devices holds a share of every tensor, and all work at once: "
        "memory, energy and price are those of all of them, the certificate is the first one's, "
        "there is no diagnosis; what devices tell each other is in the times"
        if split.by_tensors
        else f"the model is spread over {split.devices} devices, whose layers run one after the "
        "other: memory, energy and price are those of all of them, the device's limits, and so the "
        "diagnosis, those of one; copies between devices are in the times"
    )
    caution = Caution(id="several-devices", message=how)
    told = {"devices": split.devices} | ({"split": "tensors"} if split.by_tensors else {})
    cell = planned.cell.model_copy(update=told)
    return replace(planned, cell=cell, split=split, cautions=(*planned.cautions, caution))


def not_compiled(runtime: str, task: PreparedTask) -> str | None:
    """Why `task` is not run under `runtime`; None where it is."""
    if RUNTIMES[runtime].compiles and KINDS[task.card.kind].head == "seq2seq-lm":
        return (
            f"runtime {runtime} is not for encoder-decoders, whose encoder would run eagerly; use "
            "--runtime eager"
        )
    return None


def formats_of(spec: SweepSpec, ref: ModelRef) -> list[str]:
    """The formats of a model, its reference first. One that comes quantized is its own reference;
    formats that are named are skipped, with the reason, and the default ones left out."""
    reference = reference_of(spec, ref)
    named = () if ref.scheme and not spec.formats_named else spec.formats
    return [reference, *(f for f in named if f != reference)]


def reference_of(spec: SweepSpec, ref: ModelRef) -> str:
    """What the rows of a model are compared with."""
    return AS_SHIPPED if ref.scheme else spec.reference


def _support(
    format_id: str, ref: ModelRef, facts: DeviceFacts, supports: dict[str, Support]
) -> Support:
    refused = not_shipped(ref.scheme, format_id)
    if refused is not None:
        return refused
    if ref.scheme is not None:
        return shipped_support(ref.scheme, ref.config, facts)
    return supports[format_id]


def _tools(
    runtime: str, facts: DeviceFacts, versions: dict[str, str]
) -> tuple[dict[str, str], str | None]:
    """({compiler: version}, None) that `runtime` uses, or why it can't be had."""
    return compiler(facts.kind, versions) if RUNTIMES[runtime].compiles else ({}, None)


def measuring_rules(spec: SweepSpec, workload: Workload, kind: str) -> dict[str, Any]:
    """What a cell of this kind of task is measured by, beside its workload."""
    latency = _LATENCY.get(workload.scenario, RULES["latency"])
    decided = {"until_decided": UNTIL_DECIDED} if spec.until_decided else {}
    return RULES | {"latency": latency} | decided | _batching(workload, KINDS[kind].generates)


def _batching(workload: Workload, generates: bool) -> dict[str, str]:
    """How answers are batched where nobody said: from before there were continuous batches no row
    has this rule, and none may be compared with one that has."""
    open_ = workload.batching is None and workload.max_batch > 1 and not workload.max_wait_s
    served = workload.scenario == "server" and generates
    return {"batching": "continuous where the model can be"} if served and open_ else {}


def _cell(
    spec: SweepSpec,
    ref: ModelRef,
    task: PreparedTask,
    workload: Workload,
    facts: DeviceFacts,
    support: Support,
    versions: dict[str, str],
    threads: int,
    runtime: str,
    tools: dict[str, str],
    batch: dict[str, Any],
) -> Cell:
    not_scored = {"quality": NOT_SCORED} if ref.synthetic is not None else {}
    stop = {"quality_budget": spec.quality_budget, "reference": reference_of(spec, ref)}
    return Cell(
        model=ref.identity,
        task=task.identity,
        format=support.format,
        recipe=support.recipe,
        runtime=runtime,
        device=facts.device,
        device_name=facts.name,
        device_flags=facts.cpu_flags,
        threads=threads,
        workload=workload.rules(),
        batch_plan=batch,
        batch_sizes=spec.batch_size,
        rules=measuring_rules(spec, workload, task.card.kind) | not_scored,
        seed=spec.seed,
        trust_remote_code=spec.trust_remote_code,
        libraries=relevant_libraries(support.format, support.recipe, versions)
        | tools
        | _image_libraries(task, versions),
        variables=relevant_variables(without=(*OWN_VARIABLES, *SET_BY_LIBRARIES, NVML_CHECK)),
        protocol=protocol_of(task),
        until_decided=stop if spec.until_decided else None,
    )
