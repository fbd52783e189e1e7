"""Percentiles of dependent series: how much they are worth, and whether their intervals hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtri

from precision_explorer.stats import (
    autocorrelation,
    correlation_time,
    effective_n,
    order_interval,
    percentile,
    tail,
    tails,
)
from tests.series import autoregressive, queue


def held(make, truth, q, series=100):
    """(intervals, those that hold, those that would hold if all values were independent)."""
    found = [0, 0, 0]
    for seed in range(series):
        values = make(np.random.default_rng(seed))
        one, naive = tail(values, q), order_interval(values, q)
        found[2] += naive is not None and naive[0] <= truth <= naive[1]
        if one.low is not None:
            found[0] += 1
            found[1] += one.low <= truth <= one.high
    return found


def test_autocorrelation_by_its_definition():
    values = np.random.default_rng(0).exponential(size=57)
    centred = values - values.mean()
    plain = [(centred[: 57 - k] * centred[k:]).sum() / (centred**2).sum() for k in range(57)]
    assert autocorrelation(values) == pytest.approx(np.array(plain), abs=1e-12)
    assert autocorrelation(np.ones(5)).tolist() == [1, 0, 0, 0, 0]
    assert autocorrelation([]).size == 0


def test_the_correlation_time_of_a_known_process():
    # Of AR(1) with coefficient c it is (1 + c) / (1 - c).
    values = autoregressive(np.random.default_rng(1), 200_000, 0.8)
    assert correlation_time(values) == pytest.approx(9, rel=0.1)
    assert correlation_time(np.random.default_rng(2).normal(size=100_000)) < 1.05
    assert correlation_time([]) == correlation_time([1.0]) == correlation_time([2.0, 2.0]) == 1


@pytest.mark.parametrize("n", [30, 299, 1000, 2995])
def test_independent_values_are_worth_all_of_themselves(n):
    series = [np.random.default_rng(seed).exponential(size=n) for seed in range(100)]
    for q in (0.5, 0.9, 0.99, 0.999):
        assert sum(effective_n(values, q) == n for values in series) >= 94


def test_intervals_of_independent_values_are_those_of_the_binomial():
    values = np.random.default_rng(3).exponential(size=1000)
    for one in tails(values, (0.5, 0.9, 0.99)):
        assert (one.low, one.high) == order_interval(values, one.q)
        assert one.value == percentile(values, one.q)
        assert (one.n, one.n_eff, one.needed_n, one.note) == (1000, 1000.0, None, None)


@pytest.mark.parametrize(
    ("name", "n", "q"), [("ar", 1000, 0.5), ("ar", 3000, 0.9), ("queue", 3000, 0.5)]
)
def test_intervals_hold_where_naive_ones_do_not(name, n, q):
    if name == "ar":
        make, truth = lambda g: autoregressive(g, n, 0.8), float(ndtri(q))
    else:
        make, truth = lambda g: queue(g, n, 0.7), -math.log1p(-q) / 0.3
    intervals, right, naive = held(make, truth, q)
    assert intervals >= 95
    assert right / intervals >= 0.88
    assert naive <= 75


def test_the_p99_of_a_queue_holds_from_20_000_requests():
    truth = -math.log(0.01) / 0.3
    intervals, right, naive = held(lambda g: queue(g, 20_000, 0.7), truth, 0.99, 40)
    assert intervals >= 34
    assert right / intervals >= 0.85
    assert naive <= 20


@pytest.mark.parametrize("n", [400, 1000, 2000])
def test_a_short_queue_has_no_p99_and_says_what_it_takes(n):
    shown = 0
    for seed in range(50):
        one = tail(queue(np.random.default_rng(seed), n, 0.7), 0.99)
        shown += one.value is not None
        if one.value is None:
            assert one.low is one.high is None
            assert one.needed_n == math.ceil(299 * n / one.n_eff) > n
            assert one.note == f"needs n >= {one.needed_n:,}"
    assert shown <= 1


def test_what_a_percentile_takes_without_correlation():
    values = np.random.default_rng(0).permutation(298) + 1.0
    found = tails(values)
    assert [one.needed_n for one in found] == [None, None, 299, 2995]
    assert [one.n_eff for one in found] == [298.0] * 4


def test_values_that_stay_are_worth_few():
    values = np.repeat(np.random.default_rng(4).exponential(size=30), 20)
    assert effective_n(values, 0.5) == pytest.approx(30, rel=0.5)
    assert tail(values, 0.99).value is None


def test_ranks_of_fewer_values_move_outwards():
    values = np.arange(1.0, 1001)
    low, high = order_interval(values, 0.5)
    wider = order_interval(values, 0.5, n_eff=100)
    assert wider[0] < low < high < wider[1]
    # Ranks 40 and 61 of 100, moved to the next of 1,000.
    assert wider == (40 * 1001 // 101, math.ceil(61 * 1001 / 101))
    assert order_interval(values, 0.5, n_eff=5.9) is None
    assert order_interval(values, 0.5, n_eff=4000) == (low, high)


def test_degenerate_series():
    assert tail([], 0.5).value is None
    assert tail([], 0.5).needed_n == 1
    assert tail([2.0], 0.5).value == 2.0
    assert tail([3.0] * 400, 0.99).value == 3.0
    with pytest.raises(ValueError, match="not between"):
        tail([1.0], 99)
