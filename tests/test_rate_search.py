"""The search of the largest rate that holds an objective, from its logic to what is read of it."""

from __future__ import annotations

import io
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console

from precision_explorer.errors import UsageError
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.measure.clock import VirtualClock
from precision_explorer.plan.spec import make_spec
from precision_explorer.report import to_csv, to_html, to_markdown
from precision_explorer.report.terminal import print_table
from precision_explorer.runner import serving as serving_module
from precision_explorer.runner.rate_search import find_rate
from precision_explorer.runner.rounds import joined_block
from precision_explorer.runner.searched import SearchingServer
from precision_explorer.runner.sweep import workload_of
from precision_explorer.stats.percentiles import lower_bound, order_interval
from precision_explorer.stats.rate_search import (
    Bracket,
    Judgement,
    Search,
    Seen,
    bracket,
    judge,
    rate_at,
    rung_below,
)
from precision_explorer.stats.tails import tail
from precision_explorer.table import build
from precision_explorer.table.front import mark_front
from precision_explorer.table.scenario_words import latency_words
from precision_explorer.workload import Workload, load_workload, plan_schedule
from scripts.check_rate_search import CAPACITY, RESOLUTION, ends_of, rules_for, search
from tests.test_store import arrow
from tests.test_table import REF_WRONG, classified, make_run, ok

# -- one rate ----------------------------------------------------------------------------------

FAST = np.random.default_rng(0).exponential(0.01, 2000)
"""p99 of about 46 ms, with an interval of some 40 to 53 ms."""


@pytest.mark.parametrize(
    ("windows", "limit_s", "verdict", "why"),
    [
        ([Seen(FAST)], 0.1, "held", ""),
        ([Seen(FAST)], 0.03, "missed", "above the limit"),
        ([Seen(FAST)], 0.046, "unsure", "too close to tell"),
        ([Seen(FAST[:100])], 0.1, "unsure", "needs n >= 299"),
        # A few requests that are all too slow are enough to say so.
        ([Seen(FAST[:20] + 1)], 0.1, "missed", "above the limit"),
        ([Seen(FAST, refused=True)], 0.1, "unsure", "the loop was late"),
        ([Seen(FAST + 1, refused=True), Seen(FAST)], 0.1, "held", ""),
        ([Seen(FAST, grew=True)], 0.1, "unsure", "the queue grew"),
        ([Seen(FAST, grew=True)] * 2, 0.1, "missed", "the queue grew"),
        ([Seen(FAST, unserved=True)], 0.1, "missed", "requests were left"),
        # Windows of one rate are taken together.
        ([Seen(part) for part in np.array_split(FAST, 8)], 0.1, "held", ""),
    ],
)
def test_windows_say_whether_their_rate_holds(windows, limit_s, verdict, why):
    found = judge(windows, 0.99, limit_s)
    assert (found.verdict, found.why) == (verdict, why)


def test_the_lower_bound_is_the_interval_s_lower_end_and_there_for_fewer_values():
    assert lower_bound(FAST, 0.99) == order_interval(FAST, 0.99)[0]
    assert order_interval(FAST[:50], 0.99) is None
    assert FAST[:50].min() <= lower_bound(FAST[:50], 0.99) <= FAST[:50].max()
    assert lower_bound(np.zeros(0), 0.99) is None


def test_rungs_are_a_resolution_apart_wherever_a_search_begins():
    assert rate_at(1, 0.05) / rate_at(0, 0.05) == pytest.approx(1.05)
    for rung in (-40, -1, 0, 7, 120):
        assert rung_below(rate_at(rung, 0.05), 0.05) == rung
    assert rung_below(0.99 * rate_at(7, 0.05), 0.05) == 6


# -- which rate next ---------------------------------------------------------------------------


def judgement(verdict: Any) -> Judgement:
    return Judgement(verdict, "", tail(FAST, 0.99))


def searched(holds: Any, start: int = 50, floor: int = 20, top: int = 64) -> Search:
    """A search that is told `holds(rung)` until it asks for no more."""
    made = Search(start, floor, top, most=2, stride=4)
    for _ in range(200):
        rung = made.next(guess=start + 7)
        if rung is None:
            return made
        made.told(rung, judgement(holds(rung)))
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("last", [20, 21, 33, 50, 56, 63, 64, 65, 90])
def test_a_sharp_edge_is_found_to_one_rung(last):
    found = searched(lambda rung: "held" if rung <= last else "missed")
    assert found.bracket == Bracket(last, last + 1)
    assert len(found.found) < 20


@pytest.mark.parametrize("band", [(50, 50), (49, 58), (30, 41), (60, 70)])
def test_what_can_not_be_told_stands_between_the_ends(band):
    low, high = band

    def holds(rung: int) -> str:
        return "held" if rung < low else "missed" if rung > high else "unsure"

    found = searched(holds)
    assert found.bracket == Bracket(low - 1, high + 1)
    # Each of those that could not be told had all of its windows before it was given up.
    assert {found.tries[rung] for rung in found.found if low <= rung <= high} == {2}


def test_where_no_rate_holds_the_lowest_is_tried_and_no_more():
    found = searched(lambda rung: "missed")
    assert found.bracket == Bracket(None, 20)
    assert len(found.found) <= 3


def test_the_bracket_s_upper_end_is_above_the_lower_one():
    assert bracket({5: "missed", 6: "held", 8: "missed", 7: "unsure"}) == Bracket(6, 8)
    assert bracket({5: "unsure"}) == Bracket(None, None)


# -- against theory, on a virtual clock --------------------------------------------------------


@pytest.mark.parametrize(("load", "seed"), [(0.7, 0), (0.7, 1)])
def test_the_largest_rate_of_an_m_m_1_queue_lies_between_the_ends(load, seed):
    """Its p99 is ln(100) / (capacity - rate)."""
    truth = load * CAPACITY
    points = search(rules_for(math.log(100) / (CAPACITY - truth), 240.0), seed)
    ends = ends_of(points)
    assert rate_at(ends.held, RESOLUTION) <= truth
    assert ends.missed is None or truth <= rate_at(ends.missed, RESOLUTION)
    # It is no answer that could not be wrong.
    assert rate_at(ends.held, RESOLUTION) > 0.6 * truth
    tried = [point.rate_per_s for point in points]
    assert max(tried) > truth
    assert sum(w.spent_s for point in points for w in point.windows) < 1.6 * 240


def test_a_limit_below_the_service_is_held_by_no_rate():
    points = search(rules_for(0.004, 60.0), 0)
    assert ends_of(points).held is None
    assert min(point.rate_per_s for point in points) < 0.13 * CAPACITY
    assert all(point.found.verdict == "missed" for point in points)


def test_formats_meet_the_same_rates_and_each_rate_the_same_arrivals():
    """Whatever their capacities, and a rate's windows differ."""
    plans: dict[tuple[int, ...], set[str]] = {}
    rates: list[set[float]] = []
    for capacity in (180.0, 183.0):
        rules, asked = rules_for(0.08, 60.0), []

        def serve_at(rate: float, seconds: float, draw: tuple[int, ...], asked=asked, rules=rules):
            asked.append(rate)
            plan = plan_schedule(rules, 3, 7, rate, duration_s=5.0, draw=draw)
            plans.setdefault((*draw, round(rate * 1e6)), set()).add(plan.hash)
            return search_window(plan)

        find_rate(rules, capacity, serve_at)
        rates.append(set(asked))
    for rate in set.union(*rates):
        rung = math.log(rate) / math.log(1 + RESOLUTION)
        assert rung == pytest.approx(round(rung), abs=1e-6)
    assert rates[0] & rates[1]
    assert all(len(found) == 1 for found in plans.values())
    assert len(set.union(*plans.values())) == len(plans)


def search_window(plan: Any) -> Any:
    from precision_explorer.measure.serving import ServingRules, serve
    from scripts.check_rate_search import Window

    clock = VirtualClock()

    def service(places: list[int]) -> list[dict[str, Any]]:
        clock.advance(0.005)
        return [{}]

    return Window(
        serve(plan.times_s, service, ServingRules(), clock=clock, duration_s=plan.duration_s)
    )


# -- a cell and its row ------------------------------------------------------------------------

GOAL = {"percentile": "p90", "limit_s": 0.06}
RULES: dict[str, Any] = {
    "scenario": "server",
    "arrivals": {"kind": "poisson", "search": GOAL},
    "warmup_requests": 1,
    "warmup_seconds": 0.1,
    "offline_seconds": 0,
    "offline_min_batches": 1,
    "budget_seconds": 60,
    "max_batch": 1,
}


class Stub:
    """An adapter whose requests take drawn times of a virtual clock."""

    generates = False

    def __init__(self, clock: VirtualClock, mean_s: float) -> None:
        self.clock, self.mean_s, self.rng = clock, mean_s, np.random.default_rng(3)

    def offline(self, indices: list[int]) -> dict[str, Any]:
        for _ in indices:
            self.clock.advance(self.mean_s * float(self.rng.gamma(4, 1 / 4)))
        return {}


def virtual(patch: pytest.MonkeyPatch) -> VirtualClock:
    made = VirtualClock()
    patch.setattr(serving_module, "RealClock", lambda: made)
    patch.setattr(SearchingServer, "_capacity", lambda self, found: 1 / self.adapter.mean_s)
    return made


@pytest.fixture
def clock(monkeypatch):
    return virtual(monkeypatch)


@pytest.fixture(scope="module")
def slow() -> Any:
    """A search at 20 ms a request, which many tests read."""
    with pytest.MonkeyPatch.context() as patch:
        return made_by(virtual(patch), 0.02)


@pytest.fixture(scope="module")
def both(slow) -> list[Any]:
    """It and one at 5 ms as the cells of two formats."""
    with pytest.MonkeyPatch.context() as patch:
        return [cell_of("fp32", slow), cell_of("int8", made_by(virtual(patch), 0.005))]


def made_by(clock: VirtualClock, mean_s: float, **changes: Any) -> Any:
    rules = Workload.model_validate(RULES | changes)
    server = SearchingServer(Stub(clock, mean_s), rules, 0, lambda: None, [None] * 6)
    return server.search([1], UnavailableSensor(), 0, True)


def cell_of(fmt: str, made: Any, **changes: Any) -> tuple[Any, dict[str, bytes]]:
    """The search as a stored cell, by way of what the worker answers."""
    rules = Workload.model_validate(RULES | changes).rules()
    record, rows = ok(fmt, classified(REF_WRONG), [], {"workload": rules})
    block = {
        "latency": None, "serving": [w.model_dump() for w in made.serving],
        "tried": [one.model_dump() for one in made.tried],
        "throughput": made.throughput.model_dump(), "energy": made.energy[0].model_dump(),
        "place": {"round": 0, "place": 0, "cells": 2, "interleaved": True, "started_s": 0.0},
    }  # fmt: skip
    joined = joined_block([block])
    document = record.model_dump()
    for name in ("serving", "tried"):
        document["measurements"][name] = json.loads(json.dumps(joined[name]))
    document["measurements"]["latency"] = None
    requests = [row | {"id": "e0", "round": 0} for row in made.rows]
    return type(record).model_validate(document), rows | {"request": arrow(requests)}


def test_every_request_of_every_window_is_kept(slow):
    made = slow
    counted = [row for row in made.rows if row["window"] in ("measure", "tried", "settle")]
    per_window = [(k, j) for k, one in enumerate(made.tried) for j in range(len(one.windows))]
    assert {(row["point"], row["attempt"]) for row in made.rows} == set(per_window)
    total = sum(w.requests for one in made.tried for w in one.windows)
    assert len([row for row in counted if row["window"] != "settle"]) == total
    best = {row["point"] for row in made.rows if row["window"] == "measure"}
    (place,) = best
    shown = [row for row in made.rows if row["window"] == "measure"]
    assert len(shown) == sum(w.requests for w in made.serving)
    assert made.tried[place].rate_per_s == pytest.approx(
        made.serving[0].offered_rate_per_s, rel=0.3
    )


def test_a_row_tells_between_which_rates_the_answer_lies(both, tmp_path):
    table = build([make_run(tmp_path / "run", both, {"price_per_hour": 3.6})])
    slow, fast = table.rows
    for row, capacity in ((slow, 50.0), (fast, 200.0)):
        assert row["search_slo"] == "p90=0.06s"
        assert 0.2 * capacity < row["held_rate_per_s"] < row["missed_rate_per_s"] < 1.3 * capacity
        assert row["achieved_rate_per_s"] == pytest.approx(row["held_rate_per_s"], rel=0.25)
        assert row["latency_p90_s"] <= 0.06
        assert row["search_note"] is None
        # Value counts what was in time at that rate, though the reader gave no objective.
        within = row["value_per_usd"] * 3.6 / (3600 * row["quality"])
        assert 0.9 * row["achieved_rate_per_s"] <= within <= row["achieved_rate_per_s"]
    assert fast["held_rate_per_s"] > slow["missed_rate_per_s"]
    assert "largest rate that held" in table.context.objectives[0]
    assert "median latency" not in table.context.objectives[0]
    # By another objective the same windows give another rate.
    stricter = build([tmp_path / "run"], {"slo": "p90=30ms", "price_per_hour": 3.6}).rows[1]
    assert 0 < stricter["value_per_usd"] <= fast["value_per_usd"]
    assert not np.isclose(stricter["value_per_usd"], fast["value_per_usd"])
    assert build([tmp_path / "run"], {"slo": "p90=1ms", "price_per_hour": 3.6}).rows[0][
        "value_per_usd"
    ] in (0.0, None)


def test_reports_show_the_curve_of_each_format(both, tmp_path):
    table = build([make_run(tmp_path / "run", both)])
    text, page = to_markdown(table), to_html(table)
    assert "### Largest rate with p90 within 60.0 ms" in text
    assert "### int8: latency against rate" in text
    assert re.search(
        r"\*\*Largest rate:\*\* int8 held p90 within 60.0 ms up to .*largest rate", text
    )
    assert "| held |" in text
    assert "missed: " in text
    assert page.count('<path class="curve') == 2
    points = sum(len(curve.points) for curve in table.curves)
    drawn = page.count('<path class="spot') - 2  # Two in the key.
    assert 4 <= drawn <= points
    assert "p90 = 60.0 ms" in page
    console = Console(width=140, record=True, file=io.StringIO())
    print_table(table, console)
    assert "Largest rate with p90 within 60.0 ms" in console.export_text()
    assert "search_slo" in to_csv(table).splitlines()[0]


def test_an_objective_that_no_rate_holds_is_said_with_the_best_that_was_found(clock, tmp_path):
    limit = {"arrivals": {"kind": "poisson", "search": GOAL | {"limit_s": 0.01}}}
    cell = cell_of("fp32", made_by(clock, 0.02, **limit), **limit)
    table = build([make_run(tmp_path / "run", [cell], {"price_per_hour": 3.6})])
    (row,) = table.rows
    assert row["status"] == "ok"
    assert row["held_rate_per_s"] is None
    assert row["missed_rate_per_s"] < 0.13 * 50
    assert re.fullmatch(
        r"no rate held p90 within 10.0 ms: even at [\d.]+ /s, the lowest that was tried, it is "
        r"\d\d\.\d ms", row["search_note"],
    )  # fmt: skip
    assert "no-rate-held" in row["cautions"]
    assert row["value_per_usd"] == 0.0
    assert "No rate was shown to hold p90 within 10.0 ms in fp32" in to_markdown(table)


def test_a_budget_for_too_few_requests_says_how_many_it_takes(clock, tmp_path):
    short = {
        "arrivals": {"kind": "poisson", "search": GOAL | {"percentile": "p999", "limit_s": 1.0}},
        "budget_seconds": 3, "duration_seconds": 2,
    }  # fmt: skip
    table = build(
        [make_run(tmp_path / "run", [cell_of("fp32", made_by(clock, 0.02, **short), **short)])]
    )
    (row,) = table.rows
    assert row["held_rate_per_s"] is row["missed_rate_per_s"] is row["value_per_usd"] is None
    assert "needs n >= " in row["search_note"]


def test_a_late_loop_is_no_answer(clock, tmp_path, monkeypatch):
    from precision_explorer.measure.served import ServingSeries

    monkeypatch.setattr(ServingSeries, "refused", lambda self: "the loop was late")
    made = made_by(clock, 0.02, budget_seconds=20)
    assert {row["window"] for row in made.rows} <= {"cold", "warmup", "settle", "measure", "tried"}
    table = build([make_run(tmp_path / "run", [cell_of("fp32", made, budget_seconds=20)])])
    (row,) = table.rows
    assert row["held_rate_per_s"] is row["missed_rate_per_s"] is row["latency_p50_s"] is None
    assert "the loop was late" in row["search_note"]


def test_value_by_another_objective_is_drawn_from_the_rate_that_holds_it(both, tmp_path):
    run = make_run(tmp_path / "run", both[:1], {"price_per_hour": 1})
    (own,) = build([run]).samples.values()
    (one,) = build([run], {"slo": "p90=100ms"}).samples.values()
    assert one.value("value") > own.value("value")
    # At the row's own rate all are within it, at the one that its value rests on a few are not.
    assert one.within(one.slo).share == 1.0
    assert 0.9 < (one.value_latencies <= 0.1).mean() < 1.0
    own_quality = one.draws("quality") / one.row["quality"]
    rates = one.draws("value") / (one.value("value") * own_quality)
    assert np.median(rates) == pytest.approx(1.0, abs=0.02)
    assert len(np.unique(rates.round(6))) > 3


# -- on the front ------------------------------------------------------------------------------


def front_with(clock, tmp_path, brackets: dict[str, tuple[Any, Any]], wanted=None) -> Any:
    """Rows that differ in nothing but between which rates their answers lie, after `mark_front`."""
    made = made_by(clock, 0.02, budget_seconds=20)
    cells = [cell_of(name, made, budget_seconds=20) for name in brackets]
    table = build([make_run(tmp_path / "run", cells)])
    samples = list(table.samples.values())
    for one, (held, missed) in zip(samples, brackets.values(), strict=True):
        one.row.update(held_rate_per_s=held, missed_rate_per_s=missed, pareto_note=None)
        one.row.update(pareto=None, search_note=None if held else "no rate held p90")
        one._drawn.clear()
    mark_front(samples, wanted)
    return {one.row["format"]: one.row for one in samples}, table


def test_overlapping_answers_are_a_tie_and_beat_nobody(clock, tmp_path):
    ends = {"fp32": (50.0, 60.0), "bf16": (48.0, 58.0), "int8": (30.0, 48.0)}
    rows, table = front_with(clock, tmp_path, ends)
    assert [row["pareto"] for row in rows.values()] == ["yes", "yes", "no"]
    assert (rows["fp32"]["pareto_ties"], rows["bf16"]["pareto_ties"]) == ("bf16", "fp32")
    assert 0.5 < rows["fp32"]["pareto_probability"] < 0.8
    assert 0.2 < rows["bf16"]["pareto_probability"] < 0.5
    # It missed where the others held: every draw is below theirs.
    assert rows["int8"]["pareto_probability"] == 0.0
    assert "Tied, as the samples tell them apart in none" in to_markdown(table)


def test_answers_that_overlap_a_little_are_no_winner_either(clock, tmp_path):
    """Few of the draws say so; the rule is that of the sentence on the largest rate."""
    rows, table = front_with(clock, tmp_path, {"fp32": (59.9, 90.0), "bf16": (50.0, 60.0)})
    assert rows["bf16"]["pareto_probability"] < 0.02
    assert rows["bf16"]["pareto"] == "yes"
    assert rows["bf16"]["pareto_ties"] == "fp32"
    assert "can't be told, as the answers overlap" in to_markdown(table)


def test_answers_apart_have_a_winner(clock, tmp_path):
    rows, _ = front_with(clock, tmp_path, {"fp32": (60.0, 70.0), "bf16": (50.0, 60.0)})
    assert [row["pareto"] for row in rows.values()] == ["yes", "no"]
    assert [row["pareto_probability"] for row in rows.values()] == [1.0, 0.0]
    assert rows["fp32"]["pareto_ties"] is None


def test_a_rate_that_nothing_missed_has_no_probability(clock, tmp_path):
    rows, table = front_with(clock, tmp_path, {"fp32": (60.0, 70.0), "bf16": (50.0, None)})
    assert [row["pareto"] for row in rows.values()] == ["yes", "yes"]
    assert {row["pareto_probability"] for row in rows.values()} == {None}
    assert "can't be told: no rate missed the objective in bf16" in to_markdown(table)


@pytest.mark.parametrize("wanted", [None, ("rate", "memory")])
def test_a_format_that_held_no_rate_leaves_the_rate_to_the_others(clock, tmp_path, wanted):
    ends = {"fp32": (60.0, 70.0), "bf16": (50.0, 60.0), "int8": (None, 10.0)}
    rows, table = front_with(clock, tmp_path, ends, wanted)
    assert [row["pareto"] for row in rows.values()] == ["yes", "no", None]
    assert rows["int8"]["pareto_note"] == "left out: no rate held p90"
    assert "Left out before: int8 (no rate held p90)" in to_markdown(table)


def test_a_format_that_the_lowest_rate_saturates_says_why_it_is_left_out(clock, tmp_path):
    limit = {"arrivals": {"kind": "poisson", "search": GOAL | {"limit_s": 0.01}}}
    cell, rows = cell_of("fp32", made_by(clock, 0.02, **limit), **limit)
    for window in cell.measurements.serving:
        window.saturated = True
    (row,) = build([make_run(tmp_path / "run", [(cell, rows)])]).rows
    assert row["pareto"] is None
    assert row["pareto_note"] == f"left out: {row['search_note']}"


# -- what is declared --------------------------------------------------------------------------


def declared(**changes: Any) -> Workload:
    return Workload.model_validate(RULES | changes)


def test_a_search_has_rules_of_its_own_and_they_are_part_of_the_method():
    made = Workload.model_validate(
        {"scenario": "server", "arrivals": {"kind": "poisson", "search": {"limit_s": 0.2}}}
    )
    assert (made.rounds, made.duration_seconds, made.budget_seconds) == (1, 5.0, 180.0)
    assert made.rules()["arrivals"]["search"] == {
        "percentile": "p99", "limit_s": 0.2, "resolution": 0.05,
    }  # fmt: skip
    assert Workload.model_validate(made.rules()) == made
    assert "search" not in str(load_workload("poisson").rules())
    words = latency_words(made.rules())
    assert "at rates 5.0 % apart, searched for the largest that holds p99 within 200 ms" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arrivals": {"kind": "poisson", "load": 0.5, "search": GOAL}}, "give one of"),
        ({"arrivals": {"kind": "poisson", "search": GOAL | {"resolution": 0}}}, "is no resolution"),
        ({"arrivals": {"kind": "poisson", "search": GOAL | {"resolution": -0.1}}}, "no resolution"),
        ({"arrivals": {"kind": "poisson", "search": GOAL | {"resolution": "5 s"}}}, "no share"),
        ({"arrivals": {"kind": "poisson", "search": {"percentile": "p99"}}}, "limit_s"),
        ({"arrivals": {"kind": "poisson", "search": GOAL | {"limit_s": 0}}}, "greater than 0"),
        ({"arrivals": {"kind": "daily", "search": GOAL}}, "is another load"),
        ({"tails": "p99"}, "leave tails out"),
        ({"rounds": 3}, "leave rounds out"),
        ({"load_of": "own"}, "leave load_of out"),
        ({"background": ["copy"]}, "leave background out"),
    ],
)  # fmt: skip
def test_what_a_search_does_not_go_with_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        declared(**changes)


def test_a_misspelt_key_of_a_search_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("scenario: server\narrivals: {kind: poisson, search: {limits: 1}}\n")
    with pytest.raises(UsageError, match=r"arrivals\.search: unknown key 'limits'.*limit_s"):
        load_workload(path)


def test_the_option_takes_a_workload_s_load_and_searches_its_rate():
    options = {"workload": "bursty", "slo": "p99=50ms", "find_rate": True}
    made = workload_of(make_spec(options))
    assert made.search is not None
    assert (made.search.percentile, made.search.limit_s) == ("p99", 0.05)
    assert made.arrivals is not None
    assert (made.arrivals.kind, made.arrivals.load, made.rounds) == ("gamma", None, 1)
    longer = workload_of(make_spec(options | {"duration": "10m"}))
    assert longer.budget_seconds == 600
    other = make_spec(options | {"slo": "p99=60ms"})
    assert make_spec(options).measuring_hash() != other.measuring_hash()
    plain = {"workload": "bursty"}
    with_slo = make_spec(plain | {"slo": "p99=60ms"})
    assert make_spec(plain).measuring_hash() == with_slo.measuring_hash()


def test_the_option_keeps_what_a_file_declares_of_its_search(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "scenario: server\nbudget_seconds: 33\n"
        "arrivals: {kind: poisson, search: {limit_s: 1, resolution: 2%}}\n"
    )
    made = workload_of(make_spec({"workload": str(path), "slo": "p90=50ms", "find_rate": True}))
    assert made.search is not None
    assert (made.search.percentile, made.search.limit_s, made.search.resolution) == (
        "p90", 0.05, 0.02,
    )  # fmt: skip
    assert made.budget_seconds == 33


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"find_rate": True, "workload": "poisson"}, "give --slo p99=200ms"),
        ({"find_rate": True, "slo": "p99=1s"}, "for the scenario server"),
        ({"find_rate": True, "slo": "p99=1s", "workload": "offline"}, "for the scenario server"),
        ({"find_rate": True, "slo": "p99=1s", "workload": "server", "tails": "p99"}, "leave tails"),
        ({"find_rate": 3, "slo": "p99=1s"}, "find-rate"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_in_one_line(options, words):
    with pytest.raises(UsageError, match=words) as caught:
        workload_of(make_spec(options))
    assert "\n" not in str(caught.value)
