"""Energy meters on recorded counters, and windows over them."""

import os
import time

import pytest

from precision_explorer.hardware import (
    CpuTimeSensor,
    DeviceFacts,
    NvmlSensor,
    RaplSensor,
    UnavailableSensor,
    device_facts,
    nvml_process_bytes,
    open_sensor,
)
from precision_explorer.hardware.fakes import FakeClock, FakeGpu, FakeNvml, ReplaySensor
from precision_explorer.hardware.sensors import WATTS_PER_CORE
from precision_explorer.measure import EnergyWindow, IdlePower, idle_reading, measure

CPU = DeviceFacts(kind="cpu", device="cpu", name="x", cpu_model="x", cores=2, memory_bytes=1)


def domain(root, folder, name, energy, limit=1000):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path / "energy_uj"


# -- RAPL --------------------------------------------------------------------------------------


def test_rapl_sums_packages_and_nothing_twice(tmp_path):
    first = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 200)
    others = [
        domain(tmp_path, "intel-rapl:0:0", "core", 0),
        domain(tmp_path, "intel-rapl:2", "psys", 0),
        domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    sensor = RaplSensor(tmp_path)
    start = sensor.energy_j()
    first.write_text("150")
    second.write_text("300")
    for other in others:
        other.write_text("999")
    assert sensor.energy_j() - start == pytest.approx(150e-6)
    assert sensor.source == "measured:rapl"
    assert sensor.min_window_s == 5.0


def test_rapl_wraps_around_more_than_once(tmp_path):
    """Against the same steps on a counter without end, taken modulo 1001 values."""
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 700, limit=1000)
    sensor = RaplSensor(tmp_path)
    endless, previous = 700, 0.0
    for step in (200, 200, 900, 1, 1000, 0, 500):
        endless += step
        counter.write_text(str(endless % 1001))
        value = sensor.energy_j()
        assert value >= previous
        assert value == pytest.approx((endless - 700) * 1e-6)
        previous = value


def test_rapl_that_may_not_be_read_is_not_supported(tmp_path, monkeypatch):
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 100)
    read = type(counter).read_text

    def refuse(self, *args, **kwargs):
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *args, **kwargs)

    monkeypatch.setattr(type(counter), "read_text", refuse)
    assert not RaplSensor(tmp_path).supported()
    assert open_sensor(CPU, rapl_root=tmp_path).source == "estimated:cpu-time"


def test_rapl_absent_is_not_supported(tmp_path):
    sensor = RaplSensor(tmp_path / "none")
    assert not sensor.supported()
    with pytest.raises(RuntimeError):
        sensor.energy_j()


def test_the_best_meter_of_a_cpu_is_rapl(tmp_path):
    domain(tmp_path, "intel-rapl:0", "package-0", 100)
    assert open_sensor(CPU, rapl_root=tmp_path).source == "measured:rapl"


# -- the estimate ------------------------------------------------------------------------------


def test_the_estimate_is_cpu_seconds_by_watts(tmp_path):
    sensor = open_sensor(CPU, rapl_root=tmp_path)
    before, joules = os.times(), sensor.energy_j()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        sum(range(1000))
    after, spent = os.times(), sensor.energy_j() - joules
    seconds = after.user + after.system - before.user - before.system
    assert spent == pytest.approx(seconds * WATTS_PER_CORE, abs=0.05 * WATTS_PER_CORE)
    assert f"{WATTS_PER_CORE:g} W per core" in sensor.boundary
    assert sensor.min_window_s == 0


def test_the_estimate_does_not_count_waiting():
    sensor = CpuTimeSensor()
    start = sensor.energy_j()
    time.sleep(0.2)
    assert sensor.energy_j() - start < 0.05 * WATTS_PER_CORE


# -- NVML --------------------------------------------------------------------------------------


def two_gpus():
    return FakeNvml(
        [FakeGpu(bus_id="01", uuid="GPU-aa"), FakeGpu(bus_id="02", uuid="GPU-bb", energy_mj=5000)]
    )


def test_nvml_reads_the_gpu_that_cuda_sees():
    nvml = two_gpus()
    facts = device_facts("cuda:0", nvml=nvml, variables={"CUDA_VISIBLE_DEVICES": "1"})
    sensor = open_sensor(facts, nvml=nvml)
    assert sensor.source == "measured:nvml"
    assert sensor.energy_j() == 5.0
    nvml.gpus[1].energy_mj = 6500
    assert sensor.energy_j() == 6.5


def test_a_gpu_without_a_counter_has_no_meter():
    nvml = FakeNvml([FakeGpu(energy_mj=None)])
    sensor = open_sensor(device_facts("cuda", nvml=nvml, variables={}), nvml=nvml)
    assert (sensor.source, sensor.supported()) == ("unavailable", False)
    assert not NvmlSensor("no such bus", nvml).supported()


def test_process_bytes():
    nvml = FakeNvml([FakeGpu(), FakeGpu(processes={10: 700, 11: 9, 12: None})])
    assert nvml_process_bytes(1, 10, nvml) == 700
    assert nvml_process_bytes(0, 10, nvml) is None
    assert nvml_process_bytes(1, 12, nvml) is None
    assert nvml_process_bytes(None, 10, nvml) is None


# -- windows -----------------------------------------------------------------------------------


def recorded(watts=100.0, period=0.1, until=60.0, offset=0.03):
    """A counter that is renewed every `period` seconds, shifted by `offset`."""
    steps = int(until / period)
    return [(offset + k * period, watts * (offset + k * period)) for k in range(steps)]


def test_a_window_over_a_recorded_log_is_within_two_percent():
    clock = FakeClock(1.0)
    window = EnergyWindow(ReplaySensor(recorded(), clock), clock=clock)
    window.begin()
    clock.sleep(6.0)
    answer = window.end()
    assert answer["window_s"] == pytest.approx(6.0)
    assert answer["energy_j"] == pytest.approx(600.0, rel=0.02)
    record = window.record(requests=12, idle=IdlePower(40.0))
    assert (record.source, record.requests, record.idle_power_w) == ("measured:nvml", 12, 40.0)
    assert (record.energy_j, record.note) == (answer["energy_j"], None)


def test_a_window_too_short_for_the_counter_gives_no_joules():
    clock = FakeClock(1.0)
    window = EnergyWindow(ReplaySensor(recorded(), clock), clock=clock)
    window.begin()
    clock.sleep(4.9)
    assert window.end()["energy_j"] is None
    record = window.record(requests=3)
    assert record.window_s == pytest.approx(4.9)
    assert "shorter" in record.note


def test_a_counter_that_was_reset_gives_no_joules():
    clock = FakeClock()
    window = EnergyWindow(ReplaySensor([(0, 900.0), (3, 1.0)], clock), clock=clock)
    window.begin()
    clock.sleep(6.0)
    assert window.end()["energy_j"] is None
    assert "reset" in window.record().note


def test_no_meter_is_none_with_the_reason():
    window = EnergyWindow(UnavailableSensor("no counter"))
    window.begin()
    window.end()
    record = window.record(requests=1)
    assert (record.source, record.energy_j, record.note) == ("unavailable", None, "no counter")


def test_a_meter_that_breaks_costs_only_its_own_number():
    clock = FakeClock()
    sensor = ReplaySensor([(0, 1.0)], clock)
    window = EnergyWindow(sensor, clock=clock)
    window.begin()
    sensor.energy_j = lambda: 1 / 0
    clock.sleep(6.0)
    assert window.end()["energy_j"] is None
    assert "ZeroDivisionError" in window.record().note


def test_measure_runs_as_long_as_the_meter_needs():
    clock = FakeClock(1.0)
    asked = []

    def run(seconds):
        asked.append(seconds)
        clock.sleep(seconds + 0.5)
        return 11

    energy = measure(ReplaySensor(recorded(), clock), run, 2.0, clock=clock)
    assert asked == [5.0]
    assert energy.requests == 11
    assert energy.energy_j == pytest.approx(550.0, rel=0.02)


def test_idle_power_is_read_at_updates():
    """One second on a counter of 100 ms steps: unaligned readings could be off by 10 %."""
    for offset in (0.0, 0.03, 0.07):
        clock = FakeClock(1.0)
        sensor = ReplaySensor(recorded(80.0, 0.1, 10.0, offset), clock)
        idle = idle_reading(sensor, 1.05, clock=clock, sleep=clock.sleep)
        assert idle.power_w == pytest.approx(80.0, rel=0.02)
        assert idle.update_s == pytest.approx(0.1, rel=0.05)


def test_idle_power_is_none_for_the_estimate_and_without_a_meter():
    assert idle_reading(CpuTimeSensor(), 0.01) is None
    assert idle_reading(UnavailableSensor(), 0.01) is None
