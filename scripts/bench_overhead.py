"""What the tool itself costs: `--help`, a worker's start, and a sweep's time outside its workers.

    python scripts/bench_overhead.py [sweep options]

Prints each figure, its aim and the ratio of the two (at most 1 is met). The options go to the
sweep, which is the default one without them; its results go to a temporary folder.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

HELP_AIM_S = 0.3
READY_AIM_S = 0.1
SWEEP_AIM = 1.25


def line(what: str, value: float, aim: float, unit: str, note: str) -> None:
    """One figure beside its aim."""
    print(f"{what:28} {value:8.3f} {unit:2} aim {aim:<5} ratio {value / aim:5.2f}  {note}")


def help_seconds(runs: int = 20) -> list[float]:
    """Seconds of `--help` in new processes, start of the interpreter included."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        command = [sys.executable, "-m", "precision_explorer", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return times


def ready_seconds(workers: int = 40) -> list[float]:
    """Seconds from start to first word of workers of a fork server that has started."""
    from precision_explorer.runner.manager import WorkerHandle, start_context

    context = start_context()
    times = []
    for _ in range(workers):
        worker = WorkerHandle(context, lambda event: None)
        times.append(worker.ready_s)
        worker.close()
    return times


def sweep_seconds(options: list[str]) -> tuple[float, float, float]:
    """(wall seconds of a sweep from its options to its tables, the start of the fork server
    included; seconds inside its workers; seconds until the first worker was ready)."""
    import click

    from precision_explorer.cli.options import spec_from, sweep_options
    from precision_explorer.report import write_all
    from precision_explorer.runner.sweep import prepare_sweep, run_sweep
    from precision_explorer.table import build

    @click.command()
    @sweep_options
    def parse(**given: object) -> dict[str, object]:
        return given

    given = parse.main(options, standalone_mode=False)
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_from({**given, "out": f"{folder}/run"})
        started = time.monotonic()
        prepared = prepare_sweep(spec, lambda event: None)
        run, tally = run_sweep(prepared, lambda event: None)
        write_all(build([run.path]), Path(run.path))
        return time.monotonic() - started, tally.worker_s, tally.ready_s[0]


def main() -> None:
    """Measure and print all three."""
    times = help_seconds()
    line("--help, median of 20", median(times), HELP_AIM_S, "s", f"slowest {max(times):.3f} s")
    wall, inside, first = sweep_seconds(sys.argv[1:])
    later = ready_seconds()
    p95 = float(np.quantile(later, 0.95))
    note = f"median {median(later):.3f} s; the first {first:.2f} s, with the imports of torch"
    line("worker ready, p95 of 40", p95, READY_AIM_S, "s", note)
    note = f"{wall:.1f} s, {inside:.1f} s of them inside workers"
    line("sweep wall / inside workers", wall / inside, SWEEP_AIM, "x", note)


if __name__ == "__main__":
    main()
