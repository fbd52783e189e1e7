"""A disk that is full at each write in turn, meters that go away, servers that are too busy: what
the sweep makes of it, with stand-ins for workers that answer at once."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path
from typing import Any

import pytest

import precision_explorer
from precision_explorer.errors import EndpointError
from precision_explorer.hardware.fakes import FakeClock, FakeGpu, FakeNvml
from precision_explorer.hardware.readings import CpuReadings
from precision_explorer.hardware.sensors import NvmlSensor, RaplSensor
from precision_explorer.measure import EnergyWindow, offline
from precision_explorer.measure.throughput import NOT_ASKED, REFUSED, REFUSED_AGAIN_S
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import read_record
from precision_explorer.runner import sweep
from precision_explorer.runner.checked_energy import energy_cautions
from precision_explorer.runner.rounds import joined_energy
from precision_explorer.runner.sweep import Prepared, prepare_sweep, run_sweep
from precision_explorer.store import atomic
from precision_explorer.table import build
from precision_explorer.workload import Workload
from tests.test_rounds import Fake
from tests.test_rounds import run as stand_ins

__all__ = ["stand_ins"]
ONCE = ("quality", "block", "certificate", "noise")


# -- the disk ---------------------------------------------------------------------------------


@pytest.fixture
def prepared(stand_ins, tmp_path, quick_workload) -> Prepared:
    """A sweep of two formats by stand-ins, planned once."""
    given = {
        "task": ("sentiment",), "formats": ("fp32", "bf16"), "device": "cpu", "limit": 6,
        "workload": str(quick_workload), "out": str(tmp_path / "run"), "batch_size": (1,),
        "threads": 1,
    }  # fmt: skip
    return prepare_sweep(make_spec(given), lambda event: None)


def into(prepared: Prepared, folder: Path) -> Prepared:
    spec = prepared.spec.model_copy(update={"out": str(folder)})
    return sweep.replace(prepared, spec=spec)


def done_in(folder: Path) -> set[tuple[str, str]]:
    """(cell, part) of all that is whole."""
    parts = (folder / "parts").glob("*/*.json")
    return {(p.parent.name, p.stem) for p in parts if p.stem.startswith(ONCE)}


def test_a_disk_that_is_full_at_any_write_loses_nothing_finished(prepared, tmp_path, monkeypatch):
    """Of each write in turn: the sweep ends with the system's error, and run again it asks for
    what was not stored and for nothing else."""
    cells = {c.cell.format: c.cell_id for c in prepared.plan.cells}
    real, writes = os.fsync, [0]

    def sync(handle: int) -> None:
        writes[0] += 1
        if writes[0] == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(atomic.os, "fsync", sync)
    fails_at, refused = 0, True
    while refused:
        fails_at += 1
        writes[0], refused = 0, False
        folder = tmp_path / f"run-{fails_at}"
        Fake.asked, Fake.blocks, Fake.loaded, Fake.most = [], [], [], 0
        try:
            run_sweep(into(prepared, folder), lambda event: None)
        except OSError as error:
            refused = error.errno == errno.ENOSPC
        assert Fake.loaded == []
        assert not list(folder.rglob("*.tmp*"))
        for path in (folder / "cells").glob("*.json"):
            assert read_record(path).status == "ok"
        there, Fake.asked = done_in(folder), []
        writes[0] = -1_000
        _, tally = run_sweep(into(prepared, folder), lambda event: None)
        assert tally.failed == 0
        assert {read_record(p).status for p in (folder / "cells").glob("*.json")} == {"ok"}
        again = {
            (cells[name], op if number is None else f"{op}-{number}")
            for name, op, number in Fake.asked
        }
        assert not again & there, fails_at
    assert fails_at > 20
    assert [row["status"] for row in build([folder]).rows] == ["ok", "ok"]


# -- meters -----------------------------------------------------------------------------------


def rapl(root: Path) -> Path:
    """A powercap tree with one package."""
    package = root / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "name").write_text("package-0\n")
    (package / "max_energy_range_uj").write_text("262143328850\n")
    (package / "energy_uj").write_text("1000000\n")
    return package


def test_a_counter_that_vanishes_within_a_window_leaves_its_energy_empty(tmp_path):
    package = rapl(tmp_path)
    clock = FakeClock()
    window = EnergyWindow(RaplSensor(tmp_path), clock=clock)
    window.begin()
    clock.sleep(10)
    (package / "energy_uj").unlink()
    window.end()
    found = window.record(requests=5)
    assert (found.source, found.energy_j, found.requests) == ("measured:rapl", None, 5)
    assert found.window_s == 10
    (caution,) = energy_cautions(found.model_dump())
    assert caution.id == "meter-failed"
    assert "FileNotFoundError" in caution.message


def test_a_gpu_that_tells_nothing_any_more_leaves_its_energy_empty():
    class Falls(FakeNvml):
        left = 40

        def __getattr__(self, name: str) -> Any:
            if name in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"):
                Falls.left -= 1
                if Falls.left < 0:
                    raise FakeNvml.NVMLError("GPU is lost")
            return super().__getattr__(name)

    gpu, clock = FakeGpu(), FakeClock()
    sensor = NvmlSensor(gpu.bus_id, Falls([gpu]))
    window = EnergyWindow(sensor, clock=clock, ticker=clock.ticker)
    window.begin()
    clock.sleep(10)
    window.end()
    found = window.record(requests=5)
    assert (found.source, found.energy_j, found.integrated_j) == ("measured:nvml", None, None)
    assert "power readings ended early" in found.check_note
    assert [c.id for c in energy_cautions(found.model_dump())] == ["meter-failed"]


def test_a_counter_that_vanishes_leaves_the_other_readings(tmp_path):
    class Psutil:
        @staticmethod
        def sensors_temperatures() -> Any:
            return {}

        @staticmethod
        def cpu_freq() -> Any:
            return None

    package, clock = rapl(tmp_path), FakeClock()
    found = CpuReadings(RaplSensor(tmp_path), tmp_path / "none", clock, Psutil())
    (package / "energy_uj").unlink()
    clock.sleep(1)
    assert found.read().power_w is None


def test_joules_of_a_meter_and_an_estimate_are_not_added():
    """A meter that is gone by the next round: that one's joules come from CPU time."""
    measured = {"source": "measured:rapl", "energy_j": 4.0, "window_s": 1.0, "requests": 2}
    estimated = measured | {"source": "estimated:cpu-time", "energy_j": 1.0}
    assert joined_energy([measured, measured])["energy_j"] == 8
    found = joined_energy([measured, estimated])
    assert found["energy_j"] is None
    assert found["requests"] == 4
    assert [c.id for c in energy_cautions(found)] == ["meter-failed"]


# -- servers ----------------------------------------------------------------------------------

BUSY = EndpointError("the endpoint answered HTTP 429", passing=True, status=429)
RULES = Workload(offline_seconds=0, offline_min_batches=2)


def test_a_batch_that_a_server_refuses_is_passed_over():
    def batch(indices: list[int]) -> dict[str, Any]:
        if len(indices) >= 4:
            raise BUSY
        return {}

    rates = offline(batch, 8, (1, 2, 4, 8), RULES).by_batch_size
    assert [rates[size].note for size in ("1", "2", "4", "8")] == [None, None, REFUSED, NOT_ASKED]
    assert rates["2"].requests_per_s > 0
    assert rates["4"].requests_per_s is None


def test_a_single_request_that_is_refused_is_sent_again_later():
    slept: list[float] = []

    def batch(indices: list[int]) -> dict[str, Any]:
        if len(slept) < 2:
            raise BUSY
        return {}

    found = offline(batch, 8, (1,), RULES, sleep=slept.append)
    assert slept == list(REFUSED_AGAIN_S[:2])
    assert found.by_batch_size["1"].batches == 2

    def never(indices: list[int]) -> dict[str, Any]:
        raise BUSY

    with pytest.raises(EndpointError, match="429"):
        offline(never, 8, (1, 2), RULES, sleep=slept.append)
    assert slept[2:] == list(REFUSED_AGAIN_S)


# -- clocks -----------------------------------------------------------------------------------

STEPPED = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "time.ctime"}
# What they give is for people (when a record was begun, who holds a lock, when an export was made),
# or the age of a model's file, which is hashed anew where that is in doubt.
ALLOWED = {
    "runner/join.py", "store/lock.py", "export/mlflow_.py", "models/reference.py",
}  # fmt: skip


def test_nothing_is_measured_or_waited_for_by_a_clock_that_can_be_set():
    root = Path(precision_explorer.__file__).parent
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in STEPPED:
                found.add(path.relative_to(root).as_posix())
    assert found == ALLOWED
