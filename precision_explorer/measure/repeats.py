"""The time of one call, by repeating it within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from precision_explorer.measure.quiet import quiet_gc

# Declared: two calls fill caches and choose a library's kernel, a median needs three, and 30 are
# what a single-stream latency takes at least (`Workload.min_requests`).
_WARM_UP = 2
_AT_LEAST = 3
_AT_MOST = 30
# A call that takes this long is not repeated whatever the budget: it warms itself up.
_LONG_S = 0.5


def repeated(
    call: Callable[[], Any],
    budget_s: float,
    *,
    reset: Callable[[], Any] = lambda: None,
    sync: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of each repeat of `call`: two to warm up, then until `budget_s` is spent, from 3 to
    30 of them.

    A call that alone takes more than the budget (and 0.5 s) is timed once more after its first, or
    stands by itself where it took more than twice as long. `reset` is called after each, outside
    the time; `sync` before each end is read, so that a device's work is inside.
    """

    def once() -> float:
        start = clock()
        call()
        sync()
        took = clock() - start
        reset()
        sync()
        return took

    with quiet_gc():
        first = once()
        if first > max(budget_s, _LONG_S):
            return [first] if first > 2 * max(budget_s, _LONG_S) else [once()]
        for _ in range(_WARM_UP - 1):
            once()
        taken: list[float] = []
        while len(taken) < _AT_LEAST or (sum(taken) < budget_s and len(taken) < _AT_MOST):
            taken.append(once())
        return taken
