"""How fast the quality pass is at each token budget: a job, in a worker with torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from precision_explorer.models.adapter import Item
from precision_explorer.runner.session import Session

# Seconds of timing; what was timed by then is all that is known. A declared choice: a model too
# slow to get to the usual budget keeps it.
_SECONDS = 30.0
# Seconds after which no further batch of a budget is timed: a
# scheduler's pause of some milliseconds is then far below `batch_budget.WORTH`.
_ENOUGH_S = 1.0
# Times that a budget is timed, in turns with the others, so that a disturbance hits all of them;
# the least of two is free of one disturbance.
_ROUNDS = 2
# Batches of a plan that are timed: enough to see long and short inputs.
_BATCHES = 3
# Share of the memory that is free which a batch may take beside the loaded model. All formats get
# the same batches, the reference alone is probed, and others take more: in the bundled run of the
# demo model up to 2.8 times its peak (fp8-weight-only, which widens its weights). A quarter leaves
# room for 4 times.
_MEMORY_SHARE = 0.25
# Steps of decoding that are timed, for what a step costs once the prompt's pass is taken off.
_STEPS = (1, 5)

Json = dict[str, Any]


def run(request: Json, progress: Callable[[str, int, int], None]) -> tuple[Json, bytes]:
    """{"tried": [{max_tokens, tokens, seconds}], "ended"}, the smallest budget first: tokens of the
    batches timed, and the least seconds that they took.

    ``load`` and ``task`` as `runner.requests` makes them, ``ladder`` the budgets, ascending,
    ``free_bytes`` the memory that is free. The climb ended by ``whole``, where the task is one
    batch, by ``memory``, where a batch takes more than its share, by ``time`` or by ``ladder``.
    """
    session = Session(request["load"], progress)
    with torch.inference_mode():
        session.adapter = session._adapter(request["task"])
        items = session.adapter.items()
        if any(item.room for item in items) and not hasattr(session.adapter, "rules"):
            # Decoded by another library's loop, to the end.
            return {"tried": [], "ended": "time"}, b""
        tried, ended = _climb(session, request, items)
    return {"tried": tried, "ended": ended}, b""


def _climb(session: Session, request: Json, items: list[Item]) -> tuple[list[Json], str]:
    begun, found, ended = time.perf_counter(), [], "ladder"
    # What the model holds is not the batches'.
    session.memory.begin()
    held = session.memory.end()
    before: list[list[int]] = []
    for step, max_tokens in enumerate(request["ladder"]):
        session.progress("batches", step, len(request["ladder"]))
        plan = request["task"]["batch_plan"] | {"max_tokens": max_tokens}
        batches = session._batches(request["task"] | {"batch_plan": plan}, items)
        if batches == before:
            continue  # Its rows bound it, or what padding costs: there is nothing else to time.
        before = batches
        entry = _first(session, [[items[k] for k in batch] for batch in _spread(batches)])
        found.append({"max_tokens": max_tokens} | entry)
        why = {
            "whole": len(batches) == 1,
            "memory": entry["peak_bytes"] - held > _MEMORY_SHARE * request["free_bytes"],
            "time": time.perf_counter() - begun > _SECONDS / 2,
        }
        if any(why.values()):
            ended = next(name for name, holds in why.items() if holds)
            if ended == "memory" and len(found) > 1:
                found.pop()  # However fast it is. The smallest stays: the usual one takes more.
            break
    _again(session, found, begun)
    session.progress("batches", 1, 1)
    return [{k: v for k, v in entry.items() if k != "batches"} for entry in found], ended


def _first(session: Session, candidates: list[list[Item]]) -> Json:
    """Time some of a plan's batches, as many as a second allows, for the first time."""
    timed: list[list[Item]] = []
    seconds = 0.0
    session.memory.begin()
    for batch in candidates:
        timed.append(batch)
        seconds += _seconds(session, [batch])
        if seconds > _ENOUGH_S:
            break
    return {
        "tokens": sum(item.size for batch in timed for item in batch),
        "seconds": seconds,
        "peak_bytes": session.memory.end(),
        "batches": timed,
    }


def _again(session: Session, found: list[Json], begun: float) -> None:
    """Time the budgets in turns, while there is time, and keep each one's least seconds."""
    for _ in range(_ROUNDS - 1):
        for entry in found:
            if time.perf_counter() - begun + entry["seconds"] > _SECONDS:
                return
            entry["seconds"] = min(entry["seconds"], _seconds(session, entry["batches"]))


def _spread(batches: Sequence[list[int]]) -> list[list[int]]:
    """Some batches from the whole length of a plan, the middle one first."""
    count = min(_BATCHES, len(batches))
    spread = [batches[(2 * k + 1) * len(batches) // (2 * count)] for k in range(count)]
    return spread[count // 2 :] + spread[: count // 2]


def _seconds(session: Session, batches: Sequence[Sequence[Item]]) -> float:
    """What scoring `batches` takes; of generated answers, extrapolated from a few steps."""
    adapter: Any = session.adapter
    if not any(item.room for batch in batches for item in batch):
        return _timed(session, batches)
    rules = adapter.rules
    try:
        times = []
        for steps in _STEPS:
            adapter.rules = rules.model_copy(update={"max_new_tokens": steps})
            times.append(_timed(session, batches))
    finally:
        adapter.rules = rules
    each = max(times[1] - times[0], 0.0) / (_STEPS[1] - _STEPS[0])
    return times[0] + each * (rules.max_new_tokens - _STEPS[0])


def _timed(session: Session, batches: Sequence[Sequence[Item]]) -> float:
    assert session.adapter is not None
    session._sync()
    begin = time.perf_counter()
    for batch in batches:
        session.adapter.score(batch)
    session._sync()
    return time.perf_counter() - begin
