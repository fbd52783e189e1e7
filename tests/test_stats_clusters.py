"""0/1 scores in clusters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.stats import (
    cluster_labels,
    cluster_signs,
    effective_clusters,
    few_clusters,
    flips,
    interval,
    share_interval,
    wilson,
)


def test_an_example_without_a_group_is_a_cluster_by_itself():
    assert cluster_labels(None) is cluster_labels([None, None]) is None
    assert cluster_labels(["b", None, "a", "b", None]).tolist() == [1, 2, 0, 1, 3]
    # In the order of their names as text, as they were always drawn.
    assert cluster_labels([10, 9, 10]).tolist() == [0, 1, 0]


def test_the_effective_number_of_clusters():
    assert effective_clusters(None, 7) == 7
    assert effective_clusters(list("aabbcc"), 6) == 3
    # Sizes 1, 1 and 4: 36 / 18.
    assert effective_clusters(list("abcccc"), 6) == 2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_effective_clusters_are_no_more_than_clusters(labels):
    found = effective_clusters(labels, len(labels))
    assert 1 - 1e-9 <= found <= len(set(labels)) + 1e-9


def test_few_clusters_counts_clusters_not_examples():
    groups = np.repeat(np.arange(20), 5)
    one = (groups < 9).astype(float)
    assert few_clusters(one, groups)
    assert not few_clusters(one, None)
    assert not few_clusters(groups < 10, groups)
    assert few_clusters(np.zeros(100), groups)


def test_without_groups_it_is_wilson_s():
    assert share_interval([1, 1, 0, 1]) == wilson(3, 4)


def test_all_right_in_clusters_is_no_certainty():
    groups = np.repeat(np.arange(12), 5)
    assert share_interval(np.ones(60), groups) == wilson(12, 12)
    assert share_interval(np.zeros(60), groups) == wilson(0, 12)


def test_enough_clusters_of_each_are_resampled():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 3)
    right = np.repeat(generator.random(60) < 0.7, 3).astype(float)
    statistics = np.stack([right, np.ones_like(right)], axis=1)
    expected = interval(statistics, lambda s: s[..., 0] / s[..., 1], seed=4, groups=groups)
    assert share_interval(right, groups, seed=4) == expected
    # Each cluster is one answer three times, so it is about Wilson's of the clusters.
    assert expected == pytest.approx(wilson(right.sum() / 3, 60), abs=0.03)


def test_the_interval_of_few_clusters_holds_the_share_often_enough():
    """40 clusters of 5 that are right or wrong together, wrong in 1 of 20: hardly ever 10 wrong."""
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(40), 5)
    held = 0
    for _ in range(300):
        right = np.repeat(generator.random(40) < 0.95, 5).astype(float)
        low, high = share_interval(right, groups)
        held += low <= 0.95 <= high
    assert held >= 0.93 * 300


def test_the_signs_of_clusters():
    differences = [-1, 0, 1, -1, -1, 0, 1, 1]
    assert cluster_signs(differences, [0, 0, 1, 1, 2, 2, 3, 3]) == (2, 1)
    reference, other = [1, 1, 0, 0], [0, 1, 1, 1]
    signs = cluster_signs(np.subtract(other, reference), None)
    assert signs == flips(reference, other) == (1, 2)
