"""Arrival processes: sorted and inside the window, of the declared mean rate and shape, seeded."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from precision_explorer.errors import UsageError
from precision_explorer.workload import (
    ARRIVALS,
    ConstantArrivals,
    DailyArrivals,
    GammaArrivals,
    OnOffArrivals,
    PoissonArrivals,
)

PROCESSES = {
    "constant": ConstantArrivals(rate_per_s=50),
    "poisson": PoissonArrivals(rate_per_s=50),
    "gamma, bursty": GammaArrivals(rate_per_s=50, burstiness=0.25),
    "gamma, regular": GammaArrivals(rate_per_s=50, burstiness=9),
    "on-off": OnOffArrivals(rate_per_s=50, on_s=0.5, off_s=2),
    "daily": DailyArrivals(rate_per_s=50, day_s=4),
    "daily, hours": DailyArrivals(rate_per_s=50, day_s=4, hours=(*[1.0] * 12, *[3.0] * 12)),
}


def rng(seed=0):
    return np.random.default_rng(seed)


def gaps(process, n=200_000):
    return np.diff(process.times(rng(3), n=n))


@pytest.mark.parametrize("name", PROCESSES)
@given(
    seed=st.integers(0, 2**32),
    rate=st.floats(0.5, 500),
    duration_s=st.floats(0.01, 20),
)
@settings(max_examples=25, deadline=None)
def test_times_are_sorted_and_inside_the_window(name, seed, rate, duration_s):
    times = PROCESSES[name].at(rate).times(rng(seed), duration_s=duration_s)
    assert times.dtype == np.float64
    assert np.all(np.diff(times) >= 0)
    assert not times.size or (times[0] >= 0 and times[-1] < duration_s)


@pytest.mark.parametrize("name", PROCESSES)
def test_n_times_are_n(name):
    for n in (0, 1, 2, 1000, 5001):
        times = PROCESSES[name].times(rng(), n=n)
        assert times.shape == (n,)
        assert np.all(np.diff(times) >= 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_same_seed_gives_the_same_times_and_another_one_others(name):
    process = PROCESSES[name]
    first = process.times(rng(1), duration_s=5)
    assert np.array_equal(first, process.times(rng(1), duration_s=5))
    same = np.array_equal(first, process.times(rng(2), duration_s=5))
    assert same == (name == "constant")


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mean_rate_of_many_requests_is_the_declared_one(name):
    n = 400_000
    times = PROCESSES[name].times(rng(7), n=n)
    # The on-off process varies most: some 3,200 cycles of CV above 1 make 2 % one deviation.
    assert n / times[-1] == pytest.approx(50, rel=0.06 if name == "on-off" else 0.015)


@pytest.mark.parametrize("name", PROCESSES)
def test_short_windows_hold_the_declared_rate_too(name):
    """A process that began with a full gap, or always with a burst, would be off by a request."""
    process, window_s = PROCESSES[name], 4.0 if name.startswith("daily") else 0.2
    counts = [process.times(rng(i), duration_s=window_s).size for i in range(4000)]
    error = np.std(counts) / math.sqrt(len(counts))
    assert abs(np.mean(counts) - 50 * window_s) < 4 * error + 1e-9


def test_constant_gaps_are_all_one():
    times = ConstantArrivals(rate_per_s=4).times(rng(), duration_s=1)
    assert times.tolist() == [0, 0.25, 0.5, 0.75]


def test_poisson_gaps_are_exponential():
    found = gaps(PROCESSES["poisson"]) * 50
    assert found.std() / found.mean() == pytest.approx(1, rel=0.01)
    for q in (0.5, 0.9, 0.99):
        assert np.quantile(found, q) == pytest.approx(-math.log(1 - q), rel=0.02)


@given(burstiness=st.floats(0.1, 20))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_gamma_gaps_have_the_declared_variation(burstiness):
    """vLLM's burstiness is the shape: the coefficient of variation is 1 / sqrt of it."""
    process = GammaArrivals(rate_per_s=50, burstiness=burstiness)
    found = gaps(process, 100_000)
    assert process.cv == pytest.approx(1 / math.sqrt(burstiness))
    assert found.std() / found.mean() == pytest.approx(process.cv, rel=0.04)


def test_a_burstiness_of_one_is_poisson():
    found = gaps(GammaArrivals(rate_per_s=50, burstiness=1)) * 50
    assert np.quantile(found, 0.9) == pytest.approx(math.log(10), rel=0.02)


def test_on_off_bursts_come_at_the_rate_of_the_on_time():
    """0.5 s on in 2.5 s: five times the mean rate while on, and silence in between."""
    process = OnOffArrivals(rate_per_s=50, on_s=0.5, off_s=2)
    times = process.times(rng(5), duration_s=2000)
    found = np.diff(times)
    assert np.median(found) == pytest.approx(math.log(2) / 250, rel=0.05)
    # Gaps in a burst are exponential with mean 1/250 s; those of 0.1 s are silence.
    silences = found[found > 0.1]
    assert silences.size == pytest.approx(2000 / 2.5 * math.exp(-0.1 / 2), rel=0.12)
    assert silences.mean() - 0.1 == pytest.approx(2, rel=0.12)


def test_a_day_rises_and_falls_as_declared():
    process = DailyArrivals(rate_per_s=1000, day_s=24, peak_to_trough=3, peak_hour=6)
    times = process.times(rng(2), duration_s=240)
    hours = np.bincount((times % 24).astype(int), minlength=24) / 10_000
    expected = 1 + 0.5 * np.cos(2 * math.pi * (np.arange(24) + 0.5 - 6) / 24)
    assert hours == pytest.approx(expected, abs=0.05)
    assert process.peak == pytest.approx(1.5)


def test_a_table_of_hours_is_followed_hour_by_hour():
    weights = [float(i % 5) for i in range(24)]
    process = DailyArrivals(rate_per_s=1000, day_s=24, hours=weights)
    times = process.times(rng(2), duration_s=240)
    hours = np.bincount((times % 24).astype(int), minlength=24) / 10_000
    assert hours == pytest.approx(np.array(weights) / np.mean(weights), abs=0.06)
    assert not hours[0]


def test_without_a_declared_day_the_window_is_one():
    process = DailyArrivals(rate_per_s=2000, peak_hour=12)
    for window_s in (2.0, 8.0):
        times = process.times(rng(1), duration_s=window_s)
        middle = np.mean((times > window_s / 4) & (times < 3 * window_s / 4))
        assert middle == pytest.approx(0.5 + (process.peak - 1) / math.pi, abs=0.02)


def test_a_load_is_a_share_of_a_capacity():
    process = PoissonArrivals(load="70%")
    assert process.load == 0.7
    assert process.rate(200) == pytest.approx(140)
    assert process.at(140).rate_per_s == 140
    assert process.at(140).load is None
    assert PoissonArrivals(rate_per_s=3).rate(200) == 3
    with pytest.raises(UsageError, match="a share of a capacity that is not known yet"):
        process.times(rng(), duration_s=1)


@pytest.mark.parametrize("rate", [0, -1, math.inf, math.nan])
def test_no_process_runs_at_no_rate(rate):
    with pytest.raises(UsageError, match="gives no requests"):
        PoissonArrivals(load=0.7).at(rate)


def test_more_requests_than_can_be_planned_are_refused():
    with pytest.raises(UsageError, match="more than can be planned"):
        PoissonArrivals(rate_per_s=1e9).times(rng(), duration_s=3600)
    with pytest.raises(UsageError, match="more than can be planned"):
        PoissonArrivals(rate_per_s=1).times(rng(), n=10**9)
    with pytest.raises(UsageError, match=r"bursts every 2.00 ms are more than can be planned over"):
        OnOffArrivals(rate_per_s=1e-4, on_s=0.001, off_s=0.001).times(rng(), duration_s=1e6)


@pytest.mark.parametrize("kind", [kind for kind in ARRIVALS if kind != "trace"])
@pytest.mark.parametrize(
    ("speed", "part"),
    [
        ({}, "give one of rate_per_s, load and search"),
        ({"rate_per_s": 1, "load": 0.5}, "give one of rate_per_s, load and search"),
        ({"rate_per_s": 0}, "a rate of 0 gives no requests"),
        ({"rate_per_s": -2}, "a rate of -2 gives no requests"),
        ({"load": 0}, "0 is no load"),
        ({"load": 70}, "such as 0.7 or 70%"),
        ({"load": math.nan}, "finite"),
    ],
)
def test_every_kind_declares_one_rate(kind, speed, part):
    more = {"gamma": {"burstiness": 1}, "on-off": {"on_s": 1, "off_s": 1}}.get(kind, {})
    with pytest.raises(ValidationError, match=part):
        ARRIVALS[kind].model_validate(speed | more)
