"""A long series in windows, and its first minute against the rest."""

from __future__ import annotations

import numpy as np
import pytest

from precision_explorer.stats import cut_windows, peak_and_sustained, spans


def served(rate_per_s, seconds, begin=0.0):
    """When requests ended that came out evenly."""
    return begin + (np.arange(round(rate_per_s * seconds)) + 0.5) / rate_per_s


def poisson(rate_per_s, seconds, seed):
    generator = np.random.default_rng(seed)
    return np.cumsum(generator.exponential(1 / rate_per_s, round(3 * rate_per_s * seconds)))


def test_spans_are_whole_windows():
    assert spans(2.0, 9.9, 3.0) == [(2.0, 3.0), (5.0, 3.0)]
    assert len(spans(0.0, 0.1 * 3, 0.1)) == 3
    assert spans(0.0, 2.0, 3.0) == []
    with pytest.raises(ValueError, match="none"):
        spans(0.0, 1.0, 0.0)


def test_windows_hold_what_ended_in_them():
    ends = np.r_[served(40, 10), served(20, 10, 10.0)]
    latencies = np.r_[np.full(400, 0.01), np.full(200, 0.02)]
    first, second, third = cut_windows(
        ends, latencies, [(0.0, 10.0), (10.0, 10.0), (20.0, 10.0)], [None, 100, 130]
    )
    assert (first.n, second.n, third.n) == (400, 200, 0)
    assert (first.throughput_per_s, second.throughput_per_s) == (40, 20)
    assert (first.p50.value, second.p50.value) == (0.01, 0.02)
    assert first.p99.value == 0.01
    assert second.p99.value is None
    assert second.p99.note == "needs n >= 299"
    assert third.p50 is third.p99 is None
    growth = [w.memory_growth_bytes for w in (first, second, third)]
    assert growth == [None, 0, 30]


def test_the_first_minute_against_the_rest():
    ends = np.r_[served(50, 60), served(40, 240, 60.0)]
    for window_s in (60.0, 150.0):
        rates = peak_and_sustained(ends, spans(0.0, 300.0, window_s))
        assert rates.peak_per_s == pytest.approx(50, rel=1e-3)
        assert rates.sustained_per_s == pytest.approx(40, rel=1e-3)
        assert rates.kept.value == pytest.approx(0.8, rel=1e-3)
        assert rates.kept.low <= 0.8 <= rates.kept.high
    # A first window that is shorter than a minute is the peak.
    short = peak_and_sustained(ends, spans(0.0, 300.0, 30.0))
    assert short.sustained_per_s == pytest.approx((30 * 50 + 240 * 40) / 270, rel=1e-3)


def test_the_interval_of_an_even_rate_holds_and_finds_a_loss():
    holds = found = 0
    for seed in range(60):
        ends = poisson(30, 300, seed)
        kept = peak_and_sustained(ends, spans(0.0, 300.0, 60.0)).kept
        holds += kept.low <= 1 <= kept.high
        slower = np.where(ends < 60, ends, 60 + (ends - 60) / 0.85)
        kept = peak_and_sustained(slower, spans(0.0, 300.0, 60.0)).kept
        found += kept.high < 1
    assert holds >= 53
    assert found >= 55


def test_windows_that_do_not_count():
    ends = np.r_[served(50, 60), served(10, 60, 60.0), served(50, 60, 120.0)]
    cuts = spans(0.0, 180.0, 60.0)
    assert peak_and_sustained(ends, cuts).kept.value == pytest.approx(0.6, rel=1e-2)
    assert peak_and_sustained(ends, cuts, skipped=[1]).kept.value == pytest.approx(1, rel=1e-2)
    assert peak_and_sustained(ends, cuts, skipped=[0]) is None


def test_too_little_to_tell():
    ends = served(50, 60)
    assert peak_and_sustained(ends, spans(0.0, 60.0, 60.0)) is None
    assert peak_and_sustained(ends, [(0.0, 60.0), (60.0, 60.0)]) is None
    one_each = peak_and_sustained(np.array([1.0, 11.0]), [(0.0, 10.0), (10.0, 10.0)])
    assert (one_each.kept.value, one_each.kept.low, one_each.kept.high) == (1.0, None, None)
