from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from precision_explorer.stats import needed_n, order_interval, percentile, supports


def test_needed_n_known_values():
    assert [needed_n(q) for q in (0.9, 0.95, 0.99, 0.999)] == [29, 59, 299, 2995]


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("q", [0.5, 0.75, 0.9, 0.99, 0.9999])
def test_needed_n_is_the_smallest(q, confidence):
    n = needed_n(q, confidence)
    assert 1 - q**n >= confidence
    assert n == 1 or 1 - q ** (n - 1) < confidence


def test_tails_are_withheld_below_the_needed_n():
    values = np.arange(1, 300, dtype=float)
    assert percentile(values[:298], 0.99) is None
    assert percentile(values, 0.99) == 297  # nearest rank: the 297th of 299
    assert percentile(values, 0.999) is None
    assert not supports(298, 0.99)
    assert supports(299, 0.99)


def test_the_median_needs_one_value_and_nothing_needs_none():
    assert percentile([3.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.5) == 1.5
    assert percentile([], 0.5) is None


def test_a_tail_is_a_measured_value():
    values = np.random.default_rng(0).lognormal(size=400)
    assert percentile(values, 0.99) in values


def test_order_interval_of_the_median():
    # The published ranks of the 95 % interval for the median at n = 6, 10, 20, 100.
    for n, low, high in [(6, 1, 6), (10, 2, 9), (20, 6, 15), (100, 40, 61)]:
        assert order_interval(np.arange(1.0, n + 1), 0.5) == (low, high)
    assert order_interval(np.arange(5.0), 0.5) is None
    assert order_interval([], 0.5) is None


@pytest.mark.parametrize(("q", "n"), [(0.9, 200), (0.99, 1000), (0.5, 37)])
def test_order_interval_ranks_hold_their_level(q, n):
    low, high = (int(v) for v in order_interval(np.arange(1.0, n + 1), q))
    assert binom.cdf(low - 1, n, q) <= 0.025
    assert binom.sf(high - 1, n, q) <= 0.025
    # One rank further in would break one of the tails.
    assert binom.cdf(low, n, q) > 0.025
    assert binom.sf(high - 2, n, q) > 0.025


def test_p99_needs_368_for_two_sides():
    assert order_interval(np.arange(367.0), 0.99) is None
    assert order_interval(np.arange(368.0), 0.99) is not None


def test_bad_quantile():
    with pytest.raises(ValueError, match="not between"):
        percentile([1.0], 99)
