"""Latency, throughput, memory and phases, on fake clocks and on real memory."""

import gc
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import psutil
import pytest

from precision_explorer.errors import DoesNotFit
from precision_explorer.hardware.fakes import FakeClock, ReplaySensor
from precision_explorer.measure import (
    CudaPeakMemory,
    EnergyWindow,
    NullPhases,
    OtherWork,
    PeakMemory,
    Phases,
    offline,
    single_stream,
)
from precision_explorer.measure.memory import KERNEL, SAMPLED
from precision_explorer.measure.throughput import NO_BUDGET, OUT_OF_MEMORY, SKIPPED
from precision_explorer.workload import Workload

# -- phases ------------------------------------------------------------------------------------


def test_phases_add_up_and_reset():
    phases = Phases()
    for _ in range(2):
        with phases("a"):
            time.sleep(0.02)
    with phases("b"):
        pass
    taken = phases.take()
    assert list(taken) == ["a", "b"]
    assert 0.04 <= taken["a"] < 0.2
    assert 0 <= taken["b"] < 0.01
    assert phases.take() == {}
    with phases("b"):
        pass
    assert list(phases.take()) == ["b"]


def test_a_phase_that_fails_is_counted_and_the_error_goes_on():
    phases = Phases()
    with pytest.raises(KeyError), phases("a"):
        raise KeyError
    assert "a" in phases.take()


def test_a_phase_costs_less_than_two_microseconds():
    phases = Phases()

    def run():
        start = time.perf_counter()
        for _ in range(2000):
            with phases("a"):
                pass
        return (time.perf_counter() - start) / 2000

    assert min(run() for _ in range(10)) < 2e-6


def test_null_phases_record_nothing():
    phases = NullPhases()
    with phases("a"):
        pass
    assert phases.take() == {}


# -- latency -----------------------------------------------------------------------------------


def stream(seconds, rules, count=4, **options):
    """Serve with a fake clock; `seconds(call)` is how long call number `call` takes."""
    clock, calls = FakeClock(100.0), []

    def request(index):
        clock.sleep(seconds(len(calls)))
        calls.append(index)
        return {"answer": str(index), "latency_s": -1.0}

    series = single_stream(request, count, rules, clock=clock, **options)
    return series, calls, clock


RULES = Workload(
    min_requests=6, min_seconds=1.0, warmup_requests=2, warmup_seconds=0.5, budget_seconds=60
)


def test_the_order_is_cold_then_warm_up_then_measured():
    series, calls, _ = stream(lambda call: 5.0 if call == 0 else 0.25, RULES)
    windows = [row["window"] for row in series.rows]
    assert windows == ["cold"] + 2 * ["warmup"] + 6 * ["measure"]
    assert calls == [0, 1, 2, 0, 1, 2, 3, 0, 1]
    assert series.cold_first_s == 5.0
    assert series.stopped_by == "rules"
    assert series.window_s == pytest.approx(1.5)
    assert list(series.latencies()) == pytest.approx([0.25] * 6)
    assert [row["start_s"] for row in series.rows][:3] == pytest.approx([0, 5.0, 5.25])
    assert series.rows[3]["answer"] == "0"


def test_both_rules_must_be_met():
    fast, *_ = stream(lambda call: 0.125, RULES)
    windows = [row["window"] for row in fast.rows]
    assert (windows.count("warmup"), windows.count("measure")) == (4, 8)
    slow, *_ = stream(lambda call: 1.0, RULES)
    windows = [row["window"] for row in slow.rows]
    assert (windows.count("warmup"), windows.count("measure")) == (2, 6)


def test_the_budget_ends_it_and_says_so():
    series, _, clock = stream(lambda call: 10.0, RULES)
    record = series.record()
    assert record.stopped_by == "budget"
    assert (record.warmup_requests, record.requests) == (2, 3)
    assert clock() == 160.0


def test_one_request_is_measured_even_when_the_cold_one_took_it_all():
    series, *_ = stream(lambda call: 100.0, RULES)
    record = series.record(generates=True)
    assert (record.warmup_requests, record.requests, record.stopped_by) == (0, 1, "budget")
    assert record.window_s == 100.0
    assert record.generates


def test_sync_is_inside_the_latency():
    clock = FakeClock()
    rules = Workload(min_requests=2, min_seconds=0, warmup_requests=0, warmup_seconds=0)
    series = single_stream(
        lambda i: clock.sleep(0.1) or {}, 1, rules, clock=clock, sync=lambda: clock.sleep(0.4)
    )
    assert list(series.latencies()) == pytest.approx([0.5, 0.5])


def test_a_meter_wraps_the_measured_window_and_gets_the_time_it_needs():
    clock = FakeClock(1.0)
    sensor = ReplaySensor([(k * 0.1, k * 0.1 * 50) for k in range(1000)], clock)
    window = EnergyWindow(sensor, clock=clock)
    rules = Workload(min_requests=2, min_seconds=1, warmup_requests=1, warmup_seconds=0)
    series = single_stream(
        lambda i: clock.sleep(0.5) or {},
        3,
        rules,
        clock=clock,
        on_begin=window.begin,
        on_end=window.end,
        min_seconds=sensor.min_window_s,
    )
    energy = window.record(requests=len(series.measured()))
    assert energy.requests == 10
    assert energy.window_s == pytest.approx(series.window_s) == pytest.approx(5.0)
    assert energy.energy_j == pytest.approx(250, rel=0.02)


def test_energy_seconds_hold_only_where_a_meter_needs_a_window():
    rules = RULES.model_copy(update={"energy_seconds": 8.0})
    assert stream(lambda call: 0.5, rules, min_seconds=5.0)[0].window_s == pytest.approx(8.0)
    assert stream(lambda call: 0.5, rules)[0].window_s == pytest.approx(3.0)


def test_the_collector_is_off_while_measuring_and_on_again_after():
    seen = []
    rules = Workload(min_requests=2, min_seconds=0, warmup_requests=1, warmup_seconds=0)
    single_stream(lambda i: seen.append(gc.isenabled()) or {}, 1, rules)
    assert seen == [True, True, False, False]
    assert gc.isenabled()

    def fail(index):
        if not gc.isenabled():
            raise KeyError
        return {}

    with pytest.raises(KeyError):
        single_stream(fail, 1, rules)
    assert gc.isenabled()


def test_phase_medians_are_of_measured_requests_only():
    clock, taken = FakeClock(), []

    def request(index):
        clock.sleep(1.0)
        taken.append({"tokenize": 0.01 * len(taken), "prefill": 0.1, "decode": 0.2 * len(taken)})
        return {"phases": taken[-1]}

    rules = Workload(min_requests=4, min_seconds=0, warmup_requests=2, warmup_seconds=0)
    medians = single_stream(request, 9, rules, clock=clock).record().phases
    measured = taken[3:]
    assert medians.tokenize_s == pytest.approx(statistics.median(t["tokenize"] for t in measured))
    both = [t["prefill"] + t["decode"] for t in measured]
    assert medians.forward_s == pytest.approx(statistics.median(both))
    assert medians.copy_s is None


def test_no_example_is_an_error():
    with pytest.raises(ValueError):
        single_stream(lambda i: {}, 0, RULES)


# -- throughput --------------------------------------------------------------------------------

OFFLINE = Workload(offline_seconds=2.0, offline_min_batches=2, offline_budget_seconds=20.0)


def run_offline(seconds, sizes, count=10, rules=OFFLINE, fail=None, tokens=None):
    """`seconds(size, call)`: how long call number `call` of a batch size takes."""
    clock, calls = FakeClock(), []

    def batch(indices):
        size = len(indices)
        if fail is not None and size >= fail[0]:
            raise fail[1]
        clock.sleep(seconds(size, sum(len(c) == size for c in calls)))
        calls.append(indices)
        return {} if tokens is None else {"output_tokens": tokens * size}

    return offline(batch, count, sizes, rules, clock=clock), calls


def test_rates_are_requests_over_summed_time_without_the_warm_up():
    result, calls = run_offline(
        lambda size, call: 4.0 if call == 0 else 0.5 + 0.125 * size, [8, 1], tokens=3
    )
    one, eight = result.by_batch_size["1"], result.by_batch_size["8"]
    assert one.batches == 4  # 0.625 s each: four make 2.5 s.
    assert one.batch_s == pytest.approx([0.625] * 4)
    assert one.requests_per_s == pytest.approx(1 / 0.625)
    assert eight.batch_s == pytest.approx([1.5] * 2)
    assert eight.requests_per_s == pytest.approx(8 / 1.5)
    assert eight.output_tokens_per_s == pytest.approx(3 * 8 / 1.5)
    assert result.best_batch_size == 8
    assert list(result.by_batch_size) == ["1", "8"]
    assert calls[0] == [0]
    assert [c for c in calls if len(c) == 8][2] == [8, 9, 0, 1, 2, 3, 4, 5]


def test_uneven_batches_are_summed_not_averaged():
    result, _ = run_offline(lambda size, call: (0, 0.5, 3.5)[call], [2])
    assert result.by_batch_size["2"].requests_per_s == pytest.approx(4 / 4.0)
    assert result.by_batch_size["2"].output_tokens_per_s is None


def test_a_batch_larger_than_the_data_cycles():
    _, calls = run_offline(lambda size, call: 1.0, [7], count=3)
    assert calls[0] == [0, 1, 2, 0, 1, 2, 0]
    assert calls[2] == [1, 2, 0, 1, 2, 0, 1]


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        DoesNotFit("x"),
        OutOfMemoryError("CUDA"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_size_that_does_not_fit_ends_the_larger_ones(error):
    result, calls = run_offline(lambda size, call: 1.0, [1, 4, 16, 64], fail=(16, error))
    rates = result.by_batch_size
    assert rates["16"].requests_per_s is None
    assert (rates["16"].note, rates["64"].note) == (OUT_OF_MEMORY, SKIPPED)
    assert (rates["16"].batch_s, rates["64"].batches) == ([], 0)
    assert result.best_batch_size == 4
    assert max(map(len, calls)) == 4


def test_where_nothing_fits_there_is_no_best():
    result, _ = run_offline(lambda size, call: 1.0, [1], fail=(1, MemoryError()))
    assert result.best_batch_size is None


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("x"), OSError(2, "no")])
def test_other_errors_are_raised(error):
    with pytest.raises(type(error)):
        run_offline(lambda size, call: 1.0, [1], fail=(1, error))
    assert gc.isenabled()


def test_the_budget_is_shared_and_one_batch_is_measured():
    result, _ = run_offline(lambda size, call: 6.0 * size, [1, 2, 4])
    rates = result.by_batch_size
    assert (rates["1"].batches, rates["1"].note) == (1, "stopped by the offline budget")
    assert rates["2"].batches == 1  # From 12 s on, with 8 s left: warm-up and one.
    assert (rates["4"].requests_per_s, rates["4"].note) == (None, NO_BUDGET)


def test_the_first_size_is_measured_whatever_it_takes():
    result, _ = run_offline(lambda size, call: 50.0, [1])
    assert result.by_batch_size["1"].requests_per_s == pytest.approx(1 / 50)


@pytest.mark.parametrize(("count", "sizes"), [(0, [1]), (3, []), (3, [0, 1])])
def test_offline_needs_examples_and_sizes(count, sizes):
    with pytest.raises(ValueError):
        run_offline(lambda size, call: 1.0, sizes, count=count)


# -- memory ------------------------------------------------------------------------------------

MB = 1_000_000
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

_PEAK = """
import sys, time
from pathlib import Path
from precision_explorer.measure import PeakMemory
proc = Path(sys.argv[1])
memory = PeakMemory(proc)
held = bytearray(b"x" * 50_000_000)  # before the load: no part of the peak
memory.baseline()
memory.begin()
weights = bytearray(b"y" * 60_000_000)
first = memory.end()
memory.begin()
block = bytearray(b"z") * 200_000_000
time.sleep(0.3)
del block
second = memory.end()
memory.begin()
third = memory.end()
print(memory.method, first, second, third, sep="|")
"""


def _peaks(proc):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(proc)], capture_output=True, text=True, check=True
    )
    method, *peaks = done.stdout.strip().split("|")
    return method, [int(p) for p in peaks]


def _kernel_mark_works():
    memory = PeakMemory()
    memory.baseline()
    return memory.method == KERNEL


@linux
@pytest.mark.parametrize("method", [KERNEL, SAMPLED])
def test_a_freed_block_is_in_the_peak_and_earlier_memory_is_not(method, tmp_path):
    if method == KERNEL and not _kernel_mark_works():
        pytest.skip("this kernel does not let its mark be reset")
    used, (first, second, third) = _peaks("/proc/self" if method == KERNEL else tmp_path)
    assert used == method
    # b"y" * n is built and copied into the bytearray: 120 MB for a moment.
    assert 60 * MB * 0.95 < first < 130 * MB
    assert second == pytest.approx(260 * MB, rel=0.1)
    assert third == pytest.approx(60 * MB, rel=0.1)


def _child(pipe, parents):
    memory = PeakMemory()
    memory.baseline()
    memory.begin()
    touched = sum(parents[:: 1 << 12])  # reads every page: shared pages become resident
    block = bytearray(b"z") * (100 * MB)
    del block
    pipe.send((memory.method, memory.end(), touched > 0))
    pipe.close()


@linux
def test_memory_shared_with_a_fork_parent_does_not_count():
    if not _kernel_mark_works():
        pytest.skip("this kernel does not let its mark be reset")
    parents = bytearray(b"x") * (300 * MB)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, parents))
    process.start()
    assert ours.poll(20)
    method, peak, touched = ours.recv()
    process.join(10)
    assert (method, touched) == (KERNEL, True)
    assert peak == pytest.approx(100 * MB, rel=0.15)


def test_a_window_left_open_by_an_error_is_dropped(tmp_path):
    import threading

    memory = PeakMemory(tmp_path)
    memory.baseline()
    before = threading.active_count()
    memory.begin()
    memory.begin()
    assert threading.active_count() == before + 1
    assert memory.end() >= 0
    assert threading.active_count() == before
    assert memory.extras() == {}


class FakeCuda:
    """torch.cuda's allocator statistics, with a log of calls."""

    def __init__(self):
        self.allocated, self.reserved, self.calls = 100, 512, []
        self.peak = self.peak_reserved = 0

    def take(self, size):
        self.peak = max(self.peak, self.allocated + size)
        self.peak_reserved = max(self.peak_reserved, self.reserved + 2 * size)

    def memory_allocated(self, device):
        return self.allocated

    def memory_reserved(self, device):
        return self.reserved

    def max_memory_allocated(self, device):
        assert self.calls[-1] == "synchronize"
        return self.peak

    def max_memory_reserved(self, device):
        return self.peak_reserved

    def reset_peak_memory_stats(self, device):
        self.peak, self.peak_reserved = self.allocated, self.reserved

    def synchronize(self, device):
        self.calls.append("synchronize")

    def empty_cache(self):
        self.calls.append("empty_cache")


def test_cuda_peaks_are_above_the_baseline():
    cuda = FakeCuda()
    memory = CudaPeakMemory("cuda:0", lambda: 9000, cuda=cuda)
    memory.baseline()
    assert memory.baseline_bytes == 100
    memory.begin()
    cuda.take(1000)
    assert memory.end() == 1000
    assert memory.extras() == {"reserved_peak_bytes": 2000, "process_peak_bytes": 9000}
    memory.begin()
    cuda.take(10)
    assert memory.end() == 10
    memory.trim()
    assert cuda.calls[-1] == "empty_cache"


# -- other processes' work -----------------------------------------------------------------------


def stat_file(path, user, idle, iowait=0):
    """/proc/stat with one usable core (the first of ours) and one that is another's."""
    own = min(os.sched_getaffinity(0))
    path.write_text(
        f"cpu  9 9 9 9 9 9 9 9 9 9\ncpu{own} {user} 0 0 {idle} {iowait} 0 0 0 0 0\n"
        f"cpu777 {7 * user} 0 0 0 0 0 0 0 0 0\nintr 1 2 3\n"
    )
    return path


def test_other_work_is_what_was_busy_and_not_ours(tmp_path, monkeypatch):
    own = FakeClock()
    monkeypatch.setattr("precision_explorer.measure.others.time.process_time", own)
    stat = stat_file(tmp_path / "stat", user=1000, idle=9000)
    others = OtherWork(stat)
    others.begin()
    # 10 s of 2 cores, in ticks of 10 ms: 12 s busy of 20 s, 10 s of them ours.
    own.sleep(10.0)
    stat_file(stat, user=2200, idle=9700, iowait=100)
    assert others.end() == pytest.approx((12 - 10) / 20)


def test_other_work_is_none_where_the_system_does_not_tell(tmp_path):
    others = OtherWork(tmp_path / "stat")
    others.begin()
    assert others.end() is None


def test_a_busy_neighbour_is_seen():
    others = OtherWork()
    others.begin()
    code = "import time\nend = time.time() + 1\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    share = others.end()
    assert share > 0.5 / psutil.cpu_count()
