"""Intervals against published values and against their own definition, computed independently."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from precision_explorer.stats import tango, wilson

Z = 1.959963984540054


# Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_newcombe(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_matches_scipy(counts):
    theirs = binomtest(*counts).proportion_ci(0.9, method="wilson")
    assert wilson(*counts, confidence=0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_refuses_what_is_no_share():
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def _score(b: int, c: int, n: int, delta: float) -> float:
    """Tango's statistic with the likelihood maximised numerically instead of by his formula."""

    def negative(p_b: float) -> float:
        p_c, rest = p_b + delta, 1 - 2 * p_b - delta
        terms = [(b, p_b), (c, p_c), (n - b - c, rest)]
        return -sum(k * np.log(max(p, 1e-300)) for k, p in terms if k)

    low, high = max(0.0, -delta), (1 - delta) / 2
    best = minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    variance = n * (2 * best.x + delta - delta**2)
    return (c - b - n * delta) / np.sqrt(variance)


@pytest.mark.parametrize(("b", "c", "n"), [(5, 9, 100), (150, 86, 1600), (1, 0, 30), (12, 12, 40)])
def test_tango_ends_are_where_the_score_test_turns(b, c, n):
    low, high = tango(b, c, n)
    assert _score(b, c, n, low) == pytest.approx(Z, abs=1e-4)
    assert _score(b, c, n, high) == pytest.approx(-Z, abs=1e-4)


def test_tango_near_agresti_for_large_n():
    # Agresti, Categorical Data Analysis, 10.1.1: 150 and 86 of 1600, Wald interval (0.021, 0.059).
    assert tango(86, 150, 1600) == pytest.approx((0.0214, 0.0590), abs=3e-4)


@pytest.mark.parametrize("n", [1, 20, 100, 10_605])
def test_tango_edges(n):
    z2 = Z * Z
    assert tango(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-8)
    assert tango(0, n, n) == pytest.approx(((n - z2) / (n + z2), 1.0), abs=1e-8)
    assert tango(n, 0, n) == pytest.approx((-1.0, (z2 - n) / (n + z2)), abs=1e-8)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=3, max_size=3).filter(lambda k: sum(k) > 0))
def test_tango_holds_the_estimate_and_mirrors(counts):
    b, c, rest = counts
    n = b + c + rest
    low, high = tango(b, c, n)
    assert -1 <= low <= (c - b) / n <= high <= 1
    assert low < high
    assert tango(c, b, n) == pytest.approx((-high, -low), abs=1e-9)


def test_tango_covers_about_95_percent():
    generator = np.random.default_rng(5)
    drawn = generator.multinomial(80, [0.05, 0.10, 0.85], size=1500)
    held = [low <= 0.05 <= high for low, high in (tango(int(b), int(c), 80) for b, c, _ in drawn)]
    assert 0.93 <= np.mean(held) <= 0.975


def test_tango_refuses_impossible_counts():
    with pytest.raises(ValueError, match="discordant"):
        tango(6, 5, 10)
