"""What a sweep is expected to take: by roofs, by earlier records, and held against what it took."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from precision_explorer.formats import Support
from precision_explorer.models import ModelRef
from precision_explorer.plan import expand
from precision_explorer.plan.estimate import Asked, _compare_s, cell_estimate, timed_s
from precision_explorer.plan.spec import make_spec
from precision_explorer.plan.speeds import Speeds, by_record, by_roof, example_tokens, is_like
from precision_explorer.records import (
    Bandwidth,
    Launch,
    MatmulRate,
    ModelIdentity,
    Roof,
    read_record,
)
from precision_explorer.records.estimate import CellEstimate, Estimate, PartEstimate, Took
from precision_explorer.report.estimate import error_lines, estimate_lines, summary
from precision_explorer.runner.estimates import Stopwatch, expected, joined
from precision_explorer.runner.manager import Event
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Workload
from tests.command import run
from tests.test_plan import FACTS, VERSIONS

ROOT = Path(__file__).parents[1]
ROOF = Roof(
    threads=2,
    matmul=[
        MatmulRate(type="float32", kernel="torch", flops_per_s=1e11),
        MatmulRate(type="int8", kernel="fbgemm", flops_per_s=2e11),
    ],
    read=Bandwidth(bytes_per_s=1e10, working_set_bytes=1 << 27, how="sum"),
    cache=None,
    copied=None,
    launch=Launch(operator_s=1e-7, matmul_s=1e-7),
)
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512,
    "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 8, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip


def cell(format_id="fp32", workload=None, limit=8):
    identity = ModelIdentity(name="m", revision="r")
    ref = ModelRef("m", Path("/none"), identity, LLAMA, (), 17_000_000)
    recipe = {"kernel": None, "compute_dtype": "float32"}
    supports = {f: Support(f, "native", "a unit", recipe) for f in ("fp32", format_id)}
    plan = expand(
        make_spec({"formats": format_id}), [ref],
        [prepare(load_card("news-perplexity"), limit, 0)], workload or Workload(), FACTS, supports,
        VERSIONS, 2,
    )  # fmt: skip
    return next(p for p in plan.cells if p.cell.format == format_id)


def asked(**changes) -> Asked:
    usual = {"workload": Workload(), "metered": False, "audit": False, "reference": True}
    return Asked(**(usual | changes))


def speeds(request_s=0.01, **changes) -> Speeds:
    usual = {
        "load_s": 2.0, "quality_s": 5.0, "request_s": request_s,
        "batch_s": {1: request_s, 8: 8 * request_s}, "factor": 2.0, "source": "x",
    }  # fmt: skip
    return Speeds(**(usual | changes))


def test_a_request_by_the_roof_is_its_operations_over_the_peak_that_is_reached():
    """128 tokens through 4 blocks, one through the head, then 16 steps that read all weights."""
    planned = cell()
    found = by_roof(planned, planned.ref, Workload(), ROOF, 0.5)
    linear = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    weights = 4 * (linear + 2 * 1000 * 512 + 9 * 512)
    prefill = (2 * linear * 128 + 2 * 1000 * 512) / 1e11 / 0.5
    step = weights / 1e10 / 0.5
    assert found.request_s == pytest.approx(prefill + 16 * step, rel=0.05)
    declared = by_roof(planned, planned.ref, Workload(), ROOF, None)
    assert declared.request_s > found.request_s
    assert declared.factor > found.factor
    assert "declared" in declared.source


def test_twice_the_peak_of_int8_halves_what_is_bound_by_arithmetic():
    wide, narrow = cell(), cell("int8-dynamic")
    one = by_roof(wide, wide.ref, Workload(prompt_tokens=8192, output_tokens=1), ROOF, 1.0)
    other = by_roof(narrow, narrow.ref, Workload(prompt_tokens=8192, output_tokens=1), ROOF, 1.0)
    assert one.request_s / other.request_s == pytest.approx(2, rel=0.05)


def test_more_examples_take_a_longer_quality_pass_and_no_longer_rounds():
    few, many = cell(limit=8), cell(limit=80)
    short = by_roof(few, few.ref, Workload(), ROOF, 0.5)
    long = by_roof(many, many.ref, Workload(), ROOF, 0.5)
    assert long.quality_s / short.quality_s == pytest.approx(10, rel=0.35)
    assert long.request_s == short.request_s


def test_windows_of_the_workload_are_what_fast_requests_take():
    """3 s and 0.5 s of warm-up, whole in the first of three rounds and divided in the later ones;
    2 s at each of two batch sizes."""
    assert timed_s(speeds(1e-5), asked()) == pytest.approx(3 + 0.5 * (1 + 2 / 3) + 4, rel=0.01)


def test_least_requests_and_budgets_bound_what_slow_ones_take():
    assert timed_s(speeds(0.2), asked()) > 30 * 0.2
    # 60 s of requests and 20 s offline, but for what is under way when a budget ends: a request
    # and a batch of eight a round.
    slow = timed_s(speeds(20.0), asked())
    assert 80 < slow < 80 + 3 * (20 + 160 + 20 + 20)


def test_served_requests_take_the_declared_time_and_searched_ones_their_budget():
    offline = timed_s(speeds(1e-5), asked(workload=Workload(scenario="offline")))
    arrivals = {"kind": "poisson", "load": 0.5}
    served = Workload(
        scenario="server", arrivals=arrivals, duration_seconds=60, warmup_seconds=0, rounds=1
    )
    assert timed_s(speeds(1e-5), asked(workload=served)) == pytest.approx(offline + 60, rel=0.1)
    longer = served.model_copy(update={"tails": "p99", "budget_seconds": 180.0})
    assert timed_s(speeds(1e-5), asked(workload=longer)) > 180


def test_parts_of_a_cell_and_their_interval():
    planned = cell()
    made = cell_estimate(planned, speeds(power_w=10.0), asked())
    parts = {part.part: part for part in made.parts}
    assert [*parts] == ["load", "quality", "timed", "closing", "compare"]
    quality, timed = parts["quality"], parts["timed"]
    assert (quality.low_s, quality.seconds, quality.high_s) == (2.5, 5.0, 10.0)
    # What the workload declares does not move with the speed.
    assert timed.high_s / timed.low_s < 1.4
    assert made.energy_j == pytest.approx(10 * made.seconds)
    other = cell_estimate(planned, speeds(), asked(reference=False, audit=True))
    shorter = {part.part: part.seconds for part in other.parts}
    assert shorter["compare"] < parts["compare"].seconds
    assert shorter["audit"] > 0
    assert other.energy_j is None


def test_an_earlier_record_of_the_same_cell_tells_its_speeds_whatever_its_examples():
    from dataclasses import replace

    path = ROOT / "results" / "demo-sentiment-cpu" / "cells"
    record = next(
        r for p in sorted(path.glob("*.json"))
        if (r := read_record(p)).cell.format == "fp32"
    )  # fmt: skip
    planned = cell()
    assert not is_like(planned, record)
    same = replace(planned, cell=record.cell)
    assert is_like(same, record)
    found = by_record(same, record, "earlier")
    measured = record.measurements
    assert found.source == "measured in earlier"
    assert found.request_s == measured.latency.window_s / measured.latency.requests
    each = measured.quality.seconds / measured.quality.examples
    assert found.quality_s == pytest.approx(each * len(planned.task.examples))
    assert found.power_w == measured.energy.energy_j / measured.energy.window_s


def test_tokens_are_counted_by_characters_and_cut_at_the_card_s_length():
    task = prepare(load_card("sentiment-choice"), 1, 0)
    example = {"id": "0123456789", "prompt": "a" * 40, "choices": ["b" * 8, "c" * 8], "label": 1}
    assert example_tokens(example, task) == 14
    assert example_tokens({"prompt": "a" * 10**6}, task) == task.card.max_length


def estimate(took: list[Took] | None = None, cells=("a", "b")) -> Estimate:
    parts = [
        PartEstimate(part="load", seconds=2, low_s=1, high_s=4, source="roof"),
        PartEstimate(part="timed", seconds=8, low_s=8, high_s=9, source="declared windows"),
    ]
    made = [
        CellEstimate(
            cell_id=c, model="m", task="t", format="fp32", runtime="eager", parts=parts,
            power_w=10.0, power_source="estimated:cpu-time",
        )
        for c in cells
    ]  # fmt: skip
    return Estimate(
        device_name="d", roof="measured now", cells=made, usd_per_hour=3.6, price_basis="given",
        took=took or [],
    )  # fmt: skip


def test_the_table_adds_up_and_names_its_sources():
    text = "\n".join(estimate_lines(estimate()))
    assert "2 cells to measure: 0:20 (between 0:18 and 0:26), 200 J, $0.0200" in text
    assert "roof: measured now (d); power: estimated:cpu-time" in text
    assert "price: given" in text
    assert estimate_lines(None)[-1].startswith("nothing to estimate")


def test_the_error_is_shown_by_part_once_all_cells_are_done():
    half = Took(wall_s=11, parts={"load": 3.0, "timed": 8.0}, cells=["a"])
    rest = Took(wall_s=14, parts={"load": 6.0, "timed": 8.0}, cells=["b"])
    text = error_lines(estimate([half]))
    assert "1 of 2 cells are not finished" in "\n".join(text)
    assert summary(estimate([half])) is None
    done = estimate([half, rest])
    rows = {line.split()[0]: line.split() for line in error_lines(done)[1:4]}
    assert rows["load"] == ["load", "0:04", "0:02", "0:08", "0:09", "2.25", "no"]
    assert rows["timed"][-2:] == ["1.00", "yes"]
    assert rows["all"][-2:] == ["1.25", "yes"]
    assert summary(done) == "expected 0:20, took 0:25 (1.25 times as long)"


def test_a_sweep_that_goes_on_keeps_its_first_estimate_and_adds_what_is_new():
    stored = estimate([Took(wall_s=1, parts={}, cells=["a"])])
    assert joined(stored, None) is stored
    assert joined(stored, estimate(cells=("b",))) is stored
    more = joined(stored, estimate(cells=("b", "c")))
    assert [cell.cell_id for cell in more.cells] == ["a", "b", "c"]
    assert more.took == stored.took


def test_every_second_of_a_sweep_goes_to_the_part_that_passes():
    now, heard = [0.0], []
    watch = Stopwatch(heard.append, lambda: now[0])
    label = {"cell_id": "a", "model": "m", "task": "t", "format": "f", "runtime": "eager"}

    def tell(at: float, name: str, **data) -> None:
        now[0] = at
        watch(Event(name, data if name == "progress" else label | data))

    tell(1, "note", text="before any cell")
    tell(2, "start")
    tell(5, "progress", phase="load", done=1, total=1)
    tell(6, "progress", phase="quality", done=0, total=9)
    tell(10, "round", round=0, rounds=1)
    tell(11, "progress", phase="latency", done=0, total=1)
    tell(13, "progress", phase="latency", done=1, total=1)
    tell(13, "progress", phase="offline", done=0, total=1)
    tell(17, "progress", phase="offline", done=1, total=1)
    tell(20, "progress", phase="profile", done=0, total=1)
    tell(22, "cell", status="ok", reused=False)
    tell(22, "compare")
    tell(25, "progress", phase="noise", done=9, total=9)
    tell(27, "cell", status="ok", reused=True)
    took = watch.took()
    assert took.cells == ["a"]
    assert took.parts == {"load": 4, "quality": 4, "timed": 7, "closing": 5, "compare": 5}
    assert len(heard) == 14
    assert Stopwatch(heard.append).took() is None


@pytest.fixture(scope="module")
def swept(tmp_path_factory, quick_workload):
    folder = tmp_path_factory.mktemp("runs") / "demo"
    options = (
        "--formats", "fp32", "--limit", 8, "--workload", quick_workload, "--device", "cpu",
        "--threads", 1, "--out",
    )  # fmt: skip
    return run("sweep", *options, folder), folder, options


def test_a_sweep_keeps_its_estimate_and_says_how_far_it_was_off(swept):
    done, folder, options = swept
    assert done.returncode == 0, done.stderr
    assert "times as long); by part: precision-explorer plan --error-of" in done.stderr
    shown = run("plan", "--error-of", folder)
    assert shown.returncode == 0
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()}
    assert {"load", "quality", "timed", "closing", "compare", "all"} <= {*lines}
    assert run("verify", folder).returncode == 0
    before = (folder / "estimate.json").read_bytes(), (folder / "manifest.json").read_bytes()
    again = run("sweep", *options, folder)
    assert "1 already there" in again.stderr
    assert "times as long" not in again.stderr
    after = (folder / "estimate.json").read_bytes(), (folder / "manifest.json").read_bytes()
    assert before == after


def test_a_plan_rests_on_the_records_of_a_run_beside_it(swept):
    _, folder, options = swept
    shown = run("plan", "--estimate", *options, folder.parent / "other")
    assert shown.returncode == 0, shown.stderr
    # The same identity elsewhere is a cell to be measured, and its speeds are known.
    assert f"speeds: measured in {folder.name}" in shown.stdout
    assert "1 cells to measure: " in shown.stdout


def test_an_estimate_is_of_this_device_and_a_run_has_one_or_says_why(tmp_path):
    refused = run("plan", "--estimate", "--target", "h100")
    assert refused.returncode == 1
    assert "says nothing of a --target" in refused.stderr
    old = run("plan", "--error-of", ROOT / "results" / "demo-sentiment-cpu")
    assert old.returncode != 0
    assert "holds no estimate.json" in old.stderr


def test_the_line_at_a_sweep_s_start_names_its_unit():
    assert expected(65.0) == "expected to take about 1:05 (minutes:seconds)"
    assert expected(4000.0) == "expected to take about 1:06:40 (hours:minutes:seconds)"


@pytest.mark.parametrize(("kind", "dearer"), [("multiple-choice", True), ("generation", False)])
def test_distances_along_answers_that_are_there_cost_no_passes(kind, dearer):
    """A pass of `generation` writes the answers, which the comparison only reads."""
    planned = SimpleNamespace(
        has_quality=True, task=SimpleNamespace(card=SimpleNamespace(kind=kind)),
        cell=SimpleNamespace(runtime="eager"),
    )  # fmt: skip
    speeds = SimpleNamespace(quality_s=10.0)
    other, reference = (
        _compare_s(planned, speeds, SimpleNamespace(reference=is_reference), 1.0)
        for is_reference in (False, True)
    )
    assert (other, reference) == ((7.0, 27.0) if dearer else (0.0, 10.0))
