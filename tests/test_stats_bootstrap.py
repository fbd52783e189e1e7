from __future__ import annotations

import numpy as np
import pytest

from precision_explorer.stats import (
    draws_of,
    group_sums,
    interval,
    paired_interval,
    paired_p_value,
    resample_counts,
    wilson,
)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def scores(values):
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def test_counts_are_resamples_and_repeat():
    counts = resample_counts(50, 400, 3)
    assert counts.shape == (400, 50)
    assert np.issubdtype(counts.dtype, np.integer)
    assert counts.dtype.itemsize <= 2
    assert (counts.sum(axis=1) == 50).all()
    assert (counts == resample_counts(50, 400, 3)).all()
    assert (counts != resample_counts(50, 400, 4)).any()
    # Var of a multinomial count is 1 - 1/n, and two counts of a draw correlate as -1/(n - 1).
    assert counts.var() == pytest.approx(1 - 1 / 50, abs=0.03)


def test_blocks_do_not_change_the_draws(monkeypatch):
    whole = resample_counts(30, 100, 9)
    table = scores(np.arange(30) % 3 == 0)
    value = interval(table, ratio, draws=100, seed=9)
    monkeypatch.setattr("precision_explorer.stats.bootstrap._BLOCK", 70)
    assert (resample_counts(30, 100, 9) == whole).all()
    assert interval(table, ratio, draws=100, seed=9) == value


def test_draws_of_is_the_metric_of_the_resampled_examples():
    generator = np.random.default_rng(0)
    table = np.stack([generator.random(12), generator.random(12)], axis=1)
    counts = resample_counts(12, 5, 1)
    for row, value in zip(counts, draws_of(table, ratio, counts), strict=True):
        chosen = np.repeat(table, row, axis=0)
        assert value == pytest.approx(chosen[:, 0].sum() / chosen[:, 1].sum())
    with pytest.raises(ValueError, match="12 examples"):
        draws_of(table[:5], ratio, counts)


def test_interval_agrees_with_wilson_on_shares():
    right = np.arange(2000) < 1500
    assert interval(scores(right), ratio, draws=2000) == pytest.approx(wilson(1500, 2000), abs=2e-3)


def test_clusters_widen_the_interval_by_the_design_effect():
    # 40 passages of 25 questions that are right or wrong together: only 40 independent values.
    right = np.repeat(np.arange(40) % 2, 25)
    groups = np.repeat([f"p{k:02}" for k in range(40)], 25)
    alone, clustered = (interval(scores(right), ratio, groups=g) for g in (None, groups))
    factor = (clustered[1] - clustered[0]) / (alone[1] - alone[0])
    assert factor == pytest.approx(5.0, rel=0.15)
    shuffled = np.random.default_rng(1).permutation(1000)
    again = interval(scores(right[shuffled]), ratio, groups=groups[shuffled])
    assert again == pytest.approx(clustered)
    assert (group_sums(scores(right), groups)[:, 1] == 25).all()


def test_paired_interval_uses_the_same_examples():
    generator = np.random.default_rng(2)
    nll = generator.gamma(2.0, 1.0, 400)
    reference, other = scores(nll), scores(nll + 0.1)
    low, high = paired_interval(reference, other, ratio)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)
    low, high = paired_interval(scores(nll), scores(nll * 1.02), ratio, relative=True)
    assert (low, high) == pytest.approx((0.02, 0.02))
    with pytest.raises(ValueError, match="length"):
        paired_interval(reference, other[:-1], ratio)


def test_paired_interval_covers_the_true_difference():
    generator = np.random.default_rng(7)
    held = 0
    for seed in range(300):
        first = generator.normal(size=60)
        second = first + generator.normal(0.2, 0.5, size=60)
        low, high = paired_interval(scores(first), scores(second), ratio, draws=300, seed=seed)
        held += low <= 0.2 <= high
    assert 0.89 <= held / 300 <= 0.98


def test_p_value_is_flat_without_a_difference_and_small_with_one():
    generator = np.random.default_rng(11)
    values = []
    for seed in range(200):
        first, second = generator.normal(size=(2, 50))
        values.append(paired_p_value(scores(first), scores(second), ratio, draws=200, seed=seed))
    assert np.mean(np.array(values) < 0.5) == pytest.approx(0.5, abs=0.1)
    same = scores(generator.normal(size=50))
    assert paired_p_value(same, same, ratio) == 1.0
    shifted = same + np.array([1.0, 0.0])
    assert paired_p_value(same, shifted, ratio, draws=99) == pytest.approx(2 / 100)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="not finite"):
        interval(scores([1.0, np.nan]), ratio)
    with pytest.raises(ValueError, match="group labels"):
        interval(scores([1, 0, 1]), ratio, groups=["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        resample_counts(0, 10, 0)
