"""Kill a sweep's parent process at random moments, again and again, and count what that loses.

One small sweep of the demo model runs for good and its workers' answers are kept. Then sweeps whose
workers replay these answers, 50 ms for each cell, are started in new processes, killed by SIGKILL
at a drawn moment and started again on the same folder until they end; then the next folder begins.
After each kill and at each end it is checked that

- nothing finished is lost: parts that were whole are byte for byte what they were, cells that were
  ok are ok;
- nothing is done twice: no answer whose part was whole is asked for again;
- no half file is read as whole: every JSON, Arrow and Parquet file opens, the table can be built;
- no lock is left behind: the next sweep on the folder starts;
- at the end the folder holds what the uninterrupted sweep's does: measurements and samples.

    python scripts/kill_parents.py --kills 1000

Exits with 1 where any of it does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import local
from precision_explorer.runner.manager import WorkerHandle
from precision_explorer.runner.sweep import Prepared, prepare_sweep, run_sweep
from precision_explorer.store import RunFolder
from precision_explorer.table import build

FORMATS = ("fp32", "int8-weight-only")
RULES = {
    "min_requests": 4, "min_seconds": 0, "warmup_requests": 1, "warmup_seconds": 0,
    "budget_seconds": 20, "offline_seconds": 0, "offline_min_batches": 2, "rounds": 2,
}  # fmt: skip
# Parts that are measured once. A model is loaded anew by each process.
ONCE = ("quality", "block-", "certificate", "profile")

Answers = dict[tuple[str, str], tuple[dict[str, Any], bytes]]


def _op(request: dict[str, Any]) -> str:
    return f"{request['op']}-{request.get('round', '')}"


class Keeping(WorkerHandle):
    """A worker whose answers are kept."""

    kept: ClassVar[Answers] = {}
    format = ""

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        """As the worker's, kept by format and what was asked."""
        self.format = request.get("format", self.format)
        answer = super().ask(request, deadline)
        self.kept.setdefault((self.format, _op(request)), answer)
        return answer


class _Process:
    pid = os.getpid()

    def __init__(self) -> None:
        self._alive = True

    def is_alive(self) -> bool:
        return self._alive

    def kill(self) -> None:
        self._alive = False


class Replaying:
    """In place of a worker: kept answers, after `pause_s` each, and a line in `log` for each."""

    ready_s = busy_s = 0.0
    pause_s = 0.0
    log: Path
    format = ""

    def __init__(self, context: Any, on_event: Any) -> None:
        self.process = _Process()

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        """The kept answer; the request is written down first."""
        self.format = request.get("format", self.format)
        line = json.dumps([self.format, _op(request)]) + "\n"
        with self.log.open("a") as file:
            file.write(line)
        time.sleep(self.pause_s)
        answer, arrow = Keeping.kept[self.format, _op(request)]
        return json.loads(json.dumps(answer)), arrow

    def kill(self) -> None:
        """End it."""
        self.process.kill()

    close = kill_soon = kill


def quiet(event: Any) -> None:
    """Nobody listens."""


def prepare(folder: Path) -> Prepared:
    """The sweep, planned once."""
    workload = folder / "quick.yaml"
    workload.write_text(yaml.safe_dump(RULES))
    options = {
        "formats": FORMATS, "device": "cpu", "limit": 6, "workload": str(workload), "threads": 1,
        "out": str(folder / "whole"), "batch_size": (1,), "task": ("sentiment",),
    }  # fmt: skip
    return prepare_sweep(make_spec(options), quiet)


def into(prepared: Prepared, folder: Path) -> Prepared:
    """The same sweep with its results in `folder`."""
    return replace(prepared, spec=prepared.spec.model_copy(update={"out": str(folder)}))


def start(prepared: Prepared, log: Path, pause_s: float) -> int:
    """The process number of a new parent that runs the sweep on kept answers."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        Replaying.log, Replaying.pause_s = log, pause_s
        local.WorkerHandle = Replaying  # type: ignore[assignment, misc]
        local.start_context = lambda **kwargs: None  # type: ignore[assignment, misc]
        _, tally = run_sweep(prepared, quiet)
        status = 1 if tally.failed else 0
    finally:
        os._exit(status)


@dataclass
class Watch:
    """What a folder held when it was last looked at, and what is wrong so far."""

    folder: Path
    log: Path
    whole: dict[str, bytes] = field(default_factory=dict)
    ok: set[str] = field(default_factory=set)
    asked: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def look(self) -> None:
        """Hold the folder against how it was."""
        run = RunFolder(self.folder)
        for path in self.folder.rglob("*"):
            self._opens(path)
        self._nothing_twice()
        parts = self.folder / "parts"
        now = {p.relative_to(parts).as_posix(): p.read_bytes() for p in parts.rglob("*.json")}
        arrows = {name: parts / name.replace(".json", ".arrow") for name in now}
        now |= {f"{n}.rows": p.read_bytes() for n, p in arrows.items() if p.exists()}
        if any(now.get(name) != content for name, content in self.whole.items()):
            self.wrong["a finished part was lost or changed"] += 1
        cells = [p.stem for p in (self.folder / "cells").glob("*.json")]
        ok = {c for c in cells if (record := run.read_record(c)) and record.status == "ok"}
        if self.ok - ok:
            self.wrong["a finished cell was lost"] += 1
        if ok:
            rows = [row for row in build([self.folder]).rows if row["status"] == "ok"]
            if len(rows) != len(ok):
                self.wrong["the table lacks a finished cell"] += 1
        self.whole, self.ok = now, ok

    def _opens(self, path: Path) -> None:
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".arrow":
                pa.ipc.open_stream(path.read_bytes()).read_all()
            elif path.suffix == ".parquet":
                pq.read_table(path)
        except Exception:
            self.wrong["a half file has a whole one's name"] += 1

    def _nothing_twice(self) -> None:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        asked, self.asked = lines[self.asked :], len(lines)
        formats = dict(formats_of(self.folder))
        done = {(formats.get(name.split("/")[0]), name.split("/")[1]) for name in self.whole}
        for line in asked:
            name, op = json.loads(line)
            part = f"{op.rstrip('-')}.json"
            if part.startswith(ONCE) and (name, part) in done:
                self.wrong["a finished answer was asked for again"] += 1


def formats_of(folder: Path) -> list[tuple[str, str]]:
    """(cell, format) of the plan."""
    try:
        plan = json.loads((folder / "sweep.json").read_text())["plan"]["cells"]
    except (OSError, ValueError):
        return []
    return [(cell["cell_id"], cell["format"]) for cell in plan]


def same_end(one: Path, other: Path) -> bool:
    """Whether two finished folders hold the same measurements and samples."""
    for cell_id, _ in formats_of(one):
        documents = [
            json.loads((f / "cells" / f"{cell_id}.json").read_text()) for f in (one, other)
        ]
        measured = [_comparable(d["measurements"]) for d in documents]
        tables = [pq.read_table(f / "samples" / f"{cell_id}.parquet") for f in (one, other)]
        if measured[0] != measured[1] or not tables[0].equals(tables[1]):
            return False
    return True


def _comparable(measured: dict[str, Any]) -> dict[str, Any]:
    """Without what a cell that was taken up again can't have (the peak of one process that did all)
    and when its rounds were."""
    latency = measured["latency"] | {"rounds": len(measured["latency"]["rounds"])}
    return measured | {"memory": None, "latency": latency}


def run(kills: int, seed: int, cell_s: float, work: Path) -> tuple[int, int, Counter[str]]:
    """(kills, folders that ended, {what was wrong: times})."""
    prepared = prepare(work)
    local.WorkerHandle = Keeping  # type: ignore[misc]
    run_sweep(prepared, quiet)
    draw = random.Random(seed)
    per_cell = len(Keeping.kept) / len(FORMATS)
    pause_s, longest_s = cell_s / per_cell, 1.5 * cell_s * len(FORMATS) + 0.1
    killed = ended = 0
    wrong: Counter[str] = Counter()
    while killed < kills:
        folder = work / f"run-{ended}"
        watch = Watch(folder, work / f"log-{ended}")
        there, status = into(prepared, folder), -1
        while status != 0 and killed < kills:
            pid = start(there, watch.log, pause_s)
            time.sleep(draw.uniform(0, longest_s))
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            killed += os.WIFSIGNALED(status)
            watch.look()
            if os.WIFEXITED(status) and status != 0:
                watch.wrong["a sweep failed"] += 1
                break
        if status == 0 and not same_end(work / "whole", folder):
            watch.wrong["the end is another than without kills"] += 1
        ended += status == 0
        wrong += watch.wrong
    return killed, ended, wrong


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cell-seconds", type=float, default=0.05)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        begun = time.monotonic()
        killed, ended, wrong = run(options.kills, options.seed, options.cell_seconds, Path(work))
    took = time.monotonic() - begun
    print(f"{killed} parents killed, {ended} sweeps came to their end, in {took:.0f} s")
    for what, times in sorted(wrong.items()):
        print(f"{what}: {times} times")
    if wrong:
        sys.exit(1)
    print("nothing lost, nothing done twice, no half file, no lock left, the same end")


if __name__ == "__main__":
    main()
