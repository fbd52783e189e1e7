"""Meters of Zeus, on fakes of its interface; and that the installed library has that interface."""

from __future__ import annotations

import multiprocessing
import sys
from types import ModuleType, SimpleNamespace

import pytest

from precision_explorer.hardware import DeviceFacts, open_sensor
from precision_explorer.hardware.fakes import FakeClock
from precision_explorer.measure import EnergyWindow
from tests.test_sensors import CPU

GPU = DeviceFacts(kind="cuda", device="cuda:1", name="x", cpu_model="x", cores=2, memory_bytes=1)


@pytest.fixture
def zeus(monkeypatch):
    """A function that puts a `zeus.device` in place with the given functions."""

    def put(**functions):
        def absent(*_):
            raise RuntimeError("no such device")

        module = ModuleType("zeus.device")
        vars(module).update({"get_soc": absent, "get_gpus": absent} | functions)
        monkeypatch.setitem(sys.modules, "zeus", ModuleType("zeus"))
        monkeypatch.setitem(sys.modules, "zeus.device", module)

    return put


def chip(**fields):
    """A system on a chip whose counters rise by their values at each reading."""
    state = dict.fromkeys(fields, 0.0)

    def read():
        for name, step in fields.items():
            state[name] = None if step is None else state[name] + step
        return SimpleNamespace(**state)

    return SimpleNamespace(get_total_energy_consumption=read)


def test_an_apple_chip_gives_its_cpu_rows_joules(zeus, tmp_path):
    apple = chip(cpu_total_mj=3000, gpu_mj=9, dram_mj=1)
    zeus(get_soc=lambda: apple)
    sensor = open_sensor(CPU, rapl_root=tmp_path)
    assert sensor.source == "measured:zeus"
    assert sensor.boundary.startswith("CPU clusters")
    first = sensor.energy_j()
    assert sensor.energy_j() - first == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("rails", "joules", "boundary"),
    [
        ({"cpu_energy_mj": 1, "gpu_energy_mj": 500, "total_energy_mj": 2000}, 2.0, "board"),
        ({"cpu_energy_mj": 1, "gpu_energy_mj": 500, "total_energy_mj": None}, 0.5, "GPU rail"),
    ],
)
def test_a_jetson_gives_its_input_rail_else_its_gpu_s(zeus, rails, joules, boundary):
    zeus(get_soc=lambda: chip(**rails))
    sensor = open_sensor(GPU)
    assert sensor.boundary.startswith(boundary)
    first = sensor.energy_j()
    assert sensor.energy_j() - first == pytest.approx(joules)


def test_a_worker_may_start_the_process_that_reads_a_jetson(zeus, monkeypatch):
    process = multiprocessing.current_process()
    monkeypatch.setitem(process._config, "daemon", True)
    seen = []

    def get_soc():
        seen.append(process.daemon)
        return chip(total_energy_mj=1)

    zeus(get_soc=get_soc)
    assert open_sensor(GPU).source == "measured:zeus"
    assert seen == [False]
    assert process.daemon


def test_an_amd_gpu_is_read_by_torch_s_number(zeus):
    asked = []

    def consumption(index):
        asked.append(index)
        return 1500.0 * len(asked)

    gpus = SimpleNamespace(
        supports_get_total_energy_consumption=lambda index: True,
        get_total_energy_consumption=consumption,
    )
    zeus(get_gpus=lambda: gpus)
    sensor = open_sensor(GPU)
    first = sensor.energy_j()
    assert sensor.energy_j() - first == pytest.approx(1.5)
    assert set(asked) == {1}
    gpus.supports_get_total_energy_consumption = lambda index: False
    assert open_sensor(GPU).source == "unavailable"


def test_its_joules_go_through_a_window_like_any_other_s(zeus):
    clock = FakeClock()
    zeus(get_soc=lambda: SimpleNamespace(
        get_total_energy_consumption=lambda: SimpleNamespace(total_energy_mj=20_000 * clock())
    ))  # fmt: skip
    window = EnergyWindow(open_sensor(GPU), clock=clock)
    window.begin()
    clock.sleep(10)
    found = window.end()
    assert found["source"] == "measured:zeus"
    assert found["energy_j"] == pytest.approx(200)


def test_without_the_library_or_a_device_of_its_own_nothing_changes(zeus, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "zeus.device", None)
    assert open_sensor(CPU, rapl_root=tmp_path).source == "estimated:cpu-time"
    assert "[zeus]" in open_sensor(GPU).boundary
    zeus()
    assert open_sensor(CPU, rapl_root=tmp_path).source == "estimated:cpu-time"
    assert open_sensor(GPU).source == "unavailable"


def test_the_library_has_the_interface_that_is_read():
    device = pytest.importorskip("zeus.device")
    soc = pytest.importorskip("zeus.device.soc.apple")
    jetson = pytest.importorskip("zeus.device.soc.jetson")
    common = pytest.importorskip("zeus.device.gpu.common")
    assert callable(device.get_soc)
    assert callable(device.get_gpus)
    assert "cpu_total_mj" in soc.AppleSiliconMeasurement.__dataclass_fields__
    assert {"total_energy_mj", "gpu_energy_mj"} <= {*jetson.JetsonMeasurement.__dataclass_fields__}
    for name in ("supports_get_total_energy_consumption", "get_total_energy_consumption"):
        assert callable(getattr(common.GPUs, name))
