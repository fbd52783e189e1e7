"""Machines for a rate within an objective: against theory, by properties, and as a command."""

import json
import math

import numpy as np
import pytest

from precision_explorer.api.reader import money_from
from precision_explorer.cli import main
from precision_explorer.economics import (
    Demand,
    capacity,
    declared_arrivals,
    parse_arrivals,
    parse_slo,
    plan_capacity,
)
from precision_explorer.economics.capacity import Simulation, _least
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.table.capacity import capacity_of, service_times
from precision_explorer.workload import load_workload
from precision_explorer.workload.queue_theory import md1_wait_quantile
from precision_explorer.workload.service_times import ServiceTimes
from tests.test_records import make_cell
from tests.test_table import (
    INT8_WRONG,
    LATENCIES,
    REF_WRONG,
    SERVER,
    classified,
    failed,
    make_run,
    ok,
    served,
    skipped,
    window,
)

FIXED = ServiceTimes({1: 0.01})


def demand(rate=450.0, slo="p90=20ms", **changes):
    return Demand(rate, parse_slo(slo), **({"head_room": 1.0, "draws": 2} | changes))


def machines(service=FIXED, **changes):
    return plan_capacity(service, demand(**changes)).machines


# -- against theory ------------------------------------------------------------------------------


def by_theory(rate, q, limit_s):
    """Machines that Poisson arrivals are sent to by chance: each is M/D/1 with 10 ms."""
    n = math.floor(rate * 0.01) + 1
    while 0.01 + md1_wait_quantile(q, rate / n, 0.01) > limit_s:
        n += 1
    return n


@pytest.mark.parametrize(
    ("rate", "slo"), [(450, "p90=20ms"), (450, "p99=50ms"), (2000, "p50=12ms"), (30, "p99=25ms")]
)
def test_the_least_number_of_machines_is_that_of_theory(rate, slo):
    objective = parse_slo(slo)
    right = by_theory(rate, objective.quantile, objective.limit_s)
    # Not so near to the limit that chance decides.
    for near in (0.96, 1.04):
        assert by_theory(rate * near, objective.quantile, objective.limit_s) - right in (
            -2,
            -1,
            0,
            1,
            2,
        )
    found = plan_capacity(FIXED, demand(rate, slo, dispatch="random"))
    least, most = found.machines
    assert by_theory(0.97 * rate, objective.quantile, objective.limit_s) <= least
    assert most <= by_theory(1.03 * rate, objective.quantile, objective.limit_s)
    assert found.latency_s.high <= objective.limit_s


def test_the_best_rate_of_one_machine_is_that_of_theory():
    found = plan_capacity(FIXED, demand(slo="p99=50ms", draws=3)).best_rate_per_s
    low, high = 1.0, 99.9
    for _ in range(40):
        middle = (low + high) / 2
        if 0.01 + md1_wait_quantile(0.99, middle, 0.01) <= 0.05:
            low = middle
        else:
            high = middle
    assert found.median == pytest.approx(low, rel=0.02)
    assert found.low <= found.median <= found.high


def test_a_fleet_s_share_of_the_arrivals_is_what_one_machine_of_it_gets():
    """One machine is simulated where each has a queue of its own: all of them, by hand."""
    from precision_explorer.workload.queueing import serve

    for dispatch, cv in (("round-robin", 1.0), ("round-robin", 2.0), ("random", 2.0)):
        asked = demand(slo="p90=1s", dispatch=dispatch, cv=cv)
        one = Simulation(FIXED, asked, 1, (0,)).latency_s(4, 280)
        rng = np.random.default_rng(5)
        shape = 1 / cv**2
        arrivals = np.cumsum(rng.gamma(shape, 1 / (shape * 280), 100_000))
        whole = serve(arrivals, FIXED, rng, replicas=4, dispatch=dispatch).after(10_000)
        assert one == pytest.approx(np.quantile(whole.latencies_s, 0.9), rel=0.1)


def test_arrivals_of_any_kind_are_shared_out_as_gamma_ones_are():
    def poisson(rate, count, rng):
        return np.cumsum(rng.exponential(1 / rate, count))

    for dispatch in ("round-robin", "random", "shared"):
        known, own = demand(dispatch=dispatch), demand(dispatch=dispatch, arrivals=poisson)
        pair = [Simulation(FIXED, asked, 1, (0,)).latency_s(4, 320) for asked in (known, own)]
        assert pair[0] == pytest.approx(pair[1], rel=0.1), dispatch


def test_bursts_that_last_take_more_machines():
    """Requests come ten at a time."""

    def tens(rate, count, rng):
        return np.repeat(np.cumsum(rng.exponential(10 / rate, count // 10 + 1)), 10)[:count]

    assert machines(arrivals=tens)[0] > machines()[1]


def test_a_workload_s_arrivals_come_at_the_given_rate(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("poisson", "bursty"):
        times = declared_arrivals(load_workload(name).arrivals)(50.0, 50_000, rng)
        assert len(times) == 50_000
        assert times[-1] == pytest.approx(1000, rel=0.05)
    (tmp_path / "trace.csv").write_text("time_s\n" + "\n".join(map(str, [0, 1, 2, 9, 10])))
    path = tmp_path / "w.yaml"
    path.write_text(
        "scenario: server\narrivals: {kind: trace, path: trace.csv, use_lengths: false}\n"
    )
    times = declared_arrivals(load_workload(path).arrivals)(1.0, 12, rng)
    # The trace twice and a part, faster than it was recorded.
    assert times[5:10] - times[:5] == pytest.approx(np.full(5, 5.0))
    assert len(times) == 12
    assert (np.diff(times) >= 0).all()


def test_too_many_machines_for_one_queue_is_one_clear_line():
    with pytest.raises(UsageError, match="use --dispatch round-robin"):
        plan_capacity(FIXED, demand(rate=1e9, dispatch="shared"))
    assert machines(rate=1e9)[0] > 1e7
    with pytest.raises(UsageError, match="with these arrivals more than"):
        machines(rate=1e9, arrivals=lambda rate, count, rng: np.arange(count) / rate)


# -- properties ----------------------------------------------------------------------------------


def test_what_makes_it_harder_takes_more_machines():
    plain = machines()[1]
    assert machines(head_room=1.5)[0] > plain
    assert machines(cv=4.0)[0] > plain
    assert machines(dispatch="random")[0] > plain
    assert machines(slo="p99=20ms")[0] >= plain
    assert machines(slo="p90=12ms")[0] > plain
    assert machines(slo="p90=200ms")[1] <= plain
    assert machines(ServiceTimes({1: 0.005}))[1] < plain


def test_no_limit_is_so_generous_that_a_queue_may_grow_for_ever():
    found = plan_capacity(FIXED, demand(slo="p90=1h"))
    assert found.machines == (5, 5)  # 4.5 machines' work.
    assert found.best_rate_per_s.high < 100
    assert Simulation(FIXED, demand(), 1, (0,)).latency_s(4, 450) is None


def test_the_answer_is_the_same_for_the_same_seed():
    noisy = ServiceTimes({1: np.random.default_rng(0).gamma(1, 0.01, 50)})
    asked = demand(slo="p90=40ms")
    assert plan_capacity(noisy, asked) == plan_capacity(noisy, asked)
    assert plan_capacity(noisy, asked) != plan_capacity(noisy, demand(slo="p90=40ms", seed=1))


def test_few_and_scattered_service_times_give_a_range():
    scattered = ServiceTimes({1: np.random.default_rng(0).gamma(0.3, 0.03, 20)})
    least, most = machines(scattered, rate=2000.0, slo="p50=20ms", draws=6)
    assert least < most
    assert machines(rate=2000.0, slo="p50=20ms", draws=4) == machines(rate=2000.0, slo="p50=20ms")


def test_an_objective_below_the_service_time_is_met_by_no_number():
    found = plan_capacity(FIXED, demand(slo="p90=9ms"))
    assert (found.machines, found.met_draws, found.draws) == (None, 0, 2)
    assert found.idle_s == pytest.approx(0.01)
    assert found.best_rate_per_s.high == 0
    assert found.latency_s is found.peak_latency_s is found.utilisation is None


def test_head_room_is_held_and_the_rate_itself_waits_less():
    found = plan_capacity(FIXED, demand(head_room=1.4, dispatch="shared"))
    assert found.latency_s.high < found.peak_latency_s.median <= 0.02
    assert found.utilisation == pytest.approx(450 * 0.01 / found.machines[1])


def test_batches_serve_more_where_they_are_faster_and_are_left_where_not():
    faster, slower = ServiceTimes({1: 0.01, 8: 0.02}), ServiceTimes({1: 0.01, 8: 0.1})
    found = plan_capacity(faster, demand(slo="p90=60ms"))
    assert found.max_batch == 8
    assert found.machines[1] < machines(slo="p90=60ms")[0]
    assert plan_capacity(slower, demand(slo="p90=60ms")).max_batch == 1
    assert plan_capacity(slower, demand(slo="p90=300ms", max_batch=4)).max_batch == 4


def test_a_batch_beyond_what_was_measured_is_refused():
    with pytest.raises(UsageError, match="the largest is 1"):
        plan_capacity(FIXED, demand(max_batch=2))


def test_a_lone_request_must_not_wait_too_long_for_company():
    """A machine that keeps the objective only while its batches fill up fails at night."""
    both = ServiceTimes({1: 0.01, 8: 0.02})
    asked = {"slo": "p90=60ms", "max_batch": 8}
    assert plan_capacity(both, demand(**asked, max_wait_s=0.02)).machines is not None
    late = plan_capacity(both, demand(**asked, max_wait_s=0.055))
    assert (late.machines, late.idle_s) == (None, pytest.approx(0.065))
    # Alone, nobody waits for company.
    assert plan_capacity(both, demand(slo="p90=60ms", max_wait_s=0.055)).max_batch == 1


@pytest.mark.parametrize("right", [1, 2, 7, 50, 99, 100, None])
@pytest.mark.parametrize("guess", [1, 6, 8, 100, 1000])
def test_the_search_finds_the_least_number(right, guess):
    assert _least(lambda n: right is not None and n >= right, guess, 1, 100) == right


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": -1.0}, {"rate": math.inf}, {"head_room": 0.9}, {"head_room": math.nan},
     {"cv": 0.0}, {"max_batch": 0}, {"max_wait_s": -1.0}, {"max_wait_s": math.nan}, {"draws": 0},
     {"seed": -1}, {"dispatch": "shard"}],
)  # fmt: skip
def test_a_demand_that_can_t_be_is_one_clear_line(wrong):
    with pytest.raises(UsageError) as caught:
        demand(**wrong)
    assert "\n" not in str(caught.value)


def test_arrivals_are_read():
    assert parse_arrivals("poisson") == parse_arrivals("gamma:1") == 1
    assert parse_arrivals(" gamma : 2.5 ") == 2.5
    for text in ("", "gamma", "gamma:", "gamma:0", "gamma:-1", "gamma:nan", "poisson:2", "burst"):
        with pytest.raises(UsageError, match="write poisson, or gamma:2"):
            parse_arrivals(text)


# -- of a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A reference of 20 ms, an int8 of half of that, a skip and a failure."""
    cells = [
        ok("fp32", classified(REF_WRONG), rate=100.0),
        skipped("tf32"),
        failed("bf16"),
        ok("int8-dynamic", classified(INT8_WRONG), served(LATENCIES / 2), rate=200.0),
    ]
    return make_run(tmp_path_factory.mktemp("capacity") / "run", cells)


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_LEAST_REQUESTS", 1)  # What it says is enough here.
        with pytest.raises(SystemExit) as end:
            main(["capacity", *map(str, arguments)])
    return end.value.code


def test_service_times_are_the_measured_requests_and_batches(run):
    from precision_explorer.store import read_run

    folder, sweep = read_run(run)
    record = folder.read_record(sweep["plan"]["cells"][0]["cell_id"])
    times = service_times(folder, record)
    assert times.sizes == (1, 8)
    # Neither the cold request nor the warm-up, which take 8 and 9 s.
    assert times.mean_s(1) == pytest.approx(LATENCIES.mean())
    assert times.mean_s(8) == pytest.approx(0.08)


def test_queries_of_several_are_no_service_times_of_one(tmp_path):
    from precision_explorer.store import read_run

    asked, rows = 10 * LATENCIES, served(10 * LATENCIES)
    for name in ("single-stream", "multi-stream"):
        workload = make_cell().workload | {"scenario": name}
        cell = ok("fp32", classified(REF_WRONG), rows, {"workload": workload})
        folder, sweep = read_run(make_run(tmp_path / name, [cell]))
        times = service_times(folder, folder.read_record(sweep["plan"]["cells"][0]["cell_id"]))
        of_requests = times.mean_s(1) == pytest.approx(asked.mean())
        assert of_requests == (name == "single-stream")


def batches(of):
    """Request rows of a server's batches: (round, number, size, seconds) each, of which every
    request has a row, the warm-up's first."""
    rows = [{"id": "e0", "window": "cold", "latency_s": 9.0, "batch_size": 1, "round": 0}]
    for number, batch, size, value in of:
        row = {"id": "e0", "window": "measure", "latency_s": 1.0, "batch": batch, "round": number}
        rows += size * [row | {"batch_size": size, "service_s": value, "queue_s": 0.5}]
    unserved = {"id": "e0", "window": "measure", "latency_s": None, "batch": None, "round": 0}
    return [*rows, unserved | {"service_s": None, "batch_size": None, "queue_s": None}]


def served_capacity(path, rows, windows):
    return capacity_of(served_run(path, rows, windows), demand(10.0))


def served_times(path, rows, windows, workload=None, tried=None):
    from precision_explorer.store import read_run

    folder, sweep = read_run(served_run(path, rows, windows, workload, tried))
    return service_times(folder, folder.read_record(sweep["plan"]["cells"][0]["cell_id"]))


def served_run(path, rows, windows, workload=None, tried=None):
    record, samples = ok(
        "fp32", classified(REF_WRONG), rows, {"workload": SERVER | (workload or {})}
    )
    document = record.model_dump()
    document["measurements"] |= {"latency": None, "serving": windows, "tried": tried}
    return make_run(path, [(type(record).model_validate(document), samples)])


def in_round(number, **changes):
    told = {
        "round": number,
        "requests": 9,
        "window_s": 9.0,
        "started_s": 0.0,
        "place": 0,
        "cells": 1,
    }
    return window(round=told, **changes)


def test_service_times_of_a_server_are_its_own_batches(tmp_path):
    own = [(k % 2, k, 1, 0.010 + 0.001 * (k % 2)) for k in range(20)]
    own += [(1, 100 + k, 3, 0.03) for k in range(6)] + [(0, 200 + k, 5, 0.05) for k in range(5)]
    rows = batches(own)
    times = served_times(tmp_path / "a", rows, [in_round(0), in_round(1)])
    assert times.sizes == (1, 3, 8), (
        "five batches of five tell too little; eight were timed offline"
    )
    assert (times.count(1), times.count(3), times.rounds) == (20, 6, 2)
    assert times.mean_s(1) == pytest.approx(0.0105)
    late = served_times(tmp_path / "b", rows, [in_round(0, refused="late"), in_round(1)])
    assert (late.count(1), late.mean_s(1)) == (10, pytest.approx(0.011))
    assert late.count(3) == 6


def test_batches_of_a_search_are_those_of_all_its_windows_that_kept_time(tmp_path):
    own = [(0, k, 1, 0.01) for k in range(8)]
    rows = [row | {"point": 0, "attempt": 0} for row in batches(own)]
    rows += [row | {"point": 0, "attempt": 1} for row in batches(own)]
    rows += [row | {"point": 1, "attempt": 0} for row in batches(own)]
    tried = [
        {"rung": 0, "rate_per_s": 4.0, "windows": [window(), window()]},
        {"rung": 1, "rate_per_s": 5.0, "windows": [window(refused="late")]},
    ]
    found = served_times(tmp_path, rows, [window()], tried=tried)
    assert found.count(1) == 16


@pytest.mark.parametrize("batching", ["continuous", "server"])
def test_what_serves_no_whole_batches_is_left_out_with_the_reason(tmp_path, batching):
    rows = batches([(0, k, 1, 0.01) for k in range(9)])
    with pytest.raises(StoreError, match=r"can't be simulated|what is simulated"):
        served_capacity(tmp_path, rows, [window(batching=batching)])


def test_offline_batches_say_nothing_of_lengths_that_were_drawn(tmp_path):
    rows = batches([(0, k, 2, 0.02) for k in range(9)])
    drawn = {"lengths": {"input": {"kind": "fixed", "tokens": 900}}}
    for name, workload, generates, sizes in (
        ("drawn", drawn, True, (2,)),
        ("of no use", drawn, False, (1, 2, 8)),
        ("data", {}, True, (1, 2, 8)),
        ("trace", {"arrivals": {"kind": "trace", "sha256": "0"}}, True, (2,)),
    ):
        found = served_times(tmp_path / name, rows, [in_round(0, generates=generates)], workload)
        assert found.sizes == sizes, name


def test_rounds_that_lie_apart_widen_the_range():
    """Many requests in two rounds: what differs is the machine, not the requests."""
    values = np.random.default_rng(0).normal(0.01, 1e-4, 2000) * np.repeat([1.0, 1.5], 1000)
    numbers = np.repeat([0, 1], 1000)
    asked = demand(rate=1000.0, slo="p90=60ms", draws=8)
    pooled = plan_capacity(ServiceTimes({1: values}), asked).best_rate_per_s
    apart = plan_capacity(ServiceTimes({1: values}, {1: numbers}), asked).best_rate_per_s
    assert pooled.high / pooled.low < 1.1
    assert apart.high / apart.low > 1.3


def test_formats_are_drawn_from_the_same_rounds():
    """Interleaved rounds are blocks: a slow one is slow for all."""

    def of(scale):
        return ServiceTimes(
            {1: scale * np.repeat([1.0, 2.0, 4.0], 50)}, {1: np.repeat([0, 1, 2], 50)}
        )

    rounds = [np.random.default_rng(7) for _ in range(2)]
    for seed in range(9):
        one = of(0.01).resampled(np.random.default_rng(seed), rounds[0])
        other = of(0.02).resampled(np.random.default_rng(seed + 1), rounds[1])
        assert other.mean_s(1) == pytest.approx(2 * one.mean_s(1))


@pytest.fixture(scope="module")
def table(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_LEAST_REQUESTS", 1)
        return capacity_of(run, demand(rate=200.0, slo="p90=150ms"), {"price_per_hour": 0.5})


def test_each_measured_format_has_a_row(table):
    assert [row.format for row in table.rows] == ["fp32", "int8-dynamic"]
    fp32, int8 = table.rows
    assert (fp32.verdict, int8.verdict) == ("reference", "cannot-tell")
    assert int8.capacity.machines[1] <= fp32.capacity.machines[0]
    assert fp32.measured_n == 2
    assert [(status, why) for _, status, why in table.left_out] == [
        ("skipped", "no such unit"),
        ("failed", "the worker was ended by SIGSEGV"),
    ]


def test_the_fleet_is_priced(table):
    row = table.rows[0]
    least, most = row.capacity.machines
    assert row.per_hour_usd == (0.5 * least, 0.5 * most)
    assert row.per_month_usd == (365 * least, 365 * most)
    assert row.fleet_memory_bytes == 1000 * most


def test_a_month_of_owned_machines_is_its_hours_of_use(run, tmp_path):
    """A machine of $8,760 and one year, used half of it: $2 an hour of use, $730 a month."""
    price = tmp_path / "own.yaml"
    price.write_text(
        "currency: USD\nkind: ownership\npurchase_usd: 8760\nlife_years: 1\nutilisation: 0.5\n"
        "power_w: 0\npue: 1\nusd_per_kwh: 0\nsource: s\ndate: 2026-01\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capacity, "_LEAST_REQUESTS", 1)
        found = capacity_of(run, demand(rate=200.0, slo="p90=150ms"), money_from(price, None))
    row = found.rows[0]
    least, most = row.capacity.machines
    assert row.per_hour_usd == pytest.approx((2 * least, 2 * most))
    assert row.per_month_usd == pytest.approx((730 * least, 730 * most))


def test_times_beside_other_work_and_other_arrivals_are_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    bursts = {"arrivals": {"kind": "gamma", "cv": 3.0}, "name": "my-bursts"}
    busy = [{"id": "machine-busy", "message": "beside others"}]
    workload = {"workload": make_cell().workload | bursts}
    other = ok("int8-dynamic", classified(INT8_WRONG), cell=workload, cautions=busy)
    path = make_run(tmp_path / "run", [ok("fp32", classified(REF_WRONG), cell=workload), other])
    call(path, "--rate", 200, "--slo", "p90=150ms")
    text = " ".join(capsys.readouterr().out.split())
    assert "those of the run came otherwise, by the workload my-bursts" in text
    assert "Other processes were at work in the timing of int8-dynamic:" in text
    call(path, "--rate", 200, "--slo", "p90=150ms", "--arrivals", "gamma:2")
    assert "came otherwise" not in capsys.readouterr().out


def test_the_assumptions_are_in_words(table):
    text = " ".join(table.assumptions)
    for words in ("Poisson", "1.00 times", "Some CPU", "in turn", "measured alone", "2 draws"):
        assert words in text


def test_the_command_prints_a_table(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code = call(run, "--rate", "12000/min", "--slo", "p90=150ms", "--price-per-hour", 0.5)
    text = " ".join(capsys.readouterr().out.split())
    assert code == 0
    for words in (
        "Machines for 200 /s within p90=150 ms", "objective at 1.30 times that rate, 260 /s",
        "demo on sentiment", "int8-dynamic", "Cheapest fleet that keeps the quality budget: fp32",
        "bf16: failed, the worker was ended by SIGSEGV", "$0.5000 per machine and hour",
        "needs 29 measurements of each batch size", "fp32 2",
    ):  # fmt: skip
        assert words in text, words


def test_the_same_as_json(run, capsys):
    code = call(run, "--rate", 200, "--slo", "p50=150ms", "--arrivals", "gamma:2", "--json")
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert code == 0
    assert document["demand"]["slo"] == {"percentile": "p50", "limit_s": pytest.approx(0.15)}
    assert (document["demand"]["cv"], document["demand"]["peak_per_s"]) == (2, 260)
    row = document["rows"][1]
    assert row["format"] == "int8-dynamic"
    assert row["capacity"]["machines"][0] >= 1
    # The run's own price, as its sweep was given it.
    assert row["per_hour_usd"][0] == pytest.approx(0.36 * row["capacity"]["machines"][0])
    assert document["left_out"][0]["status"] == "skipped"
    assert "simulating demo on sentiment, fp32" in captured.err


def test_a_workload_gives_arrivals_and_batches(run, capsys):
    given = ("--rate", "20/s", "--slo", "p50=300ms", "--json")
    assert call(run, *given, "--workload", "classification-api") == 0
    asked = json.loads(capsys.readouterr().out)["demand"]
    assert (asked["workload"], asked["max_batch"], asked["max_wait_s"]) == (
        "classification-api",
        8,
        0.005,
    )
    assert call(run, *given, "--workload", "classification-api", "--max-batch", 1) == 0
    assert json.loads(capsys.readouterr().out)["demand"]["max_batch"] == 1


def test_an_objective_that_no_format_meets_names_the_nearest(run, capsys):
    code = call(run, "--rate", "200/s", "--slo", "p90=10ms")
    captured = capsys.readouterr()
    assert code == 5
    line = captured.err.splitlines()[-1]
    assert "int8-dynamic: no number of machines meets p90=10.0 ms" in line
    assert "its p90 is 18.0 ms even when idle" in line
    assert captured.out.count("none") >= 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rate", "0/s"), "the rate must be a number above 0"),
        (("--rate", "200/fortnight"), "write it as 200/s"),
        (("--rate", "fast"), "write it as 200/s"),
        (("--rate", "200/s", "--slo", "p99=1s"), "--slo is given 2 times"),
        (("--rate", "200/s", "--head-room", "0.5"), "1 or more"),
        (("--rate", "200/s", "--max-batch", "64"), "the largest is 8"),
        (("--rate", "200/s", "--max-wait", "5"), "write it as 200ms"),
        (("--rate", "200/s", "--arrivals", "bursty"), "gamma:2"),
        (("--rate", "200/s", "--dispatch", "robin"), "did you mean round-robin"),
        (("--rate", "2/s", "--workload", "bursty", "--arrivals", "poisson"), "give one"),
        (("--rate", "2/s", "--workload", "single-stream"), "such as bursty"),
        (("--rate", "2/s", "--workload", "burst"), "did you mean bursty"),
    ],
)
def test_wrong_use_is_one_clear_line(run, capsys, options, words):
    assert call(run, "--slo", "p90=150ms", *options) == 1
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


def test_without_an_objective_that_of_the_sweep_holds(run, tmp_path, capsys):
    assert call(run, "--rate", "200/s") == 1
    assert "give one by --slo" in capsys.readouterr().err
    other = make_run(
        tmp_path / "slo", [ok("fp32", classified(REF_WRONG))], reader={"slo": "p50=1ms"}
    )
    assert call(other, "--rate", "1/s") == 5
    assert "p50=1.00 ms" in capsys.readouterr().err


def test_a_run_without_times_says_what_to_do(tmp_path):
    run = make_run(tmp_path / "r", [skipped("tf32")])
    with pytest.raises(StoreError, match="run the sweep again"):
        capacity_of(run, demand())
