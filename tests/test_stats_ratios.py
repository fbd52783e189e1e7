"""Ratios to the reference, the noise floor, Holm, summaries of KL: by hand and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from precision_explorer.stats import (
    NoiseFloor,
    divergence,
    error_ratio,
    holm,
    interval,
    is_different,
    paired_interval,
    perplexity_ratio,
    tango,
)


def scores(both_right: int, lost: int, won: int, both_wrong: int) -> tuple[np.ndarray, np.ndarray]:
    reference = [1] * both_right + [1] * lost + [0] * won + [0] * both_wrong
    other = [1] * both_right + [0] * lost + [1] * won + [0] * both_wrong
    return np.array(reference), np.array(other)


def test_the_ratio_of_errors_by_hand():
    found = error_ratio(*scores(400, 30, 10, 60))
    # 90 errors against 70; the log's variance is (30 + 10) / (90 x 70).
    spread = 1.959964 * math.sqrt(40 / (90 * 70))
    assert found.value == pytest.approx(90 / 70)
    assert found.low == pytest.approx(90 / 70 * math.exp(-spread), rel=1e-6)
    assert found.high == pytest.approx(90 / 70 * math.exp(spread), rel=1e-6)


def test_few_flips_are_no_certainty_about_the_ratio_of_errors():
    found = error_ratio(*scores(180, 0, 0, 20))
    low, high = tango(0, 0, 200)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1 - high / 0.1, 1 - low / 0.1))
    assert found.low < 1 < found.high


def test_without_errors_there_is_no_ratio_or_one_of_zero():
    assert error_ratio([1, 1, 1], [1, 0, 1]) is None
    found = error_ratio(*scores(30, 0, 20, 0))
    assert (found.value, found.low) == (0, 0)
    assert 0 < found.high < 1


def test_errors_in_clusters_are_less_certain():
    reference, other = scores(400, 30, 10, 60)
    alone = error_ratio(reference, other, np.arange(500))
    plain = error_ratio(reference, other)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))
    # Every example four times over says no more than once.
    groups = np.repeat(np.arange(500), 4)
    four = error_ratio(np.repeat(reference, 4), np.repeat(other, 4), groups)
    assert (four.value, four.low, four.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_interval_of_the_ratio_of_errors_holds_it_often_enough():
    generator = np.random.default_rng(2)
    held = 0
    for lost, won, wrong, rest in generator.multinomial(600, [0.05, 0.03, 0.12, 0.8], size=400):
        found = error_ratio(*scores(rest, lost, won, wrong))
        held += found.low <= 17 / 15 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def losses(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents of unlike length and difficulty, on which the format loses about 0.02 a token."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(20, 400, n).astype(float)
    reference = tokens * generator.normal(3.0, 0.5, n)
    return reference, reference + tokens * generator.normal(0.02, 0.02, n), tokens


def test_the_ratio_of_perplexities_by_hand():
    found = perplexity_ratio([30.0, 62.0], [31.0, 66.0], [10.0, 20.0])
    # d = 1 and 4 over 30 tokens; rests 1 - 10 / 6 and 4 - 20 / 6; G / (G - 1) = 2.
    error = math.sqrt(2 * ((1 - 10 / 6) ** 2 + (4 - 20 / 6) ** 2)) / 30
    spread = student.ppf(0.975, 1) * error
    assert found.value == pytest.approx(math.exp(5 / 30))
    assert found.low == pytest.approx(math.exp(5 / 30 - spread))
    assert found.high == pytest.approx(math.exp(5 / 30 + spread))
    assert perplexity_ratio([30.0], [31.0], [10.0]).low is None
    with pytest.raises(ValueError, match="nothing to divide by"):
        perplexity_ratio([1.0], [1.0], [0.0])


def test_the_ratio_of_perplexities_is_paired():
    """Its width is that of var a + var b - 2 cov(a, b) of the two mean losses, about the paired
    bootstrap's, and far below that of two independent runs."""
    reference, other, tokens = losses()
    found = perplexity_ratio(reference, other, tokens)
    spread = math.log(found.high / found.value)
    total, n = tokens.sum(), len(tokens)
    rests = [x - x.sum() / total * tokens for x in (reference, other)]
    covariance = n / (n - 1) * np.array([[(a * b).sum() for b in rests] for a in rests]) / total**2
    paired = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert spread == pytest.approx(student.ppf(0.975, n - 1) * math.sqrt(paired))
    apart = math.sqrt(covariance[0, 0] + covariance[1, 1])
    assert spread < 0.1 * 1.96 * apart

    def log_of(sums: np.ndarray) -> np.ndarray:
        return sums[..., 0] / sums[..., 1]

    tables = [np.stack([x, tokens], axis=1) for x in (reference, other)]
    low, high = paired_interval(*tables, log_of, draws=4000)
    assert (high - low) / 2 == pytest.approx(spread, rel=0.1)


def test_documents_of_one_cluster_say_less():
    reference, other, tokens = losses()
    whole = perplexity_ratio(reference, other, tokens)
    again = [np.tile(x, 3) for x in (reference, other, tokens)]
    clustered = perplexity_ratio(*again, groups=np.tile(np.arange(80), 3))
    assert clustered.high == pytest.approx(whole.high)
    assert perplexity_ratio(*again).high < whole.high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(values):
    adjusted = holm(values)
    assert all(a >= v for a, v in zip(adjusted, values, strict=True))
    assert max(adjusted) <= 1
    order = np.argsort(values, kind="stable")
    assert list(np.array(adjusted)[order]) == sorted(adjusted)
    assert min(adjusted) == pytest.approx(min(1.0, len(values) * min(values)))


def test_holm_errs_in_one_family_of_twenty():
    generator = np.random.default_rng(3)
    families = generator.random((2000, 6))
    wrong = np.mean([min(holm(list(family))) <= 0.05 for family in families])
    assert wrong == pytest.approx(0.05, abs=0.015)


def test_a_difference_is_one_only_beyond_chance_and_beyond_the_floor():
    floor = NoiseFloor(flips=5, delta=-0.01)
    assert is_different(0.04, 9, 0.02, floor)
    assert is_different(0.04, 9, 0.02, None)
    assert not is_different(0.06, 9, 0.02, None)
    assert not is_different(0.04, 5, 0.02, floor)
    assert not is_different(0.04, 9, 0.01, floor)
    # Where nothing is right or wrong only the change counts.
    assert is_different(0.04, None, 0.02, NoiseFloor(None, 0.01))


def test_divergence_by_hand():
    found = divergence([0.1, 0.3, 0.0, 0.2], [True, False, True, True], ["a", "a", "b", "b"])
    assert (found.mean, found.p50, found.largest) == pytest.approx((0.15, 0.15, 0.3))
    assert found.same_top == 0.75
    assert (found.positions, found.examples) == (4, 2)
    assert found.low == 0  # Two examples, of means 0.2 and 0.1, tell hardly anything.
    assert found.high == pytest.approx(0.15 + student.ppf(0.975, 1) * 0.05)
    assert found.too_small(0.06)
    assert not found.too_small(0.04)
    assert not found.too_small(None)


def test_divergence_resamples_examples_not_positions():
    generator = np.random.default_rng(0)
    examples = np.repeat(np.arange(30), 50)
    level = np.repeat(generator.exponential(0.01, 30), 50)
    found = divergence(level, np.ones(1500, bool), examples)
    statistics = np.stack([level, np.ones(1500)], axis=1)
    as_if_alone = interval(statistics, lambda s: s[..., 0] / s[..., 1])
    assert found.high - found.low > 4 * (as_if_alone[1] - as_if_alone[0])
    # All the same top token: Wilson's interval, not [1, 1].
    assert found.same_top_low == pytest.approx(1500 / (1500 + 1.959964**2), abs=1e-6)


def test_top_tokens_that_differ_text_by_text_are_less_certain_than_their_positions():
    same = np.ones(1500)
    same[:150] = 0  # All in 3 of 30 examples.
    found = divergence(np.zeros(1500), same, np.repeat(np.arange(30), 50))
    assert found.same_top == 0.9
    # Of 30 means of which 3 are 0: standard error sqrt(30 / 29 x (3 x 0.81 + 27 x 0.01)) / 30.
    error = math.sqrt(30 / 29 * (3 * 0.9**2 + 27 * 0.1**2)) / 30
    assert found.same_top_low == pytest.approx(0.9 - student.ppf(0.975, 29) * error)
    assert found.same_top_high == 1


def test_the_mean_of_few_examples_takes_student_s_t():
    found = divergence([0.1, 0.3, 0.2], [True, True, True], ["a", "b", "c"])
    error = math.sqrt(3 / 2 * (0.1**2 + 0.1**2)) / 3
    assert found.high == pytest.approx(0.2 + student.ppf(0.975, 2) * error)
    assert found.low == 0


def test_one_example_has_no_interval():
    found = divergence([0.1, 0.2], [True, True], ["a", "a"])
    assert found.low is found.high is found.same_top_low is None
    with pytest.raises(ValueError, match="pair them"):
        divergence([], [], [])
