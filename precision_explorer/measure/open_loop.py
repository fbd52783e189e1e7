"""Planned arrivals sent to a server over a network: each request at its moment, whatever became of
the others.

As in `measure.serving`, latency counts from the scheduled arrival, so that a client that comes late
or a server that stalls hides nothing. What differs: requests are really under way together, and of
the server's queue nothing is seen. One event loop sends all of them: its own lateness is measured,
and a window in which it was late is refused by the same limits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np

from precision_explorer.errors import EndpointError
from precision_explorer.measure.quiet import quiet_gc
from precision_explorer.measure.sent import SentSeries, Window

Json = dict[str, Any]
Send = Callable[[int], Awaitable[Json]]
"""Sends the request at a place of the schedule; extras for its row."""

# Between setting the window's start and its first possible arrival, so that this one is not late.
_LEAD_S = 0.005
# Timers of event loops are whole milliseconds late (epoll_wait(2)); the rest of a wait is spun.
_SPIN_S = 0.002


async def send_as_planned(
    times_s: Sequence[float],
    send: Send,
    cut_s: float,
    now: Callable[[], float] = time.perf_counter,
) -> Window:
    """Send each request at its time, in seconds since the window's start; those that are not
    answered `cut_s` after it are given up. A request that the server drops
    (`EndpointError.dropped`) is one that it leaves unanswered, as servers that shed load do; where
    it answers hardly any (`sent.FEWEST_ANSWERED`), the first such error is raised. Any other error
    is raised at once, and ends the other requests."""
    window = Window([float(t) for t in times_s])
    origin = now() + _LEAD_S

    async def one(place: int) -> None:
        window.enter(place, now() - origin)
        try:
            extras = await send(place)
        except EndpointError as error:
            if not error.dropped:
                raise
            window.drop(place, error)
        else:
            window.leave(place, now() - origin, extras)

    tasks: list[asyncio.Task[None]] = []
    failed = asyncio.Event()

    def look(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            failed.set()

    try:
        for place, due in enumerate(window.due):
            await _until(origin + due, now, failed)
            if failed.is_set():
                break
            tasks.append(asyncio.ensure_future(one(place)))
            tasks[-1].add_done_callback(look)
        left = max(origin + cut_s - now(), 0.0)
        done, _ = await asyncio.wait(tasks, timeout=left, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        window.pass_to(now() - origin)
        await asyncio.gather(*tasks, return_exceptions=True)
    window.check_answered()
    return window


async def _until(moment: float, now: Callable[[], float], failed: asyncio.Event) -> None:
    """Return at `moment`, or soon after something failed; other requests go on meanwhile."""
    left = moment - now() - _SPIN_S
    if left > 0:
        await asyncio.sleep(left)
    while now() < moment and not failed.is_set():
        await asyncio.sleep(0)


def send_window(
    run: Callable[[Any], Any],
    times_s: np.ndarray,
    send: Send,
    *,
    duration_s: float,
    drain_s: float,
    settle_s: float,
) -> SentSeries:
    """One window of `duration_s` seconds of arrivals, and at most `drain_s` more for the last
    answers; those of the first `settle_s` don't count. `run` does a coroutine to its end."""
    with quiet_gc():
        window = run(send_as_planned(times_s.tolist(), send, duration_s + drain_s))
    return SentSeries.of(window, settle_s, duration_s)
