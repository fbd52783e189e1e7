"""Hold a GPU's counter of joules against its readings of power, on loads that are known.

A constant load (large bfloat16 products), a bursty one (0.1 s on, 0.1 s off) and an idle device,
6 s each by default; some 45 s in all. For each it prints the counter's joules and how often it was
seen to be renewed, and for each reading of power that the driver has its integral by the trapezoid
rule and the ratio to the counter; a sweep says `energy-cross-check` where the first reading's is
more than 5 % from 1. Then what the idle device draws soon after work and later, and what reading
counter and power does to short requests. Needs torch with CUDA and an otherwise idle GPU.

    python scripts/check_energy.py --seconds 6 --json energy.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from precision_explorer.hardware import NvmlSensor, PowerReading, device_facts
from precision_explorer.measure.energy import IDLE_S, SETTLE_S, idle_reading
from precision_explorer.measure.power import SAMPLE_EVERY_S, PowerTrace, in_a_thread

SIDE = 8192
# Products are queued for about so long before the host waits: short against a burst.
STEP_S = 0.02
BURST_S = 0.1


class _One:
    """The same counter beside one of its readings of power."""

    def __init__(self, sensor: NvmlSensor, power: PowerReading) -> None:
        self.source, self.boundary = sensor.source, sensor.boundary
        self.min_window_s = sensor.min_window_s
        self.supported, self.energy_j = sensor.supported, sensor.energy_j
        self.power: PowerReading | None = power


def make_step() -> Callable[[], None]:
    """A call that keeps the GPU busy for about `STEP_S`, and returns when it is done."""
    import torch

    a = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)

    def products(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=out)
        torch.cuda.synchronize()

    products(3)
    begun = time.perf_counter()
    products(10)
    count = max(1, round(10 * STEP_S / (time.perf_counter() - begun)))
    return lambda: products(count)


def constant(step: Callable[[], None], seconds: float) -> None:
    """Work without a pause."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        step()


def bursty(step: Callable[[], None], seconds: float) -> None:
    """Work and pauses of `BURST_S` in turn."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        constant(step, BURST_S)
        time.sleep(BURST_S)


def idle(step: Callable[[], None], seconds: float) -> None:
    """Nothing."""
    time.sleep(seconds)


def measured(sensor: NvmlSensor, load: Callable[[], None]) -> dict[str, Any]:
    """Counter and integrals over one load."""
    traces = [PowerTrace(_One(sensor, power)) for power in sensor.powers]

    for trace in traces:
        trace.look()
    begun, before = time.perf_counter(), sensor.energy_j()
    stops = [in_a_thread(trace.look, SAMPLE_EVERY_S) for trace in traces]
    load()
    after, ended = sensor.energy_j(), time.perf_counter()
    for stop, trace in zip(stops, traces, strict=True):
        stop()
        trace.look()
    joules = after - before
    return {
        "window_s": ended - begun,
        "counter_j": joules,
        "power_w": joules / (ended - begun),
        "readings": [_reading(trace, joules) for trace in traces],
    }


def _reading(trace: PowerTrace, joules: float) -> dict[str, Any]:
    integrated = trace.integrated_j
    changes = sum(a != b for a, b in zip(trace.watts, trace.watts[1:], strict=False))
    return {
        "reading": trace.power.name,
        "averaged_s": trace.power.averaged_s,
        "integrated_j": integrated,
        "ratio": integrated / joules if integrated is not None and joules > 0 else None,
        "samples": trace.samples,
        "longest_gap_s": trace.longest_gap_s,
        "counter_updates": trace.updates,
        "reading_changes": changes,
        "failed": trace.failed,
    }


def shown(name: str, found: dict[str, Any]) -> str:
    """One load in lines."""
    lines = [
        f"{name}: {found['window_s']:.2f} s, counter {found['counter_j']:.1f} J "
        f"({found['power_w']:.0f} W)"
    ]
    for r in found["readings"]:
        if r["integrated_j"] is None:
            lines.append(f"  {r['reading']}: failed ({r['failed']})")
            continue
        kind = "instantaneous" if not r["averaged_s"] else f"average over {r['averaged_s']:g} s"
        ratio = "no ratio" if r["ratio"] is None else f"{r['ratio']:.3f} of the counter"
        lines.append(
            f"  {r['reading']} ({kind}): {r['integrated_j']:.1f} J, {ratio}; {r['samples']} "
            f"samples, longest gap {1000 * r['longest_gap_s']:.0f} ms, counter renewed >= "
            f"{r['counter_updates']} times, reading changed {r['reading_changes']} times"
        )
    return "\n".join(lines)


def disturbance(sensor: NvmlSensor, seconds: float = 2.0) -> dict[str, Any]:
    """What reading counter and power every `SAMPLE_EVERY_S` does to a loop of short requests:
    microseconds of the median and the 99th percentile without it and with it, in turn, twice."""
    import torch

    a = torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16)
    trace = PowerTrace(sensor)
    begun = time.perf_counter()
    for _ in range(20):
        trace.look()
    found: dict[str, Any] = {"look_ms": 50 * (time.perf_counter() - begun)}
    for name in ("without", "with", "without_again", "with_again"):
        stop = in_a_thread(trace.look, SAMPLE_EVERY_S) if "without" not in name else None
        times, end = [], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            for _ in range(4):
                torch.mm(a, a)
            torch.cuda.synchronize()
            times.append(1e6 * (time.perf_counter() - start))
        if stop is not None:
            stop()
        times.sort()
        found[name] = {"p50_us": times[len(times) // 2], "p99_us": times[len(times) * 99 // 100]}
    return found


def settling(sensor: NvmlSensor, step: Callable[[], None]) -> dict[str, Any]:
    """Watts of the idle device `SETTLE_S` after work, and some seconds later, and milliseconds
    between two renewals of the counter."""
    constant(step, 2.0)
    time.sleep(SETTLE_S)
    soon = idle_reading(sensor, IDLE_S)
    time.sleep(5.0)
    later = idle_reading(sensor, IDLE_S)
    return {
        "soon_w": soon and soon.power_w,
        "later_w": later and later.power_w,
        "update_ms": later and later.update_s and 1000 * later.update_s,
    }


def open_meter() -> NvmlSensor | str:
    """The first CUDA device's; else why there is none."""
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device: this check needs one"
    sensor = NvmlSensor(device_facts("cuda:0").pci_bus_id)
    if not sensor.supported():
        return "NVML gives no energy counter of this GPU"
    return sensor if sensor.powers else "NVML gives no power reading of this GPU"


def main() -> int:
    """Run the check; 1 where there is nothing to check."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    options = parser.parse_args()
    sensor = open_meter()
    if isinstance(sensor, str):
        print(sensor)
        return 1
    step, found = make_step(), {}
    for load in (constant, bursty, idle):
        if load is not idle:
            constant(step, 1.0)  # Clocks are up, and an average over a second is of this load.
        else:
            time.sleep(SETTLE_S)
        found[load.__name__] = measured(sensor, partial(load, step, options.seconds))
        print(shown(load.__name__, found[load.__name__]), flush=True)
    found["settling"] = settling(sensor, step)
    found["disturbance"] = disturbance(sensor)
    for name in ("settling", "disturbance"):
        print(f"{name}: {json.dumps(found[name])}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
