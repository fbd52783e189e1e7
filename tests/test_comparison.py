"""Runs held against each other: refused where methods differ, and a difference only where one is
shown."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_explorer.comparison import Change, Compared, compare
from precision_explorer.comparison.fingerprint import barred_fields
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.hardware import DeviceFacts, container, device_settings
from precision_explorer.records import Cell, read_record, sealed, unsealed
from precision_explorer.report.comparison import answer, make_shown, to_markdown
from precision_explorer.runner.servers import client_environment
from precision_explorer.runner.sweep import make_environment
from precision_explorer.stats import Spread, between_runs
from precision_explorer.table.methods import flat
from tests.command import run
from tests.test_records import CELL, make_cell, make_record
from tests.test_store import arrow
from tests.test_table import (
    ENVIRONMENT,
    REF_WRONG,
    applied,
    classified,
    failed,
    make_run,
    measured,
    ok,
    served,
)

ROOT = Path(__file__).parents[1]
REQUESTS = 60
LEVELS = (1.0, 1.02, 0.99)
RATES = (100.0, 102.0, 99.0)


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    """A fifth of the draws: variances are then known to 14 % instead of 6 %."""
    for module in ("samples", "front"):
        monkeypatch.setattr(f"precision_explorer.table.{module}.DRAWS", 100)


def timed(
    fmt: str,
    levels: Sequence[float] = LEVELS,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    wrong: set[int] = REF_WRONG,
    cell: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    energy: dict[str, Any] | None = None,
    peak: int = 1000,
    weights: int = 400,
    cautions: tuple[str, ...] = (),
    n: int = 40,
) -> tuple[Any, dict[str, bytes]]:
    """A cell of rounds: median latencies about 10 ms times `levels`, offline rates `rates`."""
    generator = np.random.default_rng([seed, sum(map(ord, fmt))])
    place = {"place": 0, "cells": 2, "interleaved": True, "started_s": 0.0}
    requests = [
        {"id": "e0", "index": 0, "window": "measure", "round": k, "latency_s": float(value)}
        for k, level in enumerate(levels)
        for value in 0.01 * level * np.exp(generator.normal(0, 0.05, REQUESTS))
    ]
    document = measured(quality=1 - len(wrong) / n, peak=peak, energy=energy)
    document["latency"]["rounds"] = [
        place | {"round": k, "requests": REQUESTS, "window_s": 1.0} for k in range(len(levels))
    ]
    best = document["throughput"]["by_batch_size"]["8"]
    best["batch_s"] = [8 / rate * f for rate in rates for f in (0.99, 1.01)]
    best["requests_per_s"] = float(np.median(rates))
    best["rounds"] = [
        {"round": k, "requests_per_s": rate, "batches": 2} for k, rate in enumerate(rates)
    ]
    record = make_record(
        cell=make_cell(format=fmt, **({"until_decided": None} | (cell or {}))),
        applied=applied(fmt, weight_bytes=weights),
        measurements=document,
        environment=ENVIRONMENT | (environment or {}),
        cautions=[{"id": name, "message": "M."} for name in cautions],
    )
    return record, {"example": arrow(classified(wrong, n)), "request": arrow(requests)}


def shifted(by: float, seed: int) -> tuple[float, ...]:
    """Rounds of another day: `by` times as large, each a few percent off."""
    return tuple(by * np.exp(np.random.default_rng(seed).normal(0, 0.02, 3)))


def a_run(path: Path, slower: float = 1.0, seed: int = 0, **more: Any) -> Path:
    """fp32 and int8-dynamic, of which the second is `slower`."""
    cells = []
    for k, fmt in enumerate(("fp32", "int8-dynamic")):
        by = slower if k else 1.0
        levels, rates = shifted(by, 2 * seed + k), 100 * np.array(shifted(1 / by, 7 * seed + k))
        cells.append(timed(fmt, levels, rates.tolist(), seed, **more))
    return make_run(path, cells)


def changes(compared: Compared, figure: str) -> dict[str, Change]:
    return {r.format: c for r in compared.rows for c in r.changes if c.figure == figure}


def verdicts(compared: Compared) -> list[str]:
    return [c.verdict for r in compared.rows for c in r.changes]


@pytest.fixture
def pair(tmp_path):
    return a_run(tmp_path / "one"), a_run(tmp_path / "two", seed=1)


# -- what is found ------------------------------------------------------------------------------


def test_the_same_measured_twice_is_not_different(pair):
    (compared,) = compare(pair)
    assert {"better", "worse"}.isdisjoint(verdicts(compared))
    told = [c for f in ("quality", "latency") for c in changes(compared, f).values()]
    assert {c.verdict for c in told} == {"not-different"}
    assert all(c.low <= 0 <= c.high for c in told)
    assert compared.same_cells
    assert compared.is_answered
    assert answer(compared).startswith("Nothing is shown to differ")


def test_a_slower_format_is_found_and_named(tmp_path):
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.5, seed=1)]
    (compared,) = compare(runs)
    latency, throughput = changes(compared, "latency"), changes(compared, "throughput")
    assert latency["int8-dynamic"].word == throughput["int8-dynamic"].word == "slower"
    assert latency["int8-dynamic"].change == pytest.approx(0.5, abs=0.08)
    assert latency["int8-dynamic"].low < 0.5 < latency["int8-dynamic"].high
    assert latency["fp32"].verdict == "not-different"
    assert changes(compared, "cost")["int8-dynamic"].word == "dearer"
    said = answer(compared)
    assert said.startswith("B is worse in median latency: int8-dynamic (slower, 1.")
    assert "fp32" not in said
    # And the other way round.
    (back,) = compare(runs[::-1])
    assert changes(back, "latency")["int8-dynamic"].word == "faster"
    assert changes(back, "cost")["int8-dynamic"].word == "cheaper"


def test_a_slower_machine_moves_all_rows_and_no_ratio_to_the_reference(tmp_path):
    """Rounds of one run as the machine would have them: twice as slow in the second run, both
    formats by the same in each round."""
    runs = []
    for k, by in enumerate((1.0, 2.0)):
        levels = by * np.array([1.0, 1.05, 0.97])
        cells = [
            timed("fp32", levels, 100 / levels, seed=k),
            timed("int8-dynamic", levels / 2, 200 / levels, seed=k),
        ]
        runs.append(make_run(tmp_path / str(k), cells))
    (compared,) = compare(runs)
    for figure in ("latency", "throughput"):
        assert {c.word for c in changes(compared, figure).values()} == {"slower"}
        ratios = changes(compared, f"{figure}_to_reference")
        assert [*ratios] == ["int8-dynamic"]
        assert ratios["int8-dynamic"].verdict == "not-different"
        assert ratios["int8-dynamic"].change == pytest.approx(0, abs=0.03)
        # The rounds' own ups and downs cancel out of it.
        wide = changes(compared, figure)["int8-dynamic"]
        assert ratios["int8-dynamic"].high < (1 + wide.high) / (1 + wide.change) - 1
    assert "Latency p50 / ref." in to_markdown([compared])


def test_a_format_that_lost_its_gain_is_found_by_the_ratio(tmp_path):
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.5, seed=1)]
    (compared,) = compare(runs)
    found = changes(compared, "latency_to_reference")["int8-dynamic"]
    assert found.word == "slower"
    assert "median latency over that of the reference" in answer(compared)
    late = [timed("fp32"), timed("int8-dynamic", cautions=("rounds-not-interleaved",))]
    (apart,) = compare([runs[0], make_run(tmp_path / "late", late)])
    note = changes(apart, "latency_to_reference")["int8-dynamic"].note
    assert note == "not timed in its reference's rounds in B"


def test_rounds_that_differ_hide_what_requests_alone_would_show(tmp_path):
    """Ten percent slower, in rounds that are half as slow again: not shown."""
    rough = [timed("fp32", (1.0, 1.5, 1.02)), timed("fp32", (1.1, 1.65, 1.12), seed=1)]
    runs = [make_run(tmp_path / str(k), [cell]) for k, cell in enumerate(rough)]
    (compared,) = compare(runs)
    found = changes(compared, "latency")["fp32"]
    assert found.verdict == "not-different"
    assert found.high - found.low > 0.5


def test_many_comparisons_of_nothing_call_hardly_any_different(tmp_path):
    """Ten repeats of the same, of which one in twenty may be called different."""
    first = a_run(tmp_path / "one")
    others = [a_run(tmp_path / f"run{seed}", seed=seed) for seed in range(1, 11)]
    called = [
        compared.other
        for compared in compare([first, *others])
        if {"better", "worse"} & set(verdicts(compared))
    ]
    assert len(called) <= 1


def test_the_interval_holds_the_ratio_as_often_as_it_says():
    """Means of three rounds that differ, on the logarithm: Welch's t is near its 95 %."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        runs = generator.normal(0, 0.1, (2, 3))
        picks = generator.integers(0, 3, (2, 400, 3))
        draws = [np.exp(rounds[pick].mean(1)) for rounds, pick in zip(runs, picks, strict=True)]
        value = float(np.exp(runs[1].mean() - runs[0].mean()))
        found = between_runs(value, Spread(draws[0], 3), Spread(draws[1], 3))
        held += found.low <= 1 <= found.high
        assert (found.p_value < 0.05) == (not found.low <= 1 <= found.high)
    assert 0.93 <= held / 400 <= 0.99


def test_what_shows_no_spread_has_no_interval():
    still = Spread(np.ones(10), 3)
    found = between_runs(1.5, still, still)
    assert (found.value, found.low, found.high, found.p_value) == (1.5, None, None, None)
    one = Spread(np.linspace(1, 2, 10), 1)
    assert between_runs(1.5, one, one).p_value is None


def test_all_tests_of_two_runs_are_one_family(tmp_path):
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.3, seed=1)]
    (compared,) = compare(runs)
    every = [c for r in compared.rows for c in r.changes if c.p_value is not None]
    own = [c for c in every if c.resting is None]
    assert (
        compared.tests == len(own) == 2 * 4 + 2
    )  # quality, two percentiles, throughput; two ratios
    assert all(c.p_value_holm >= c.p_value for c in own)
    assert min(c.p_value_holm / c.p_value for c in own if c.p_value_holm < 1) >= 1
    least = min(own, key=lambda c: c.p_value)
    assert least.p_value_holm == pytest.approx(min(1, len(own) * least.p_value))
    # A cost at one price says what the throughput says, and is no test of its own.
    for fmt, cost in changes(compared, "cost").items():
        assert cost.p_value_holm == changes(compared, "throughput")[fmt].p_value_holm


def test_what_is_beyond_chance_by_itself_only_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setattr("precision_explorer.comparison.figures.holm", lambda p: [1.0] * len(p))
    runs = [a_run(tmp_path / "one"), a_run(tmp_path / "two", slower=1.3, seed=1)]
    (compared,) = compare(runs)
    found = changes(compared, "latency")["int8-dynamic"]
    assert found.verdict == "cannot-tell"
    assert "not among so many tests: more rounds would tell" in found.note


def test_the_tail_shown_is_the_one_that_the_samples_support(tmp_path):
    """180 requests a row support p90 and no p99; 600 both, and then p90 is no further test."""
    few = [make_run(tmp_path / f"few{k}", [timed("fp32", seed=k)]) for k in range(2)]
    long = (1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 1.0, 1.0)
    many = [make_run(tmp_path / f"many{k}", [timed("fp32", long, seed=k)]) for k in range(2)]
    told = {c.figure for r in compare(few)[0].rows for c in r.changes if c.change is not None}
    assert "latency_p90" in told
    assert "latency_p99" not in told
    told = {c.figure for r in compare(many)[0].rows for c in r.changes if c.change is not None}
    assert "latency_p99" in told
    assert "latency_p90" not in told


def test_quality_is_paired_on_the_same_examples(tmp_path):
    """Twenty of 200 right in the first run only: worse; intervals as the table's."""
    worse = REF_WRONG | set(range(100, 120))
    runs = [
        make_run(tmp_path / "one", [timed("fp32", n=200)]),
        make_run(tmp_path / "two", [timed("fp32", n=200, wrong=worse, seed=1)]),
    ]
    (compared,) = compare(runs)
    found = changes(compared, "quality")["fp32"]
    assert found.change == pytest.approx(-0.1)
    assert found.is_points
    assert (found.verdict, found.word) == ("worse", "worse")
    assert found.note == "20 flipped"
    assert "-10.00 pp" in answer(compared)


def test_of_other_numbers_of_examples_the_common_ones_are_compared(tmp_path):
    few = {"task": CELL["task"] | {"n": 100, "item_ids_hash": "0" * 16}}
    runs = [
        make_run(tmp_path / "one", [timed("fp32", n=200)]),
        make_run(tmp_path / "two", [timed("fp32", n=100, seed=1, cell=few)]),
    ]
    (compared,) = compare(runs)
    found = changes(compared, "quality")["fp32"]
    assert found.verdict == "not-different"
    assert found.change == 0.0
    assert found.note == "no example flipped, on the 100 examples that both asked"


def test_examples_that_are_not_the_same_are_not_compared(tmp_path):
    other = timed("fp32", seed=1)
    rows = [row | {"id": f"x{i}"} for i, row in enumerate(classified(REF_WRONG))]
    other[1]["example"] = arrow(rows)
    runs = [make_run(tmp_path / "one", [timed("fp32")]), make_run(tmp_path / "two", [other])]
    found = changes(compare(runs)[0], "quality")["fp32"]
    assert (found.verdict, found.note) == ("cannot-tell", "not the same examples")


def test_memory_without_repeats_is_told_where_it_is_far_off_only(tmp_path):
    """Beyond a quarter of it, and beyond what allocators take of a small model's."""
    cells: dict[str, dict[str, Any]] = {
        "one": {"peak": 10**9},
        "two": {"peak": 1_100_000_000, "weights": 300},
        "three": {"peak": 2 * 10**9},
        "same": {"peak": 10**9},
        "small": {"peak": 50_000_000},
        "small-again": {"peak": 80_000_000},
    }
    runs = {n: make_run(tmp_path / n, [timed("fp32", **more)]) for n, more in cells.items()}
    near, far, same = compare([runs[n] for n in ("one", "two", "three", "same")])
    (small,) = compare([runs["small"], runs["small-again"]])
    for compared in (near, small):
        assert changes(compared, "memory")["fp32"].verdict == "cannot-tell"
    assert changes(far, "memory")["fp32"].word == "more"
    assert changes(same, "memory")["fp32"].word == "the same"
    assert changes(near, "weights")["fp32"].word == "less"
    assert changes(far, "weights")["fp32"].word == "the same"


def test_a_percentile_that_the_sample_does_not_support_says_what_it_needs(pair):
    (compared,) = compare(pair)
    found = changes(compared, "latency_p99")["fp32"]
    assert (found.one, found.verdict) == (None, "cannot-tell")
    assert found.note.startswith("needs n >= ")
    assert any("p99" in line and "needs n >=" in line for line in make_shown(compared).untold)


@pytest.mark.parametrize(
    ("caution", "by", "word"),
    [
        ("machine-busy", 3.0, "cannot tell"),
        ("windows-throttled", 3.0, "cannot tell"),
        # Of a machine that drifted within a run, what is beyond the drift stands.
        ("machine-drifted", 1.3, "cannot tell"),
        ("machine-drifted", 8.0, "slower"),
    ],
)
def test_times_of_a_machine_that_was_not_itself_are_withheld(tmp_path, caution, by, word):
    wide = timed("fp32", (1.0, 1.5, 1.2), (100.0, 90.0, 95.0), cautions=(caution,))
    levels = tuple(by * level for level in (1.01, 1.02, 1.03))
    rates = tuple(rate / by for rate in (100.0, 90.0, 95.0))
    runs = [
        make_run(tmp_path / "one", [wide]),
        make_run(tmp_path / "two", [timed("fp32", levels, rates, seed=1)]),
    ]
    (compared,) = compare(runs)
    assert changes(compared, "latency")["fp32"].word == word
    assert changes(compared, "throughput")["fp32"].word == word
    if word == "cannot tell":
        assert "in A" in changes(compared, "latency")["fp32"].note


ROUNDS = [{"round": k, "energy_j": 20.0 + k, "requests": 20} for k in range(3)]
METER = {
    "source": "measured:nvml", "boundary": "GPU: the whole board", "energy_j": 63.0,
    "window_s": 3.0, "requests": 60, "rounds": ROUNDS,
}  # fmt: skip


def test_energy_of_one_boundary_is_compared_and_of_two_only_with_leave(tmp_path):
    rapl = METER | {"source": "measured:rapl", "boundary": "CPU packages"}
    guess = METER | {"source": "estimated:cpu-time", "boundary": None}
    meters = {"one": METER, "two": METER, "three": rapl, "four": guess}
    runs = [make_run(tmp_path / n, [timed("fp32", energy=m)]) for n, m in meters.items()]
    same, other, estimate = (changes(c, "energy")["fp32"] for c in compare(runs))
    assert same.verdict == "not-different"
    assert other.verdict == estimate.verdict == "cannot-tell"
    assert "different meters" in other.note
    assert "an estimate" in estimate.note
    compared = compare(runs, ["energy_boundary"])
    assert changes(compared[1], "energy")["fp32"].verdict == "not-different"
    assert changes(compared[2], "energy")["fp32"].verdict == "cannot-tell"
    (allowed,) = compared[1].allowed
    assert allowed.field.name == "energy_boundary"
    assert "CPU packages" in "\n".join(make_shown(compared[1]).facts)


def test_leave_for_a_version_is_leave_for_what_that_added_alone():
    """A calibration set, which either version may hold, keeps the row out all the same."""
    calibrated = CELL["recipe"] | {"calibration": {"hash": "one"}}
    old = make_record(cell=make_cell(protocol=None, recipe=calibrated))
    protocol = {"prompt": "as it is", "quality_metric": "accuracy", "energy": "the timed part"}
    new = make_record(cell=make_cell(protocol=protocol))
    barred, allowed = barred_fields(old, new, ["version"])
    assert {field.name.partition(".")[0] for field in barred} == {"calibration"}
    assert [field.name for field in allowed] == ["version"]
    every = {field.name.partition(".")[0] for field in barred_fields(old, new, [])[0]}
    assert {"calibration", "version", "prompt", "quality_metric", "energy"} <= every


def test_energy_of_a_disturbed_row_is_withheld(tmp_path):
    more = METER | {"energy_j": 189.0, "rounds": [r | {"energy_j": 60.0} for r in ROUNDS]}
    one = make_run(tmp_path / "one", [timed("fp32", energy=METER)])
    for name, cautions, word in (("two", (), "more"), ("three", ("machine-busy",), "cannot tell")):
        cell = timed("fp32", energy=more, seed=1, cautions=cautions)
        (compared,) = compare([one, make_run(tmp_path / name, [cell])])
        assert changes(compared, "energy")["fp32"].word == word


def test_a_drifted_machine_s_tests_count_whatever_came_out(tmp_path):
    wide = timed("fp32", (1.0, 1.5, 1.2), cautions=("machine-drifted",))
    tests = set()
    for by in (1.0, 1.3, 8.0):
        other = timed("fp32", tuple(by * level for level in LEVELS), seed=1)
        runs = [make_run(tmp_path / f"{n}{by}", [c]) for n, c in (("a", wide), ("b", other))]
        (compared,) = compare(runs)
        tests.add(compared.tests)
    assert len(tests) == 1


def test_peak_memory_of_nothing_is_none(tmp_path):
    runs = [
        make_run(tmp_path / name, [timed("fp32", peak=peak, seed=peak)])
        for name, peak in (("one", 10**9), ("two", 0))
    ]
    (compared,) = compare(runs)
    assert changes(compared, "memory")["fp32"].note == "not measured"


def test_the_best_of_other_batch_sizes_is_not_compared_without_leave(tmp_path):
    runs = [
        make_run(tmp_path / "one", [timed("fp32")]),
        make_run(tmp_path / "two", [timed("fp32", seed=1, cell={"batch_sizes": [1, 8, 32]})]),
    ]
    (compared,) = compare(runs)
    assert changes(compared, "latency")["fp32"].verdict == "not-different"
    for figure in ("throughput", "cost"):
        found = changes(compared, figure)["fp32"]
        assert found.verdict == "cannot-tell"
        assert "1, 8 in A and 1, 8, 32 in B" in found.note
    (compared,) = compare(runs, ["batch_sizes"])
    assert changes(compared, "throughput")["fp32"].verdict == "not-different"
    assert [one.field.name for one in compared.allowed] == ["batch_sizes"]


# -- the method ---------------------------------------------------------------------------------


def other_value(value: Any) -> Any:
    if isinstance(value, list):
        return [*value, 99]
    if value == "text-classification":
        return "image-classification"
    return value + 1 if isinstance(value, (int, float)) else f"another {value}"


def cell_without(field: str) -> dict[str, Any]:
    """The parts of a cell in which the field of its method has another value."""
    if field == "version":
        return {"protocol": None, "task": CELL["task"] | {"order_hash": None}}
    path = field.split(".")
    if field == "model":
        path = ["model", "revision"]
    elif path[0] in CELL["protocol"]:
        path = ["protocol", *path]
    changed = json.loads(json.dumps(CELL))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other_value(inner[path[-1]])
    return {path[0]: changed[path[0]]}


FIELDS = [*flat(make_cell().method())]


def test_the_fields_are_all_that_comparing_takes():
    """What makes results comparable, by the parts of the document that hold it."""
    document = make_cell().method()
    assert set(document) == {
        "version", "model", "task", "prompt", "decoding", "quality_metric", "workload",
        "batch_plan", "rules", "energy", "seed",
    }  # fmt: skip
    assert {"card_hash", "data_hash", "order_hash"} <= set(document["task"])
    assert not {"n", "item_ids_hash"} & set(document["task"])


@pytest.mark.parametrize("field", FIELDS)
def test_another_method_is_refused_and_compared_with_leave(tmp_path, field):
    one = make_run(tmp_path / "one", [timed("fp32")])
    two = make_run(tmp_path / "two", [timed("fp32", seed=1, cell=cell_without(field))])
    before, after = (read_record(next((p / "cells").glob("*.json"))) for p in (one, two))
    assert before.method_id != after.method_id
    done = run("compare", one, two)
    assert done.returncode == 5
    assert "Not compared: the methods differ." in done.stdout
    assert field in done.stdout
    assert "Latency p50" not in done.stdout
    # Other fields are not in the way; with leave for this one it is compared, and for ever said.
    page = tmp_path / "out.md"
    done = run("compare", one, two, "--allow", field, "--out", page, "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert document["allow"] == [field]
    (compared,) = document["comparisons"]
    assert field in [a["field"]["name"] for a in compared["allowed"]]
    assert "The methods differ, with leave, in" in compared["answer"]
    first, second = compared["rows"][0]["method_ids"]
    assert first != second
    assert "Accepted by the reader (--allow), in all rows: " in page.read_text()
    assert "Latency p50" in page.read_text()


def test_leave_is_said_on_the_terminal_too(tmp_path):
    one = make_run(tmp_path / "one", [timed("fp32")])
    two = make_run(tmp_path / "two", [timed("fp32", seed=1, cell={"seed": 5})])
    text = " ".join(run("compare", one, two, "--allow", "seed").stdout.split())
    assert "Accepted by the reader (--allow), in all rows: seed (0 against 5)." in text
    assert "The methods differ, with leave, in seed." in text


@pytest.mark.parametrize("part", ["workload", "task", "rules", "batch-plan"])
def test_leave_for_a_part_is_leave_for_its_fields(tmp_path, part):
    name = part.replace("-", "_")
    changed = {name: {k: other_value(v) for k, v in CELL[name].items()}}
    if name == "task":
        changed = {"task": changed["task"] | {"name": "sentiment"}}
    runs = [
        make_run(tmp_path / "one", [timed("fp32")]),
        make_run(tmp_path / "two", [timed("fp32", seed=1, cell=changed)]),
    ]
    assert not compare(runs)[0].is_answered
    (compared,) = compare(runs, [part])
    assert compared.is_answered
    assert len(compared.allowed) >= 2


@pytest.mark.parametrize(("key", "name"), [("calibration", "calibration"), ("layers", "layers")])
def test_what_is_declared_for_one_format_alone_keeps_its_row_from_being_compared(
    tmp_path, key, name
):
    values = {"calibration": ("a" * 16, "b" * 16), "layers": ({"nf4": ["x"]}, {"nf4": ["y"]})}
    cells = [
        [timed("fp32"), timed("int8-static", cell={"recipe": CELL["recipe"] | {key: value}})]
        for value in values[key]
    ]
    runs = [make_run(tmp_path / str(k), own) for k, own in enumerate(cells)]
    done = run("compare", *runs)
    assert done.returncode == 5
    assert "1 row is refused" in done.stdout
    (compared,) = compare(runs)
    assert [r.format for r in compared.rows] == ["fp32"]
    assert [f.name for f in compared.refused[0].fields] == [name]
    assert compare(runs, [name])[0].is_answered


def test_what_a_reader_decides_and_the_n_reached_are_no_method(tmp_path):
    one = a_run(tmp_path / "one")
    two = make_run(
        tmp_path / "two",
        [timed("fp32", seed=1), timed("int8-dynamic", seed=1)],
        {"price_per_hour": 7.0, "slo": "p99=1s", "quality_budget": 0.05},
    )
    (compared,) = compare([one, two])
    assert compared.is_answered
    # At another price cost is a test of its own.
    assert changes(compared, "cost")["fp32"].word == "dearer"


def test_stored_runs_keep_the_ids_that_they_were_written_with():
    """Also those from before the method said more: what is stored is never another method's."""
    paths = sorted((ROOT / "results").glob("*/cells/*.json"))
    assert paths
    for path in paths:
        record = read_record(path)
        assert (record.cell.cell_id, record.cell.method_id) == (record.cell_id, record.method_id)
        assert record.cell.method()["version"] == (1 if record.cell.protocol is None else 2)


def test_a_cell_without_a_protocol_has_the_hashes_of_version_1():
    """Worked out once, by the program of that time."""
    old = {k: v for k, v in CELL.items() if k not in ("protocol", "split")}
    old["task"] = {k: v for k, v in CELL["task"].items() if k != "order_hash"}
    cell = Cell.model_validate(old)
    assert (cell.cell_id, cell.method_id) == ("fe397ee91eca4c75", "dcca5850f34f")


# -- the system ---------------------------------------------------------------------------------


def test_what_differs_in_the_system_stands_beside_the_changes(tmp_path):
    other = {
        "device_name": "Fast GPU",
        "libraries": {"torch": "2.14.0"},
        "variables": {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
        "device": {"kind": "cuda", "driver": "570.1"},
        "container": "docker",
        "settings": {"power_limit_w": 450.0, "clock_limit_hz": 1.98e9},
    }
    runs = [
        make_run(tmp_path / "one", [timed("fp32")]),
        make_run(
            tmp_path / "two",
            [
                timed(
                    "fp32", seed=1, environment=other,
                    cell={"device_name": "Fast GPU", "libraries": {"torch": "2.14.0"}},
                )
            ],
        ),
    ]  # fmt: skip
    (compared,) = compare(runs)
    assert not compared.same_cells
    found = {field.name: (field.one, field.other) for field in compared.system}
    assert found["device_name"] == ("Some CPU", "Fast GPU")
    assert found["libraries.torch"] == ("2.13.0", "2.14.0")
    assert found["device.driver"] == (None, "570.1")
    # What the tool sets by itself tells of no machine.
    assert set(found) == {
        "device_name", "libraries.torch", "device.driver", "device.kind",
        "variables.ONEDNN_MAX_CPU_ISA", "container", "settings.power_limit_w",
        "settings.clock_limit_hz",
    }  # fmt: skip
    text = run("compare", *runs).stdout
    assert "What differs in the system" in text
    assert "library torch" in text
    for words in ("2.14.0", "settings: power limit ", "450 W", "1.98 GHz"):
        assert words in text


def test_a_run_s_environment_holds_kernel_container_and_settings_and_a_client_s_does_not():
    facts = DeviceFacts(
        kind="cpu", device="cpu", name="c", cpu_model="c", cores=2, memory_bytes=1
    )  # fmt: skip
    found = make_environment(facts, 2, {"torch": "2.13.0"})
    assert found.kernel == platform.release()
    assert found.container == container()
    assert found.settings == device_settings(facts)
    client = client_environment(found)
    assert (client.kernel, client.container, client.settings) == (None, None, None)
    assert platform.release() not in client.platform


def test_a_kernel_that_differs_is_said_of_its_row(tmp_path):
    one, two = timed("int8-dynamic"), timed("int8-dynamic", seed=1)
    made = two[0].applied.model_copy(update={"kernel": "another-kernel"})
    two = (two[0].model_copy(update={"applied": made}), two[1])
    runs = [make_run(tmp_path / "one", [one]), make_run(tmp_path / "two", [two])]
    (compared,) = compare(runs)
    assert [(f.name, f.other) for f in compared.rows[0].system] == [("kernel", "another-kernel")]
    assert "another-kernel" in to_markdown([compared])


# -- the command --------------------------------------------------------------------------------


def test_the_first_run_is_held_against_each_other_one(tmp_path):
    runs = [a_run(tmp_path / f"run{k}", seed=k) for k in range(3)]
    found = compare(runs)
    assert [(c.one, c.other) for c in found] == [("run0", "run1"), ("run0", "run2")]
    text = run("compare", *runs).stdout
    assert text.index("run1 (B) against run0 (A)") < text.index("run2 (B) against run0 (A)")


def test_rows_that_are_in_one_run_only_or_failed_are_said(tmp_path):
    broken = failed("bf16")
    runs = [
        make_run(tmp_path / "one", [timed("fp32"), timed("bf16"), timed("fp16")]),
        make_run(tmp_path / "two", [timed("fp32", seed=1), broken]),
    ]
    (compared,) = compare(runs)
    assert "fp16 on sentiment is in one only" in compared.unmatched
    assert any(line.startswith("bf16 on sentiment: failed in two") for line in compared.unmatched)
    assert [r.format for r in compared.rows] == ["fp32"]


def test_a_record_copied_into_another_run_is_no_second_measurement(tmp_path):
    one = a_run(tmp_path / "one")
    two = make_run(tmp_path / "two", [timed("fp32", seed=1), timed("int8-dynamic", seed=1)])
    for path in (one / "cells").glob("*.json"):
        if read_record(path).cell.format == "int8-dynamic":
            document = unsealed(path.read_bytes())
            document["cautions"] = [{"id": "late", "message": "Was added since."}]
            (two / "cells" / path.name).write_bytes(sealed(document))
    (compared,) = compare([one, two])
    assert [r.format for r in compared.rows] == ["fp32"]
    assert compared.unmatched == (
        "int8-dynamic on sentiment is the same record in both: measured once, not twice",
    )


def test_the_same_twice_gives_the_same_bytes(pair):
    assert to_markdown(compare(pair)) == to_markdown(compare(pair))
    one, two = (run("compare", *pair, "--json").stdout for _ in range(2))
    assert one == two
    (document,) = json.loads(one)["comparisons"]
    assert document["answer"].startswith("Nothing is shown to differ")
    row = document["rows"][0]
    assert {"one", "other", "change", "low", "high", "p_value_holm", "verdict"} <= set(
        row["changes"][0]
    )


def test_names_that_try_to_break_out_are_harmless(tmp_path):
    evil = "fp32\x1b[31m|<script>"
    runs = [
        make_run(tmp_path / "one", [timed("fp32"), timed(evil)]),
        make_run(tmp_path / "two", [timed("fp32", seed=1), timed(evil, seed=1)]),
    ]
    done = run("compare", *runs)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    page = to_markdown(compare(runs))
    assert "<script>" not in page
    assert "\x1b" not in page


def one_line(done: Any, *words: str) -> None:
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def test_wrong_use_is_one_line(tmp_path, pair):
    one, two = pair
    one_line(run("compare", one), "nothing to compare")
    one_line(run("compare", one, one), "given twice")
    shutil.copytree(one, tmp_path / "copy")
    one_line(run("compare", one, tmp_path / "copy"), "the same run")
    one_line(run("compare", one, two, "--allow", "sed"), "unknown method field 'sed'", "seed")
    one_line(run("compare", one, tmp_path / "nowhere"), "no results folder")
    other = make_run(tmp_path / "other", [timed("bf16")])
    one_line(run("compare", one, other), "share no row")
    planned = make_cell(format="bf16")
    part = make_run(tmp_path / "part", [timed("fp32", seed=1)], missing=(planned,))
    one_line(run("compare", one, part), "not finished", "bf16 on sentiment")
    (compared,) = compare([one, part], unfinished=True)
    assert [r.format for r in compared.rows] == ["fp32"]
    assert compared.unmatched == ("int8-dynamic on sentiment is in one only",)
    (back,) = compare([make_run(tmp_path / "bf16", [timed("fp32"), timed("bf16")]), part], (), True)
    assert back.unmatched == ("bf16 on sentiment has no result yet in part",)
    one_line(run("compare", one, two, "--out", tmp_path / "no" / "x.md"), "can't write")


def test_errors_are_of_the_tree(pair, tmp_path):
    with pytest.raises(UsageError):
        compare(pair[:1])
    with pytest.raises(StoreError):
        compare([pair[0], tmp_path])


def test_stored_runs_of_other_workloads_are_refused_by_name():
    runs = [ROOT / "results" / name for name in ("demo-poisson-cpu", "demo-single-stream-cpu")]
    done = run("compare", *runs)
    assert done.returncode == 5
    assert "workload.scenario" in done.stdout


def test_rows_from_before_there_were_rounds_are_compared_by_their_requests(tmp_path):
    generator = np.random.default_rng(0)
    cells = [
        ok(
            "fp32",
            classified(REF_WRONG),
            served(0.01 * by * np.exp(generator.normal(0, 0.05, 200))),
            cell={"until_decided": None},
        )
        for by in (1.0, 1.5)
    ]
    runs = [make_run(tmp_path / str(k), [cell]) for k, cell in enumerate(cells)]
    (compared,) = compare(runs)
    assert changes(compared, "latency")["fp32"].word == "slower"
    # Both batches took the same time to the last digit: nothing shows how far that may be off.
    assert changes(compared, "throughput")["fp32"].verdict == "cannot-tell"
    assert "— and —" in " ".join(make_shown(compared).notes)
