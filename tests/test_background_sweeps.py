"""Whole sweeps beside real background work: what they leave in the records, and that no process is
left behind, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from precision_explorer.records import CellRecord, read_record
from precision_explorer.table import build

WORKLOAD = """
min_requests: 2
min_seconds: 2
warmup_requests: 1
warmup_seconds: 0
offline_seconds: 0
offline_min_batches: 1
rounds: 1
"""
_LONGEST_S = 400


class Sweep:
    """A sweep of the demo model in fp32 in a process group of its own, beside `background`."""

    def __init__(self, folder: Path, background: str) -> None:
        self.folder = folder / "run"
        workload = folder / "w.yaml"
        workload.write_text(WORKLOAD)
        options = "--formats fp32 --device cpu --limit 4 --batch-size 1 --threads 1"
        command = [sys.executable, "-m", "precision_explorer", "sweep", *options.split()]
        command += ["--batch-tokens", "512", "--workload", str(workload)]
        self.process = subprocess.Popen(
            [*command, "--background", background, "--out", str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell that runs the tests in the background has its children ignore the signal.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._deadline = time.monotonic() + _LONGEST_S

    def children(self) -> set[psutil.Process]:
        try:
            return set(psutil.Process(self.process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return set()

    def wait_for(self, pattern: str) -> None:
        while not list(self.folder.glob(pattern)):
            assert time.monotonic() < self._deadline
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.01)

    def beside(self) -> tuple[set[psutil.Process], set[psutil.Process]]:
        """(the neighbours, all processes) once the neighbours are at work."""
        self.wait_for("parts/*/quality.json")
        before = self.children()
        self.wait_for("logs/background.log")
        every = self.children()
        return every - before, every

    def end(self) -> str:
        return self.process.communicate(timeout=_LONGEST_S)[1]

    def record(self) -> CellRecord:
        (path,) = (self.folder / "cells").glob("*.json")
        return read_record(path)


@pytest.fixture
def sweep(tmp_path) -> Iterator[type[Sweep]]:
    made: list[Sweep] = []

    def start(background: str) -> Sweep:
        made.append(Sweep(tmp_path, background))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()


def gone(processes: set[psutil.Process]) -> bool:
    """Whether all end; a zombie that nobody has asked for has."""
    deadline = time.monotonic() + 180  # The fork server takes its time to end on a busy machine.
    while any(map(runs, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_sweep_measures_beside_real_work_and_leaves_no_process(sweep):
    running = sweep("cpu:1,model:demo")
    neighbours, every = running.beside()
    assert neighbours
    err = running.end()
    assert running.process.returncode == 0, err
    assert gone(every)
    part = running.record().measurements.disturbed
    assert part.failed is None
    assert [n.label for n in part.neighbours] == ["cpu:1", "model:demo"]
    for neighbour in part.neighbours:
        (paced,) = neighbour.rounds
        assert paced.alone_per_s > 0
        assert paced.beside_per_s > 0
    assert part.latency.requests >= 2
    assert part.latency.cold_first_s is None
    (row,) = build([running.folder]).rows
    assert row["background"] == "cpu:1,model:demo"
    assert row["disturbed_latency_p50_s"] > 0
    assert row["disturbed_throughput_per_s"] > 0


def test_a_neighbour_that_is_killed_spoils_no_cell(sweep):
    running = sweep("copy")
    neighbours, every = running.beside()
    for neighbour in neighbours:
        neighbour.kill()
    err = running.end()
    assert running.process.returncode == 0, err
    assert "not measured beside the background: copy:1" in err
    assert gone(every)
    record = running.record()
    assert record.status == "ok"
    assert record.measurements.latency.requests >= 2
    assert record.measurements.disturbed.failed.startswith("copy:1: ")
    assert "background-failed" in {caution.id for caution in record.cautions}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_neighbour_outlives_a_sweep_that_is_interrupted_or_killed(sweep, how):
    running = sweep("cpu:1,copy")
    neighbours, every = running.beside()
    assert neighbours
    if how == signal.SIGINT:
        os.killpg(running.process.pid, how)  # As a terminal does: to all of the group.
    else:
        running.process.kill()
    err = running.end()
    assert gone(every)
    trouble = err.partition("Traceback")[2]
    # Python's fork server may say that a parent killed while it asked for a process asked for half.
    assert not trouble or (how == signal.SIGKILL and "_serve_one" in trouble)
    assert "/precision_explorer/" not in trouble
    assert running.process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
