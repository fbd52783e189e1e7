"""From limits and one objective to a format: runs made by hand, the answers worked out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from precision_explorer.decision import Question, decisions
from precision_explorer.errors import UsageError
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.headline import headline
from precision_explorer.table import build
from precision_explorer.table.limits import Limits, limits_of
from tests.command import run
from tests.test_records import CELL
from tests.test_table import (
    ESTIMATED,
    LATENCIES,
    NVML,
    classified,
    make_run,
    ok,
    rows_of,
    served,
    skipped,
)

N = 1000
MANY = np.tile(LATENCIES, 10)
BUSY = [{"id": "machine-busy", "message": "Busy."}]


def cell(fmt: str, wrong: int = 100, **more: Any) -> tuple[Any, Any]:
    """A row that is wrong on the first `wrong` of 1,000 examples."""
    requests = more.pop("requests", served(MANY))
    return ok(fmt, classified(set(range(wrong)), N), requests, quality=1 - wrong / N, **more)


@pytest.fixture
def small(tmp_path):
    """The reference; bf16 loses nothing and is faster; int8 is cheaper still and loses 10 points;
    fp16 loses 0.7 points, which 1,000 examples can't tell from a budget of 1."""
    cells = [
        cell("fp32"),
        cell("bf16", rate=200.0, peak=2000),
        cell("int8-dynamic", 200, rate=400.0, peak=500),
        cell("fp16", 107, rate=300.0, peak=700),
        skipped("tf32"),
    ]
    return make_run(tmp_path / "small", cells)


def ask(path, objective="cost", task=None, **limits):
    reader = {"limits": Limits(**limits)}
    if limits.get("max_quality_loss"):
        reader["quality_budget"] = limits["max_quality_loss"]
    table = build([path], reader)
    return decisions(table, Question(objective, limits_of(table.context)), task)[0]


def test_the_best_of_those_that_hold_the_limits(small):
    found = ask(small)
    assert (found.status, found.chosen.format) == ("recommended", "bf16")
    assert found.chosen.best_probability == 1.0
    assert [(o.format, o.state) for o in found.options] == [
        ("bf16", "yes"), ("fp32", "yes"), ("fp16", "cannot-tell"), ("int8-dynamic", "no"),
    ]  # fmt: skip
    assert found.contender.format == "fp16"
    # Half the reference's cost, so twice as much is what the next one lets it rise.
    assert any("fp32 is next" in line and "100.0 % higher" in line for line in found.changes)
    assert any("int8-dynamic would qualify and be better" in line for line in found.changes)
    assert any(line.startswith("Load: ") for line in found.uncovered)
    assert any("only sentiment (1,000 examples)" in line for line in found.uncovered)


def test_a_wider_budget_lets_the_cheaper_one_in(small):
    assert ask(small, max_quality_loss=0.2).chosen.format == "int8-dynamic"
    assert ask(small, "memory", max_quality_loss=0.2).chosen.format == "int8-dynamic"
    assert ask(small, "quality").chosen.value == 0.9


def test_no_format_qualifies(small):
    found = ask(small, max_memory_bytes=100)
    assert (found.status, found.chosen) == ("none", None)
    assert found.nearest is not None
    text = headline(found)
    assert text.startswith("No format qualifies. The nearest is ")
    done = run("decide", small, "--max-memory", "100B")
    assert done.returncode == 5
    assert "No format qualifies" in done.stdout


def test_what_can_t_be_told_names_what_is_missing(tmp_path):
    """No p99 of 40 requests."""
    cells = [cell("fp32", requests=served(LATENCIES)), cell("bf16", requests=served(LATENCIES))]
    path = make_run(tmp_path / "few", cells)
    done = run("decide", path, "--slo", "p99=50ms")
    assert done.returncode == 5
    assert "Can't tell. The nearest is" in done.stdout
    assert "p99 needs n >= 299 requests (has 40)" in " ".join(done.stdout.split())
    assert run("decide", path, "--slo", "p50=50ms").returncode == 0
    assert "p99 of the latency; " in " ".join(
        run("decide", path, "--objective", "latency_p99").stdout.split()
    )


def test_needed_examples_are_named(small):
    done = run("decide", small, "--task", "sentiment")
    assert done.returncode == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("  - fp16: "))
    assert "needs n of about" in line
    assert "examples (has 1,000)" in line


def test_a_disturbed_machine_names_no_cheapest(tmp_path):
    cells = [cell("fp32"), cell("bf16", rate=200.0, cautions=BUSY)]
    found = ask(make_run(tmp_path / "busy", cells))
    assert found.status == "cannot-tell"
    assert found.nearest.format == "bf16"
    assert "idle machine" in found.missing
    # Memory is not moved by other work.
    assert ask(make_run(tmp_path / "b", cells), "memory").status == "recommended"


def test_unverified_rows_may_not_compete_and_emulated_ones_are_named(tmp_path):
    cells = [
        cell("fp32"),
        cell("bf16", rate=900.0, applied_changes={"execution": "unverified"}),
        cell("fp16", rate=300.0, applied_changes={"execution": "emulated"}),
    ]
    found = ask(make_run(tmp_path / "seen", cells))
    assert found.chosen.name == "fp16 (emulated)"
    assert any("slow software" in line for line in found.uncovered)
    (barred,) = [o for o in found.options if o.state == "barred"]
    assert (barred.format, barred.reason) == ("bf16", "what it ran was not verified (unverified)")


def test_a_dead_heat_is_no_winner_alone(tmp_path):
    cells = [cell("fp32", rate=50.0), cell("bf16"), cell("fp16")]
    found = ask(make_run(tmp_path / "tie", cells))
    assert found.ties == ("fp16",)
    assert {o.best_probability for o in found.qualifying} == {0.0, 1.0}


def test_estimated_energy_is_refused_in_one_line(tmp_path):
    path = make_run(tmp_path / "e", [cell("fp32", energy=ESTIMATED), cell("bf16", energy=NVML)])
    with pytest.raises(UsageError, match="is an estimate"):
        ask(path, "energy")
    for arguments in (("decide", path, "--objective", "energy"),
                      ("report", path, "--objectives", "quality,energy")):  # fmt: skip
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: energy is an estimate (estimated:cpu-time)")
        assert done.stderr.count("\n") == 1
    measured = make_run(tmp_path / "m", [cell("fp32", energy=NVML), cell("bf16", energy=NVML)])
    assert ask(measured, "energy").status == "recommended"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--max-memory", "0"), "max-memory must be above 0 bytes"),
        (("--max-memory", "much"), "max-memory: 'much' is no size"),
        (("--max-quality-loss", "-1%"), "max-quality-loss: '-1%' is no share"),
        (("--max-quality-loss", "0"), "max-quality-loss must be above 0"),
        (("--max-cost", "-1"), "max-cost must be above 0"),
        (("--max-cost", "nan"), "max-cost must be above 0"),
        (("--slo", "p99"), "'p99' is no latency objective"),
        (("--objective", "speed"), "unknown objective 'speed'"),
        (("--objectives", ","), "objectives are empty"),
        (("--task", "news"), "unknown task 'news'"),
        (("--price-per-hour", "-3"), "price-per-hour -3.0 is no price"),
    ],
)
def test_bad_limits_are_one_line_each(small, arguments, words):
    done = run("decide", small, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_document_for_programs(small):
    done = run("decide", small, "--json")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    (found,) = document["decisions"]
    assert found["status"] == "recommended"
    assert found["chosen"]["format"] == "bf16"
    assert found["options"][-1]["checks"][0]["state"] == "no"
    assert found["answer"].startswith("bf16, lowest cost per 1,000 requests")


def test_over_all_tasks_a_format_must_hold_on_each(tmp_path):
    """int8 is within on one task and outside on the other."""
    other = {"task": CELL["task"] | {"name": "other"}}
    cells = [
        cell("fp32"), cell("bf16", rate=200.0), cell("int8-dynamic", rate=400.0),
        cell("fp32", cell=other), cell("bf16", cell=other, rate=300.0),
        cell("int8-dynamic", 300, cell=other, rate=900.0),
    ]  # fmt: skip
    path = make_run(tmp_path / "two", cells)
    table = build([path])
    found = decisions(table, Question("cost", limits_of(table.context)))
    assert [d.chosen.format for d in found] == ["int8-dynamic", "bf16", "bf16"]
    costs = [o.value for d in found[:2] for o in d.options if o.format == "bf16"]
    assert found[2].chosen.value == pytest.approx(sum(costs) / 2)
    assert len(decisions(table, Question("quality", limits_of(table.context)))) == 2
    overall = {(r["format"], r["pareto_all_tasks"]) for r in table.rows}
    assert overall == {("fp32", "no"), ("bf16", "yes"), ("int8-dynamic", "yes")}
    assert "front over all tasks" in to_markdown(table)


# -- the front with objectives and limits ------------------------------------------------------


def test_objectives_are_the_reader_s_in_any_direction(small):
    rows = rows_of(build([small], {"objectives": ("throughput", "memory")}))
    assert {f: r["pareto"] for f, r in rows.items()} == {
        "fp32": "no", "bf16": "no", "int8-dynamic": "yes", "fp16": "no", "tf32": None,
    }  # fmt: skip
    (words,) = build([small], {"objectives": ("value", "quality")}).context.objectives
    assert words == "useful results per dollar, quality"


def test_limits_leave_rows_out_of_the_front_with_the_reason(small):
    limits = Limits(max_quality_loss=0.01, max_memory_bytes=1500)
    rows = rows_of(build([small], {"limits": limits}))
    assert rows["int8-dynamic"]["pareto"] is rows["bf16"]["pareto"] is None
    assert rows["bf16"]["pareto_note"] == "left out: memory (peak memory 2.00 kB)"
    assert rows["int8-dynamic"]["pareto_note"].startswith("left out: quality (loss beyond 1.0 %")
    # What can't be told stays in.
    assert rows["fp16"]["pareto"] == "yes"
    done = run("report", small, "--max-memory", "1500B")
    assert "Left out before: bf16 (memory (peak memory 2.00 kB))" in " ".join(done.stdout.split())


def test_rows_that_nothing_tells_apart_are_ties(tmp_path):
    cells = [cell("fp32"), cell("bf16"), cell("fp16", requests=served(MANY * 3))]
    rows = rows_of(build([make_run(tmp_path / "t", cells)]))
    assert rows["fp32"]["pareto_ties"] == "bf16"
    assert rows["bf16"]["pareto_ties"] == "fp32"
    assert rows["fp16"]["pareto_ties"] is None


# -- the answer on top, and text that tries to break out ---------------------------------------


def test_the_answer_stands_on_top_with_the_three_questions_apart(small):
    table = build([small])
    text = to_markdown(table)
    assert text.index("## The answer") < text.index("## Context")
    for topic in ("Lowest cost", "Most efficient", "Most value", "Lowest latency"):
        assert text.count(f"**{topic}:**") == 1
    assert "**Lowest cost:** bf16, cost per 1,000 requests" in text
    assert "<strong>Lowest cost:</strong> bf16" in to_html(table)


def test_names_that_try_to_break_out_are_harmless(tmp_path):
    evil = '=HYPERLINK("x")<script>\x1b[31m|`\u202e'
    other = {"model": CELL["model"] | {"name": evil}}
    cells = [cell("fp32", cell=other), cell("bf16", cell=other, rate=200.0)]
    path = make_run(tmp_path / "evil", cells)
    table = build([path])
    assert "<script>" not in to_html(table)
    assert "<script>" not in to_markdown(table)
    assert to_csv(table).splitlines()[1].startswith("\"'=HYPERLINK")
    shown = run("decide", path).stdout
    assert "bf16, lowest cost" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    document = run("decide", path, "--json").stdout
    assert "\x1b" not in document
