"""A soak's windows: what the device tells, what flags a window, what is measured again."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from precision_explorer.hardware import CpuReadings, DeviceFacts, NvmlReadings, Reading
from precision_explorer.hardware.fakes import FakeClock, FakeGpu, FakeNvml, ReplaySensor
from precision_explorer.hardware.sensors import CpuTimeSensor
from precision_explorer.measure import SoakMonitor
from precision_explorer.records import Soak, SoakWindow, windows_owed, with_repeats

CPU = DeviceFacts(kind="cpu", device="cpu", name="x", cpu_model="x", cores=2, memory_bytes=1)


# -- readings ----------------------------------------------------------------------------------


def test_a_gpu_tells_temperature_clock_power_and_why_it_is_slow():
    gpu = FakeGpu(event_reasons=0x01 | 0x04 | 0x40)  # idle, power cap, hot
    readings = NvmlReadings(gpu.bus_id, FakeNvml([gpu]))
    found = readings.read()
    assert (found.temperature_c, found.clock_hz, found.power_w) == (45.0, 1.5e9, 300.0)
    assert found.throttle_reasons == {"sw-power-cap", "hw-thermal-slowdown"}
    assert set(readings.sources) == {"temperature_c", "clock_hz", "power_w", "throttle_reasons"}


def test_what_a_gpu_does_not_tell_is_missing():
    gpu = FakeGpu(celsius=None)
    readings = NvmlReadings(gpu.bus_id, FakeNvml([gpu]))
    assert readings.read().temperature_c is None
    assert "temperature_c" not in readings.sources
    assert readings.read().clock_hz == 1.5e9
    for bus_id, nvml in (("elsewhere", FakeNvml([gpu])), (None, FakeNvml([]))):
        nothing = NvmlReadings(bus_id, nvml)
        assert nothing.read() == Reading()
        assert nothing.sources == {}


def test_others_are_all_but_the_busiest_process_of_a_gpu():
    gpu = FakeGpu()
    readings = NvmlReadings(gpu.bus_id, FakeNvml([gpu]))
    assert readings.read().other_share is None
    gpu.sm_percent = {7: 90}
    assert readings.read().other_share == 0
    gpu.sm_percent = {7: 90, 8: 0, 9: 12}
    assert readings.read().other_share == pytest.approx(0.12)


def processor(**sensors):
    frequency = SimpleNamespace(current=2400.0)
    return SimpleNamespace(cpu_freq=lambda: frequency, sensors_temperatures=lambda: sensors)


def celsius(*values):
    return [SimpleNamespace(current=value) for value in values]


def test_a_processor_tells_temperature_and_clock(tmp_path):
    psutil = processor(coretemp=celsius(50.0, 61.5), nvme=celsius(80.0))
    readings = CpuReadings(root=tmp_path, psutil=psutil)
    found = readings.read()
    assert (found.temperature_c, found.clock_hz, found.power_w) == (61.5, 2.4e9, None)
    assert set(readings.sources) == {"temperature_c", "clock_hz"}
    bare = CpuReadings(root=tmp_path, psutil=SimpleNamespace(cpu_freq=lambda: None))
    assert bare.read() == Reading()


def test_a_processor_s_power_is_the_meter_s_and_never_an_estimate(tmp_path):
    clock = FakeClock()
    meter = ReplaySensor([(0, 100.0), (2, 150.0)], clock, source="measured:rapl")
    readings = CpuReadings(meter, tmp_path, clock, processor())
    clock.sleep(2)
    assert readings.read().power_w == 25.0
    estimate = CpuReadings(CpuTimeSensor(), tmp_path, clock, processor())
    clock.sleep(2)
    assert estimate.read().power_w is None


def test_a_processor_that_was_throttled_between_two_looks(tmp_path):
    folder = tmp_path / "cpu0" / "thermal_throttle"
    folder.mkdir(parents=True)
    count = folder / "core_throttle_count"
    count.write_text("3\n")
    readings = CpuReadings(root=tmp_path, psutil=processor())
    assert readings.read().throttle_reasons == frozenset()
    count.write_text("4\n")
    assert readings.read().throttle_reasons == {"cpu-thermal-throttle"}
    assert readings.read().throttle_reasons == frozenset()


# -- the monitor -------------------------------------------------------------------------------


class Script:
    """Readings that are told beforehand."""

    def __init__(self, *readings):
        self.left = [Reading(), *readings]
        self.sources = {"clock_hz": "told"}

    def read(self):
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


class Shares:
    def __init__(self, *shares):
        self.left, self.begun = list(shares), 0

    def begin(self):
        self.begun += 1

    def end(self):
        return self.left.pop(0)


def monitor(clock, readings, others=(None,) * 9, memory=lambda: 1000, **options):
    options = {"window_seconds": 10.0, "origin_s": 100.0} | options
    return SoakMonitor(
        CPU, readings=readings, others=Shares(*others), memory=memory, clock=clock, **options
    )


def test_a_window_sums_up_its_readings():
    clock = FakeClock(102.0)
    seen = Script(
        Reading(60.0, 1.0e9, 200.0),
        Reading(70.0, 2.0e9, None, frozenset({"sw-power-cap"})),
        Reading(65.0, None, 300.0),
    )
    made = monitor(clock, seen, others=(0.02, None))
    made.begin()
    for _ in range(3):
        clock.sleep(4)
        made.tick()
    (window,) = made.windows()
    assert (window.start_s, window.seconds) == (2.0, 12.0)
    assert (window.temperature_c, window.clock_hz, window.power_w) == (70.0, 1.5e9, 250.0)
    assert window.throttle_reasons == ["sw-power-cap"]
    assert window.other_work_share == 0.02
    assert window.memory_bytes == 1000
    assert not window.is_flagged  # A board at its power limit is no trouble.


# Prints how many rows there are, the bytes they are counted as, and what the process grew by.
ROWS_OF_REQUESTS = """
import contextlib
from precision_explorer.hardware.fakes import FakeClock
from precision_explorer.measure.latency import single_stream
from precision_explorer.measure.memory import own_bytes
from precision_explorer.workload import load_workload

clock, held = FakeClock(), []
rules = load_workload("single-stream").model_copy(
    update={"min_requests": 50_000, "warmup_requests": 0, "warmup_seconds": 0.0}
)

def request(index):
    clock.sleep(0.001)
    return {"phases": {"tokenize": 0.1 * index, "forward": 0.2 * index, "post": 0.3 * index}}

@contextlib.contextmanager
def watch(origin_s, kept_bytes):
    before = kept_bytes(), own_bytes()
    yield
    held.append((kept_bytes() - before[0], own_bytes() - before[1]))

series = single_stream(request, 7, rules, clock=clock, watch=watch)
print(len(series.rows), *held[0])
"""


def test_the_rows_of_the_requests_are_no_growth_of_memory():
    """Real objects in a new process (one that freed memory before need not grow): what they take
    is what the kernel says, within what its pages hide."""
    done = subprocess.run(
        [sys.executable, "-c", ROWS_OF_REQUESTS], capture_output=True, text=True, check=True
    )
    rows, kept, grown = map(int, done.stdout.split())
    assert rows > 50_000
    assert kept == pytest.approx(grown, rel=0.2)


def test_soak_windows_leave_out_the_rows_of_the_requests():
    clock = FakeClock()
    # On a GPU memory is the device's, which rows are not in.
    for facts, there in ((CPU, 600), (CPU.model_copy(update={"kind": "cuda"}), 1000)):
        made = SoakMonitor(
            facts, 1.0, 0.0, readings=Script(Reading()), memory=lambda: 1000,
            kept_bytes=lambda: 400, others=Shares(None), clock=clock,
        )  # fmt: skip
        made.begin()
        clock.sleep(1)
        made.tick()
        assert made.windows()[0].memory_bytes == there


@pytest.mark.parametrize(
    ("share", "reading", "flags"),
    [
        (0.04, Reading(), (False, False)),
        (0.06, Reading(), (True, False)),
        (None, Reading(), (False, False)),
        (None, Reading(other_share=0.2), (True, False)),
        (0.0, Reading(throttle_reasons=frozenset({"hw-thermal-slowdown"})), (False, True)),
        (0.0, Reading(throttle_reasons=frozenset({"cpu-thermal-throttle"})), (False, True)),
    ],
)
def test_what_flags_a_window(share, reading, flags):
    clock = FakeClock(100.0)
    made = monitor(clock, Script(reading), others=(share,))
    made.begin()
    clock.sleep(10)
    made.tick()
    (window,) = made.windows()
    assert (window.disturbed, window.throttled) == flags


def test_requests_count_where_they_ended_and_windows_follow_each_other():
    clock = FakeClock(100.0)
    made = monitor(clock, Script(Reading()), others=(0.5, 0.0, 0.0, 0.0))
    made.begin()
    for _ in range(3):
        clock.sleep(10)
        made.tick()
    clock.sleep(3)
    made.tick()  # A window that is not over is left out.
    soak = made.soak([0.0, 9.99, 10.0, 25.0, 29.0, 31.0], planned=2)
    assert [w.start_s for w in soak.windows] == [0.0, 10.0, 20.0]
    assert [w.requests for w in soak.windows] == [2, 1, 2]
    assert [w.repeats for w in soak.windows] == [None, None, 0]
    assert soak.skipped() == [0]
    assert soak.sources == {"clock_hz": "told"}
    assert Soak.model_validate_json(soak.model_dump_json()) == soak


def test_the_thread_closes_windows_by_itself():
    readings, origin = Script(Reading(clock_hz=1e9)), time.perf_counter()
    others = Shares(*[0.0] * 999)
    with SoakMonitor(CPU, 0.05, origin, readings=readings, memory=lambda: 7, others=others) as made:
        deadline = time.monotonic() + 20
        while windows_owed(made.windows(), 2) and time.monotonic() < deadline:
            time.sleep(0.01)
    first = made.windows()[0]
    assert first.seconds >= 0.05
    assert (first.clock_hz, first.memory_bytes) == (1e9, 7)
    count = len(made.windows())
    time.sleep(0.15)
    assert len(made.windows()) == count  # The thread ended with the block.


def test_windows_may_begin_later_and_end_by_number():
    origin, others = time.perf_counter(), Shares(*[0.0] * 999)
    options = {"readings": Script(Reading()), "memory": lambda: 7, "others": others}
    with SoakMonitor(CPU, 0.02, origin, after_s=0.1, most=2, **options) as made:
        assert made.windows() == []
        deadline = time.monotonic() + 20
        while len(made.windows()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    assert len(made.windows()) == 2
    assert made.windows()[0].start_s >= 0.1
    with SoakMonitor(CPU, 0.02, origin, after_s=3600.0, **options) as never:
        pass  # Leaving does not wait for the beginning.
    assert never.windows() == []


def test_real_readings_of_this_machine_do_not_fail():
    with SoakMonitor(CPU, 0.02, time.perf_counter()) as made:
        deadline = time.monotonic() + 20
        while not made.windows() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert made.windows()[0].memory_bytes > 0


def test_a_window_needs_a_length():
    with pytest.raises(ValueError, match="none"):
        monitor(FakeClock(), Script(), window_seconds=0.0)


# -- repeats -----------------------------------------------------------------------------------


def flagged(*flags):
    return [SoakWindow(start_s=10.0 * k, seconds=10, disturbed=f) for k, f in enumerate(flags)]


@pytest.mark.parametrize(
    ("flags", "owed"),
    [
        ((), 3),
        ((False,), 2),
        ((True,), 3),
        ((False, True, False), 1),
        ((False, True, False, False), 0),
        ((False, True, False, True), 0),  # Once, whatever came of it.
        ((True, True, True), 3),
    ],
)
def test_each_flagged_window_is_owed_once_more(flags, owed):
    assert windows_owed(flagged(*flags), 3) == owed


def test_repeats_name_what_they_repeat():
    marked = with_repeats(flagged(False, True, True, False, True, False), 3)
    assert [w.repeats for w in marked] == [None, None, None, 1, 2, None]
    # A repeat of a window that a damaged record lacks skips nothing.
    lost = Soak(window_seconds=1, windows=[SoakWindow(start_s=0, seconds=1, repeats=7)])
    assert lost.skipped() == []
