from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from precision_explorer.stats import (
    Few,
    Verdict,
    flips,
    mcnemar_exact,
    tango,
    verdict_for_bootstrap,
    verdict_for_share,
)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)


def test_flips_counts_each_way():
    assert flips([1, 1, 1, 0, 0], [0, 0, 1, 1, 0]) == (2, 1)
    with pytest.raises(ValueError, match="same examples"):
        flips([1, 0], [1])


def test_share_verdicts():
    assert verdict_for_share(2, 2, 2000, 0.01) == Verdict("within")
    assert verdict_for_share(120, 20, 2000, 0.01) == Verdict("outside")
    assert verdict_for_share(30, 26, 500, 0.01).verdict == "cannot-tell"
    # Better than the reference is within, whatever the margin.
    assert verdict_for_share(5, 80, 500, 0.001).verdict == "within"


@given(
    st.lists(st.integers(0, 120), min_size=3, max_size=3).filter(lambda k: sum(k) > 0),
    st.sampled_from([0.005, 0.01, 0.05]),
)
def test_share_verdict_is_read_off_tangos_90_percent_interval(counts, budget):
    b, c, rest = counts
    n = b + c + rest
    low, high = tango(b, c, n, confidence=0.9)
    if min(abs(low + budget), abs(high + budget)) < 1e-9:
        return
    expected = "within" if low > -budget else "outside" if high < -budget else "cannot-tell"
    assert verdict_for_share(b, c, n, budget).verdict == expected


@pytest.mark.parametrize(("b", "c", "n"), [(30, 26, 500), (0, 0, 100), (12, 2, 600)])
def test_needed_n_is_where_the_same_flips_would_tell(b, c, n):
    needed = verdict_for_share(b, c, n, 0.01).needed_n
    assert needed is not None
    # Ask with the same shares of flips, at 1000 times the size so that they stay whole numbers.
    before, after = 0.98 * needed / n, 1.02 * needed / n
    fine = [(k * b, k * c, k * n) for k in range(1, 200)]
    told = {k: verdict_for_share(*fine[k - 1], 0.01).verdict for k in range(1, 200)}
    assert all(v == "cannot-tell" for k, v in told.items() if k < before)
    assert all(v != "cannot-tell" for k, v in told.items() if k > after)
    assert any(k > after for k in told)


def test_zero_flips_tell_nothing_on_a_small_sample():
    verdict = verdict_for_share(0, 0, 50, 0.01)
    # z^2 (1 - budget) / budget with z = 1.6449
    assert verdict == Verdict("cannot-tell", 268)
    assert verdict_for_share(0, 0, 267, 0.01).verdict == "cannot-tell"
    assert verdict_for_share(0, 0, 268, 0.01).verdict == "within"


def test_no_n_tells_when_the_difference_is_the_margin():
    assert verdict_for_share(3, 2, 100, 0.01) == Verdict("cannot-tell", None)


def test_share_verdict_errs_at_most_5_percent_at_the_margin():
    generator = np.random.default_rng(3)
    drawn = generator.multinomial(400, [0.06, 0.04, 0.90], size=2000)  # true difference -0.02
    found = [verdict_for_share(int(b), int(c), 400, 0.02).verdict for b, c, _ in drawn]
    assert np.mean([v == "within" for v in found]) == pytest.approx(0.05, abs=0.02)


def test_bootstrap_verdicts():
    generator = np.random.default_rng(0)
    draws = generator.normal(0.0, 0.002, 2000)
    assert verdict_for_bootstrap(draws, 0.01, 500).verdict == "within"
    assert verdict_for_bootstrap(draws - 0.02, 0.01, 500).verdict == "outside"
    unsure = verdict_for_bootstrap(generator.normal(-0.005, 0.01, 4000), 0.01, 500)
    assert unsure.verdict == "cannot-tell"
    # Half the margin away with s = 0.01 at n = 500: n' = 500 (1.645 x 0.01 / 0.005)^2
    assert unsure.needed_n == pytest.approx(500 * 10.82, rel=0.1)


def test_bootstrap_without_any_difference_is_no_certainty():
    assert verdict_for_bootstrap(np.zeros(1000), 0.01, 30) == Verdict("cannot-tell", 268)
    assert verdict_for_bootstrap(np.zeros(1000), 0.01, 300) == Verdict("within")


def test_bootstrap_refuses_nan():
    with pytest.raises(ValueError, match="not finite"):
        verdict_for_bootstrap(np.array([0.1, np.nan]), 0.01, 10)


def test_few_differing_examples_tell_within_only_where_tango_does():
    """Draws of a metric that one example of 300 moved, to better: the bootstrap alone is sure."""
    deltas = np.random.default_rng(0).poisson(1.0, 1000) / 300

    def verdict(n, few=None):
        return verdict_for_bootstrap(deltas, 0.01, n, 0.98, few=few)

    assert verdict(300).verdict == "within"
    assert verdict(300, Few(0, 1, 1.0)) == Verdict("cannot-tell", 3000)
    assert verdict_for_share(0, 1, 300, 0.01, 0.98).verdict == "cannot-tell"
    assert verdict(600, Few(0, 1, 1.0)).verdict == "within"
    assert verdict_for_share(0, 1, 600, 0.01, 0.98).verdict == "within"
    # Where one example is worth three of a share's.
    assert verdict(600, Few(0, 1, 3.0)).verdict == "cannot-tell"
