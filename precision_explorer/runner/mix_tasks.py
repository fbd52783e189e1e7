"""Requests of other tasks in a workload's mix: their examples, and what identifies them. No
torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.plan import SweepSpec
from precision_explorer.records import canonical_hash
from precision_explorer.tasks import KINDS, PreparedTask
from precision_explorer.tasks.harness import is_harness
from precision_explorer.workload import Workload
from precision_explorer.workload.mix import MixPart

Json = dict[str, Any]
OWNER = "mixed_task"
"""The key of a mixed example that holds its task's name."""


def with_tasks(
    workload: Workload, spec: SweepSpec, prepare: Callable[[str], PreparedTask]
) -> tuple[Workload, list[PreparedTask]]:
    """The workload with the tasks of its mix by name and hash, and these tasks, once each, as
    `prepare` makes them; as it is where it names none. UsageError for two of one name, and for
    other examples than a hash in the file says."""
    named = list(dict.fromkeys(part.task for part in workload.mix or () if part.task is not None))
    if not named:
        return workload, []
    compiled = [runtime for runtime in spec.local_runtimes if RUNTIMES[runtime].compiles]
    if compiled:
        raise UsageError(
            f"workload '{workload.name}' mixes tasks, and runtime {compiled[0]} makes its code for "
            "the requests of one; use --runtime eager"
        )
    if any(map(is_harness, named)):
        raise UsageError("mix: tasks of lm-evaluation-harness can't be mixed in; name a card")
    tasks = {name: prepare(name) for name in named}
    cards = [task.card.name for task in tasks.values()]
    if len(set(cards)) < len(cards):
        raise UsageError("mix: two of its tasks have one name; give each card its own")
    parts = [
        part if part.task is None else _identified(part, tasks[part.task])
        for part in workload.mix or ()
    ]
    return workload.model_copy(update={"mix": tuple(parts)}), list(tasks.values())


def _identified(part: MixPart, task: PreparedTask) -> MixPart:
    found = canonical_hash(task.identity.model_dump(mode="json"))
    if part.task_hash not in (None, found):
        raise UsageError(
            f"mix: the examples of {task.card.name} are not those of task_hash {part.task_hash}; "
            "leave it out to take them as they are"
        )
    return part.model_copy(update={"task": task.card.name, "task_hash": found})


def mixed_examples(mixed: Sequence[PreparedTask], tasks: Sequence[PreparedTask]) -> list[Json]:
    """The examples of the mixed tasks for a worker, each with its task. UsageError where one can't
    stand in a batch beside those of `tasks`."""
    for other in mixed:
        kind = other.card.kind
        if KINDS[kind].corpus:
            raise UsageError(
                f"mix: {other.card.name} ({kind}) has a corpus, which can't be mixed in; leave it "
                "out"
            )
        unlike = next((t.card for t in tasks if t.card.kind != kind), None)
        if unlike is not None:
            raise UsageError(
                f"mix: {other.card.name} is {kind} and {unlike.name} is {unlike.kind}, which can't "
                "be in one batch; mix tasks of one kind"
            )
        if any(t.card.name == other.card.name for t in tasks):
            raise UsageError(
                f"mix: {other.card.name} is the sweep's own task; leave `task` out of that part"
            )
    return [
        example | {"id": f"{other.card.name}:{example['id']}", OWNER: other.card.name}
        for other in mixed
        for example in other.examples
    ]
