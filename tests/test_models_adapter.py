"""The frozen batch plan and padding."""

from hypothesis import given
from hypothesis import strategies as st

from precision_explorer.models.adapter import pad_right, plan_batches

lengths = st.lists(st.integers(1, 60), max_size=80)


@given(lengths, st.integers(1, 200), st.integers(1, 9))
def test_the_plan_covers_each_item_once_within_its_bounds(found, max_tokens, max_items):
    plan = plan_batches(found, max_tokens, max_items)
    assert sorted(i for batch in plan for i in batch) == list(range(len(found)))
    for batch in plan:
        assert 1 <= len(batch) <= max_items
        # An item that is too long by itself is a batch of its own.
        padded = len(batch) * max(found[i] for i in batch)
        assert padded <= max_tokens or len(batch) == 1


@given(lengths, st.integers(1, 200), st.integers(1, 9))
def test_the_plan_goes_from_long_to_short_and_is_the_same_each_time(found, max_tokens, max_items):
    plan = plan_batches(found, max_tokens, max_items)
    order = [i for batch in plan for i in batch]
    assert order == sorted(range(len(found)), key=lambda i: (-found[i], i))
    assert plan == plan_batches(tuple(found), max_tokens, max_items)


@given(lengths, st.integers(1, 200), st.integers(1, 9))
def test_no_batch_could_take_the_next_item(found, max_tokens, max_items):
    plan = plan_batches(found, max_tokens, max_items)
    for batch in plan[:-1]:
        one_more = (len(batch) + 1) * found[batch[0]]
        assert len(batch) == max_items or one_more > max_tokens


def test_a_plan_by_hand():
    assert plan_batches([3, 9, 3, 5, 1], 12, 8) == [[1], [3, 0], [2, 4]]
    assert plan_batches([3, 3, 3], 1000, 2) == [[0, 1], [2]]
    assert plan_batches([], 10, 2) == []


@given(st.lists(st.integers(1, 60), max_size=9), st.integers(0, 80), st.integers(1, 150))
def test_with_a_price_per_call_no_other_cuts_are_cheaper(found, call_tokens, max_tokens):
    plan = plan_batches(found, max_tokens, 4, call_tokens)
    order = [i for batch in plan for i in batch]
    assert order == sorted(range(len(found)), key=lambda i: (-found[i], i))

    def cost(batches):
        return sum(len(b) * found[b[0]] + call_tokens for b in batches)

    def all_cuts(rest):
        if not rest:
            yield []
        for size in range(1, min(4, len(rest)) + 1):
            if size == 1 or size * found[rest[0]] <= max_tokens:
                for others in all_cuts(rest[size:]):
                    yield [rest[:size], *others]

    assert cost(plan) == min(cost(batches) for batches in all_cuts(order))
    assert all(len(b) == 1 or len(b) * found[b[0]] <= max_tokens for b in plan)


def test_calls_are_spared_where_they_are_dear_and_padding_where_it_is():
    lengths = [40, 39, 20, 19]
    assert plan_batches(lengths, 1000, 8, 100) == [[0, 1, 2, 3]]
    assert plan_batches(lengths, 1000, 8, 10) == [[0, 1], [2, 3]]
    assert plan_batches(lengths, 1000, 8, 0) == [[0], [1], [2], [3]]


def test_rows_are_padded_on_the_right():
    ids, mask = pad_right([[5, 6, 7], [8]], 9, "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
