from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from precision_explorer.errors import UsageError
from precision_explorer.pareto import Objective, dominates, front, front_probability, fronts, knee
from precision_explorer.table import build
from tests.test_table import NVML, REF_WRONG, classified, make_run, ok

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


@settings(max_examples=200, deadline=None)
@given(TABLES)
def test_front_is_what_no_row_beats(case):
    values, maximise = case
    assert front(values, maximise).tolist() == brute(values.tolist(), maximise)


@settings(max_examples=100, deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_the_order_of_rows(case, random):
    values, maximise = case
    order = list(range(len(values)))
    random.shuffle(order)
    assert (front(values[order], maximise) == front(values, maximise)[order]).all()


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=40, deadline=None)
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


# Steps from draw to draw on few values: what dominates a row changes, and ties come and go.
STEPS = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, np.inf])


@settings(max_examples=60, deadline=None)
@given(
    arrays(float, (9, 3), elements=st.sampled_from([0.0, 1.0, 2.0, 3.0])),
    arrays(float, (11, 9, 3), elements=STEPS),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from([1, 2, 200]),
)
def test_draws_that_are_sorted_out_together_are_those_of_all_pairs(truth, steps, maximise, most):
    draws = truth + steps
    expected = np.mean([brute(draw.tolist(), maximise) for draw in draws], axis=0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_FEW", 1), ("_TOGETHER", 4), ("_CANDIDATES", 2)):
            patch.setattr(fronts, name, value)
        patch.setattr(fronts, "_PAIRS_A_ROW", most)
        assert front_probability(draws, maximise) == pytest.approx(expected)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_a_large_table_over_many_draws_is_the_fronts_of_its_draws(noise):
    """With several hundred rows on each front, and more rows than are settled at a time."""
    generator = np.random.default_rng(5)
    truth = np.abs(generator.normal(size=(1_500, 4)))
    truth *= generator.random((1_500, 1)) ** 0.2 / np.linalg.norm(truth, axis=1, keepdims=True)
    truth[:100] = truth[100:200]
    draws = truth + noise * generator.standard_normal((31, *truth.shape))
    maximise = [True, False, True, True]
    expected = np.mean([front(draw, maximise) for draw in draws], axis=0)
    assert (front_probability(iter([draws[:6], draws[6:]]), maximise) == expected).all()


def test_what_dominated_in_earlier_draws_is_tried_first(monkeypatch):
    """Rows whose dominator stays the same are held against nothing else."""
    generator = np.random.default_rng(6)
    truth = generator.random((600, 3))
    draws = truth + 0.001 * generator.standard_normal((60, *truth.shape))
    held = []

    def counted(low, high):
        held.append(low.shape[1])
        return pairs(low, high)

    pairs = fronts._possible_pairs
    monkeypatch.setattr(fronts, "_possible_pairs", counted)
    front_probability(draws, [True] * 3)
    assert len(held) == 3
    assert max(held) < 200


def test_large_tables_where_all_are_on_the_front():
    generator = np.random.default_rng(3)
    sphere = np.abs(generator.normal(size=(3_000, 5)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert front(sphere, [True] * 5).all()
    assert (front_probability(sphere[None], [True] * 5) == 1.0).all()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="objectives"):
        front(np.zeros((3, 2)), [True])
    with pytest.raises(ValueError, match="draws"):
        front_probability(np.zeros((0, 3, 2)), [True, True])
    assert front(np.zeros((0, 2)), [True, True]).tolist() == []


def test_a_large_table_in_blocks_is_what_all_pairs_say(monkeypatch):
    """With ties, missing values and more rows than are compared in pairs."""
    generator = np.random.default_rng(4)
    truth = generator.integers(0, 9, (410, 3)).astype(float)
    draws = truth + generator.integers(0, 2, (4, 410, 3))
    draws[generator.random(draws.shape) < 0.01] = np.nan
    maximise = [True, False, True]
    expected = np.mean([brute(draw.tolist(), maximise) for draw in draws], axis=0)
    blocks = (draws[k : k + 2] for k in range(0, 4, 2))
    assert (front_probability(blocks, maximise) == expected).all()
    monkeypatch.setattr("precision_explorer.pareto.fronts._CHUNK", 64)
    assert (front_probability(draws, maximise) == expected).all()


@settings(max_examples=60, deadline=None)
@given(arrays(float, (3, 7, 3), elements=CELL), st.lists(st.booleans(), min_size=3, max_size=3))
def test_rows_sorted_out_by_bit_sets_are_those_of_all_pairs(draws, maximise):
    expected = np.mean([brute(draw.tolist(), maximise) for draw in draws], axis=0)
    before = fronts._FEW
    fronts._FEW = 1
    try:
        found = front_probability(draws, maximise)
    finally:
        fronts._FEW = before
    assert found == pytest.approx(expected)


def _margins(values: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row, less being better: by how many standard errors of a difference it is ahead of
    its nearest rival (in the objective in which it leads that one most), and by how many the rival
    that dominates it most clearly is ahead of it (in the objective in which that leads least)."""
    lead = (values[None] - values[:, None]) / (error * np.sqrt(2))  # [i, j]: i ahead of j
    ahead, behind = lead.max(axis=2), (-lead).min(axis=2)
    np.fill_diagonal(ahead, np.inf)
    np.fill_diagonal(behind, -np.inf)
    return ahead.min(axis=1), behind.max(axis=1)


def test_the_probability_knows_what_three_standard_errors_tell():
    """Cells whose truth is known, measured with a known error and drawn around the measured values,
    as a bootstrap does."""
    generator, error = np.random.default_rng(5), np.array([0.02, 0.1, 3.0])
    clear, beaten, by_truth = [], [], []
    for _ in range(150):
        truth = generator.random((8, 3)) * np.array([1.0, 5.0, 150.0])
        measured = truth + error * generator.normal(size=truth.shape)
        draws = measured + error * generator.normal(size=(400, *truth.shape))
        found = front_probability(draws, [False] * 3)
        ahead, behind = _margins(measured, error)
        clear += found[ahead >= 3].tolist()
        beaten += found[behind >= 3].tolist()
        ahead, behind = _margins(truth, error)
        by_truth += (found[ahead >= 3] >= 0.9).tolist() + (found[behind >= 3] <= 0.1).tolist()
    assert len(clear) > 200
    assert len(beaten) > 200
    # What is that far apart as measured is told every time; three objectives of a rival that leads
    # by exactly 3 in each are all kept in 0.9999 of the draws.
    assert min(clear) >= 0.9
    assert max(beaten) <= 0.1
    # By the truth, what was measured may lie nearer: 3 errors are measured as below 1.28 in 4 %.
    assert np.mean(by_truth) >= 0.97


def test_near_ties_stay_between():
    """A rival is far ahead in one objective; in the other the two differ by less than one error."""
    generator = np.random.default_rng(6)
    for apart in (-0.9, -0.3, 0.0, 0.3, 0.9):
        measured = np.array([[0.0, 0.0], [-10.0, apart * np.sqrt(2)]])
        draws = measured + generator.normal(size=(2000, 2, 2))
        assert 0.1 < front_probability(draws, [False, False])[0] < 0.9
    same = np.repeat(np.zeros((1, 2, 2)), 50, axis=0)
    assert front_probability(same, [False, False]).tolist() == [1.0, 1.0]


def test_the_knee_is_a_hint_where_there_is_a_bend():
    bent = np.array([[0.0, 10.0], [1.0, 1.0], [10.0, 0.0]])
    assert knee(bent, [False, False]) == 1
    assert knee(-bent, [True, True]) == 1
    assert knee(bent[[0, 2]], [False, False]) is None
    even = np.array([[0.0, 2.0], [0.9, 1.1], [1.1, 0.9], [2.0, 0.0]])
    assert knee(even, [False, False]) is None


# -- the reader's energy -----------------------------------------------------------------------

ESTIMATED = NVML | {"source": "estimated:cpu-time"}
RAPL = NVML | {"source": "measured:rapl"}


def energies(tmp_path, **of_device):
    """The rows of one run by device and format, energy being the reader's one objective."""
    cells = [
        ok(name, classified(REF_WRONG), energy=energy, cell={"device_name": device})
        for device, sources in of_device.items()
        for name, energy in zip(("fp32", "bf16"), sources, strict=True)
    ]
    table = build([make_run(tmp_path / "run", cells)], {"objectives": ("energy",)})
    return {(row["device"], row["format"]): row for row in table.rows}


def test_a_device_without_a_meter_keeps_no_other_s_energy_from_the_front(tmp_path):
    less = NVML | {"energy_j": 6.0}
    rows = energies(tmp_path, gpu=(NVML, less), cpu=(ESTIMATED, NVML), other=(RAPL, RAPL))
    assert [rows["gpu", name]["pareto"] for name in ("fp32", "bf16")] == ["no", "yes"]
    assert rows["other", "fp32"]["pareto"] == "yes"
    assert rows["cpu", "fp32"]["pareto"] is rows["cpu", "bf16"]["pareto"] is None
    assert [rows["cpu", name]["pareto_note"] for name in ("fp32", "bf16")] == [
        "left out: energy is an estimate (estimated:cpu-time)",
        "left out: energy of other formats is not from the same meter",
    ]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ((ESTIMATED, ESTIMATED), "is an estimate"),
        (({"source": "unavailable"}, NVML), "was not measured"),
        ((NVML, RAPL), "different meters"),
    ],
)
def test_energy_that_no_device_can_be_ranked_by_is_refused_in_one_line(tmp_path, sources, words):
    with pytest.raises(UsageError, match=f"^energy .*{words}.* of --objectives$"):
        energies(tmp_path, cpu=sources, gpu=sources)
