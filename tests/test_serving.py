"""The serving loop against theory, on a virtual clock; what a window says of itself."""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from typing import Any

import numpy as np
import pytest

from precision_explorer.measure import clock as clock_module
from precision_explorer.measure.clock import LEAST_SPIN_S, MOST_SPIN_S, RealClock, VirtualClock
from precision_explorer.measure.multi_stream import multi_stream
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import ServingRules, serve
from precision_explorer.stats.queueing import latency_growth, lindley
from precision_explorer.workload import Workload

LEAD = 0.002


class Server:
    """A stub that takes `seconds(positions)` of a virtual clock."""

    def __init__(self, clock: VirtualClock, seconds: Any) -> None:
        self.clock, self.seconds, self.batches = clock, seconds, []

    def __call__(self, positions: list[int]) -> list[dict[str, Any]]:
        self.batches.append((self.clock.now(), positions))
        self.clock.advance(self.seconds(positions))
        return [{"answer": str(p)} for p in positions]


def run(times: Any, seconds: Any, rules: ServingRules | None = None, **more: Any) -> ServingSeries:
    clock = VirtualClock()
    return serve(times, Server(clock, seconds), rules or ServingRules(), clock=clock, **more)


def poisson(rate: float, n: int, seed: int = 0) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


@pytest.mark.parametrize("load", [0.5, 0.9, 1.2])
def test_waits_are_those_of_lindleys_recursion(load: float) -> None:
    times = poisson(load, 5000)
    services = np.random.default_rng(1).exponential(1.0, 5000)
    series = run(times, lambda p: services[p[0]], ServingRules(drain_s=1e6))
    np.testing.assert_allclose(series.queue_s(), lindley(times, services), atol=1e-6)
    np.testing.assert_allclose(series.service_s(), services, atol=1e-6)
    assert abs(series.lateness_s()).max() < 1e-9
    assert abs(series.overhead_s()).max() < 1e-9


def test_lindley_by_hand() -> None:
    times, services = np.array([0.0, 1.0, 1.5, 10.0]), np.array([2.0, 2.0, 1.0, 1.0])
    np.testing.assert_allclose(lindley(times, services), [0.0, 1.0, 2.5, 0.0])
    with pytest.raises(ValueError, match="one service time"):
        lindley(times, services[:3])


def test_an_m_d_1_queue_waits_as_long_as_pollaczek_and_khinchine_say() -> None:
    load, n = 0.7, 40_000
    series = run(poisson(load, n), lambda p: 1.0, ServingRules(drain_s=1e6))
    theory = load / (2 * (1 - load))
    assert series.queue_s().mean() == pytest.approx(theory, rel=0.05)


def test_a_batch_takes_what_waits_up_to_the_largest_in_order() -> None:
    # One at 0; six more while it is served.
    times = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    series = run(times, lambda p: 1.0, ServingRules(max_batch=4))
    assert series.sizes.tolist() == [1, 4, 2]
    np.testing.assert_allclose(series.started_s, [0.0, 1.0, 2.0], atol=1e-9)
    rows = series.rows()
    assert [r["position"] for r in rows] == list(range(7))
    assert [r["answer"] for r in rows] == [str(k) for k in range(7)]
    assert [r["batch"] for r in rows] == [0, 1, 1, 1, 1, 2, 2]


def test_the_oldest_request_waits_no_longer_than_it_may() -> None:
    times = [0.0, 0.01, 1.0, 1.01, 1.02]
    series = run(times, lambda p: 0.1, ServingRules(max_batch=3, max_wait_s=0.05))
    # The first batch goes out by time, the second as soon as it is full.
    assert series.sizes.tolist() == [2, 3]
    np.testing.assert_allclose(series.started_s, [0.05, 1.02], atol=1e-9)
    np.testing.assert_allclose(series.overhead_s(), 0.0, atol=1e-9)
    slow = dataclasses.replace(series, started_s=series.started_s + np.array([0.0, 0.003]))
    assert slow.record("server", batching="dynamic").overhead_p99_s == pytest.approx(0.003)


def test_time_spent_being_served_counts_as_waiting() -> None:
    # The second came long ago when the server becomes free: it does not wait for a third.
    series = run([0.0, 0.2], lambda p: 1.0, ServingRules(max_batch=2, max_wait_s=0.1))
    np.testing.assert_allclose(series.started_s, [0.1, 1.1], atol=1e-9)


def stalled(position: int) -> float:
    return 5.0 if position == 500 else 0.005


def test_a_closed_loop_would_hide_a_server_that_stalls() -> None:
    times = np.arange(1000) / 100
    series = run(times, lambda p: stalled(p[0]))
    send = np.quantile(series.service_s(), 0.99, method="inverted_cdf")
    scheduled = series.percentile(0.99)
    assert send == pytest.approx(0.005)
    assert scheduled is not None
    assert scheduled > 4.0
    # Half of those after it stood in its queue.
    assert (series.latency_s() > 1.0).sum() > 400


def test_latency_never_counts_from_the_start_of_the_batch() -> None:
    series = run([0.0, 0.0, 0.0], lambda p: 1.0)
    np.testing.assert_allclose(series.latency_s(), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(series.queue_s(), [0.0, 1.0, 2.0])


def test_requests_without_a_turn_are_counted_and_never_dropped() -> None:
    series = run(np.arange(100) / 10, lambda p: 1.0, ServingRules(drain_s=4.5), duration_s=10.0)
    assert series.served == 15
    assert series.unfinished == 85
    assert series.ended_s == pytest.approx(15.0)
    np.testing.assert_allclose(series.waited_s()[-1], 15.0 - 9.9)
    rows = series.rows()
    assert len(rows) == 100
    assert rows[-1]["latency_s"] is None
    assert rows[-1]["noticed_s"] is not None
    assert series.percentile(0.1) is not None
    assert series.percentile(0.5) is None, "it may have taken any time"
    record = series.record("server", batching="dynamic")
    assert record.unfinished == 85
    assert record.saturated
    assert record.little.holds
    assert record.achieved_rate_per_s == pytest.approx(1.0)
    assert record.offered_rate_per_s == pytest.approx(10.0)


def test_littles_law_holds_and_shows_a_request_that_is_counted_twice() -> None:
    series = run(poisson(0.8, 500), lambda p: 1.0, ServingRules(drain_s=1e4))
    assert series.little().relative_gap < 1e-9
    assert series.little().in_system == pytest.approx(
        500 / series.ended_s * series.latency_s().mean()
    )
    twice = run(poisson(0.8, 500), lambda p: 1.0, ServingRules(drain_s=1e4))
    wrong = ServingSeries(**{**vars(twice), "area": twice.area * 1.02})
    assert not wrong.little().holds


@pytest.mark.parametrize(("load", "expected"), [(0.7, False), (1.3, True)])
def test_saturated_is_a_queue_that_grows(load: float, expected: bool) -> None:
    hits = 0
    for seed in range(10):
        services = np.random.default_rng(100 + seed).exponential(1.0, 400)
        series = run(
            poisson(load, 400, seed), lambda p, s=services: s[p[0]], ServingRules(drain_s=1e4)
        )
        hits += series.record("server", batching="dynamic").saturated is expected
    assert hits >= 9


def test_a_server_that_is_always_busy_with_small_batches_is_not_saturated() -> None:
    # 0.5 s a batch whatever its size: at 10 requests a second it is never idle, with batches of 5.
    rules = ServingRules(max_batch=16, drain_s=100)
    series = run(poisson(10, 1000), lambda p: 0.5, rules)
    record = series.record("server", batching="dynamic")
    assert record.utilisation > 0.95
    assert not record.saturated
    assert record.full_share < 0.5


def test_growth_of_too_few_and_of_a_burst() -> None:
    assert latency_growth(np.arange(5.0), np.arange(5.0)) is None
    at_once = latency_growth(np.zeros(20), np.arange(20.0))
    assert at_once is not None
    assert not at_once.grows


def test_warm_up_comes_before_the_window_and_covers_the_batch_sizes() -> None:
    clock = VirtualClock()
    server = Server(clock, lambda p: 1.0)
    rules = ServingRules(max_batch=6, warmup_requests=3, warmup_s=0.0)
    series = serve([0.0, 1.0], server, rules, clock=clock)
    assert [w.size for w in series.warm] == [1, 2, 4, 6]
    assert [len(p) for _, p in server.batches] == [1, 2, 4, 6, 1, 1]
    assert [r["window"] for r in series.rows()] == ["cold"] + ["warmup"] * 3 + ["measure"] * 2
    record = series.record("server", batching="dynamic")
    assert record.cold_first_s == 1.0
    assert record.warmup_requests == 12
    # Nothing of it is in the window.
    np.testing.assert_allclose(series.started_s, [0.0, 1.0], atol=1e-9)


def test_the_first_token_counts_from_the_scheduled_arrival() -> None:
    clock = VirtualClock()

    def service(positions: list[int]) -> list[dict[str, Any]]:
        clock.advance(1.0)
        return [{"first_token_s": 0.25, "latency_s": -1.0} for _ in positions]

    rows = serve([0.0, 0.5], service, ServingRules(), clock=clock).rows()
    assert rows[0]["ttft_s"] == pytest.approx(0.25)
    assert rows[1]["ttft_s"] == pytest.approx(0.75)
    assert rows[1]["latency_s"] == pytest.approx(1.5), "the loop's own number"


def test_requests_that_come_while_the_queue_fills_are_kept_and_do_not_count() -> None:
    rules = ServingRules(settle_s=2.0)
    series = run(np.arange(100) / 10, lambda p: 0.5 if p[0] < 4 else 0.01, rules, duration_s=10.0)
    assert [r["window"] for r in series.rows()] == ["settle"] * 20 + ["measure"] * 80
    record = series.record("server", batching="dynamic")
    assert record.requests == 80
    assert record.offered_rate_per_s == pytest.approx(10.0)
    assert record.utilisation == pytest.approx(0.12, abs=0.01)
    assert series.percentile(0.99) < 0.5 < series.latency_s().max()
    with pytest.raises(ValueError, match="not counted"):
        run([0.0, 1.0], lambda p: 0.0, ServingRules(settle_s=2.0))


class LateClock(VirtualClock):
    """Wakes up too late by `late` seconds."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self.late = late

    def sleep_until(self, moment: float) -> None:
        super().sleep_until(moment + self.late if moment > self.now() else moment)


@pytest.mark.parametrize(
    ("late", "service", "refused"),
    [(0.0008, 0.01, False), (0.0015, 0.01, True), (0.0015, 0.1, False), (0.003, 0.1, True)],
)
def test_a_window_whose_loop_was_late_is_refused(
    late: float, service: float, refused: bool
) -> None:
    # The larger of 1 ms and 2 % of the median latency.
    clock = LateClock(late)
    server = Server(clock, lambda p: service)
    series = serve(np.arange(100) * 0.5, server, ServingRules(), clock=clock)
    np.testing.assert_allclose(series.lateness_s(), late, atol=1e-9)
    record = series.record("server", batching="dynamic")
    assert (record.refused is not None) is refused
    if refused:
        assert "late" in record.refused


def test_a_busy_server_is_no_lateness() -> None:
    series = run(np.arange(100) * 0.01, lambda p: 1.0, ServingRules(drain_s=1e3))
    np.testing.assert_allclose(series.lateness_s(), 0.0, atol=1e-9)
    assert series.record("server", batching="dynamic").refused is None


@pytest.mark.parametrize("times", [[], [1.0, 0.5], [-1.0], [float("nan")], [float("inf")]])
def test_arrivals_that_can_not_be_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="arrivals"):
        run(times, lambda p: 0.0)


def test_rules_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch"):
        ServingRules(max_batch=0)
    with pytest.raises(ValueError, match="after the"):
        run([0.0, 2.0], lambda p: 0.0, duration_s=1.0)
    with pytest.raises(ValueError, match="answered 0 of 1"):
        serve([0.0], lambda p: [], ServingRules(), clock=VirtualClock())


def test_the_meter_is_asked_around_the_window_alone() -> None:
    clock = VirtualClock()
    seen: list[tuple[str, float]] = []
    serve(
        [0.0, 1.0],
        Server(clock, lambda p: 1.0),
        ServingRules(warmup_requests=2),
        clock=clock,
        on_begin=lambda: seen.append(("begin", clock.now())),
        on_end=lambda: seen.append(("end", clock.now())),
    )
    assert seen == [("begin", pytest.approx(2.0)), ("end", pytest.approx(4.0 + LEAD))]


def test_the_real_clock_keeps_a_plan() -> None:
    # Loose: the machine may be busy. The exact figures are scripts/check_serving.py's.
    times = np.arange(20) * 0.01
    clock = RealClock()

    def service(positions: list[int]) -> list[dict[str, Any]]:
        clock.sleep_until(clock.now() + 0.002)
        return [{} for _ in positions]

    series = serve(times, service, ServingRules(), clock=clock)
    assert series.unfinished == 0
    assert (series.lateness_s() >= 0).all()
    assert (series.service_s() >= 0.002).all()
    assert series.ended_s >= 0.192
    assert series.little().holds


class Sleeper:
    """`time` whose sleeps end as late as is said; each look at it takes a microsecond."""

    def __init__(self, late: list[float]) -> None:
        self.t, self.late, self.slept = 0.0, iter(late), []

    def perf_counter(self) -> float:
        self.t += 1e-6
        return self.t

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.t += seconds + next(self.late)


def test_the_real_clock_spins_as_long_as_the_machine_wakes_it_late(monkeypatch: Any) -> None:
    fake = Sleeper([300e-6, 5e-3, *[0.0] * 4000])
    monkeypatch.setattr(clock_module, "time", fake)
    clock = RealClock()
    assert clock.spin_s == MOST_SPIN_S, "nothing is known of the machine"
    clock.sleep_until(0.01)
    assert fake.slept == [pytest.approx(0.01 - MOST_SPIN_S, abs=1e-5)]
    assert fake.t == pytest.approx(0.01, abs=5e-6), "late by less than was left to spin"
    clock.spin_s = LEAST_SPIN_S
    clock.sleep_until(0.1)
    assert clock.spin_s == MOST_SPIN_S, "5 ms late is more than is ever spun"
    for k in range(4000):
        clock.sleep_until(1.0 + k)
        assert fake.t < 1.0 + k + 5e-6
    assert clock.spin_s == LEAST_SPIN_S, "a quiet machine is not held to its worst moment"
    clock.sleep_until(0.5)
    assert len(fake.slept) == 4002, "a moment that has passed is not slept for"


def test_the_last_part_of_a_wait_is_spun_by_the_loop_itself(monkeypatch: Any) -> None:
    fake = Sleeper([0.0, 0.0])
    monkeypatch.setattr(clock_module, "time", fake)
    clock = RealClock()
    clock.sleep_towards(0.01)
    assert fake.t == pytest.approx(0.01 - MOST_SPIN_S, abs=5e-6)
    towards: list[float] = []

    class Early(VirtualClock):
        """Wakes up 0.5 ms before it is to."""

        def sleep_towards(self, moment: float) -> None:
            towards.append(moment)
            self.advance(max(moment - self.now() - 0.0005, 1e-6))

    early = Early()
    series = serve(
        [0.01, 0.02], lambda positions: [{} for _ in positions], ServingRules(), clock=early
    )
    assert len(towards) > 100, "looked again and again until the request was there"
    assert series.lateness_s().max() < 2e-6


@pytest.mark.skipif(sys.platform != "linux", reason="the call is Linux's")
def test_the_real_clock_sets_the_least_timer_slack() -> None:
    RealClock()
    assert ctypes.CDLL(None).prctl(30) == 1  # PR_GET_TIMERSLACK, in ns.


def test_multi_stream_sends_the_next_query_when_the_last_is_done() -> None:
    clock = VirtualClock()
    asked: list[list[int]] = []

    def batch(indices: list[int]) -> dict[str, Any]:
        asked.append(indices)
        clock.advance(0.1 * len(indices))
        return {}

    rules = Workload(min_requests=5, min_seconds=0, warmup_requests=1, warmup_seconds=0)
    series = multi_stream(batch, 10, 4, rules, clock=clock.now)
    # One cold, one to warm up, then from example 0 again.
    assert asked[2:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]]
    np.testing.assert_allclose(series.latencies(), 0.4)
    assert [r["index"] for r in series.measured()] == [0, 4, 8, 2, 6]
    assert {r["samples"] for r in series.rows} == {4}
    with pytest.raises(ValueError, match="multi-stream"):
        multi_stream(batch, 0, 4, rules)
