"""What a worker is told of the load beside the workload's rules; what can't be served. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import PlannedCell
from precision_explorer.store import RunFolder
from precision_explorer.tasks import PreparedTask
from precision_explorer.workload import Lengths, TraceArrivals, Workload, load_workload

Json = dict[str, Any]
# Tasks whose requests are made of tokens alone, so that they can have any number of them.
_ANY_LENGTH = ("language-modeling", "generation")


def offered(
    workload_name: str, planned: PlannedCell, reference: PlannedCell | None, folder: RunFolder
) -> Json:
    """What a block's request holds beside the task's, where requests come by their own clock: the
    path of a trace, which is no part of the rules, and the capacity that the reference showed in
    its first block (None of the reference's own, and where it came to nothing)."""
    rules = dict(planned.cell.workload)
    if rules.get("scenario") != "server":
        return {}
    arrivals = load_workload(workload_name).arrivals
    if isinstance(arrivals, TraceArrivals):
        rules["arrivals"] = rules["arrivals"] | {"path": arrivals.path}
    block = folder.read_answer(reference.cell_id, "block-0") if reference else None
    return {
        "workload": rules,
        "capacity_per_s": _capacity(block),
        "is_reference": reference is planned,
    }


def _capacity(block: Json | None) -> float | None:
    """What a reference's block says of its capacity."""
    return None if block is None else (block.get("serving") or {}).get("capacity_per_s")


def check_served(
    workload: Workload, tasks: Sequence[PreparedTask], runtimes: Sequence[str]
) -> None:
    """UsageError for what a workload can declare and a worker can't serve."""
    name = workload.name
    server = workload.scenario == "server"
    for field in ("lengths", "mix", "tails"):
        if getattr(workload, field) is not None and not server:
            raise UsageError(
                f"workload '{name}': {field} is for scenario server in this release, and this is "
                f"{workload.scenario}; leave it out"
            )
    if not server or not draws_lengths(workload):
        return
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


def draws_lengths(workload: Workload) -> bool:
    """Whether the workload says how many tokens requests have."""
    parts = [part.lengths for part in workload.mix or ()]
    plain = Lengths()
    drawn = any(lengths not in (None, plain) for lengths in (workload.lengths, *parts))
    arrivals = workload.arrivals
    if not isinstance(arrivals, TraceArrivals) or not arrivals.use_lengths:
        return drawn
    return drawn or arrivals.lengths(1) is not None
