"""What a worker is told of the load beside the workload's rules; what can't be served. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import PlannedCell
from precision_explorer.runner.mix_tasks import OWNER
from precision_explorer.runner.window_length import first_window_s
from precision_explorer.store import RunFolder
from precision_explorer.tasks import KINDS, PreparedTask
from precision_explorer.workload import Lengths, TraceArrivals, Workload, plan_schedule

Json = dict[str, Any]
# Tasks whose requests are made of tokens alone, so that they can have any number of them.
_ANY_LENGTH = ("language-modeling", "generation")


def told_of(examples: Sequence[Json]) -> tuple[list[str | None], list[str | None]]:
    """What a plan is told of the examples: their groups, and the mixed tasks that they are of."""
    return [e.get("group") for e in examples], [e.get(OWNER) for e in examples]


def trace_path(workload: Workload) -> str | None:
    """Where the workload's trace lies; None without one."""
    arrivals = workload.arrivals
    return arrivals.path if isinstance(arrivals, TraceArrivals) else None


@dataclass(frozen=True)
class Load:
    """What a worker needs of the load that no rules hold: the path of a `trace`, and the examples
    of the `mixed` tasks (`mix_tasks`)."""

    trace: str | None = None
    mixed: Sequence[Json] = ()


def asked_of(load: Load, planned: PlannedCell) -> Json:
    """The `workload` with the path of its trace, and the `mixed` examples."""
    rules = dict(planned.cell.workload)
    if load.trace is not None and "arrivals" in rules:
        rules["arrivals"] = rules["arrivals"] | {"path": load.trace}
    return {"workload": rules, "mixed": list(load.mixed)}


def offered(
    load: Load,
    planned: PlannedCell,
    reference: PlannedCell | None,
    folder: RunFolder,
    number: int,
) -> Json:
    """What a block's request holds beside the task's, where requests come by their own clock; empty
    elsewhere.

    `workload`: the rules, with the path of the trace, which is no part of them. `mixed`: the
    examples of other tasks in the mix. `capacity_per_s`: what the reference's first block showed,
    None before that and where it came to nothing; `is_reference`: whether the cell is that
    reference. `own_capacity_per_s`: what the cell's own first block showed, from its second block
    (`number` 1) on, so that all its rounds are offered the same."""
    if planned.cell.workload.get("scenario") != "server":
        return {}
    own = _serving(planned, folder) if number else {}
    shown = own if reference is planned else _serving(reference, folder)
    is_own = own.get("load_of") == "own"
    return asked_of(load, planned) | {
        "capacity_per_s": shown.get("capacity_per_s"),
        "own_capacity_per_s": own.get("capacity_per_s") if is_own else None,
        "is_reference": reference is planned,
    }


def _serving(planned: PlannedCell | None, folder: RunFolder) -> Json:
    """What a cell's first block says of its window; empty where there is none."""
    block = folder.read_answer(planned.cell_id, "block-0") if planned else None
    serving = (block or {}).get("serving")
    # Of a search, whose load is no share of a capacity, there are several.
    return serving if isinstance(serving, dict) else {}


def check_served(
    workload: Workload,
    tasks: Sequence[PreparedTask],
    runtimes: Sequence[str],
    seed: int = 0,
    mixed: Sequence[Json] = (),
) -> None:
    """UsageError for what a workload can declare and a worker can't serve, or can't plan."""
    if workload.scenario != "server":
        return
    if workload.batching is not None:
        _check_batching(workload, tasks, runtimes)
    if draws_lengths(workload):
        _check_lengths(workload, tasks, runtimes)
    for task in tasks:
        _check_plan(workload, [*task.examples, *mixed], task.card.name, seed)


def _check_batching(
    workload: Workload, tasks: Sequence[PreparedTask], runtimes: Sequence[str]
) -> None:
    given = f"workload '{workload.name}' says batching: {workload.batching}"
    for task in tasks:
        if not KINDS[task.card.kind].generates:
            raise UsageError(
                f"{given}, and {task.card.name} ({task.card.kind}) generates nothing: its batches "
                "are what waits when the model is free; leave batching out"
            )
    compiled = [runtime for runtime in runtimes if RUNTIMES[runtime].compiles]
    if compiled and workload.batching == "continuous":
        raise UsageError(
            f"{given}, and runtime {compiled[0]} makes its code for static batches; use --runtime "
            "eager, or leave batching out"
        )


def _check_lengths(
    workload: Workload, tasks: Sequence[PreparedTask], runtimes: Sequence[str]
) -> None:
    name = workload.name
    for task in tasks:
        if task.card.kind not in _ANY_LENGTH:
            raise UsageError(
                f"workload '{name}' says how many tokens requests have, and those of "
                f"{task.card.name} ({task.card.kind}) have their own; leave its lengths out (of a "
                "trace: use_lengths: false)"
            )
    compiled = [runtime for runtime in runtimes if RUNTIMES[runtime].compiles]
    if compiled:
        raise UsageError(
            f"workload '{name}' says how many tokens requests have, and runtime {compiled[0]} "
            "makes its code for the task's own; use --runtime eager"
        )


def _check_plan(workload: Workload, examples: Sequence[Json], task: str, seed: int) -> None:
    """Plan all rounds as the worker will. A share of a capacity that is not known yet is no rate:
    then the requests alone are planned, without their times."""
    arrivals, (groups, owners) = workload.arrivals, told_of(examples)
    if arrivals is None or not examples:
        return
    rules, rate_per_s, duration_s = workload.one_round(first=True), None, None
    if arrivals.load is not None or arrivals.search is not None:
        rules = rules.model_copy(update={"arrivals": None})
    else:
        rate_per_s = arrivals.rate()
        duration_s = first_window_s(rules, rate_per_s)
    try:
        for number in range(workload.rounds):
            plan_schedule(
                rules,
                len(examples),
                seed,
                rate_per_s,
                number,
                duration_s=duration_s,
                groups=groups,
                owners=owners,
            )
    except UsageError as error:
        raise UsageError(f"workload '{workload.name}', {task}: {error}") from error


def draws_input(workload: Workload) -> bool:
    """Whether the workload says how long prompts are."""
    parts = [part.lengths for part in workload.mix or ()]
    given = [lengths for lengths in (workload.lengths, *parts) if lengths is not None]
    if any(lengths.input != Lengths().input for lengths in given):
        return True
    return _traces_lengths(workload)


def draws_lengths(workload: Workload) -> bool:
    """Whether the workload says how many tokens requests have."""
    parts = [part.lengths for part in workload.mix or ()]
    plain = Lengths()
    drawn = any(lengths not in (None, plain) for lengths in (workload.lengths, *parts))
    return drawn or _traces_lengths(workload)


def _traces_lengths(workload: Workload) -> bool:
    arrivals = workload.arrivals
    if not isinstance(arrivals, TraceArrivals) or not arrivals.use_lengths:
        return False
    return arrivals.lengths(1) is not None
