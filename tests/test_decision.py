"""From limits and one objective to a format: runs made by hand, the answers worked out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from precision_explorer.decision import Question, decisions
from precision_explorer.economics import Slo
from precision_explorer.errors import UsageError
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.answers import answers
from precision_explorer.report.headline import headline
from precision_explorer.table import build
from precision_explorer.table.groups import groups
from precision_explorer.table.limits import Limits, limits_of
from precision_explorer.units import (
    duration_option,
    number_option,
    parse_duration,
    parse_share,
    parse_size,
    share_option,
    size_option,
)
from tests.command import run
from tests.test_records import CELL
from tests.test_table import (
    ESTIMATED,
    LATENCIES,
    NVML,
    classified,
    make_run,
    modelled,
    ok,
    rows_of,
    served,
    shuffled,
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


def test_the_text_says_how_the_price_came_about(small, tmp_path):
    prices = tmp_path / "mine.yaml"
    prices.write_text(
        "currency: USD\nkind: ownership\npurchase_usd: 8760\nlife_years: 1\nutilisation: 0.5\n"
        "power_w: 500\npue: 1.5\nusd_per_kwh: 0.2\nsource: our invoice\ndate: 2026-11-01\n"
    )
    first = run("decide", small, "--price", prices).stdout.split("\n\n")[0]
    said = " ".join(first.split())
    assert said.startswith("Price: ")
    # 8,760 dollars over a year, half of it in use: 2 an hour; 0.5 kW at 1.5 times 0.2 dollars.
    assert "$2.15" in said
    for part in ("our invoice", "2026-11-01", "8760", "0.5", "500", "1.5", "0.2"):
        assert part in said.replace(",", ""), part


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


def test_notes_that_try_to_break_out_are_harmless(tmp_path):
    path = make_run(tmp_path / "evil", [cell("fp32"), cell("bf16", rate=200.0)])
    table = build([path])
    row = table.rows[1]
    row.update(verdict="cannot-tell", verdict_note="boom \x1b[2J\nline2")
    texts = [a.text for a in answers(table, groups(table)[0])]
    assert any("boom [2J line2" in text for text in texts)
    assert not any("\x1b" in text or "\n" in text for text in texts)


# -- rates of their own, nothing verified, nothing solved ----------------------------------------


def searched(path, *rates):
    """The table of a run whose rows held and missed these rates."""
    table = build([path])
    for row, (held, missed) in zip(table.rows, rates, strict=False):
        row.update(search_slo="p90=0.06s", held_rate_per_s=held, missed_rate_per_s=missed)
    return table


def asked_of(table, objective):
    return decisions(table, Question(objective, limits_of(table.context)))[0]


def test_latencies_at_different_rates_rank_nothing(tmp_path):
    path = make_run(tmp_path / "s", [cell("fp32"), cell("bf16", requests=served(MANY * 2))])
    table = searched(path, (10.0, 12.0), (20.0, 24.0))
    found = asked_of(table, "latency")
    assert (found.status, found.chosen, found.nearest) == ("cannot-tell", None, None)
    assert all(option.best_probability is None for option in found.options)
    assert headline(found).startswith("Can't tell: formats were served at rates of their own")
    text = to_markdown(table)
    assert "**Lowest latency:**" not in text
    assert "**Largest rate:** bf16, largest rate that held 20.0 /s (the best of 2 in 100 %" in text
    assert "highest largest" not in headline(asked_of(table, "rate"))


def test_shares_of_their_own_capacity_rank_no_latency(tmp_path):
    own = [{"id": "serving-own-load", "message": "Own."}]
    path = make_run(tmp_path / "own", [cell("fp32"), cell("bf16", cautions=own)])
    assert "**Lowest latency:**" not in to_markdown(build([path]))
    assert "**Largest rate:**" not in to_markdown(build([path]))
    assert ask(path, "latency_p90").chosen is None


@pytest.mark.parametrize(
    ("of_fp32", "ties"), [((10.0, 20.0), ()), ((10.0, 21.0), ("fp32",)), ((10.0, None), ("fp32",))]
)
def test_rates_tie_where_their_answers_overlap(tmp_path, of_fp32, ties):
    path = make_run(tmp_path / "s", [cell("fp32"), cell("bf16")])
    found = asked_of(searched(path, of_fp32, (20.0, 24.0)), "rate")
    assert (found.chosen.format, found.ties) == ("bf16", ties)


def test_a_rate_that_was_not_searched_names_the_option(small):
    assert "--find-rate" in headline(ask(small, "rate"))


def test_where_nothing_was_verified_nothing_is_recommended(tmp_path):
    declared = {"applied_changes": {"execution": "unverified"}}
    path = make_run(tmp_path / "u", [cell("fp32", **declared), cell("bf16", **declared)])
    found = ask(path)
    assert (found.status, found.chosen, found.nearest) == ("unverified", None, None)
    assert headline(found) == (
        "No recommendation: what ran was not verified (a server's format is declared, not proved)."
    )
    assert "No format qualifies" not in to_markdown(build([path]))
    assert run("decide", path).returncode == 5


def test_a_reference_that_solves_nothing_is_no_measure(tmp_path):
    path = make_run(tmp_path / "zero", [cell("fp32", N), cell("bf16", N, rate=200.0)])
    for objective in ("cost", "value", "quality"):
        found = ask(path, objective)
        assert (found.status, found.chosen, found.changes) == ("cannot-tell", None, ())
        assert headline(found) == "Can't tell: the reference solves none of the 1,000 examples."
        assert not found.qualifying


def test_the_only_one_that_qualifies_is_the_best_in_no_resample(tmp_path):
    path = make_run(tmp_path / "one", [cell("fp32"), cell("int8-dynamic", 300)])
    found = ask(path)
    assert found.chosen.best_probability is None
    assert "the reference; no other format is known to hold" in headline(found)
    lines = run("decide", path).stdout.splitlines()
    assert any("fp32" in line and "reference" in line and "—" in line for line in lines)


def test_too_few_requests_are_not_called_one_measurement(tmp_path):
    few = served(LATENCIES[:4])
    path = make_run(tmp_path / "f", [cell("fp32", requests=few), cell("bf16", requests=few)])
    assert "too few requests were timed" in headline(ask(path, "latency"))
    assert "each was measured once" in headline(ask(path, "memory"))


def test_energy_that_one_group_lacks_is_said_of_that_group(tmp_path):
    other = {"task": CELL["task"] | {"name": "other"}}
    cells = [
        cell("fp32", energy=NVML), cell("bf16", energy=NVML),
        cell("fp32", cell=other), cell("bf16", cell=other),
    ]  # fmt: skip
    table = build([make_run(tmp_path / "e", cells)])
    found = decisions(table, Question("energy", limits_of(table.context)))
    assert [d.status for d in found] == ["recommended", "cannot-tell", "cannot-tell"]
    assert headline(found[1]).startswith("Can't tell: energy was not measured")


def test_repeated_runs_have_no_answer_over_all_tasks(tmp_path):
    other = {"task": CELL["task"] | {"name": "other"}}
    paths = []
    for name, rate in (("one", 100.0), ("two", 150.0)):
        cells = [cell("fp32", rate=rate), cell("fp32", cell=other, rate=rate)]
        paths.append(make_run(tmp_path / name, cells))
    table = build(paths)
    found = decisions(table, Question("cost", limits_of(table.context)))
    assert [d.tasks for d in found] == [("sentiment",), ("other",)]
    assert "several runs have fp32; give one run at a time." in found[0].uncovered[-1]


def test_value_of_what_is_no_share_is_no_useful_result(tmp_path):
    cells = [
        ok(f, modelled(n=200), served(MANY), metric="token_perplexity", quality=9.0)
        for f in ("fp32", "bf16")
    ]
    path = make_run(tmp_path / "lm", cells, metric="token_perplexity")
    found = ask(path, "value", max_quality_loss=0.05)
    assert "highest requests within the quality budget per dollar" in headline(found)
    assert "useful results" not in headline(found)


def test_nothing_that_ran_is_one_line(tmp_path):
    done = run("decide", make_run(tmp_path / "none", [skipped("fp32")]))
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1
    assert "no format has a result" in done.stderr
    assert done.stdout == ""


# -- advice that can be followed, and how sure -----------------------------------------------------


@pytest.fixture
def strict(tmp_path):
    """bf16 is the cheapest and fastest, and worst in what the limits ask of it."""
    slow = served(shuffled(np.linspace(0.0123, 0.05432, 400)))
    cells = [
        cell("fp32", requests=served(MANY / 10)),
        cell("bf16", 173, rate=317.0, peak=447_654_321, requests=slow),
    ]
    return make_run(tmp_path / "strict", cells)


WIDE = ("--max-quality-loss", "50%")


@pytest.mark.parametrize(
    ("limits", "objective", "option"),
    [
        (("--max-quality-loss", "1%"), "cost", "--max-quality-loss"),
        ((*WIDE, "--max-memory", "2kB"), "cost", "--max-memory"),
        ((*WIDE, "--slo", "p90=20ms"), "cost", "--slo"),
    ],
)
def test_advice_that_is_followed_lets_the_format_in(strict, limits, objective, option):
    def options(extra):
        done = run("decide", strict, "--objective", objective, "--json", *extra)
        (found,) = json.loads(done.stdout)["decisions"]
        return found

    before = options(limits)
    assert before["chosen"]["format"] == "fp32"
    (line,) = [x for x in before["changes"] if "would qualify and be better" in x]
    advised = line.removesuffix(".").partition(f"{option} ")[2]
    place = limits.index(option) + 1
    followed = (*limits[:place], advised, *limits[place + 1 :])
    assert options(followed)["chosen"]["format"] == "bf16"


def test_a_cost_that_is_advised_is_a_number_that_holds(tmp_path):
    cells = [
        cell("fp32", rate=1000.0, requests=served(MANY * 2)),
        cell("bf16", rate=317.0, requests=served(MANY)),
    ]
    path = make_run(tmp_path / "c", cells)
    found = ask(path, "latency", max_cost_per_1k_usd=0.0002)
    (line,) = [x for x in found.changes if "would qualify and be better" in x]
    advised = float(line.removesuffix(".").partition("--max-cost ")[2])
    assert ask(path, "latency", max_cost_per_1k_usd=advised).chosen.format == "bf16"


def test_advice_that_would_not_do_is_not_given(strict):
    """Another limit is open (too few requests for p99.9), and a relative loss has no bound."""
    found = ask(strict, max_quality_loss=0.01, slo=Slo(0.999, 1.0))
    assert not any("with --" in line for line in found.changes)
    (line,) = [x for x in found.changes if "by its figures needs at least" in x]
    assert "--max-quality-loss" in line
    assert "whether it holds p999 can't be told" in line


@pytest.mark.parametrize("value", [0.1, 447_000_001, 58.4e-3, 1 / 3, 999.9, 0.07])
def test_limits_are_rounded_up_as_their_options_read_them(value):
    pairs = [
        (size_option, parse_size), (duration_option, parse_duration), (share_option, parse_share),
        (number_option, float),
    ]  # fmt: skip
    for write, read in pairs[1:] if value < 1 else pairs:
        assert value <= read(write(value)) <= value * 1.02


def test_no_flip_is_no_certainty(small):
    """bf16 differs nowhere: the draws have no spread, the verdict's bound is 95 %."""
    found = ask(small)
    (check,) = found.chosen.checks
    assert (check.probability, check.at_least) == (0.95, True)
    shown = run("decide", small).stdout
    assert "How sure it is to hold the limits: quality at least 95 %." in shown
    only = run("decide", small, "--max-memory", "1500B", "--max-quality-loss", "0.5%").stdout
    assert "fp32, lowest cost" in only
    assert "How sure" not in only


def test_what_is_missing_for_net_dollars_is_what_was_not_given(small):
    priced = " ".join(run("decide", small, "--objective", "net").stdout.split())
    assert "Missing: what a correct result is worth" in priced
    assert "a price per hour" not in priced


def test_a_bound_without_its_unit_is_refused(small):
    found = run("decide", small, "--max-memory", "8")
    assert (found.returncode, found.stderr) == (
        1, "error: max-memory: 8 is 8 bytes; write it as 8GB\n"
    )  # fmt: skip


def test_objectives_of_the_front_are_no_option_of_decide(small):
    """They would move no answer."""
    assert "No such option" in run("decide", small, "--objectives", "cost,quality").stderr
    assert "objectives are empty" in run("report", small, "--objectives", ",").stderr
    assert "--objectives" not in run("decide", "--help").stdout


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steady": "drifting"}, "had not settled"),
        ({"cautions": "static-batching"}, "not batched continuously"),
        ({"cautions": "rounds-not-interleaved"}, "not timed in turn with the reference"),
        (
            {"background": "cpu:1", "disturbed_latency_p50_s": 0.06},
            "Beside the background (cpu:1) the median latency is 60.0 ms for bf16",
        ),
        ({"background": "cpu:1"}, "a second measurement beside background work"),
    ],
)
def test_what_cautions_take_away_is_said(small, changed, words):
    table = build([small])
    assert not any(words in line for line in asked_of(table, "cost").uncovered)
    rows_of(table)["bf16"].update(changed)
    assert sum(words in line for line in asked_of(table, "cost").uncovered) == 1
