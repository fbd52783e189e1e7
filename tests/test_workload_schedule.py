"""Schedules: what each request takes, lengths and mixes, one plan for all formats."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from precision_explorer.errors import UsageError
from precision_explorer.workload import (
    PRESETS,
    ConstantArrivals,
    FixedLengths,
    HistogramLengths,
    Lengths,
    LognormalLengths,
    MixPart,
    PoissonArrivals,
    Workload,
    plan_schedule,
)


def server(**more):
    given = {"name": "mine", "scenario": "server", "arrivals": PoissonArrivals(rate_per_s=40)}
    return Workload(**(given | {"duration_seconds": 10} | more))


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_planned(name):
    plan = plan_schedule(PRESETS[name], 30, 0, 20.0 if PRESETS[name].arrivals else None)
    assert plan.n == plan.times_s.size == plan.items.size > 0
    assert set(plan.items.tolist()) <= set(range(30))
    lengths = PRESETS[name].lengths is not None
    assert (plan.input_tokens is not None) == (plan.output_tokens is not None) == lengths


@given(seed=st.integers(0, 2**40), round=st.integers(0, 5), count=st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_the_same_seed_gives_the_same_plan_and_another_round_another(seed, round, count):
    workload = server(lengths=Lengths(input=LognormalLengths(median=9, sigma=1, max=99)))
    plan = plan_schedule(workload, count, seed, round=round)
    again = plan_schedule(workload, count, seed, round=round)
    assert plan.hash == again.hash
    assert np.array_equal(plan.times_s, again.times_s)
    assert plan.rate_per_s == pytest.approx(plan.n / 10)
    assert plan.hash != plan_schedule(workload, count, seed, round=round + 1).hash
    assert plan.hash != plan_schedule(workload, count, seed + 1, round=round).hash


def test_the_hash_sees_every_array():
    workload = server(arrivals=ConstantArrivals(rate_per_s=5), duration_seconds=2)
    plan = plan_schedule(workload, 1, 0)
    others = [
        server(arrivals=ConstantArrivals(rate_per_s=5), duration_seconds=4),
        server(arrivals=ConstantArrivals(rate_per_s=6), duration_seconds=2),
        *[
            server(arrivals=ConstantArrivals(rate_per_s=5), duration_seconds=2, lengths=lengths)
            for lengths in (
                Lengths(input=FixedLengths(tokens=5)),
                Lengths(output=FixedLengths(tokens=5)),
                Lengths(output=FixedLengths(tokens=6)),
            )
        ],
    ]
    hashes = {plan.hash, *(plan_schedule(other, 1, 0).hash for other in others)}
    assert len(hashes) == 6
    assert len(plan.hash) == 16
    # All times are alike: these plans differ in the examples alone, and then in the parts alone.
    assert plan_schedule(Workload(), 20, 0).hash != plan_schedule(Workload(), 20, 1).hash
    parts = (MixPart(name="a", weight=1), MixPart(name="b", weight=1))
    assert plan_schedule(server(mix=parts), 1, 0).hash != plan_schedule(server(), 1, 0).hash


def test_lengths_change_no_time_and_no_example():
    plain = plan_schedule(server(), 50, 0)
    longer = plan_schedule(server(lengths=Lengths(input=FixedLengths(tokens=7))), 50, 0)
    assert np.array_equal(plain.times_s, longer.times_s)
    assert np.array_equal(plain.items, longer.items)
    assert plain.input_tokens is None
    assert longer.input_tokens.tolist() == [7] * longer.n
    assert longer.output_tokens is None


def test_examples_are_dealt_equally_often_in_another_order_each_pass():
    plan = plan_schedule(Workload(), 20, 0, n=65)
    counts = Counter(plan.items.tolist())
    assert set(counts) == set(range(20))
    assert set(counts.values()) == {3, 4}
    passes = plan.items[:60].reshape(3, 20)
    assert all(sorted(row) == list(range(20)) for row in passes.tolist())
    assert len({tuple(row) for row in passes.tolist()}) == 3


def test_a_closed_loop_has_no_times():
    plan = plan_schedule(PRESETS["multi-stream"], 12, 0)
    assert plan.n == 12
    assert plan.times_s.tolist() == [0] * 12
    assert (plan.duration_s, plan.rate_per_s) == (0, None)


def test_the_rate_may_be_set_and_must_be_known():
    loaded = server(arrivals=PoissonArrivals(load=0.7), duration_seconds=100)
    assert plan_schedule(loaded, 5, 0, 30.0).n == pytest.approx(3000, rel=0.1)
    assert plan_schedule(loaded, 5, 0, 30.0, duration_s=10).n == pytest.approx(300, rel=0.2)
    with pytest.raises(UsageError, match="give rate_per_s"):
        plan_schedule(loaded, 5, 0)
    with pytest.raises(UsageError, match="a rate of 0 gives no requests"):
        plan_schedule(loaded, 5, 0, 0.0)
    with pytest.raises(UsageError, match=r"no request falls into 10.0 s at 1.00e-12 /s"):
        plan_schedule(server(arrivals=PoissonArrivals(rate_per_s=1e-12)), 5, 0)


# -- lengths ----------------------------------------------------------------------------------


def test_lognormal_lengths_have_the_declared_median_and_tail():
    for spread in ({"p99": 4142}, {"sigma": math.log(4142 / 1020) / 2.3263479}):
        drawn = LognormalLengths(median=1020, max=100_000, **spread).draw(rng(), 200_000)
        assert np.median(drawn) == pytest.approx(1020, rel=0.01)
        assert np.quantile(drawn, 0.99) == pytest.approx(4142, rel=0.02)
        assert drawn.dtype == np.int64


@given(
    median=st.floats(1, 1e5), sigma=st.floats(0, 5), factor=st.floats(1, 10), n=st.integers(0, 500)
)
@settings(max_examples=40, deadline=None)
def test_lognormal_lengths_stay_within_their_bounds(median, sigma, factor, n):
    most = math.ceil(median * factor)
    drawn = LognormalLengths(median=median, sigma=sigma, max=most).draw(rng(), n)
    assert drawn.shape == (n,)
    assert not n or (drawn.min() >= 1 and drawn.max() <= most)


def test_histogram_lengths_follow_the_weights():
    drawn = HistogramLengths(edges=[1, 11, 21, 101], weights=[3, 0, 1]).draw(rng(), 100_000)
    assert np.mean(drawn < 11) == pytest.approx(0.75, abs=0.01)
    assert not np.any((drawn >= 11) & (drawn < 21))
    assert (drawn.min(), drawn.max()) == (1, 100)
    low = drawn[drawn < 11]
    assert np.bincount(low, minlength=11)[1:] / low.size == pytest.approx([0.1] * 10, abs=0.01)


@pytest.mark.parametrize(
    ("model", "values", "part"),
    [
        (FixedLengths, {"tokens": 0}, "greater than or equal to 1"),
        (LognormalLengths, {"median": 5, "max": 9}, "one of sigma and p99"),
        (LognormalLengths, {"median": 5, "max": 9, "sigma": 1, "p99": 8}, "one of sigma and p99"),
        (LognormalLengths, {"median": 5, "max": 9, "p99": 4}, "p99 4 is below the median 5"),
        (LognormalLengths, {"median": 5, "max": 4, "sigma": 1}, "max 4 is below the median 5"),
        (LognormalLengths, {"median": 5, "sigma": 1}, "max"),
        (HistogramLengths, {"edges": [1, 2], "weights": [1, 1]}, "one edge more than weights"),
        (HistogramLengths, {"edges": [1], "weights": []}, "one edge more than weights"),
        (HistogramLengths, {"edges": [0, 2], "weights": [1]}, "edges must begin at 1"),
        (HistogramLengths, {"edges": [3, 3], "weights": [1]}, "edges must begin at 1 or more and"),
        (HistogramLengths, {"edges": [1, 2, 3], "weights": [1, -1]}, "weights must be 0 or more"),
        (HistogramLengths, {"edges": [1, 2], "weights": [0]}, "one above 0"),
        (HistogramLengths, {"edges": [1, 2], "weights": [True]}, "true is no number"),
    ],
)
def test_bad_lengths_are_refused(model, values, part):
    with pytest.raises(ValidationError, match=part):
        model.model_validate(values)


# -- mixes ------------------------------------------------------------------------------------

SHORT, LONG = FixedLengths(tokens=10), FixedLengths(tokens=500)


def mixed(**more):
    parts = (
        MixPart(name="short", weight=3, group="s", lengths=Lengths(input=SHORT, output=SHORT)),
        MixPart(name="long", weight=1, group="l", lengths=Lengths(input=LONG, output=SHORT)),
    )
    return server(duration_seconds=200, mix=parts, **more)


def test_a_mix_gives_each_part_its_share_its_examples_and_its_lengths():
    groups = ["s", "l", "s", None, "l", "s"]
    plan = plan_schedule(mixed(), 6, 0, groups=groups)
    assert np.mean(plan.parts == 0) == pytest.approx(0.75, abs=0.02)
    for part, items, tokens in ((0, {0, 2, 5}, 10), (1, {1, 4}, 500)):
        own = plan.parts == part
        assert set(plan.items[own].tolist()) == items
        assert set(plan.input_tokens[own].tolist()) == {tokens}
    assert set(plan.output_tokens.tolist()) == {10}
    assert plan.hash != plan_schedule(mixed(), 6, 0, round=1, groups=groups).hash


def test_parts_without_a_group_share_all_examples_and_the_workload_s_lengths():
    parts = (MixPart(name="a", weight=1), MixPart(name="b", weight=1))
    plan = plan_schedule(server(mix=parts, lengths=Lengths(input=SHORT)), 4, 0)
    assert set(plan.items[plan.parts == 0].tolist()) == {0, 1, 2, 3}
    assert set(plan.input_tokens.tolist()) == {10}
    assert plan.output_tokens is None


@pytest.mark.parametrize(
    ("groups", "part"),
    [
        (["s", "s"], "no example is of the group 'l' of 'long'; known: s"),
        ([None, None], "the task's examples have no groups"),
        (None, "the task's examples have no groups"),
    ],
)
def test_a_group_that_no_example_has_is_refused(groups, part):
    with pytest.raises(UsageError, match=part):
        plan_schedule(mixed(), 2, 0, groups=groups)


def test_a_mix_must_be_one():
    own = MixPart(name="a", weight=1)
    for parts, part in (
        ((own,), "at least 2"),
        ((own, own), "two parts of the mix have one name"),
        (
            (own, MixPart(name="b", weight=1, lengths=Lengths(input=SHORT))),
            "mix: 'a' takes the data's own input length and 'b' does not",
        ),
    ):
        with pytest.raises(ValidationError, match=part):
            server(mix=parts)
    with pytest.raises(ValidationError, match="greater than 0"):
        MixPart(name="a", weight=0)
