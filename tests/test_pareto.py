from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from precision_explorer.pareto import Objective, dominates, front, front_probability

# Few distinct values, so that ties and equal rows are common; NaN, infinities and both zeros too.
CELL = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, np.inf, -np.inf, np.nan])


def beats(first, second, maximise):
    if any(v is None or v != v for v in [*first, *second]):
        return False
    pairs = [(-a, -b) if m else (a, b) for a, b, m in zip(first, second, maximise, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def brute(values, maximise):
    return [
        not any(v != v for v in row) and not any(beats(other, row, maximise) for other in values)
        for row in values
    ]


TABLES = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: st.tuples(
        arrays(float, shape, elements=CELL),
        st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]),
    )
)


@settings(max_examples=200)
@given(TABLES)
def test_front_is_what_no_row_beats(case):
    values, maximise = case
    assert front(values, maximise).tolist() == brute(values.tolist(), maximise)


@settings(max_examples=100)
@given(TABLES, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_the_order_of_rows(case, random):
    values, maximise = case
    order = list(range(len(values)))
    random.shuffle(order)
    assert (front(values[order], maximise) == front(values, maximise)[order]).all()


@settings(max_examples=100)
@given(TABLES)
def test_dominates_by_definition(case):
    values, maximise = case
    for first in values[:4].tolist():
        for second in values[:4].tolist():
            assert dominates(first, second, maximise) == beats(first, second, maximise)


def test_front_of_many_rows_against_brute_force():
    # More rows than are settled at a time, with a large front and repeated rows.
    values = np.random.default_rng(0).integers(0, 12, (700, 3)).astype(float)
    maximise = [True, False, True]
    assert front(values, maximise).tolist() == brute(values.tolist(), maximise)
    spread = np.random.default_rng(1).normal(size=(400, 4))
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    assert front(np.abs(spread), [True] * 4).all()


def test_equal_rows_stay_and_missing_rows_leave():
    values = np.array([[0.9, 10.0], [0.9, 10.0], [0.8, 12.0], [0.95, None]], dtype=object)
    assert front(values, [True, False]).tolist() == [True, True, False, False]
    assert not dominates([0.95, None], [0.8, 12.0], [True, False])
    assert Objective("quality", True).maximise


@settings(max_examples=40)
@given(arrays(float, (6, 5, 3), elements=CELL), st.lists(st.booleans(), min_size=3, max_size=3))
def test_probability_is_the_share_of_draws(draws, maximise):
    expected = np.mean([brute(draw.tolist(), maximise) for draw in draws], axis=0)
    assert front_probability(draws, maximise) == pytest.approx(expected)


def test_probability_in_blocks_and_for_many_rows(monkeypatch):
    draws = np.random.default_rng(2).random((20, 40, 3))
    expected = np.mean([front(draw, [True, False, True]) for draw in draws], axis=0)
    for block in (1_600 * 3, 100):
        monkeypatch.setattr("precision_explorer.pareto.fronts._PAIRS", block)
        assert front_probability(draws, [True, False, True]) == pytest.approx(expected)


def test_large_tables_are_fast():
    generator = np.random.default_rng(3)
    sphere = np.abs(generator.normal(size=(10_000, 5)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)  # all on the front: the worst case
    started = time.perf_counter()
    assert front(sphere, [True] * 5).all()
    assert time.perf_counter() - started < 2.0
    started = time.perf_counter()
    front_probability(generator.random((1000, 100, 5)), [True] * 5)
    assert time.perf_counter() - started < 2.0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="objectives"):
        front(np.zeros((3, 2)), [True])
    with pytest.raises(ValueError, match="draws"):
        front_probability(np.zeros((0, 3, 2)), [True, True])
    assert front(np.zeros((0, 2)), [True, True]).tolist() == []
