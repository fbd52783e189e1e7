"""Queues on a virtual clock: against theory, against plain recursions, and by hand."""

import importlib.util
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from precision_explorer.workload.queue_theory import (
    erlang_c,
    md1_mean_wait,
    md1_wait_cdf,
    md1_wait_quantile,
    mg1_mean_wait,
    mmc_mean_wait,
    mmc_wait_quantile,
)
from precision_explorer.workload.queueing import DISPATCHES, assign, fcfs, lindley, serve
from precision_explorer.workload.service_times import ServiceTimes

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_queueing.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_queueing", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rng(seed=0):
    return np.random.default_rng(seed)


# -- theory --------------------------------------------------------------------------------------


def test_erlang_c_by_hand():
    # One server: rho. Two servers at load 1: B = 1/5, C = (1/5) / (1 - 1/2 x 4/5) = 1/3.
    assert erlang_c(0.3, 1) == pytest.approx(0.3)
    assert erlang_c(1.0, 2) == pytest.approx(1 / 3)
    assert 0 < erlang_c(4900, 5000) < 1  # Neither overflows nor underflows.


def test_m_m_1_by_hand():
    # rho = 0.5: mean wait 1 service, P(W > t) = 0.5 exp(-t / 2).
    assert mmc_mean_wait(0.5, 1) == pytest.approx(1)
    assert mmc_wait_quantile(0.99, 0.5, 1) == pytest.approx(2 * math.log(50))
    assert mmc_wait_quantile(0.5, 0.5, 1) == 0
    assert mmc_wait_quantile(0.99, 5, 0.1) == pytest.approx(0.2 * math.log(50))


def test_means_of_general_services():
    assert md1_mean_wait(0.5, 1) == pytest.approx(0.5)
    assert md1_mean_wait(5, 0.1) == pytest.approx(0.05)
    # Exponential services have E[S^2] = 2.
    assert mg1_mean_wait(0.7, 1, 2) == pytest.approx(mmc_mean_wait(0.7, 1))


def crommelin(wait, load):
    """The series of 1932, which is exact where it does not cancel."""
    terms = ((load * (k - wait)) ** k / math.factorial(k) for k in range(math.floor(wait) + 1))
    signed = (t * math.exp(-load * (k - wait)) for k, t in enumerate(terms))
    return (1 - load) * math.fsum(signed)


@pytest.mark.parametrize("load", [0.2, 0.7, 0.95])
@pytest.mark.parametrize("wait", [0, 0.3, 1, 1.5, 4.25, 9.9])
def test_m_d_1_is_crommelin_s_series_where_that_holds(load, wait):
    assert md1_wait_cdf(wait, load, 1) == pytest.approx(crommelin(wait, load), abs=1e-10)
    assert md1_wait_cdf(wait * 3, load / 3, 3) == pytest.approx(crommelin(wait, load), abs=1e-10)


def test_m_d_1_stays_stable_where_the_series_cancels():
    values = [md1_wait_cdf(t, 0.99, 1) for t in np.linspace(0, 400, 200)]
    assert all(0 <= low < high <= 1 for low, high in pairwise(values))
    # Its tail falls by exp(-theta) per service, where load (exp(theta) - 1) = theta.
    theta = brentq(lambda x: 0.99 * math.expm1(x) - x, 1e-3, 1)
    ratio = (1 - values[-1]) / (1 - values[-100])
    assert ratio == pytest.approx(math.exp(-theta * 99 * 400 / 199), rel=1e-6)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.9, 0.999])
def test_the_m_d_1_quantile_is_the_inverse(load):
    for q in (0.5, 0.9, 0.99, 0.999):
        wait = md1_wait_quantile(q, load, 1)
        if wait == 0:
            assert q <= 1 - load
        else:
            assert md1_wait_cdf(wait, load, 1) == pytest.approx(q, abs=1e-9)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: erlang_c(2, 2),
        lambda: mmc_mean_wait(10, 0.1),
        lambda: md1_wait_quantile(0.99, 1, 1),
        lambda: md1_wait_cdf(1, 2, 1),
        lambda: mg1_mean_wait(1, 1, 1),
    ],
)
def test_a_queue_that_grows_without_end_has_no_answer(ask):
    with pytest.raises(ValueError, match="grows without end"):
        ask()


# -- servers -------------------------------------------------------------------------------------

_TIMES = st.lists(st.tuples(st.floats(0, 10), st.floats(0.001, 10)), min_size=1, max_size=60)


def plain(arrivals, services, servers):
    """Kiefer and Wolfowitz's vector of remaining work, request by request."""
    work, waits = np.zeros(servers), []
    gaps = np.diff(arrivals, append=arrivals[-1])
    for service, gap in zip(services, gaps, strict=True):
        waits.append(work[0])
        work[0] += service
        work = np.sort(np.maximum(work - gap, 0))
    return np.array(waits)


@given(_TIMES, st.integers(1, 4))
def test_waits_are_those_of_the_plain_recursion(pairs, servers):
    gaps, services = np.array(pairs).T
    arrivals = np.cumsum(gaps)
    waits = fcfs(arrivals, services, servers)
    assert waits == pytest.approx(plain(arrivals, services, servers), abs=1e-9)
    assert (waits >= 0).all()


def test_chunks_of_the_heap_join():
    arrivals = np.cumsum(rng().exponential(0.3, 5000))
    services = rng(1).exponential(1, 5000)
    assert fcfs(arrivals, services, 4) == pytest.approx(plain(arrivals, services, 4), abs=1e-8)


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("fixed", [False, True])
def test_one_server_agrees_with_theory(script, load, fixed):
    waits = lindley(*script.drawn(2_200_000, load, 1, fixed, 0))[200_000:]
    mean, tail = (
        (md1_mean_wait(load, 1), md1_wait_quantile(0.99, load, 1))
        if fixed
        else (mmc_mean_wait(load, 1), mmc_wait_quantile(0.99, load, 1))
    )
    assert waits.mean() == pytest.approx(mean, rel=0.05)
    assert np.quantile(waits, 0.99) == pytest.approx(tail, rel=0.05)


def test_several_servers_agree_with_erlang_c(script):
    waits = fcfs(*script.drawn(1_100_000, 0.7, 2, False, 0), 2)[100_000:]
    assert waits.mean() == pytest.approx(mmc_mean_wait(1.4, 1, 2), rel=0.02)
    assert (waits > 0).mean() == pytest.approx(erlang_c(1.4, 2), rel=0.02)
    assert np.quantile(waits, 0.99) == pytest.approx(mmc_wait_quantile(0.99, 1.4, 1, 2), rel=0.05)


@pytest.mark.parametrize("servers", [1, 4])
def test_simpy_gives_the_same_waits(script, servers):
    pytest.importorskip("simpy")
    pair = script.drawn(3000, 0.8, servers, False, 0)
    assert script.simpy_fcfs(*pair, servers) == pytest.approx(fcfs(*pair, servers), abs=1e-9)


def test_simpy_gives_the_same_waits_in_batches(script):
    pytest.importorskip("simpy")
    load = 0.8 * script.BATCHES.rate_per_s(8)
    arrivals, _ = script.drawn(3000, load, 3, True, 0)
    ours = serve(arrivals, script.BATCHES, rng(), max_batch=8, max_wait_s=0.5, replicas=3)
    assert script.simpy_batches(arrivals, script.BATCHES, 3) == pytest.approx(
        ours.waits_s, abs=1e-9
    )
    assert len(set(ours.batch)) > 5


@pytest.mark.parametrize(("arrivals", "services"), [([0, 1], [1]), ([[0]], [[1]])])
def test_each_request_has_one_service_time(arrivals, services):
    with pytest.raises(ValueError, match="one service time"):
        fcfs(np.array(arrivals), np.array(services), 2)


def test_no_machine_serves_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        fcfs(np.zeros(1), np.ones(1), 0)
    with pytest.raises(ValueError, match="at least 1"):
        serve(np.zeros(1), ServiceTimes({1: 1}), rng(), replicas=0)


# -- batches -------------------------------------------------------------------------------------

TEN = ServiceTimes({1: 1.0, 3: 3.0, 4: 10.0})


def served(arrivals, service=TEN, **rules):
    found = serve(np.array(arrivals, dtype=float), service, rng(), **rules)
    return found.starts_s.tolist(), found.ends_s.tolist(), found.batch.tolist()


def test_a_full_batch_begins_at_once():
    starts, ends, batch = served([0, 1, 2], max_batch=3, max_wait_s=100)
    assert (starts, ends, batch) == ([2, 2, 2], [5, 5, 5], [3, 3, 3])


def test_a_batch_that_is_not_full_begins_when_the_oldest_has_waited_long_enough():
    starts, _, batch = served([0, 1, 5], max_batch=3, max_wait_s=2)
    assert (starts, batch) == ([2, 2, 7], [2, 2, 1])


def test_who_comes_in_the_moment_of_the_begin_is_taken():
    starts, _, batch = served([0, 2], max_batch=3, max_wait_s=2)
    assert (starts, batch) == ([2, 2], [2, 2])


def test_without_a_wait_nobody_waits_for_company_but_a_busy_machine_gathers_it():
    starts, ends, batch = served([0, 0.1, 0.2, 5], max_batch=3)
    assert starts == [0, 1, 1, 5]
    assert ends == [1, 3, 3, 6]  # A batch of two takes what lies between one and three.
    assert batch == [1, 2, 2, 1]


def test_a_batch_is_never_larger_than_its_limit():
    _, _, batch = served([0] * 10, max_batch=4)
    assert batch == [4] * 8 + [2] * 2


def test_a_second_machine_takes_the_next_batch():
    starts, _, _ = served([0, 0, 0, 0], max_batch=2, replicas=2)
    assert starts == [0, 0, 0, 0]
    starts, _, _ = served([0, 0, 0, 0], max_batch=2, replicas=1)
    assert starts == [0, 0, 2, 2]


def test_batches_of_one_are_the_queue_without_batches():
    arrivals = np.cumsum(rng().exponential(1, 2000))
    found = serve(arrivals, ServiceTimes({1: 1.5}), rng(), max_wait_s=9, replicas=2)
    assert found.waits_s == pytest.approx(fcfs(arrivals, np.full(2000, 1.5), 2))
    assert found.latencies_s == pytest.approx(found.waits_s + 1.5)


def test_little_s_law_holds():
    arrivals = np.cumsum(rng().exponential(1, 5000))
    found = serve(arrivals, TEN, rng(), max_batch=4, max_wait_s=1, replicas=2)
    moments = np.sort(np.concatenate([found.arrivals_s, found.ends_s]))
    inside = np.searchsorted(arrivals, moments, side="right") - np.searchsorted(
        np.sort(found.ends_s), moments, side="right"
    )
    area = float((inside[:-1] * np.diff(moments)).sum())
    assert area == pytest.approx(found.latencies_s.sum())


@pytest.mark.parametrize("dispatch", ["round-robin", "random"])
def test_a_machine_with_a_queue_of_its_own_knows_no_other(dispatch):
    arrivals = np.cumsum(rng().exponential(0.5, 300))
    found = serve(arrivals, TEN, rng(7), max_batch=3, max_wait_s=1, replicas=3, dispatch=dispatch)
    machine = assign(300, 3, dispatch, rng(7))
    assert set(machine) == {0, 1, 2}
    for one in range(3):
        mine = machine == one
        alone = serve(arrivals[mine], TEN, rng(), max_batch=3, max_wait_s=1)
        assert found.ends_s[mine] == pytest.approx(alone.ends_s)
        assert (found.batch[mine] == alone.batch).all()


def waits_of(service):
    arrivals = np.cumsum(rng().exponential(1 / 3.2, 100_000))
    return {how: serve(arrivals, service, rng(), replicas=4, dispatch=how).waits_s.mean()
            for how in DISPATCHES}  # fmt: skip


def test_one_queue_waits_least_and_chance_most():
    waits = waits_of(ServiceTimes({1: rng().exponential(1, 5000)}))
    assert waits["shared"] < 0.8 * waits["round-robin"] < 0.8**2 * waits["random"]


def test_services_that_are_all_alike():
    waits = waits_of(ServiceTimes({1: 1.0}))
    # Who is free first is then whose turn it is.
    assert waits["shared"] == pytest.approx(waits["round-robin"])
    # Poisson arrivals thinned by chance are Poisson: each machine is M/D/1.
    assert waits["random"] == pytest.approx(md1_mean_wait(0.8, 1), rel=0.1)


def test_the_first_requests_can_be_left_out():
    found = serve(np.arange(5.0), TEN, rng()).after(2)
    assert found.arrivals_s.tolist() == [2, 3, 4]
    assert len(found.latencies_s) == len(found.batch) == 3


def test_a_wait_below_0_is_refused():
    with pytest.raises(ValueError, match="0 or more"):
        serve(np.zeros(1), TEN, rng(), max_wait_s=-1)


# -- service times -------------------------------------------------------------------------------


def test_sizes_between_two_measured_ones_lie_between_them_at_every_quantile():
    times = ServiceTimes({2: [1, 2, 3, 4], 4: [40, 30, 20, 10]})
    assert (times.sizes, times.largest, times.count(4)) == ((2, 4), 4, 4)
    assert times.mean_s(3) == pytest.approx((2.5 + 25) / 2)
    assert times.rate_per_s(4) == pytest.approx(4 / 25)
    table = times.table(4, levels=4)
    assert table[1].tolist() == [1, 2, 3, 4]
    assert table[2].tolist() == [5.5, 11, 16.5, 22]
    assert table[3].tolist() == [10, 20, 30, 40]
    # A part of a batch takes no longer than the smallest measured.
    assert table[0].tolist() == table[1].tolist()


def test_nothing_is_known_above_the_largest():
    with pytest.raises(ValueError, match="the largest is 4"):
        TEN.mean_s(5)
    with pytest.raises(ValueError, match="the largest is 4"):
        serve(np.zeros(9), TEN, rng(), max_batch=5)


@pytest.mark.parametrize("given_", [{}, {0: 1.0}, {1: []}, {1: [0.0]}, {1: [1, math.nan]}, {1: -1}])
def test_what_can_be_no_service_time_is_refused(given_):
    with pytest.raises(ValueError):
        ServiceTimes(given_)


def test_draws_are_the_measured_distribution():
    times = ServiceTimes({1: rng().gamma(2, 1, 500)})
    drawn = times.draw(1, 100_000, rng(1))
    assert drawn.mean() == pytest.approx(times.mean_s(1), rel=0.02)
    own = np.quantile(times.draw(1, 1, rng()), 0.5)
    assert own in times.table(1)[0]


def test_resampling_draws_rounds_first_and_the_same_for_all_sizes():
    times = ServiceTimes(
        {1: [1.0] * 10 + [2.0] * 10, 4: [10.0] * 6 + [20.0] * 6, 8: [40.0, 40.0]},
        {1: [0] * 10 + [1] * 10, 4: [0] * 6 + [1] * 6, 8: [7, 7]},
    )
    assert times.rounds == 3
    shares = set()
    for seed in range(60):
        drawn = times.resampled(rng(seed))
        # Each drawn round is all of one value in both sizes.
        assert drawn.mean_s(4) == pytest.approx(10 * drawn.mean_s(1))
        assert drawn.mean_s(8) == 40.0
        shares.add(round(drawn.mean_s(1), 3))
    assert {1.0, 1.333, 1.5, 1.667, 2.0} >= shares >= {1.0, 1.5, 2.0}
    with pytest.raises(ValueError, match="one round"):
        ServiceTimes({1: [1.0, 2.0]}, {1: [0]})


def test_resampling_keeps_neighbours_together_and_varies():
    times = ServiceTimes({1: np.arange(1.0, 1001)})
    one, other = (times.resampled(rng(s)) for s in (1, 2))
    assert one.mean_s(1) != other.mean_s(1)
    series = one._series[1]
    assert len(series) == 1000
    steps = np.diff(series)
    # Blocks of ten: nine steps of ten are to the next value, the last to the first included.
    assert np.isin(steps, (1, -999)).mean() > 0.85


# -- the script ----------------------------------------------------------------------------------


def test_the_script_tells_a_simulator_that_is_off(script, capsys):
    waits = lindley(*script.drawn(400_000, 0.5, 1, False, 0))
    theory = mmc_mean_wait(0.5, 1), mmc_wait_quantile(0.99, 0.5, 1)
    assert script.row("M/M/1", [waits], *theory, 0.05)
    assert not script.row("M/M/1", [1.1 * waits], *theory, 0.05)
    assert "+10." in capsys.readouterr().out
