"""The serving loop on the real clock against theory: waits, its own cost, its error in time.

    .venv/bin/python scripts/check_serving.py [--minutes 2] [--idle]

A stub that takes known, drawn times is served by the whole loop. Waits: those of Lindley's
recursion for the same arrivals and services. Overhead: from when a batch could have begun to when
it did, and scheduling error: from a request's arrival at an idle server to when the loop saw it.
Both hold what the machine takes from any program: beside them stand those of batches before which
no other process had the core, and the lateness of a bare loop that only spins, measured in turns.
Run it on an otherwise idle machine; exits with 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from precision_explorer.measure.clock import RealClock
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import ServingRules, serve
from precision_explorer.stats.queueing import lindley

SERVICE_S = 0.05
PARTS = 4
UNDISTURBED_S = 10e-6
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
AIMS = {"wait": 0.02, "overhead_s": 100e-6, "scheduling_s": 1e-3}


def window(
    times: np.ndarray,
    services: np.ndarray,
    rules: ServingRules,
    queued: list[float] | None = None,
) -> ServingSeries:
    """Serve `times` (n,) by a stub that takes services[first of the batch] seconds; it adds the
    thread's `queued_s` at each batch to `queued`."""
    clock = RealClock()

    def stub(positions: list[int]) -> list[dict[str, Any]]:
        if queued is not None:
            queued.append(queued_s())
        took = services[positions[0]]
        if took:
            clock.sleep_until(clock.now() + took)
        return [{} for _ in positions]

    return serve(times, stub, rules, clock=clock)


def waits(load: float, seconds: float, seed: int) -> float:
    """Relative gap of the mean wait at `load` to Lindley's; prints it."""
    rng = np.random.default_rng(seed)
    n = int(seconds * load / SERVICE_S)
    times = np.cumsum(rng.exponential(SERVICE_S / load, n))
    services = rng.exponential(SERVICE_S, n)
    series = window(times, services, ServingRules(drain_s=seconds))
    measured, theory = series.queue_s(), lindley(times, services)
    gap = measured.mean() / theory.mean() - 1
    # Of the services as long as they really took, where the machine held the stub up.
    own = measured.mean() / lindley(times, series.service_s()).mean() - 1
    tails = [np.quantile(w, 0.99, method="inverted_cdf") for w in (measured, theory)]
    record = series.record("server", batching="dynamic")
    print(
        f"load {load}: {n} requests, mean wait {measured.mean() * 1e3:.3f} ms, Lindley "
        f"{theory.mean() * 1e3:.3f} ms, {gap:+.2%} (of the services as they were {own:+.2%}); "
        f"p99 {tails[0] / tails[1] - 1:+.2%}; "
        f"lateness p99 {record.lateness_p99_s * 1e6:.0f} us; Little's gap "
        f"{record.little.relative_gap:.1e}{'; REFUSED' if record.refused else ''}"
    )
    return abs(float(gap))


def idle(seconds: float, rate: float, rules: ServingRules) -> tuple[float, float]:
    """(p99 of overhead, p99.9 of scheduling error) with a model that takes no time, in seconds;
    prints them beside those of the same loop where no other process stood in its way, and of a loop
    that does nothing but spin, in turns with it."""
    n = int(rate * seconds / PARTS / 2)
    late, cost, bare, kept, kept_batch = ([] for _ in range(5))
    for part in range(PARTS):
        times = np.cumsum(np.random.default_rng(part).exponential(1 / rate, n))
        bare.append(spinning(times))
        queued: list[float] = []
        series = window(times, np.zeros(n), rules, queued)
        mine = np.diff(queued, prepend=queued[0]) < UNDISTURBED_S
        late.append(series.lateness_s())
        cost.append(series.overhead_s())
        kept_batch.append(mine)
        kept.append(mine[np.searchsorted(series.started_s, series.noticed_s)])
    lates, costs, floor, free, free_batch = map(
        np.concatenate, (late, cost, bare, kept, kept_batch)
    )
    print(f"idle model, {rate:.0f}/s, batches of {rules.max_batch} at most, {len(lates)} requests:")
    print(f"  overhead          {_quantiles(costs)}")
    print(f"  scheduling error  {_quantiles(lates)}")
    print(
        f"  without the {1 - free_batch.mean():.1%} of batches before which the loop stood in the "
        f"kernel's run queue:\n  overhead          {_quantiles(costs[free_batch])}\n"
        f"  scheduling error  {_quantiles(lates[free])}"
    )
    print(f"  a bare loop       {_quantiles(floor)}")
    return _at(costs, 0.99), _at(lates, 0.999)


def spinning(times: np.ndarray) -> np.ndarray:
    """(n,) seconds that a loop which only spins is late for each of `times`: what the machine takes
    from any program."""
    late, now = np.empty(len(times)), time.perf_counter
    begun = now()
    for k, moment in enumerate((begun + times).tolist()):
        while now() < moment:
            pass
        late[k] = now() - moment
    return late


def queued_s() -> float:
    """Seconds that this thread could have run and stood in the run queue (proc(5), schedstat)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


def taken() -> dict[str, float]:
    """What the machine took so far: involuntary switches of this process, and seconds of all cores
    that its host gave to others."""
    steal = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return {
        "involuntary switches": resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw,
        "seconds stolen by the host": steal / os.sysconf("SC_CLK_TCK"),
    }


def _at(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q, method="inverted_cdf"))


def _quantiles(values: np.ndarray) -> str:
    told = [f"{name} {_at(values, q) * 1e6:.1f}" for name, q in QUANTILES.items()]
    return f"{', '.join(told)}, most {values.max() * 1e6:.1f} us"


def main() -> int:
    """Print everything; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="of measuring")
    parser.add_argument("--idle", action="store_true", help="without the waits")
    asked = parser.parse_args()
    part, before = asked.minutes * 60 / (2 if asked.idle else 5), taken()
    loads = () if asked.idle else (0.5, 0.7, 0.9)
    gaps = [waits(load, part, seed) for seed, load in enumerate(loads)]
    single = idle(part, 200, ServingRules())
    batched = idle(part, 200, ServingRules(max_batch=8, max_wait_s=0.01))
    print(", ".join(f"{value - before[name]:.1f} {name}" for name, value in taken().items()))
    reached = {
        "wait": max(gaps, default=0.0),
        "overhead_s": max(single[0], batched[0]),
        "scheduling_s": max(single[1], batched[1]),
    }
    missed = [name for name, aim in AIMS.items() if reached[name] > aim]
    print(f"aims {AIMS}; {'all reached' if not missed else 'missed: ' + ', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
