"""The queue simulator against queueing theory and against SimPy, on a virtual clock.

Mean wait and p99 of M/M/1 and M/D/1 at utilisation 0.5, 0.7 and 0.9 must be within 5 % of theory,
the mean wait of M/M/c within 2 % of Erlang C, and at least 1 million requests must be simulated per
second of processor time. SimPy (skipped where it is not installed) gets the same arrivals and
services: the waits must be the same, and its speed stands beside ours.

    python scripts/check_queueing.py
    python scripts/check_queueing.py --requests 16000000 --seed 1

A simulation starts idle, so its first tenth is left out: 0.8 million requests, where the slowest of
these queues forgets its start after some thousand. With several servers fewer wait, so four such
runs are taken. `error` is the standard error of the simulated mean over theory, from the means
of 50 parts of a run: a simulator that is right is off by one or two of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from precision_explorer.stats.queueing import lindley
from precision_explorer.workload.queue_theory import (
    md1_mean_wait,
    md1_wait_quantile,
    mmc_mean_wait,
    mmc_wait_quantile,
)
from precision_explorer.workload.queueing import DISPATCHES, fcfs, serve
from precision_explorer.workload.service_times import ServiceTimes

REQUESTS = 8_000_000
LOADS = (0.5, 0.7, 0.9)
MOST_OFF, MOST_OFF_SERVERS = 0.05, 0.02
RUNS_OF_SERVERS = 4
SERVERS = ((2, 0.8), (8, 0.8), (8, 0.9), (32, 0.9))
LEAST_PER_S = 1e6
Q = 0.99
PARTS = 50
BATCHES = ServiceTimes({1: 1.0, 8: 2.0})
MAX_BATCH, MAX_WAIT_S = 8, 0.5


def drawn(count: int, load: float, servers: int, fixed: bool, seed: int) -> Any:
    """(arrivals, services) of `count` requests: Poisson, services of mean 1, exponential unless
    `fixed`."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / (load * servers), count))
    return arrivals, np.ones(count) if fixed else rng.exponential(1, count)


def row(name: str, runs: Iterable[np.ndarray], mean: float, tail: float, most: float) -> bool:
    """Print the waits of one queue's runs against theory; whether they are close enough."""
    means, tails, parts = [], [], []
    for waits in runs:
        kept = waits[len(waits) // 10 :]
        means.append(kept.mean())
        tails.append(np.quantile(kept, Q))
        parts += kept[: len(kept) // PARTS * PARTS].reshape(PARTS, -1).mean(axis=1).tolist()
    error = np.std(parts, ddof=1) / len(parts) ** 0.5 / mean
    off, tail_off = np.mean(means) / mean - 1, np.mean(tails) / tail - 1
    print(
        f"{name:26}{mean:8.4f}{np.mean(means):10.4f}{off:+9.2%}{error:8.2%}{tail:10.3f}"
        f"{tail_off:+9.2%}",
        flush=True,
    )
    return bool(abs(off) <= most and abs(tail_off) <= most)


def against_theory(count: int, seed: int) -> bool:
    """M/M/1, M/D/1 and M/M/c."""
    print(f"{count:,} requests in each run; waits in service times")
    print(f"{'':26}{'theory':>8}{'mean':>10}{'off':>9}{'error':>8}{'p99':>10}{'off':>9}")
    good = True
    for load in LOADS:
        waits = lindley(*drawn(count, load, 1, False, seed))
        theory = mmc_mean_wait(load, 1), mmc_wait_quantile(Q, load, 1)
        good &= row(f"M/M/1 at {load}", [waits], *theory, MOST_OFF)
        waits = lindley(*drawn(count, load, 1, True, seed))
        theory = md1_mean_wait(load, 1), md1_wait_quantile(Q, load, 1)
        good &= row(f"M/D/1 at {load}", [waits], *theory, MOST_OFF)
    for servers, load in SERVERS:
        seeds = range(seed, seed + RUNS_OF_SERVERS)
        runs = (fcfs(*drawn(count, load, servers, False, s), servers) for s in seeds)
        rate = load * servers
        theory = mmc_mean_wait(rate, 1, servers), mmc_wait_quantile(Q, rate, 1, servers)
        good &= row(f"M/M/{servers} at {load} (Erlang C)", runs, *theory, MOST_OFF_SERVERS)
    return good


def speed(count: int, run: Callable[[], Any]) -> float:
    """Requests per second of processor time, the best of three."""
    best = np.inf
    for _ in range(3):
        begun = time.process_time()
        run()
        best = min(best, time.process_time() - begun)
    return count / best


def speeds(count: int, seed: int) -> tuple[bool, dict[int, float]]:
    """Print our speeds; whether all are high enough, and those of one queue by servers."""
    print(f"\n{count:,} requests: simulated per second of processor time")
    found, own = [], {}
    for servers in (1, 4, 64):
        pair = drawn(count, 0.8, servers, False, seed)
        own[servers] = speed(count, lambda p=pair, c=servers: fcfs(*p, c))
        found.append((f"{servers} servers, first come first served", own[servers]))
    arrivals, _ = drawn(count, 0.8 * BATCHES.rate_per_s(MAX_BATCH), 4, True, seed)
    for dispatch in DISPATCHES:
        rng = np.random.default_rng(seed)
        rate = speed(
            count,
            lambda d=dispatch, r=rng: serve(
                arrivals, BATCHES, r,
                max_batch=MAX_BATCH, max_wait_s=MAX_WAIT_S, replicas=4, dispatch=d,
            ),
        )  # fmt: skip
        found.append((f"4 machines, batches up to {MAX_BATCH}, {dispatch}", rate))
    for name, rate in found:
        print(f"{name:45}{rate / 1e6:8.2f} million")
    return all(rate >= LEAST_PER_S for _, rate in found), own


def simpy_fcfs(arrivals: np.ndarray, services: np.ndarray, servers: int) -> np.ndarray:
    """Waits of the same requests in SimPy."""
    import simpy

    env, waits = simpy.Environment(), np.empty(len(arrivals))
    resource = simpy.Resource(env, capacity=servers)

    def request(index: int) -> Any:
        with resource.request() as turn:
            yield turn
            waits[index] = env.now - arrivals[index]
            yield env.timeout(services[index])

    def source() -> Any:
        for index, moment in enumerate(arrivals):
            yield env.timeout(moment - env.now)
            env.process(request(index))

    env.process(source())
    env.run()
    return waits


def simpy_batches(arrivals: np.ndarray, times: ServiceTimes, servers: int) -> np.ndarray:
    """Waits of the same requests in SimPy: servers that take batches by the rules of `serve`."""
    import simpy

    env, waits = simpy.Environment(), np.empty(len(arrivals))
    queue: list[int] = []
    changed = [env.event()]

    def wake() -> None:
        changed[0].succeed()
        changed[0] = env.event()

    def source() -> Any:
        for index, moment in enumerate(arrivals):
            yield env.timeout(moment - env.now)
            queue.append(index)
            wake()

    def server() -> Any:
        while True:
            while not queue:
                yield changed[0]
            due = arrivals[queue[0]] + MAX_WAIT_S
            if len(queue) < MAX_BATCH and env.now < due:
                yield changed[0] | env.timeout(due - env.now)
                continue
            batch = queue[:MAX_BATCH]
            del queue[:MAX_BATCH]
            wake()
            waits[batch] = env.now - arrivals[batch]
            yield env.timeout(times.mean_s(len(batch)))

    env.process(source())
    for _ in range(servers):
        env.process(server())
    env.run()
    return waits


def against_simpy(count: int, seed: int, own: dict[int, float]) -> bool:
    """Print SimPy's speed and how far its waits are from ours."""
    try:
        import simpy
    except ImportError:
        print("\nSimPy is not installed and was left out; pip install simpy")
        return True
    print(f"\nSimPy {simpy.__version__}, {count:,} of the same requests")
    good = True
    for servers in (1, 4):
        pair = drawn(count, 0.8, servers, False, seed)
        begun = time.process_time()
        waits = simpy_fcfs(*pair, servers)
        rate = count / (time.process_time() - begun)
        gap = float(np.abs(waits - fcfs(*pair, servers)).max())
        print(
            f"{servers} servers: {rate / 1e6:.3f} million per second, ours "
            f"{own[servers] / rate:.0f} x as many; waits differ by at most {gap:.1g}"
        )
        good &= gap < 1e-6
    arrivals, _ = drawn(count // 4, 0.8 * BATCHES.rate_per_s(MAX_BATCH), 4, True, seed)
    waits = simpy_batches(arrivals, BATCHES, 4)
    ours = serve(
        arrivals, BATCHES, np.random.default_rng(seed),
        max_batch=MAX_BATCH, max_wait_s=MAX_WAIT_S, replicas=4,
    ).waits_s  # fmt: skip
    gap = float(np.abs(waits - ours).max())
    print(f"4 machines, batches up to {MAX_BATCH}, one queue: waits differ by at most {gap:.1g}")
    return good and gap < 1e-6


def main() -> int:
    """Print all; 1 if one of the aims is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    good = against_theory(given.requests, given.seed)
    fast, own = speeds(1_000_000, given.seed)
    same = against_simpy(200_000, given.seed, own)
    print(f"\ntheory {_word(good)}, speed {_word(fast)}, SimPy {_word(same)}")
    return 0 if good and fast and same else 1


def _word(good: bool) -> str:
    return "agrees" if good else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
