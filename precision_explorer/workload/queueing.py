"""Queues on a virtual clock: when each request is served by one or several machines, first come
first served, alone or in batches.

All times are seconds. `arrivals_s` (n,) never decrease; the machines are idle at first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

import numpy as np

from precision_explorer.stats.queueing import lindley
from precision_explorer.workload.service_times import LEVELS, ServiceTimes

Dispatch = Literal["round-robin", "random", "shared"]
DISPATCHES: tuple[Dispatch, ...] = ("round-robin", "random", "shared")
# Floats of a whole run's lists would not stay in the processor's cache; chunks of this size do.
_CHUNK = 1024


@dataclass(frozen=True)
class Served:
    """One simulated window, (n,) each in order of arrival: when each request came, when its batch
    was begun and ended, and how many requests that batch had."""

    arrivals_s: np.ndarray
    starts_s: np.ndarray
    ends_s: np.ndarray
    batch: np.ndarray

    @property
    def waits_s(self) -> np.ndarray:
        """From each request's arrival to its batch's begin."""
        return self.starts_s - self.arrivals_s

    @property
    def latencies_s(self) -> np.ndarray:
        """From each request's arrival to its batch's end."""
        return self.ends_s - self.arrivals_s

    def after(self, count: int) -> Served:
        """Without the first `count` requests, which found the machines emptier than later ones."""
        return Served(*(a[count:] for a in self._arrays()))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.arrivals_s, self.starts_s, self.ends_s, self.batch


def fcfs(arrivals_s: np.ndarray, services_s: np.ndarray, servers: int = 1) -> np.ndarray:
    """(n,) waits in one queue before `servers` servers, first come first served (G/G/c).

    Kiefer & Wolfowitz 1955: each request goes to the server that is free first; the servers' free
    times are a heap. Service times belong to the requests, not to the servers. One server:
    `lindley`. ValueError for arrays of different lengths or no server.
    """
    _check_replicas(servers)
    if servers == 1:
        return lindley(arrivals_s, services_s)
    arrivals, services = _pair(arrivals_s, services_s)
    starts = np.empty(len(arrivals))
    free = [-np.inf] * servers
    replace = heapq.heapreplace
    for begin in range(0, len(arrivals), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        got: list[float] = []
        add = got.append
        for arrival, service in zip(arrivals[part].tolist(), services[part].tolist(), strict=True):
            start = free[0]
            if start < arrival:
                start = arrival
            replace(free, start + service)
            add(start)
        starts[part] = got
    return starts - arrivals


def serve(
    arrivals_s: np.ndarray,
    service: ServiceTimes,
    rng: np.random.Generator,
    *,
    max_batch: int = 1,
    max_wait_s: float = 0.0,
    replicas: int = 1,
    dispatch: Dispatch = "shared",
) -> Served:
    """Requests through `replicas` machines that serve in batches of at most `max_batch`.

    A machine that is free takes a batch as soon as `max_batch` requests are queued or the oldest of
    them has waited `max_wait_s`, whichever is first, and takes all that are queued then, up to
    `max_batch`. With `max_wait_s` 0 nobody waits for company. `dispatch`: ``shared`` is one queue
    before all machines; ``round-robin`` and ``random`` give each request to a machine with a queue
    of its own when it comes. Service times are drawn from `service`, independently for each batch.
    ValueError for no machine, a wait below 0, or a batch about which `service` knows nothing.
    """
    _check_replicas(replicas)
    if not max_wait_s >= 0:
        raise ValueError(f"a longest wait of {max_wait_s} s can't be; give 0 or more")
    arrivals = np.asarray(arrivals_s, dtype=float)
    if dispatch == "shared" or replicas == 1:
        return _one_queue(arrivals, service, rng, max_batch, max_wait_s, replicas)
    machine = assign(len(arrivals), replicas, dispatch, rng)
    starts, ends = np.empty(len(arrivals)), np.empty(len(arrivals))
    batch: np.ndarray = np.empty(len(arrivals), dtype=int)
    for one in range(replicas):
        mine = machine == one
        part = _one_queue(arrivals[mine], service, rng, max_batch, max_wait_s, 1)
        starts[mine], ends[mine], batch[mine] = part.starts_s, part.ends_s, part.batch
    return Served(arrivals, starts, ends, batch)


def assign(count: int, replicas: int, dispatch: Dispatch, rng: np.random.Generator) -> np.ndarray:
    """(`count`,) the machine, 0 to `replicas` - 1, that each request is sent to when it comes."""
    if dispatch == "random":
        return rng.integers(0, replicas, count)
    return np.arange(count) % replicas


def _one_queue(
    arrivals: np.ndarray,
    service: ServiceTimes,
    rng: np.random.Generator,
    max_batch: int,
    max_wait_s: float,
    servers: int,
) -> Served:
    if max_batch == 1:
        services = service.draw(1, len(arrivals), rng)
        starts = arrivals + fcfs(arrivals, services, servers)
        return Served(arrivals, starts, starts + services, np.ones(len(arrivals), dtype=int))
    table = service.table(max_batch).tolist()
    levels = rng.integers(0, LEVELS, len(arrivals)).tolist()
    starts_, ends_, sizes = _batches(arrivals.tolist(), table, levels, max_wait_s, servers)
    each = np.repeat
    return Served(arrivals, each(starts_, sizes), each(ends_, sizes), each(sizes, sizes))


def _batches(
    arrivals: list[float],
    table: list[list[float]],
    levels: list[int],
    max_wait_s: float,
    servers: int,
) -> tuple[list[float], list[float], list[int]]:
    """Begin, end and size of every batch, in order of their begin: `table[n - 1][level]` seconds
    for a batch of n. After the last arrival a batch that is not full waits its time out."""
    count, rest = len(arrivals), len(table) - 1
    free = [-np.inf] * servers
    by_size = [[], *table]
    level, replace = iter(levels).__next__, heapq.heapreplace
    starts: list[float] = []
    ends: list[float] = []
    sizes: list[int] = []
    add_start, add_end, add_size = starts.append, ends.append, sizes.append
    first = 0
    while first < count:
        start = arrivals[first] + max_wait_s
        last = first + rest
        if last >= count:
            last = count - 1
        elif arrivals[last] < start:
            start = arrivals[last]
        if free[0] > start:
            start = free[0]
        after = bisect_right(arrivals, start, first + 1, last + 1)
        end = start + by_size[after - first][level()]
        replace(free, end)
        add_start(start)
        add_end(end)
        add_size(after - first)
        first = after
    return starts, ends, sizes


def _pair(arrivals_s: np.ndarray, services_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    arrivals, services = (np.asarray(a, dtype=float) for a in (arrivals_s, services_s))
    if arrivals.shape != services.shape or arrivals.ndim != 1:
        raise ValueError("each request needs one arrival and one service time; check the lengths")
    return arrivals, services


def _check_replicas(replicas: int) -> None:
    if replicas < 1:
        raise ValueError(f"{replicas} machines serve nothing; give at least 1")
