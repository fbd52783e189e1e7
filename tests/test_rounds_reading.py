"""What a reader is told of rounds: spread, intervals that know of it, a machine that changed, and
no winner that another round would have turned round; and how long a GPU is left to cool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from precision_explorer.hardware import cool_down, free_device_bytes, temperature_c
from precision_explorer.hardware.fakes import FakeChip, FakeClock, FakeGpu, FakeNvml
from precision_explorer.hardware.thermal import LIMIT_S, TOLERANCE_C
from precision_explorer.report import to_markdown
from precision_explorer.report.ranking import COST, LATENCY, MEMORY, rank
from precision_explorer.stats import round_draws, round_spread
from precision_explorer.table import build
from precision_explorer.table.rounds import end_to_end
from tests.test_report import row, table
from tests.test_table import LATENCIES, REF_WRONG, classified, make_run, measured, ok, rows_of

# -- statistics ---------------------------------------------------------------------------------


def pooled_median(rounds: Any) -> float:
    return float(np.median(np.concatenate(list(rounds))))


def test_the_spread_is_the_largest_over_the_smallest_round():
    assert round_spread([2.0, 1.0, 1.5]) == 1.0
    assert round_spread([2.0, 2.0]) == 0.0
    assert round_spread([2.0]) is round_spread([]) is None


def test_rounds_that_differ_widen_the_draws_however_many_requests_there_are():
    """Three rounds of 2,000 requests at 1.0, 1.1 and 1.2: requests alone would know the median to a
    thousandth."""
    generator = np.random.default_rng(0)
    rounds = [level + generator.normal(0, 0.02, 2000) for level in (1.0, 1.1, 1.2)]
    draws = round_draws(rounds, pooled_median, 400, 1, 2)
    assert draws.shape == (400,)
    low, high = np.quantile(draws, [0.025, 0.975])
    assert high - low > 0.15
    alike = [1.1 + generator.normal(0, 0.02, 2000) for _ in range(3)]
    low, high = np.quantile(round_draws(alike, pooled_median, 400, 1, 2), [0.025, 0.975])
    assert high - low < 0.005


def test_the_variance_of_the_draws_is_that_of_a_two_level_sample():
    """The mean of R rounds of n: between-variance (R - 1) / R x s_b^2 / R of the draws, plus the
    requests' own (Davison & Hinkley 1997, section 3.8)."""
    levels, n = np.array([1.0, 1.3, 1.1, 1.6, 1.2]), 50
    within = np.linspace(-0.2, 0.2, n)
    rounds = [level + within for level in levels]
    draws = round_draws(rounds, lambda r: float(np.mean([v.mean() for v in r])), 6000, 3, 4)
    expected = levels.var() / len(levels) + within.var() / n / len(levels)
    assert draws.var() == pytest.approx(expected, rel=0.1)


def test_requests_that_are_worth_few_make_wide_draws():
    """One round, all else equal: a hundredth of the requests, ten times the width."""
    values = np.random.default_rng(5).normal(1, 0.1, 4000)
    mean = lambda rounds: float(np.mean([r.mean() for r in rounds]))  # noqa: E731
    wide, narrow = (
        round_draws([values, values], mean, 2000, 1, 2, sizes).std()
        for sizes in ([40, 40], [4000, 4000])
    )
    assert wide / narrow == pytest.approx(10, rel=0.15)


def test_formats_share_the_rounds_that_are_drawn():
    """A shift common to all formats in a round is in no difference between them."""
    first = [np.full(4, level) for level in (1.0, 2.0, 3.0)]
    second = [values + 0.5 for values in first]
    differences = round_draws(second, pooled_median, 200, 7, 8) - round_draws(
        first, pooled_median, 200, 7, 9
    )
    assert np.allclose(differences, 0.5)
    with pytest.raises(ValueError, match="without a value"):
        round_draws([np.array([])], pooled_median, 5, 0, 0)


# -- the table ----------------------------------------------------------------------------------


def in_rounds(
    fmt: str, levels: tuple[float, ...], rates: tuple[float, ...] = (), **more: Any
) -> Any:
    """A cell whose rounds had the latencies `LATENCIES` + level, and these offline rates."""
    requests = [
        {"id": "e0", "index": 0, "window": "measure", "latency_s": float(v) + level, "round": k}
        for k, level in enumerate(levels)
        for v in LATENCIES
    ]
    record, rows = ok(fmt, classified(REF_WRONG), requests, **more)
    place = {"place": 0, "cells": 2, "interleaved": True, "started_s": 0.0}
    document = measured(**more)
    document["latency"]["rounds"] = [
        place | {"round": k, "requests": len(LATENCIES), "window_s": 1.0}
        for k in range(len(levels))
    ]
    best = document["throughput"]["by_batch_size"]["8"]
    if rates:
        best["batch_s"] = [8 / rate for rate in rates]
        best["requests_per_s"] = float(np.median(rates))
        best["rounds"] = [
            {"round": k, "requests_per_s": rate, "batches": 1} for k, rate in enumerate(rates)
        ]
    made = type(record.measurements).model_validate(document)
    return record.model_copy(update={"measurements": made}), rows


def test_a_row_says_how_many_rounds_and_how_far_apart_they_lie(tmp_path):
    cells = [
        in_rounds("fp32", (1.0, 1.0, 1.0), (100.0, 110.0, 90.0)),
        in_rounds("bf16", (1.0, 1.1, 1.2)),
    ]
    rows = rows_of(build([make_run(tmp_path / "run", cells)]))
    assert rows["fp32"]["rounds"] == rows["bf16"]["rounds"] == 3
    assert rows["fp32"]["latency_p50_round_spread"] == 0.0
    middle = float(np.median(LATENCIES))
    assert rows["bf16"]["latency_p50_round_spread"] == pytest.approx(0.2 / (1 + middle))
    assert rows["bf16"]["latency_p50_s"] == pytest.approx(1.1 + middle, rel=1e-3)
    assert rows["bf16"]["latency_n"] == 3 * len(LATENCIES)
    assert rows["fp32"]["throughput_round_spread"] == pytest.approx(110 / 90 - 1)
    assert rows["fp32"]["throughput_per_s"] == 100.0
    assert rows["bf16"]["throughput_round_spread"] is None


def test_a_run_of_one_block_is_read_without_rounds(tmp_path):
    run = make_run(tmp_path / "run", [ok("fp32", classified(REF_WRONG))])
    found = build([run])
    (only,) = found.rows
    assert only["rounds"] is only["latency_p50_round_spread"] is None
    assert only["latency_n"] == len(LATENCIES)
    text = to_markdown(found)
    assert "differences from run to run" in text
    assert "interleaved" not in text
    assert "Rounds (spread" not in text


def test_rounds_follow_one_another_on_one_clock():
    """Each counts from its own first request; what others were timed between them is no gap."""
    ends = np.array([10.5, 11.0, 3.25, 4.0])
    joined = end_to_end(ends, np.array([0.5, 0.5, 0.25, 0.5]), [0, 0, 1, 1])
    assert list(joined) == [0.5, 1.0, 1.25, 2.0]


def test_the_front_is_less_sure_where_rounds_differ(tmp_path):
    """bf16 is slower in the median; its rounds lie on both sides of fp32's."""

    def probability(name: str, levels: tuple[float, ...]) -> float:
        cells = [in_rounds("fp32", (1.0, 1.0, 1.0)), in_rounds("bf16", levels)]
        return rows_of(build([make_run(tmp_path / name, cells)]))["bf16"]["pareto_probability"]

    assert probability("alike", (1.1, 1.1, 1.1)) == 0.0
    assert 0.05 < probability("apart", (0.8, 1.1, 1.4)) < 0.7


def test_cost_s_draws_know_of_the_rounds_rates(tmp_path):
    def probability(name: str, rates: tuple[float, ...]) -> float:
        cells = [
            in_rounds("fp32", (1.0, 1.0, 1.0), (100.0, 100.0, 100.0)),
            in_rounds("bf16", (1.1, 1.1, 1.1), rates),
        ]
        return rows_of(build([make_run(tmp_path / name, cells)]))["bf16"]["pareto_probability"]

    assert probability("alike", (90.0, 90.0, 90.0)) == 0.0
    assert 0.05 < probability("apart", (80.0, 90.0, 120.0)) < 0.7


@pytest.mark.parametrize(
    ("levels", "drifts"),
    [
        ((1.0, 1.1, 1.2), True),
        ((1.2, 1.1, 1.0), True),
        ((1.0, 1.5, 1.05), False),
        ((1.0, 1.0, 1.0), False),
    ],
)
def test_a_reference_that_changed_between_first_and_last_tells_of_the_machine(
    tmp_path, levels, drifts
):
    cells = [in_rounds("fp32", levels), in_rounds("bf16", (1.0, 1.0, 1.0))]
    found = build([make_run(tmp_path / "run", cells)])
    for named in rows_of(found).values():
        assert ("machine-drifted" in named["cautions"]) == drifts
    if drifts:
        more = levels[-1] > levels[0]
        assert f"% {'more' if more else 'less'})" in found.context.cautions["machine-drifted"]
        assert any("machine-drifted" in line for line in found.context.caveats)


def test_few_requests_are_no_proof_of_a_machine_that_changed(tmp_path):
    record, rows = in_rounds("fp32", (1.0, 1.0))
    from tests.test_store import arrow

    few = [
        {"id": "e0", "index": 0, "window": "measure", "latency_s": 1.0 + k, "round": k}
        for k in (0, 1)
    ]
    run = make_run(tmp_path / "run", [(record, rows | {"request": arrow(few)})])
    assert rows_of(build([run]))["fp32"]["cautions"] == ""


# -- rankings -----------------------------------------------------------------------------------


def test_no_winner_is_named_within_the_spread_of_the_rounds():
    rows = [
        row("fp32", latency_p50_s=0.0104, latency_p50_round_spread=0.05),
        row("bf16", latency_p50_s=0.0100, latency_p50_round_spread=0.01),
        row("fp16", latency_p50_s=0.0120, latency_p50_round_spread=0.05),
    ]
    found = rank(rows, LATENCY)
    assert [r["format"] for r in found.best] == ["fp32", "bf16"]
    assert found.winner is None
    assert found.within_spread
    rows[0] |= {"latency_p50_round_spread": 0.03}
    assert rank(rows, LATENCY).winner is rows[1]
    assert not rank(rows, LATENCY).within_spread
    # A row that swings by itself is no worse than the best for certain.
    rows[2] |= {"latency_p50_round_spread": 0.3}
    assert [r["format"] for r in rank(rows, LATENCY).best] == ["bf16", "fp16"]


def test_each_measure_has_the_spread_of_what_it_rests_on():
    rows = [
        row("fp32", cost_per_1k_requests_usd=0.0021, throughput_round_spread=0.1),
        row("bf16", cost_per_1k_requests_usd=0.0020, throughput_round_spread=0.0),
    ]
    assert rank(rows, COST).winner is None
    for one in rows:
        one |= {"throughput_round_spread": 0.01, "latency_p50_round_spread": 9.0}
    assert rank(rows, COST).winner is rows[1]
    rows[0] |= {"peak_memory_bytes": 8_000_000}
    assert rank(rows, MEMORY).winner is rows[0]


def test_the_report_says_that_the_formats_are_too_close():
    close = {"rounds": 3, "latency_p50_round_spread": 0.08}
    text = to_markdown(
        table(row("fp32", latency_p50_s=0.0104, **close), row("bf16", latency_p50_s=0.01, **close))
    )
    assert "No single winner: fp32 and bf16 differ in median latency (10.0 ms to 10.4 ms)" in text
    assert "rounds, and requests and batches within rounds are resampled" in text
    assert "3 (8.0 %)" in text


# -- cooling down -------------------------------------------------------------------------------


def test_a_hot_chip_is_waited_for_and_no_longer_than_it_takes():
    clock = FakeClock()
    chip = FakeChip(clock, hot_c=50.0, ambient_c=30.0, tau_s=5.0)
    found = cool_down(chip, 40.0, limit_s=60, clock=clock, sleep=clock.sleep)
    assert found.temperature_c <= 40.0 + TOLERANCE_C
    # Newton's law: 30 + 20 exp(-t / 5) = 43 at t = 2.15 s.
    assert 2.15 <= found.waited_s < 2.5


def test_the_wait_has_an_end_and_what_was_reached_is_known():
    clock = FakeClock()
    found = cool_down(lambda: 80.0, 40.0, clock=clock, sleep=clock.sleep)
    assert found.waited_s == pytest.approx(LIMIT_S)
    assert found.temperature_c == 80.0


@pytest.mark.parametrize(
    ("now", "target"), [(40.0, 40.0), (42.0, 40.0), (None, 40.0), (80.0, None)]
)
def test_nothing_is_waited_for_without_need_or_reading(now, target):
    def never(seconds: float) -> None:
        raise AssertionError("waited")

    found = cool_down(lambda: now, target, clock=FakeClock(), sleep=never)
    assert (found.waited_s, found.temperature_c) == (0.0, now)


def test_nvml_tells_temperature_and_free_memory_by_the_bus_id():
    gpu = FakeGpu(bus_id="00:1", free=123, celsius=41)
    nvml = FakeNvml([FakeGpu(bus_id="00:0", celsius=None), gpu])
    assert temperature_c("00:1", nvml) == 41.0
    assert free_device_bytes("00:1", nvml) == 123
    assert temperature_c("00:0", nvml) is free_device_bytes("00:0", nvml) is None
    assert temperature_c("00:7", nvml) is temperature_c(None, nvml) is None


@pytest.mark.parametrize(("second", "apart"), [(1.01, False), (1.05, True)])
def test_rows_whose_median_another_run_did_not_find_again_say_so(tmp_path, second, apart):
    """Only the row that two runs measured; the other format stands in one of them."""
    runs = [
        make_run(tmp_path / "a", [in_rounds("fp32", (1.0,) * 3), in_rounds("bf16", (1.0,) * 3)]),
        make_run(tmp_path / "b", [in_rounds("fp32", (second,) * 3)]),
    ]
    found = build(runs)
    marked = [r["format"] for r in found.rows if "not-repeated" in r["cautions"]]
    assert marked == (["fp32", "fp32"] if apart else [])
    if apart:
        assert "4.9 % apart" in found.context.cautions["not-repeated"]
    assert "not-repeated" not in build(runs[:1]).rows[0]["cautions"]


def test_a_row_of_another_kernel_is_no_repetition(tmp_path):
    runs = [make_run(tmp_path / "a", [in_rounds("fp32", (1.0,) * 3)])]
    record, rows = in_rounds("fp32", (2.0,) * 3)
    cell = record.cell.model_copy(update={"recipe": {"kernel": "another"}})
    runs.append(make_run(tmp_path / "b", [(record.model_copy(update={"cell": cell}), rows)]))
    assert not any("not-repeated" in r["cautions"] for r in build(runs).rows)
