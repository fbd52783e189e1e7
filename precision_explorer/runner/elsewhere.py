"""A plan for a device that is not here: nothing of it is probed, no weights are read. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.formats import Support
from precision_explorer.formats.catalog import AS_SHIPPED
from precision_explorer.formats.footprint import usual_recipe
from precision_explorer.formats.recipe import is_mixed
from precision_explorer.formats.support import promise
from precision_explorer.hardware import DeviceFacts, library_versions, named_profile
from precision_explorer.models import ModelRef, resolve
from precision_explorer.plan import Plan, SweepSpec, expand
from precision_explorer.runner.manager import OnEvent, prepare_environment
from precision_explorer.runner.shapes import counted
from precision_explorer.runner.sweep import default_task, workload_of
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Workload

ELSEWHERE = "elsewhere"
"""In place of the device that a cell would run on here."""
# How a format would run on a device of which nothing is declared.
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Target:
    """The device that is planned for. `source`: where its facts come from, in words."""

    facts: DeviceFacts
    memory_bytes: int
    source: str
    named: bool
    """Whether it is a device of the table, so that its facts say what formats it would run."""


@dataclass(frozen=True)
class PlannedElsewhere:
    """A plan for a target, and what it was made of."""

    plan: Plan
    target: Target
    refs: list[ModelRef]
    workload: Workload
    first_kind: str
    """The kind of the first task, with whose head models were counted."""


def target_of(name: str | None, memory_bytes: int | None) -> Target:
    """The device of ``--target`` with the memory of ``--target-memory``, where that is given.

    UsageError for a name that is unknown (the table stands in `hardware.device_profiles`), and for
    a processor without a memory, which is the machine's.
    """
    if name is None:
        assert memory_bytes is not None
        return Target(_anonymous(memory_bytes), memory_bytes, "its memory as given", False)
    profile = named_profile(name)
    memory = memory_bytes or profile.memory_bytes
    if memory is None:
        raise UsageError(
            f"--target {profile.id} is a processor, whose memory is the machine's; add "
            "--target-memory, such as --target-memory 64GB"
        )
    sizes: dict[str, Any] = {"memory_bytes": memory, "device": ELSEWHERE}
    if profile.kind == "cuda":
        sizes["device_memory_bytes"] = memory
    facts = profile.facts().model_copy(update=sizes)
    given = "; memory as given" if memory_bytes else ""
    return Target(facts, memory, f"{profile.source}{given}", True)


def _anonymous(memory_bytes: int) -> DeviceFacts:
    """A device of which nothing is known but its memory."""
    return DeviceFacts(
        kind="cuda", device=ELSEWHERE, name="the device", cpu_model="unknown", cores=1,
        memory_bytes=memory_bytes, device_memory_bytes=memory_bytes,
    )  # fmt: skip


def declared(format_id: str, target: Target) -> Support:
    """What the target's published facts promise for a format, and how it would usually be held
    there. No cell is ever run on it."""
    if not target.named:
        reason = "only its memory is given: --target NAME says what formats a known device runs"
        return Support(format_id, _UNKNOWN, reason, usual_recipe(format_id))
    found = promise(format_id, target.facts)
    reason = f"declared, not probed: {found.reason}"
    recipe = usual_recipe(format_id) if found.supported else {}
    return replace(found, reason=reason, recipe=recipe)


def plan_elsewhere(spec: SweepSpec, target: Target, on_event: OnEvent) -> PlannedElsewhere:
    """Resolve the inputs of a sweep and plan it for `target`; models may be a config.json alone.

    Raises UsageError, ModelError, TaskError as a sweep does; UsageError for endpoints and recipes,
    of which a device that is not here tells nothing.
    """
    if spec.endpoints or any(is_mixed(f) for f in spec.formats):
        raise UsageError(
            "--target plans the formats of the catalog, run here; leave out endpoints and recipes"
        )
    trusted = spec.trust_remote_code
    refs = [resolve(m, spec.revision, trusted, spec.seed, spec.allow_pickle) for m in spec.model]
    names = spec.task or (default_task(refs),)
    tasks = [prepare(load_card(name), spec.limit, spec.seed) for name in names]
    kind, threads = tasks[0].card.kind, spec.threads or 1
    prepare_environment(threads, trusted)
    refs = counted(refs, kind, target.facts, threads, trusted, on_event)
    workload = workload_of(spec)
    supports = {f: declared(f, target) for f in spec.formats if f != AS_SHIPPED}
    plan = expand(spec, refs, tasks, workload, target.facts, supports, library_versions(), threads)
    return PlannedElsewhere(plan, target, refs, workload, kind)
