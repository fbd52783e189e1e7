"""The token budget of each task's batches: from the run's folder, the cache, or a probe. No torch.

Fixed before the first cell and the same for all formats. What a run's folder was begun with stays:
its cells' identity holds the budget.
"""

from __future__ import annotations

import json
from typing import Any

import psutil

from precision_explorer.hardware import DeviceFacts
from precision_explorer.paths import cache_dir
from precision_explorer.plan import Plan, PlannedCell, SweepSpec
from precision_explorer.plan.batches import budget_key, ladder
from precision_explorer.records import canonical_hash
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.runner.requests import load_request, task_request
from precision_explorer.store.atomic import write_json

WORTH = 0.05
"""A larger batch must be this much faster, as it takes memory, and its padding moves scores. Two
runs of one program may differ by as much (MLPerf Inference, TEST05), so less may be chance."""
# Ten times what the probe may spend on timing: the rest is for imports and a large model's load.
_TIME_LIMIT_S = 300.0
# Raised when the way of probing changes, so that no older answer is taken for one of it.
_METHOD = "batch probe 1"

Budgets = dict[str, int]


def batch_budgets(
    spec: SweepSpec,
    plan: Plan,
    facts: DeviceFacts,
    versions: dict[str, str],
    threads: int,
    stored: Budgets,
    on_event: OnEvent,
    ask: bool = True,
) -> Budgets:
    """{`budget_key`: padded tokens of a batch} of every model and task of `plan`.

    `stored`: what the run's folder was begun with. Where nothing is known and not to be asked for
    (`ask`), or a probe fails (which a note says), the task keeps the device's constant. Empty where
    the user declared a budget.
    """
    if spec.batch_tokens is not None:
        return {}
    found: Budgets = {}
    for key, planned in _asked(plan, facts, versions, threads).items():
        known = stored.get(key) or _cached(key)
        if known is None and ask:
            known = _probe(planned, spec, facts, threads, on_event)
            if known is not None:
                _store(key, known)  # What came of no answer is asked again by the next run.
        found[key] = planned.cell.batch_plan["max_tokens"] if known is None else known
    return found


def choose(tried: list[dict[str, Any]], ended: str, usual: int) -> int | None:
    """The smallest budget whose rate (tokens/s) is within `WORTH` of the best one's; None where
    nothing was timed, or the time ended before the `usual` one was, which then stays."""
    rates = {e["max_tokens"]: e["tokens"] / e["seconds"] for e in tried if e["seconds"] > 0}
    if not rates or (ended == "time" and max(rates) < usual):
        return None
    enough = (1 - WORTH) * max(rates.values())
    return min(budget for budget, rate in rates.items() if rate >= enough)


def _asked(
    plan: Plan, facts: DeviceFacts, versions: dict[str, str], threads: int
) -> dict[str, PlannedCell]:
    """{key: the first cell that runs}, which is the reference's unless that one is skipped; of
    models that are scored alone, since others have no quality pass."""
    cells: dict[str, PlannedCell] = {}
    for planned in filter(lambda cell: cell.has_quality, plan.to_run):
        cells.setdefault(budget_key(planned.ref, planned.task, facts, versions, threads), planned)
    return cells


def _probe(
    planned: PlannedCell, spec: SweepSpec, facts: DeviceFacts, threads: int, on_event: OnEvent
) -> int | None:
    _note(on_event, planned, "timing the batches of its quality pass (once, then cached)")
    # A container's limit is in the facts.
    free = facts.memory_bytes
    if facts.kind == "cpu":
        free = min(free, psutil.virtual_memory().available)
    request: dict[str, Any] = {
        "device": facts.device,
        # Not compiled, whatever the cell's runtime: one plan serves all of them.
        "load": load_request(planned, spec, facts, "") | {"runtime": "eager"},
        "task": task_request(planned, ""),
        "ladder": ladder(facts.kind),
        "free_bytes": min(free, spec.memory_limit or free),
    }
    limit = min(spec.cell_timeout, _TIME_LIMIT_S)
    try:
        answer, _ = run_job("batches", request, threads, on_event, limit)
    except JobFailed as error:
        _note(on_event, planned, f"no probe of its batches, which keep the usual size ({error})")
        return None
    return choose(answer["tried"], answer["ended"], planned.cell.batch_plan["max_tokens"])


def _note(on_event: OnEvent, planned: PlannedCell, text: str) -> None:
    on_event(Event("note", {"text": f"{planned.task.card.name}: {text}"}))


def _cached(key: str) -> int | None:
    try:
        found = json.loads(_path(key).read_text(encoding="utf8"))["max_tokens"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return found if isinstance(found, int) and found > 0 else None


def _store(key: str, max_tokens: int) -> None:
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_path(key), {"max_tokens": max_tokens})
    except (OSError, ValueError, RuntimeError):
        pass  # A cache that can't be written costs the next run some seconds, nothing else.


def _path(key: str) -> Any:
    return cache_dir() / "batches" / f"{canonical_hash([key, _METHOD])}.json"
