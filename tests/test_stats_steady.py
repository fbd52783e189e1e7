from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import kendalltau, mannwhitneyu, theilslopes

from precision_explorer.stats import assess
from precision_explorer.stats.steady import (
    mann_kendall_p,
    mser5,
    rank_sum_p,
    sen_slope,
    time_beside_drift,
    two_modes,
)
from tests.series import queue


def labels(make, n, seeds=200):
    found = Counter()
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        found[assess(make(generator, n), False).label] += 1
    return found


@pytest.mark.parametrize(("n", "sigma"), [(30, 0.3), (100, 0.5), (300, 1.0)])
def test_undisturbed_series_are_steady(n, sigma):
    assert labels(lambda g, k: g.lognormal(0, sigma, k), n)["steady"] >= 190


@pytest.mark.parametrize("n", [30, 100, 500])
def test_a_ramp_of_30_percent_drifts(n):
    found = labels(lambda g, k: np.linspace(1, 1.3, k) * g.lognormal(0, 0.05, k), n, 60)
    assert found["drifting"] >= 57


def test_a_change_of_level_late_in_the_series_drifts():
    def step(generator, n):
        return np.where(np.arange(n) < 0.6 * n, 1.0, 1.15) * generator.lognormal(0, 0.03, n)

    assert labels(step, 200, 40)["drifting"] >= 38


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_two_interleaved_clusters_are_bimodal(share):
    def clusters(generator, n):
        return np.where(generator.random(n) < share, 1.4, 1.0) * generator.lognormal(0, 0.03, n)

    assert labels(clusters, 150, 60)["bimodal"] >= 55


@pytest.mark.parametrize("n", [300, 1000, 5000])
def test_a_queue_that_is_steady_seldom_drifts(n):
    """Tests for independent values would call about half of these drifting."""
    found = labels(lambda g, k: queue(g, k, 0.7), n, 100)
    assert found["drifting"] <= 8
    assert found["steady"] >= 90


def test_a_queue_without_room_drifts():
    def growing(generator, n):
        gaps, services = generator.exponential(1 / 1.3, n), generator.exponential(1.0, n)
        walk = np.cumsum(services - gaps)
        return walk - np.minimum.accumulate(np.minimum(walk, 0)) + services

    assert labels(growing, 2000, 40)["drifting"] >= 38


def test_a_correlation_time_above_1_makes_the_tests_more_careful():
    generator = np.random.default_rng(5)
    series = generator.normal(size=100) + np.linspace(0, 1, 100)
    assert mann_kendall_p(series) < mann_kendall_p(series, 4.0)
    first, second = series[:50], series[50:]
    assert rank_sum_p(first, second) < rank_sum_p(first, second, 4.0)
    # So few values are left that a normal quantile would claim too much.
    assert mann_kendall_p(np.arange(100.0), 25.0) > 0.05


def test_a_drift_is_no_correlation():
    noise = np.random.default_rng(6).normal(size=500) / 10
    for drift in (np.linspace(0, 5, 500), np.where(np.arange(500) < 300, 0, 2)):
        assert time_beside_drift(noise + drift) < 2
    assert time_beside_drift(queue(np.random.default_rng(7), 5000, 0.7)) > 5
    assert time_beside_drift(np.ones(2)) == time_beside_drift(np.ones(50)) == 1


def test_a_drift_too_small_to_matter_is_no_drift():
    series = np.linspace(1.0, 1.03, 2000)
    assert mann_kendall_p(series[::10]) < 1e-6
    assert assess(series, False).label == "steady"


def test_warm_up_is_cut_and_forgiven():
    generator = np.random.default_rng(0)
    series = generator.lognormal(0, 0.03, 400)
    series[:40] *= np.linspace(4, 1.2, 40)
    state = assess(series, False)
    assert state.label == "steady"
    assert 35 <= state.truncated <= 200


def test_mser5_against_a_plain_loop():
    generator = np.random.default_rng(4)
    series = generator.lognormal(0, 0.2, 203)
    series[:30] += 2
    means = [series[5 * k : 5 * k + 5].mean() for k in range(40)]
    errors = [np.var(means[d:]) / (40 - d) for d in range(21)]
    assert int(np.argmin(errors)) < 20
    assert mser5(series) == 5 * int(np.argmin(errors)) >= 30
    assert mser5(np.arange(100.0)) == 0
    assert mser5(np.arange(10.0)) == 0


def test_rank_tests_agree_with_scipy():
    generator = np.random.default_rng(1)
    series = np.round(generator.normal(size=80) + np.linspace(0, 0.8, 80), 1)  # with ties
    first, second = series[:40], series[40:]
    theirs = mannwhitneyu(first, second, method="asymptotic", use_continuity=True).pvalue
    assert rank_sum_p(first, second) == pytest.approx(theirs, rel=1e-9)
    assert sen_slope(series) == pytest.approx(theilslopes(series).slope)
    # scipy's asymptotic Kendall test is Mann-Kendall without the continuity correction.
    theirs = kendalltau(np.arange(80), series, method="asymptotic").pvalue
    assert mann_kendall_p(series) == pytest.approx(theirs, rel=0.05)


def test_too_few_values_and_an_exhausted_budget():
    generator = np.random.default_rng(2)
    few, many = generator.lognormal(0, 0.1, 19), generator.lognormal(0, 0.1, 60)
    assert assess(few, False).label is None
    assert assess(few, True).label == "budget-exhausted"
    assert assess(many, True).label == "budget-exhausted"
    assert assess(np.linspace(1, 2, 60), True).label == "drifting"


def test_degenerate_series():
    assert assess(np.ones(100), False).label == "steady"
    assert not two_modes(np.zeros(50))
    assert not two_modes(np.r_[np.ones(97), 50 * np.ones(3)])  # a tail, not a mode
    with pytest.raises(ValueError, match="not finite"):
        assess(np.r_[np.ones(30), np.nan], False)
