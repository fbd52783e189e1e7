"""Whether a latency objective holds, against exact binomial probabilities."""

import numpy as np
import pytest
from scipy.stats import binom

from precision_explorer.stats import needed_n, share_within

RNG = np.random.default_rng(0)


def series(n: int, beyond: int) -> np.ndarray:
    """`n` values in no order, `beyond` of them above 1."""
    values = np.where(np.arange(n) < beyond, 2.0, 0.5)
    return RNG.permutation(values)


def test_without_one_beyond_it_takes_as_many_as_the_percentile():
    assert share_within(series(299, 0), 1.0, 0.99).verdict == "within"
    short = share_within(series(298, 0), 1.0, 0.99)
    assert (short.verdict, short.needed_n) == ("cannot-tell", needed_n(0.99))
    assert short.share == 1.0
    assert share_within([], 1.0, 0.99) is None


@pytest.mark.parametrize("beyond", [0, 1, 3, 9, 20])
def test_the_verdict_is_that_of_the_binomial_test(beyond):
    for n in (100, 473, 1000):
        found = share_within(series(n, beyond), 1.0, 0.95)
        if found.n_eff < n:
            continue  # by chance this order shows dependence
        holds = binom.cdf(beyond, n, 0.05) <= 0.05
        breaks = binom.sf(beyond - 1, n, 0.05) <= 0.05
        expected = "within" if holds else "outside" if breaks else "cannot-tell"
        assert found.verdict == expected, (n, beyond)


def test_the_needed_n_tells():
    found = share_within(series(400, 2), 1.0, 0.99)
    assert found.verdict == "cannot-tell"
    n = found.needed_n
    assert binom.cdf(np.ceil(0.005 * n), n, 0.01) <= 0.05
    assert 0.5 < found.probability < 1.0
    assert share_within(series(400, 40), 1.0, 0.99).verdict == "outside"


def test_requests_that_depend_on_each_other_tell_less():
    """Ten long stalls of 40 requests each are no 400 independent ones."""
    values = np.repeat(RNG.permutation([2.0] * 2 + [0.5] * 38), 40)
    found = share_within(values, 1.0, 0.9)
    assert found.n_eff < len(values) / 5
