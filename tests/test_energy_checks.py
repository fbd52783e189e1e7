"""Energy held against itself: recorded counters and power readings of a GPU, replayed; the idle
device before and after; joules per batch size."""

import importlib.util
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from precision_explorer.hardware import (
    CpuTimeSensor,
    DeviceFacts,
    NvmlSensor,
    PowerMeter,
    UnavailableSensor,
)
from precision_explorer.hardware.fakes import (
    FakeClock,
    FakeGpu,
    FakeNvml,
    GpuMoment,
    ReplayNvml,
    ReplaySensor,
)
from precision_explorer.hardware.power import INSTANT, USAGE
from precision_explorer.measure import EnergyWindow, IdleBaseline, IdlePower, offline
from precision_explorer.measure.energy import IDLE_S, LONGEST_S, SETTLE_S
from precision_explorer.measure.power import (
    MIN_UPDATES,
    SAMPLE_EVERY_S,
    PowerTrace,
    in_a_thread,
)
from precision_explorer.records import Measurements
from precision_explorer.records.record import Energy
from precision_explorer.runner.checked_energy import energy_cautions
from precision_explorer.runner.join import measurements
from precision_explorer.runner.rounds import joined_block, joined_energy
from precision_explorer.runner.timed import Subject, timed_part
from precision_explorer.workload import Workload

BUS = "00000000:01:00.0"


def script(name):
    """A script of the repository as a module."""
    path = Path(__file__).parents[1] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_energy = script("check_energy")


def moments(
    watts=300.0, until=40.0, renewed_s=0.1, counted=1.0, instant=True, usage=True, reset_at=None,
    gone_at=None,
):  # fmt: skip
    """A recording every 10 ms: a counter renewed every `renewed_s` that counts `counted` of the
    joules, and power renewed every 100 ms. `watts`: a number, or of the time."""
    draw = watts if callable(watts) else lambda t: watts
    found, joules, told, power = [], 0.0, 1_000, draw(0.0)
    for k in range(int(until * 100)):
        t = k / 100
        joules += draw(t) * 0.01 * counted
        if k % round(renewed_s * 100) == 0:
            told = 1_000 + round(joules * 1000)
        if reset_at is not None and k == round(reset_at * 100):
            joules, told = 0.0, 0
        if k % 10 == 0:
            power = draw(t)
        gone = gone_at is not None and t >= gone_at
        mw = round(power * 1000)
        found.append(
            GpuMoment(
                t,
                None if gone else told,
                mw if instant and not gone else None,
                mw if usage and not gone else None,
            )
        )
    return found


def meter(clock, capability=(9, 0), **recording):
    return NvmlSensor(BUS, ReplayNvml(moments(**recording), clock, FakeGpu(capability=capability)))


def window(seconds=6.0, begin=1.0, capability=(9, 0), **recording):
    """(the record of one window over the recording, with 12 requests)"""
    clock = FakeClock(begin)
    one = EnergyWindow(meter(clock, capability, **recording), clock=clock, ticker=clock.ticker)
    one.begin()
    clock.sleep(seconds)
    one.end()
    return one.record(requests=12, idle=IdlePower(70.0, 75.0))


def messages(energy):
    return {c.id: c.message for c in energy_cautions(energy.model_dump())}


# -- which reading ------------------------------------------------------------------------------


def test_the_instantaneous_reading_is_integrated_where_the_driver_has_it():
    sensor = meter(FakeClock(1.0))
    assert [p.name for p in sensor.powers] == [INSTANT, USAGE]
    assert (sensor.power.name, sensor.power.averaged_s) == (INSTANT, 0.0)
    assert sensor.power.watts() == 300.0
    assert isinstance(sensor, PowerMeter)


@pytest.mark.parametrize(
    ("capability", "averaged_s"), [((7, 0), 0.0), ((8, 0), 0.0), ((8, 6), 1.0), ((9, 0), 1.0)]
)
def test_without_it_the_record_says_over_what_the_other_is_averaged(capability, averaged_s):
    sensor = meter(FakeClock(1.0), capability, instant=False)
    assert (sensor.power.name, sensor.power.averaged_s) == (USAGE, averaged_s)


def test_a_binding_without_the_field_and_a_gpu_without_power_have_no_such_reading(monkeypatch):
    monkeypatch.delattr(FakeNvml, "NVML_FI_DEV_POWER_INSTANT")
    assert [p.name for p in meter(FakeClock(1.0)).powers] == [USAGE]
    assert meter(FakeClock(1.0), usage=False).power is None


# -- counter against power ----------------------------------------------------------------------


def test_counter_and_integral_agree_on_a_steady_load():
    energy = window()
    assert energy.energy_j == pytest.approx(1800, rel=0.02)
    assert energy.integrated_j == pytest.approx(1800, rel=0.02)
    assert energy.power_reading == INSTANT
    assert energy.power_averaged_s == 0.0
    assert energy.power_every_s == SAMPLE_EVERY_S
    assert energy.power_samples == pytest.approx(6 / SAMPLE_EVERY_S, abs=3)
    assert energy.power_longest_gap_s == pytest.approx(SAMPLE_EVERY_S, rel=0.01)
    assert energy.counter_updates == 60
    assert energy.check_note is None
    assert abs(energy.cross_check) < 0.02
    assert messages(energy) == {}


def test_they_agree_on_a_load_that_comes_and_goes():
    energy = window(10.0, watts=lambda t: 600.0 if int(t) % 2 else 100.0)
    assert energy.energy_j == pytest.approx(3500, rel=0.03)
    assert abs(energy.cross_check) < 0.05


@pytest.mark.parametrize(("counted", "cautioned"), [(0.9, True), (1.1, True), (0.97, False)])
def test_a_counter_that_is_off_by_a_tenth_is_cautioned_with_both_figures(counted, cautioned):
    energy = window(counted=counted)
    assert energy.cross_check == pytest.approx(1 / counted - 1, abs=0.01)
    found = messages(energy)
    assert ("energy-cross-check" in found) == cautioned
    if cautioned:
        text = found["energy-cross-check"]
        assert f"{energy.energy_j:.0f}"[:3] in text.replace(".", "").replace(",", "")
        assert INSTANT in text
        assert "don't rank" in text


def test_too_few_power_readings_are_not_judged():
    clock = FakeClock(1.0)

    def slow(action, every_s):
        return clock.ticker(action, 0.2)

    one = EnergyWindow(meter(clock, counted=0.5), clock=clock, ticker=slow)
    one.begin()
    clock.sleep(6.0)
    one.end()
    energy = one.record(requests=1)
    assert energy.power_samples in (31, 32)
    assert "fewer than the 50" in energy.check_note
    assert energy.integrated_j is not None
    assert energy.cross_check is None
    assert messages(energy) == {}
    # It could not see 50 renewals either, so the rule of 5 s stands alone.
    assert energy.energy_j == pytest.approx(900, rel=0.02)


def test_a_hole_in_the_readings_is_not_judged():
    clock = FakeClock(1.0)
    sensor = meter(clock)
    trace = PowerTrace(sensor, clock)
    for _ in range(100):
        trace.look()
        clock.sleep(0.05)
    clock.sleep(1.0)
    trace.look()
    assert trace.longest_gap_s == pytest.approx(1.05)
    assert "without a power reading" in trace.not_comparable(6.0)
    assert trace.not_comparable(60.0) is None


def test_an_average_over_a_second_is_judged_in_long_windows_only():
    short, long = (window(s, instant=False, counted=0.8) for s in (6.0, 30.0))
    assert (short.power_reading, short.power_averaged_s) == (USAGE, 1.0)
    assert short.integrated_j == pytest.approx(1800, rel=0.02)
    assert "average over 1 s" in short.check_note
    assert messages(short) == {}
    assert "energy-cross-check" in messages(long)
    # GA100 and older tell the power of the moment by the same call.
    assert window(6.0, capability=(8, 0), instant=False).check_note is None


def test_a_gpu_that_tells_no_power_has_joules_by_the_old_rule():
    energy = window(instant=False, usage=False)
    assert energy.energy_j == pytest.approx(1800, rel=0.02)
    assert energy.integrated_j is energy.power_reading is energy.counter_updates is None
    assert energy.cross_check is None


# -- renewals of the counter ---------------------------------------------------------------------


def test_a_window_of_too_few_renewals_has_no_joules():
    energy = window(6.0, renewed_s=0.2)
    assert energy.counter_updates == 30
    assert energy.energy_j is None
    assert "renewed 30 times" in energy.note
    assert energy.cross_check is None
    assert window(11.0, renewed_s=0.2).energy_j == pytest.approx(3300, rel=0.02)


def test_five_seconds_are_needed_however_often_the_counter_is_renewed():
    energy = window(4.9, renewed_s=0.02)
    assert energy.energy_j is None
    assert "shorter than the 5.00 s" in energy.note


@pytest.mark.parametrize("renewed_s", [0.02, 0.1, 0.14, 0.2])
def test_the_idle_device_tells_how_long_a_window_has_to_be(renewed_s):
    """A window as long as it says always holds enough renewals."""
    for offset in (0.0, 0.03, 0.06, 0.09):
        clock = FakeClock(1.0 + offset)
        sensor = meter(clock, renewed_s=renewed_s)
        idle = IdleBaseline(sensor, clock=clock, sleep=clock.sleep)
        idle.before()
        assert idle.min_window_s >= 5.0
        assert idle.min_window_s == pytest.approx(max(5.0, (MIN_UPDATES + 1) * renewed_s), rel=0.06)
        one = EnergyWindow(sensor, clock=clock, ticker=clock.ticker)
        one.begin()
        clock.sleep(idle.min_window_s)
        one.end()
        assert one.record().note is None


def test_a_slow_counter_takes_no_more_than_its_share_of_the_latency_s_budget():
    clock = FakeClock(1.0)
    idle = IdleBaseline(meter(clock, renewed_s=0.4), clock=clock, sleep=clock.sleep)
    idle.before()
    assert idle.min_window_s == LONGEST_S


def test_a_counter_that_was_reset_within_gives_no_joules_even_where_it_ends_higher():
    energy = window(20.0, begin=0.0, watts=lambda t: 10.0 if t < 2 else 300.0, reset_at=2.0)
    assert energy.energy_j is None
    assert "reset" in energy.note


def test_a_sensor_that_goes_away_costs_the_energy_alone():
    energy = window(gone_at=4.0)
    assert energy.window_s == pytest.approx(6.0)
    assert energy.energy_j is energy.integrated_j is None
    assert "failed" in energy.note
    assert "ended early (NVMLError)" in energy.check_note
    assert energy.requests == 12


def test_power_that_goes_away_leaves_the_counter():
    clock = FakeClock(1.0)
    sensor = meter(clock)
    one = EnergyWindow(sensor, clock=clock, ticker=clock.ticker)
    one.begin()
    clock.sleep(2.0)
    for moment in sensor._nvml._log:
        object.__setattr__(moment, "instant_mw", None)
    clock.sleep(4.0)
    one.end()
    energy = one.record(requests=1)
    assert energy.energy_j == pytest.approx(1800, rel=0.02)
    assert energy.integrated_j is None
    assert "ended early" in energy.check_note
    assert messages(energy) == {}


# -- the sampler's thread -------------------------------------------------------------------------


class Counted:
    """Counts its looks."""

    def __init__(self):
        self.looks = 0

    def look(self):
        self.looks += 1


def samplers():
    return [t for t in threading.enumerate() if t.name == "power-sampler"]


def test_the_sampler_looks_until_it_is_stopped():
    counted = Counted()
    stop = in_a_thread(counted.look, 0.01)
    time.sleep(0.2)
    stop()
    looks = counted.looks
    assert 3 <= looks <= 21
    time.sleep(0.05)
    assert counted.looks == looks
    assert samplers() == []


def test_a_window_that_is_never_ended_leaves_no_thread():
    nvml = FakeNvml([FakeGpu(instant_mw=200_000)])
    one = EnergyWindow(NvmlSensor(BUS, nvml))
    one.begin()
    assert len(samplers()) == 1
    del one
    time.sleep(3 * SAMPLE_EVERY_S)
    assert samplers() == []


def test_a_window_on_the_real_clock_samples_at_its_rate():
    one = EnergyWindow(NvmlSensor(BUS, FakeNvml([FakeGpu(instant_mw=200_000)])))
    one.begin()
    time.sleep(0.5)
    one.end()
    energy = one.record()
    assert 4 <= energy.power_samples <= 12
    assert energy.integrated_j == pytest.approx(200 * energy.window_s, rel=0.05)
    assert samplers() == []


# -- the estimate is no meter ---------------------------------------------------------------------


def test_the_estimate_and_no_meter_are_not_checked():
    for sensor in (CpuTimeSensor(), UnavailableSensor()):
        assert not isinstance(sensor, PowerMeter)
        one = EnergyWindow(sensor)
        one.begin()
        one.end()
        energy = one.record(requests=1)
        assert energy.integrated_j is energy.counter_updates is energy.check_note is None
        assert messages(energy) == {}
        assert samplers() == []
        idle = IdleBaseline(sensor, sleep=lambda s: pytest.fail("waited for nothing"))
        idle.before()
        idle.after()
        assert idle.power == IdlePower()
        assert idle.min_window_s == sensor.min_window_s


# -- idle before and after -------------------------------------------------------------------------


def baseline(watts):
    clock = FakeClock(1.0)
    idle = IdleBaseline(meter(clock, watts=watts), clock=clock, sleep=clock.sleep)
    begun = clock()
    idle.before()
    spent = clock() - begun
    clock.sleep(10.0 - clock())
    begun = clock()
    idle.after()
    return idle.power, spent + clock() - begun


def test_idle_power_is_read_before_and_after_and_costs_little():
    power, spent_s = baseline(lambda t: 70.0 if t < 10 else 90.0)
    assert power.before_w == pytest.approx(70, rel=0.02)
    assert power.after_w == pytest.approx(90, rel=0.02)
    assert power.mean_w == pytest.approx(80, rel=0.02)
    assert 2 * IDLE_S + SETTLE_S <= spent_s <= 2.5


def test_the_reading_after_waits_until_the_device_settled():
    power, _ = baseline(lambda t: 400.0 if 9 < t < 10 + 0.9 * SETTLE_S else 70.0)
    assert power.after_w == pytest.approx(70, rel=0.02)


@pytest.mark.parametrize(("after", "cautioned"), [(75.0, False), (80.0, True), (60.0, True)])
def test_an_idle_device_that_changed_is_cautioned(after, cautioned):
    energy = Energy(source="measured:nvml", idle_power_before_w=70.0, idle_power_after_w=after)
    found = messages(energy)
    assert ("idle-power-changed" in found) == cautioned
    if cautioned:
        assert "70.0 W" in found["idle-power-changed"]


def test_only_one_reading_is_what_there_is():
    assert IdlePower(70.0).mean_w == 70.0
    assert IdlePower(70.0).fields()["idle_power_after_w"] is None
    assert IdlePower().mean_w is None


def test_a_meter_that_fails_when_idle_costs_the_idle_power_alone():
    clock = FakeClock(1.0)
    sensor = meter(clock, gone_at=5.0)
    idle = IdleBaseline(sensor, clock=clock, sleep=clock.sleep)
    idle.before()
    clock.sleep(10.0)
    idle.after()
    assert idle.power.before_w == pytest.approx(300, rel=0.02)
    assert idle.power.after_w is None


# -- rounds ------------------------------------------------------------------------------------


def test_rounds_are_joined():
    each = [window(6.0).model_dump(), window(8.0, watts=200.0).model_dump()]
    joined = Energy.model_validate(joined_energy(each))
    for name in ("energy_j", "integrated_j", "power_samples", "counter_updates", "window_s"):
        assert getattr(joined, name) == pytest.approx(sum(e[name] for e in each)), name
    assert joined.power_longest_gap_s == max(e["power_longest_gap_s"] for e in each)
    assert joined.power_reading == INSTANT
    assert (joined.idle_power_before_w, joined.idle_power_after_w) == (70.0, 75.0)
    assert joined.idle_power_w == 72.5
    assert abs(joined.cross_check) < 0.02


def test_one_round_that_does_not_compare_takes_the_check_away():
    each = [window(6.0).model_dump(), window(6.0).model_dump() | {"check_note": "a hole"}]
    joined = Energy.model_validate(joined_energy(each))
    assert joined.integrated_j is not None
    assert joined.check_note == "a hole"
    assert joined.cross_check is None


def test_records_from_before_are_read_and_joined():
    old = {"source": "measured:nvml", "boundary": "GPU", "energy_j": 600.0, "window_s": 6.0,
           "requests": 3, "idle_power_w": 70.0, "note": None}  # fmt: skip
    joined = Energy.model_validate(joined_energy([old, old]))
    assert (joined.energy_j, joined.idle_power_w, joined.idle_power_before_w) == (1200, 70, None)
    assert messages(joined) == {}


# -- joules per batch size ---------------------------------------------------------------------


def rates(clock, sensor, seconds=6.0, sizes=(1, 8)):
    """A batch of n takes 0.1 + 0.05 n seconds."""
    rules = Workload(offline_seconds=seconds, offline_min_batches=1, offline_budget_seconds=100)

    def batch(indices):
        clock.sleep(0.1 + 0.05 * len(indices))
        return {}

    return offline(batch, 5, sizes, rules, clock=clock, sensor=sensor).by_batch_size


def replayed(clock):
    """A counter alone, on the same clock, without a thread."""
    log = [(k / 10, 300.0 * k / 10) for k in range(1000)]
    return ReplaySensor(log, clock)


def test_each_batch_size_has_joules_of_its_own_measured_batches():
    clock = FakeClock(1.0)
    found = rates(clock, replayed(clock))
    for size in (1, 8):
        rate = found[str(size)]
        assert rate.requests == rate.batches * size
        # The batch that warms up is not in it.
        assert rate.window_s == pytest.approx(sum(rate.batch_s))
        assert rate.energy_j == pytest.approx(300 * rate.window_s, rel=0.02)
        assert rate.energy_note is None
    each = [found[s].energy_j / found[s].requests for s in ("1", "8")]
    assert each == pytest.approx([45.0, 300 * 0.5 / 8], rel=0.02)


def test_a_window_shorter_than_the_meter_needs_is_not_made_longer():
    clock = FakeClock(1.0)
    rate = rates(clock, replayed(clock), seconds=2.0)["8"]
    assert rate.energy_j is None
    assert sum(rate.batch_s) == pytest.approx(2.5)
    assert "raise offline_seconds" in rate.energy_note


def test_no_meter_and_an_estimate_leave_batch_sizes_without_joules():
    for sensor in (None, UnavailableSensor(), CpuTimeSensor()):
        rate = rates(FakeClock(1.0), sensor)["8"]
        assert rate.energy_j is rate.window_s is rate.requests is rate.energy_note is None


def test_batch_sizes_are_pooled_over_rounds():
    clock = FakeClock(1.0)
    blocks = []
    for number in range(2):
        found = rates(clock, replayed(clock))
        blocks.append(
            {
                "latency": None, "energy": {"source": "unavailable"},
                "throughput": {
                    "by_batch_size": {size: rate.model_dump() for size, rate in found.items()},
                    "best_batch_size": 8,
                },
                "place": {"round": number},
            }
        )  # fmt: skip
    joined = joined_block(blocks)["throughput"]["by_batch_size"]["8"]
    each = [b["throughput"]["by_batch_size"]["8"] for b in blocks]
    for name in ("energy_j", "window_s", "requests"):
        assert joined[name] == pytest.approx(sum(one[name] for one in each))
    assert [r["energy_j"] for r in joined["rounds"]] == [one["energy_j"] for one in each]
    each[1] |= {"energy_j": None, "energy_note": "too short"}
    joined = joined_block(blocks)["throughput"]["by_batch_size"]["8"]
    assert joined["energy_j"] is None
    assert joined["energy_note"] == "too short"


# -- a block -----------------------------------------------------------------------------------


class Adapter:
    """Answers after a millisecond."""

    generates = False

    def request(self, index, phases):
        time.sleep(0.001)
        return {}

    def offline(self, indices):
        time.sleep(0.001)
        return {}


def test_a_block_holds_idle_power_both_figures_and_the_latency(monkeypatch):
    """On the real clock, so with windows shorter than the rule, which are told to be enough."""
    begun = time.perf_counter()
    sensor = meter(lambda: time.perf_counter() - begun, renewed_s=0.01)
    sensor.min_window_s = 0.3
    monkeypatch.setattr("precision_explorer.measure.energy.IDLE_S", 0.05)
    monkeypatch.setattr("precision_explorer.measure.energy.SETTLE_S", 0.01)
    monkeypatch.setattr("precision_explorer.measure.energy.SAMPLE_EVERY_S", 0.005)
    monkeypatch.setattr("precision_explorer.measure.power.MIN_UPDATES", 5)
    monkeypatch.setattr("precision_explorer.measure.energy.MIN_UPDATES", 5)
    monkeypatch.setattr("precision_explorer.measure.power.MIN_SAMPLES", 5)
    rules = Workload(min_requests=2, min_seconds=0, energy_seconds=0, warmup_seconds=0,
                     offline_seconds=0.4, rounds=1)  # fmt: skip
    request = {
        "first": True, "round": 0, "workload": rules.rules(), "batch_sizes": [1],
        "examples": [{"id": "a"}, {"id": "b"}],
    }  # fmt: skip
    cpu = DeviceFacts(kind="cpu", device="cpu", name="x", cpu_model="x", cores=2, memory_bytes=1)
    subject = Subject(Adapter(), request, 0, lambda: None, lambda *_: None, cpu)
    answer, _ = timed_part(subject, sensor)
    place = {"round": 0, "started_s": 0.0, "place": 0, "cells": 1, "interleaved": True}
    block = joined_block([answer | {"place": place, "other_work_share": None}])
    stored = Measurements.model_validate(measurements(None, None, block))
    energy = stored.energy
    assert energy.energy_j == pytest.approx(300 * energy.window_s, rel=0.2)
    assert energy.integrated_j == pytest.approx(300 * energy.window_s, rel=0.2)
    assert energy.idle_power_before_w == pytest.approx(300, rel=0.3)
    assert energy.idle_power_after_w == pytest.approx(300, rel=0.3)
    assert energy.rounds[0].integrated_j == energy.integrated_j
    assert stored.latency.requests == energy.requests
    assert stored.throughput.by_batch_size["1"].energy_j > 0
    assert samplers() == []


# -- the check on a device -------------------------------------------------------------------------


def test_the_check_s_figures_on_a_recording(monkeypatch):
    begun = time.perf_counter()
    sensor = meter(lambda: time.perf_counter() - begun, renewed_s=0.01, counted=0.8)
    found = check_energy.measured(sensor, lambda: time.sleep(0.5))
    assert found["counter_j"] == pytest.approx(0.8 * 300 * found["window_s"], rel=0.1)
    assert [r["reading"] for r in found["readings"]] == [INSTANT, USAGE]
    for reading in found["readings"]:
        assert reading["ratio"] == pytest.approx(1.25, rel=0.1)
        assert reading["counter_updates"] >= 4
    text = check_energy.shown("constant", found)
    assert f"{INSTANT} (instantaneous)" in text
    assert f"{USAGE} (average over 1 s)" in text


def test_the_check_ends_in_one_line_without_cuda(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["check_energy.py"])
    assert check_energy.main() == 1
    assert capsys.readouterr().out == "no CUDA device: this check needs one\n"


def test_bursts_are_half_of_the_time(monkeypatch):
    clock, steps = FakeClock(), []
    told = SimpleNamespace(perf_counter=clock, sleep=clock.sleep)
    monkeypatch.setattr(check_energy, "time", told)

    def step():
        steps.append(clock())
        clock.sleep(0.02)

    check_energy.bursty(step, 0.8)
    assert 0.02 * len(steps) == pytest.approx(0.4, abs=0.05)
    assert clock() == pytest.approx(0.8, abs=0.05)
