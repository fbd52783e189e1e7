"""Single-stream latency: one request after the other, by the workload's rules."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from precision_explorer.measure.quiet import quiet_gc
from precision_explorer.records.record import Latency, PhaseTimes
from precision_explorer.workload import Workload

if TYPE_CHECKING:
    import numpy as np

# A pointer, and an eighth of room to grow (CPython, `list_resize`).
_PLACE_BYTES = 9
Watching = Callable[[float, Callable[[], int]], AbstractContextManager[Any]]
# A generating model's forward time is its prompt's pass and its tokens' passes together.
_PARTS = {
    "tokenize_s": ("tokenize",),
    "copy_s": ("copy",),
    "forward_s": ("forward", "prefill", "decode"),
    "post_s": ("post",),
}


@dataclass(frozen=True)
class LatencySeries:
    """`rows`, one per request in order: `index` (example), `window` (``cold``, ``warmup``,
    ``measure``), `start_s` since the first request's start, `latency_s`, and the request's own
    extras. `window_s`: from the first measured request's start to the last one's end."""

    rows: list[dict[str, Any]]
    cold_first_s: float | None
    stopped_by: Literal["rules", "budget"]
    window_s: float

    def measured(self) -> list[dict[str, Any]]:
        """The rows that count."""
        return [row for row in self.rows if row["window"] == "measure"]

    def ends_s(self) -> list[float]:
        """When the measured requests ended, since the first request's start."""
        return [row["start_s"] + row["latency_s"] for row in self.measured()]

    def latencies(self) -> np.ndarray:
        """(requests,) seconds of the measured requests, in order."""
        import numpy as np

        return np.array([row["latency_s"] for row in self.measured()], dtype=np.float64)

    def phase_medians(self) -> PhaseTimes:
        """Medians over the measured requests; None for a phase that no request had. `forward_s`
        is the sum of a request's forward, prefill and decode."""
        taken = [row.get("phases") or {} for row in self.measured()]
        medians = {}
        for field, names in _PARTS.items():
            sums = [sum(p[n] for n in names if n in p) for p in taken if any(n in p for n in names)]
            medians[field] = median(sums) if sums else None
        return PhaseTimes(**medians)

    def record(self, generates: bool = False) -> Latency:
        """The summary that is stored beside the raw rows."""
        windows = [row["window"] for row in self.rows]
        return Latency(
            cold_first_s=self.cold_first_s,
            warmup_requests=windows.count("warmup"),
            requests=windows.count("measure"),
            window_s=self.window_s,
            stopped_by=self.stopped_by,
            phases=self.phase_medians(),
            generates=generates,
        )


class _Stream:
    """Serves requests one by one and keeps their rows; `last` is when the last one ended."""

    def __init__(
        self,
        request: Callable[[int], dict[str, Any]],
        count: int,
        clock: Callable[[], float],
        sync: Callable[[], None] | None,
    ) -> None:
        self._request, self._count, self._clock, self._sync = request, count, clock, sync
        self.rows: list[dict[str, Any]] = []
        self.origin = self.last = clock()

    def serve(self, number: int, window: str) -> float:
        """Serve request `number` of its window; returns the clock at its start."""
        index = number % self._count
        start = self._clock()
        extras = self._request(index)
        if self._sync is not None:
            self._sync()
        self.last = self._clock()
        place = {"index": index, "window": window, "start_s": start - self.origin}
        # Adapter's extras come first, so that none can pass for the stream's own numbers.
        self.rows.append({**extras, **place, "latency_s": self.last - start})
        return start

    def kept_bytes(self) -> int:
        """What the rows take: of each as much as of the last one, and its place in the list."""
        return len(self.rows) * (_PLACE_BYTES + _size(self.rows[-1])) if self.rows else 0


def _size(value: Any) -> int:
    """Bytes of a row: its mappings and numbers. Names are shared by all rows."""
    inner = value.values() if isinstance(value, dict) else ()
    return 0 if isinstance(value, str) else sys.getsizeof(value) + sum(map(_size, inner))


def _warm_up(stream: _Stream, rules: Workload) -> None:
    begun, done = stream.last, 0
    while done < rules.warmup_requests or stream.last - begun < rules.warmup_seconds:
        if stream.last - stream.origin >= rules.budget_seconds:
            return
        done += 1
        stream.serve(done, "warmup")


def _measure(
    stream: _Stream, rules: Workload, needed_s: float, first: int, owed: Callable[[], int]
) -> tuple[float, Literal["rules", "budget"]]:
    """Serve the measured window; (the clock at its start, what ended it)."""
    # From a given example: how many warm up depends on speed, and formats are compared on the same
    # examples in the same order.
    begun, done = stream.serve(first, "measure"), 1
    while True:
        met = done >= rules.min_requests and stream.last - begun >= needed_s
        if met and not owed():
            return begun, "rules"
        if stream.last - stream.origin >= rules.budget_seconds:
            return begun, "rules" if met else "budget"
        stream.serve(first + done, "measure")
        done += 1


def single_stream(
    request: Callable[[int], dict[str, Any]],
    count: int,
    rules: Workload,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] | None = None,
    on_begin: Callable[[], Any] | None = None,
    on_end: Callable[[], Any] | None = None,
    min_seconds: float = 0.0,
    cold: bool = True,
    first: int = 0,
    watch: Watching = lambda origin_s, kept_bytes: nullcontext(),
    owed: Callable[[], int] = lambda: 0,
) -> LatencySeries:
    """Serve examples 0 .. `count` - 1 over and over, the next when the last is done; the measured
    window begins with example `first` (modulo `count`).

    `request(i)` serves example i and returns extras for its row (`phases` a dict of seconds by
    name; `ttft_s`, ...). `sync` is called before each request's end is read, so that a device's
    work is inside. First one cold request, then warm-up, then the measured window until
    ``min_requests`` and ``min_seconds`` are met, or ``budget_seconds`` since the cold request's
    start are spent; one request is always measured. `cold` False: the process has served before, so
    there is no cold request, and the budget counts from the first request. `on_begin` and `on_end`
    are called around the measured window (an energy meter); `min_seconds` above 0 is the window
    that this meter needs, and then ``energy_seconds`` holds as well. `watch`, given the clock's
    value at ``start_s`` 0 and what tells how many bytes the rows take by now, makes a context
    around the measured window, which goes on past its rules while windows of the watch are `owed`,
    within the budget. Seconds; ValueError without examples.
    """
    if count < 1:
        raise ValueError("no example to serve; raise the limit")
    needed = rules.min_seconds
    if min_seconds > 0:
        needed = max(needed, min_seconds, rules.energy_seconds)
    stream = _Stream(request, count, clock, sync)
    if cold:
        stream.serve(0, "cold")
    _warm_up(stream, rules)
    with quiet_gc():
        if on_begin is not None:
            on_begin()
        with watch(stream.origin, stream.kept_bytes):
            begun, stopped = _measure(stream, rules, needed, first, owed)
        if on_end is not None:
            on_end()
    cold_s = stream.rows[0]["latency_s"] if cold else None
    return LatencySeries(stream.rows, cold_s, stopped, stream.last - begun)
