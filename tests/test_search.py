"""The search against enumeration, and its budget."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precision_explorer.search import Infeasible, Option, assign

sizes = st.integers(1, 50)
harms = st.floats(0, 1, allow_nan=False).map(lambda x: round(x, 6))
options = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.builds(Option, sizes, harms), min_size=1
)
tables = st.lists(options, min_size=1, max_size=5).map(
    lambda rows: {f"layer {i}": row for i, row in enumerate(rows)}
)


def best_by_enumeration(items, budget):
    """The least harm of all assignments that keep the budget; None if none does."""
    chosen = itertools.product(*(row.values() for row in items.values()))
    kept = [sum(o.harm for o in c) for c in chosen if sum(o.cost for o in c) <= budget]
    return min(kept, default=None)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 200))
def test_the_search_finds_what_enumeration_finds_and_keeps_the_budget(items, budget):
    expected = best_by_enumeration(items, budget)
    if expected is None:
        with pytest.raises(Infeasible):
            assign(items, budget)
        return
    found = assign(items, budget)
    assert set(found.chosen) == set(items)
    assert found.cost == sum(items[i][o].cost for i, o in found.chosen.items()) <= budget
    assert found.harm == pytest.approx(expected, abs=1e-9)


def test_tiny_harms_are_searched_as_well_as_large_ones():
    """Solvers stop at absolute gaps (1e-6), which are larger than the harms of good formats."""
    generator = random.Random(1)
    table = [
        (generator.randint(50, 99), generator.randint(100, 400), generator.random())
        for _ in range(40)
    ]
    found = []
    for scale in (1.0, 1e-9):
        items = {
            f"{i}": {"small": Option(low, harm * scale), "large": Option(high, 0.0)}
            for i, (low, high, harm) in enumerate(table)
        }
        found.append(assign(items, 6000))
    assert found[0].chosen == found[1].chosen


def test_bytes_are_kept_to_the_byte():
    items = {f"{i}": {"small": Option(10**9, 1.0), "large": Option(10**9 + 1, 0.0)} for i in "abc"}
    found = assign(items, 3 * 10**9 + 2)
    assert found.cost <= 3 * 10**9 + 2


def test_a_budget_that_nothing_keeps_says_what_would():
    with pytest.raises(Infeasible) as error:
        assign({"a": {"x": Option(5, 0.0)}, "b": {"x": Option(7, 0.0), "y": Option(3, 1.0)}}, 7.5)
    assert error.value.least == 8
