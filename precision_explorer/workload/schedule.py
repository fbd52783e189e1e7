"""The plan of a window: when each request comes, which example it takes, how long it is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precision_explorer.errors import UsageError
from precision_explorer.units import rate as rate_text
from precision_explorer.units import seconds
from precision_explorer.workload.arrivals import ArrivalProcess
from precision_explorer.workload.lengths import Lengths
from precision_explorer.workload.mix import MixPart
from precision_explorer.workload.replay import TraceArrivals
from precision_explorer.workload.workload import Workload


@dataclass(frozen=True, eq=False)
class Schedule:
    """n requests, in the order of their times.

    `times_s` (n,) float64 seconds from the window's start, non-decreasing, within 0 and
    `duration_s`; all 0 in scenarios without arrivals, where `duration_s` is 0 too. `items` (n,)
    int64 index of the example. `input_tokens`, `output_tokens` (n,) int64, None where the example's
    own count. `parts` (n,) int64 index into the workload's mix, None without one."""

    times_s: np.ndarray
    items: np.ndarray
    input_tokens: np.ndarray | None
    output_tokens: np.ndarray | None
    duration_s: float
    parts: np.ndarray | None = None

    @property
    def n(self) -> int:
        """Requests."""
        return int(self.times_s.size)

    @property
    def rate_per_s(self) -> float | None:
        """Requests over the window's seconds; None without arrivals."""
        return self.n / self.duration_s if self.duration_s else None

    @property
    def hash(self) -> str:
        """16 hex digits, the SHA-256 of all of it."""
        digest = hashlib.sha256(np.float64(self.duration_s).tobytes())
        for array in (self.times_s, self.items, self.input_tokens, self.output_tokens, self.parts):
            digest.update(b"-" if array is None else array.dtype.str.encode() + array.tobytes())
        return digest.hexdigest()[:16]


def plan_schedule(
    workload: Workload,
    count: int,
    seed: int,
    rate_per_s: float | None = None,
    round: int = 0,
    *,
    duration_s: float | None = None,
    n: int | None = None,
    groups: Sequence[str | None] | None = None,
    owners: Sequence[str | None] | None = None,
    draw: tuple[int, ...] = (),
) -> Schedule:
    """The requests of one window over `count` examples.

    `rate_per_s` is the mean rate (None: the one that the arrivals declare), `duration_s` the window
    in place of the workload's, `n` the number of requests where there are no arrivals (None:
    `count`), `groups` the group of each example, for a mix that names groups, `owners` the task
    that each is of (None: the cell's own), for one that names tasks. Each round draws anew, and so
    does each `draw`; the same seed, round and draw give the same plan for every format. Times, mix,
    examples and lengths are drawn apart, so that another distribution of lengths changes no time. A
    window ends where its trace does.

    UsageError where the rate is not known, no request falls into the window, or a group is missing.
    """
    if count < 1:
        raise ValueError("no examples to plan requests over")

    def rng(part: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(round, part, *draw)))

    times, window_s = np.zeros(n or count), 0.0
    if workload.arrivals is not None:
        times, window_s = _times(workload.arrivals, workload, rate_per_s, duration_s, rng(0))
    parts = None
    if workload.mix is not None:
        weights = np.array([part.weight for part in workload.mix])
        parts = rng(1).choice(weights.size, size=times.size, p=weights / weights.sum())
    examples = _Examples(count, groups, owners)
    items = _items(workload.mix, parts, examples, times.size, rng(2))
    got_in, got_out = _lengths(workload, parts, times.size, rng(3))
    return Schedule(times, items, got_in, got_out, window_s, parts)


def _times(
    arrivals: ArrivalProcess,
    workload: Workload,
    rate_per_s: float | None,
    duration_s: float | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, float]:
    """(n,) seconds, and the window's."""
    window_s = workload.duration_seconds if duration_s is None else duration_s
    own = arrivals if rate_per_s is None else arrivals.at(rate_per_s)
    if isinstance(own, TraceArrivals):
        window_s = min(window_s, own.span_s(own.rate()))
        if window_s <= workload.warmup_seconds:
            raise UsageError(
                f"the trace takes {seconds(window_s)} at this speed, not longer than the warm-up "
                f"({seconds(workload.warmup_seconds)}); give a longer one or replay it slower"
            )
    times = own.times(rng, duration_s=window_s)
    if not times.size:
        raise UsageError(
            f"no request falls into {seconds(window_s)} at {rate_text(own.rate())}; raise the rate "
            "or the duration"
        )
    return times, window_s


@dataclass(frozen=True)
class _Examples:
    """`count` examples, with the group and the task of each where that is known."""

    count: int
    groups: Sequence[str | None] | None
    owners: Sequence[str | None] | None

    def of(self, part: MixPart) -> np.ndarray:
        """Indices of those that a part of a mix takes."""
        owners = self.owners or [None] * self.count
        own = np.array([owner == part.task for owner in owners])
        if part.group is None:
            return np.flatnonzero(own)
        known = self.groups or [None] * self.count
        pool = np.flatnonzero(own & np.array([group == part.group for group in known]))
        if not pool.size:
            pairs = zip(known, own, strict=True)
            names = ", ".join(sorted({g for g, mine in pairs if mine and g is not None})[:8])
            raise UsageError(
                f"mix: no example is of the group '{part.group}' of '{part.name}'; "
                + (f"known: {names}" if names else "the task's examples have no groups")
            )
        return pool


def _items(
    mix: Sequence[MixPart] | None,
    parts: np.ndarray | None,
    examples: _Examples,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """(n,) int64 index of the example of each request."""
    if mix is None or parts is None:
        return _dealt(np.arange(examples.count), n, rng)
    items: np.ndarray = np.empty(n, dtype=np.int64)
    for index, part in enumerate(mix):
        own = np.flatnonzero(parts == index)
        items[own] = _dealt(examples.of(part), own.size, rng)
    return items


def _dealt(pool: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` of the pool, dealt like cards: each pass over it in another random order. Uniform, and
    all examples come equally often but for the last pass, which keeps a round's total work near the
    mean (MLPerf's equal issue mode, there for inputs of unlike length)."""
    passes = -(-n // pool.size)
    return rng.permuted(np.tile(pool, (passes, 1)), axis=1).ravel()[:n].astype(np.int64)


def _lengths(
    workload: Workload, parts: np.ndarray | None, n: int, rng: np.random.Generator
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Tokens in and out, (n,) int64 each, or None."""
    if isinstance(workload.arrivals, TraceArrivals) and workload.arrivals.use_lengths:
        return workload.arrivals.lengths(n) or (None, None)
    if workload.mix is None or parts is None:
        return _lengths_of(workload.lengths or Lengths(), n, rng)
    drawn = [_lengths_of(part.lengths or workload.lengths or Lengths(), n, rng)
             for part in workload.mix]  # fmt: skip
    return _chosen([d[0] for d in drawn], parts), _chosen([d[1] for d in drawn], parts)


def _lengths_of(
    lengths: Lengths, n: int, rng: np.random.Generator
) -> tuple[np.ndarray | None, np.ndarray | None]:
    return lengths.input.draw(rng, n), lengths.output.draw(rng, n)


def _chosen(drawn: list[np.ndarray | None], parts: np.ndarray) -> np.ndarray | None:
    """Of each request the length that its part drew; None where the parts take the data's own."""
    given = [lengths for lengths in drawn if lengths is not None]
    return np.choose(parts, given) if len(given) == len(drawn) else None
