"""Processor time of the workers that wait while another is timed, on the bundled demo model: each
line is one block, with the seconds that it took and the CPU seconds of every worker in them. All
but the timed format's must be near 0.

    .venv/bin/python scripts/check_waiting_workers.py [threads]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import psutil

from precision_explorer.plan.spec import make_spec
from precision_explorer.runner.manager import Event
from precision_explorer.runner.sweep import prepare_sweep, run_sweep

FORMATS = ("fp32", "bf16", "int8-dynamic")
RULES = "min_requests: 30\nmin_seconds: 0\noffline_seconds: 0\n"


class Watch:
    """CPU seconds of each format's worker, read when a block begins and when the next one does."""

    def __init__(self) -> None:
        self.pids: dict[str, int] = {}
        self.newest = 0
        self.format = ""
        self.before: tuple[str, float, dict[str, float]] | None = None
        self.worst = 0.0

    def spent(self) -> dict[str, float]:
        """{format: CPU seconds of its worker so far}."""
        found = {}
        for name, pid in self.pids.items():
            times = psutil.Process(pid).cpu_times()
            found[name] = times.user + times.system
        return found

    def __call__(self, event: Event) -> None:
        if event.name == "worker":
            self.newest = event.data["pid"]
        elif event.name == "start":
            self.format = event.data["format"]
        elif event.name == "progress" and event.data["phase"] == "load":
            self.pids[self.format] = self.newest
        elif event.name == "round":
            self.end()
            self.before = (event.data["format"], time.monotonic(), self.spent())
        elif event.name == "cell":
            self.before = None

    def end(self) -> None:
        """Print the block that has just ended."""
        if self.before is None:
            return
        timed, begun, before = self.before
        now = self.spent()
        spent = {name: now[name] - before[name] for name in now}
        waiting = [s for name, s in spent.items() if name != timed]
        self.worst = max(self.worst, *waiting) if waiting else self.worst
        each = ", ".join(f"{name} {s:.2f}" for name, s in spent.items())
        print(f"{timed}: {time.monotonic() - begun:.2f} s; CPU seconds: {each}")


def main() -> None:
    """Run a small sweep and watch it."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "short.yaml"
        rules.write_text(RULES)
        spec = make_spec(
            {
                "formats": FORMATS, "device": "cpu", "limit": 8, "threads": threads,
                "workload": str(rules), "out": str(Path(folder) / "run"), "batch_size": (1,),
            }
        )  # fmt: skip
        watch = Watch()
        run_sweep(prepare_sweep(spec, lambda event: None), watch)
    print(f"most of a waiting worker in any block: {watch.worst:.2f} CPU seconds")


if __name__ == "__main__":
    main()
