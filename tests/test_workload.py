"""Workloads: presets, files, one-line refusals, and the round trip through a cell's identity."""

import json

import pytest
from pydantic import ValidationError

from precision_explorer.errors import UsageError
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import canonical_hash
from precision_explorer.runner.sweep import workload_of
from precision_explorer.workload import (
    PRESETS,
    SCENARIOS,
    GammaArrivals,
    PoissonArrivals,
    Workload,
    changed,
    load_workload,
)


def test_the_default_is_single_stream():
    assert load_workload(None) == load_workload("single-stream") == PRESETS["single-stream"]
    rules = load_workload(None).rules()
    assert (rules["min_requests"], rules["min_seconds"], rules["budget_seconds"]) == (30, 3.0, 60.0)
    assert (rules["prompt_tokens"], rules["output_tokens"]) == (128, 16)


def test_the_rules_of_single_stream_are_those_of_stored_results():
    """Another hash would make every cell stored so far a stale one; what was timed in one block, of
    which earlier rules say nothing, is another cell than what was timed in rounds."""
    assert canonical_hash(Workload().rules()) == "18970edcfd492798"
    mine = Workload(name="mine", min_requests=5, budget_seconds=7.5)
    for one, before in ((Workload(), "a3d603f1adb4fb1e"), (mine, "7d42be5b9d0851ed")):
        assert one.rules()["rounds"] == 3
        assert canonical_hash({k: v for k, v in one.rules().items() if k != "rounds"}) == before


@pytest.mark.parametrize("workload", [*PRESETS.values(), Workload(name="mine", min_requests=5)])
def test_rules_make_the_workload_again(workload):
    assert Workload.model_validate(json.loads(json.dumps(workload.rules()))) == workload


def test_rules_hold_what_belongs_to_the_scenario_and_nothing_else():
    own = {name: set(w.rules()) - set(Workload().rules()) for name, w in PRESETS.items()}
    server = {"arrivals", "duration_seconds", "load_of", "max_batch", "max_wait_s"}
    assert own["single-stream"] == own["offline"] == own["batch-scoring"] == set()
    assert own["multi-stream"] == {"streams"}
    assert own["server"] == own["bursty"] == server
    assert own["chat"] == own["rag"] == server | {"lengths"}
    assert own["classification-api"] == server | {"tails"}


def test_what_makes_another_load_makes_other_rules():
    poisson, bursty = PRESETS["poisson"].rules(), PRESETS["bursty"].rules()
    assert {name for name in poisson if poisson[name] != bursty[name]} == {"name", "arrivals"}
    assert PRESETS["bursty"].arrivals.cv == 2


def test_every_scenario_has_a_preset_and_every_preset_its_name():
    assert {workload.scenario for workload in PRESETS.values()} == set(SCENARIOS)
    assert all(name == workload.name for name, workload in PRESETS.items())


def test_a_file_overrides_the_defaults(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text("min-requests: 5\nmin_seconds: 0.5\n")
    workload = load_workload(str(path))
    assert (workload.name, workload.min_requests, workload.min_seconds) == ("short", 5, 0.5)
    assert workload.warmup_requests == Workload().warmup_requests
    path.write_text("")
    assert load_workload(path) == Workload(name="short")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("min_request: 5", "did you mean min_requests"),
        ("zzz: 5", "known: name, scenario"),
        ("min_seconds: -1", "min_seconds: Input should be greater than or equal to 0"),
        ("min_requests: 0", "min_requests"),
        ("min_requests: 2.5", "min_requests"),
        ("min_requests: yes", "true is no number"),
        ("budget_seconds: .inf", "budget_seconds"),
        ("budget_seconds: .nan", "budget_seconds"),
        ("scenario: single-strem", "did you mean single-stream"),
        ("scenario: server", "scenario server needs arrivals, such as arrivals: {kind: poisson"),
        (
            "arrivals: {kind: poisson, load: 0.7}",
            "arrivals is for the scenario server, and this is",
        ),
        ("streams: 4", "streams is for the scenario multi-stream"),
        (
            "scenario: offline\ntails: p99",
            "tails is for the scenario server, and this is offline",
        ),
        ("lengths: {input: {kind: fixed, tokens: 3}}", "lengths is for the scenario server"),
        ("mix: [{name: a, weight: 1}, {name: b, weight: 1}]", "mix is for the scenario server"),
        ("tails: p9", "tails: Input should be 'p99' or 'p999'"),
        ("streams: 0", "streams: Input should be greater than or equal to 1"),
        (
            "lengths: {input: {kind: fixed, tokens: yes}}",
            "lengths.input: tokens: true is no number",
        ),
        (
            "lengths: {input: {kind: fixd}}",
            "lengths.input: unknown kind 'fixd'; did you mean fixed?",
        ),
        ("lengths: {inputs: 3}", "lengths: unknown key 'inputs'; did you mean input"),
        ("lengths: {input: {kind: fixed}}", "lengths.input.tokens is missing; give it"),
        ("lengths: {input: {tokens: 3}}", "lengths.input: its kind is missing; give one of data"),
        ("lengths: 5", "lengths: no mapping; write it as {input:"),
        ("mix: [{name: a, weight: 1}, {name: b, wait: 1}]", "mix.2: unknown key 'wait'; did you"),
        ("- 1", "no YAML mapping"),
        ("a: [", "no YAML"),
        ("a: !!python/object/apply:os.getcwd []", "no YAML"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, part):
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_workload(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "w.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("single-strem", "did you mean single-stream"),
        ("severe", "did you mean server?"),
        ("xyzzy", "batch-scoring, or give a .yaml file"),
        ("missing.yaml", "can't read"),
        ("no/such", "can't read"),
    ],
)
def test_unknown_names_are_refused_in_one_line(name, part):
    with pytest.raises(UsageError) as caught:
        load_workload(name)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("#" * 1_000_001)
    with pytest.raises(UsageError, match="larger than 1 MB"):
        load_workload(path)


SERVER = "scenario: server\n"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("arrivals: {kind: poisson}", "arrivals: give one of rate_per_s, load and search"),
        ("arrivals: {kind: poisson, rate_per_s: 0}", "arrivals.rate_per_s: a rate of 0 gives no"),
        ("arrivals: {kind: poisson, rate_per_s: -3}", "a rate of -3 gives no requests"),
        (
            "arrivals: {kind: poisson, rate_per_s: .inf}",
            "arrivals.rate_per_s: Input should be a fin",
        ),
        ("arrivals: {kind: poisson, rate_per_s: on}", "arrivals: rate_per_s: true is no number"),
        ("arrivals: {kind: poisson, load: 70}", "such as 0.7 or 70%"),
        ("arrivals: {kind: poisson, laod: 0.7}", "arrivals: unknown key 'laod'; did you mean load"),
        (
            "arrivals: {kind: poison, load: 0.7}",
            "arrivals: unknown kind 'poison'; did you mean poi",
        ),
        ("arrivals: {load: 0.7}", "arrivals: its kind is missing; give one of constant, poisson"),
        ("arrivals: poisson", "arrivals: no mapping; write it as {kind: poisson, load: 0.7}"),
        ("arrivals: {kind: gamma, load: 0.7}", "arrivals.burstiness is missing; give it"),
        (
            "arrivals: {kind: gamma, load: 0.7, burstiness: 0}",
            "arrivals.burstiness: Input should be",
        ),
        ("arrivals: {kind: daily, load: 1, hours: [1, 2]}", "2 hours are no day; give 24"),
        ("arrivals: {kind: trace}", "arrivals: give the path of a CSV or parquet file"),
        ("arrivals: {kind: trace, path: none.csv}", "can't read the trace"),
        (
            "arrivals: {kind: poisson, load: 0.7}\nduration_seconds: 4\nwarmup_seconds: 5",
            "is not longer than the warm-up (warmup_seconds, 5.00 s in each",
        ),
        (
            "arrivals: {kind: poisson, load: 0.7}\nmax_batch: 1\nmax_wait_s: 0.01",
            "max_wait_s waits for a larger batch, but max_batch is 1",
        ),
        (
            "arrivals: {kind: daily, load: 0.7, day_s: 20}\nduration_seconds: 50",
            "duration_seconds (50.0 s) is no whole number of days of 20.0 s",
        ),
    ],
)
def test_bad_loads_are_refused_in_one_line(tmp_path, text, part):
    path = tmp_path / "w.yaml"
    path.write_text(SERVER + text)
    with pytest.raises(UsageError) as caught:
        load_workload(path)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_is_found_beside_the_file_that_names_it(tmp_path):
    (tmp_path / "t.csv").write_text("time_s,input_tokens,output_tokens\n0,1,1\n2,1,1\n")
    path = tmp_path / "w.yaml"
    path.write_text(SERVER + "arrivals: {kind: trace, path: t.csv, scale: 2}\n")
    workload = load_workload(path)
    assert workload.arrivals.rate() == 2
    assert str(tmp_path) not in json.dumps(workload.rules())
    path.write_text(path.read_text() + "lengths: {input: {kind: fixed, tokens: 3}}\n")
    with pytest.raises(UsageError, match="the trace gives lengths too; leave these out, or set"):
        load_workload(path)


def test_whole_days_fit_the_window(tmp_path):
    path = tmp_path / "w.yaml"
    for day_s in (0.1, 20, 60, 12):
        path.write_text(
            SERVER + f"arrivals: {{kind: daily, load: 1, day_s: {day_s}}}\nduration_seconds: 60"
        )
        assert load_workload(path).arrivals.day_s == day_s


def test_a_file_declares_a_load(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text(
        "scenario: server\narrivals: {kind: gamma, load: 70%, burstiness: 0.25}\n"
        "duration-seconds: 45\nmax-batch: 4\nlengths:\n  output: {kind: fixed, tokens: 32}\n"
        "mix:\n  - {name: a, weight: 2}\n  - {name: b, weight: 1, group: g}\n"
    )
    workload = load_workload(path)
    assert workload.arrivals == GammaArrivals(load=0.7, burstiness=0.25)
    assert (workload.duration_seconds, workload.max_batch) == (45, 4)
    assert [part.group for part in workload.mix] == [None, "g"]
    assert Workload.model_validate(json.loads(json.dumps(workload.rules()))) == workload


# -- what the command line changes ------------------------------------------------------------


def test_without_changes_it_is_the_same_workload():
    assert changed(PRESETS["chat"]) is PRESETS["chat"]


def test_a_duration_is_the_window_of_its_scenario():
    alone = changed(PRESETS["single-stream"], duration_s=1800)
    # A quarter of a long window may be measured again.
    assert (alone.min_seconds, alone.budget_seconds) == (1800, 60 + 1800 + 450)
    assert changed(PRESETS["single-stream"], duration_s=239).budget_seconds == 60 + 239
    server = changed(PRESETS["bursty"], duration_s=1800)
    assert (server.duration_seconds, server.min_seconds) == (1800, 3)
    assert server.budget_seconds == PRESETS["bursty"].budget_seconds + 1800
    assert server.arrivals == PRESETS["bursty"].arrivals
    assert changed(PRESETS["bursty"], tails="p999").tails == "p999"


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("single-stream", {"tails": "p98"}, "--tails: unknown tails 'p98'"),
        ("offline", {"tails": "p99"}, "--tails: offline has none"),
        ("single-stream", {"tails": "p99"}, "--tails: single-stream has none; they are for the"),
        ("offline", {"duration_s": 60.0}, "set offline_seconds in a workload file"),
        ("server", {"duration_s": 0.4}, "--duration 400 ms is not longer than the warm-up (500 ms"),
        ("single-stream", {"duration_s": 0.5}, "is not longer than the warm-up (500 ms"),
    ],
)
def test_changes_that_make_no_sense_are_refused(name, changes, part):
    with pytest.raises(UsageError) as caught:
        changed(PRESETS[name], **changes)
    assert part in str(caught.value)


def test_a_sweep_takes_the_duration():
    workload = workload_of(make_spec({"duration": "5s"}))
    assert (workload.min_seconds, workload.budget_seconds) == (5, 65)
    assert workload_of(make_spec({})) == Workload()


def test_a_duration_leaves_time_to_measure_windows_again():
    assert workload_of(make_spec({"duration": "47m"})).rounds == 1
    with pytest.raises(UsageError, match=r"takes up to 3,600 s, .* raise that"):
        workload_of(make_spec({"duration": "48m"}))
    assert workload_of(make_spec({"duration": "48m", "workload": "poisson"})).rounds == 1
    assert workload_of(make_spec({"duration": "48m", "cell_timeout": 3601})).rounds == 1


def test_only_a_long_time_in_one_round_is_watched():
    assert Workload().soak_windows(1e6) == 0
    rules = Workload(rounds=1)
    assert [rules.soak_windows(s) for s in (239.9, 240, 1800)] == [0, 4, 30]
    assert Workload(rounds=1, window_seconds=1.1).soak_windows(6.6) == 6
    # A workload that names no window is the same as before there were any.
    assert "window_seconds" not in rules.rules()
    assert Workload(window_seconds=60).rules()["window_seconds"] == 60
    with pytest.raises(ValueError, match="window_seconds is for the scenario"):
        Workload(scenario="offline", window_seconds=5)
    with pytest.raises(ValueError, match="window_seconds"):
        Workload(window_seconds=0.5)


def test_a_sweep_takes_every_preset():
    for name in PRESETS:
        assert workload_of(make_spec({"workload": name})) == PRESETS[name]


def test_a_change_is_validated_as_a_whole():
    daily = Workload(
        name="days",
        scenario="server",
        arrivals={"kind": "daily", "load": 0.5, "day_s": 30},
        duration_seconds=60,
    )
    with pytest.raises(
        UsageError, match=r"workload 'days': duration_seconds .* is no whole number"
    ):
        changed(daily, duration_s=40)
    assert changed(daily, duration_s=90).duration_seconds == 90
    assert PoissonArrivals(load=0.7) == PRESETS["server"].arrivals


def test_a_served_window_is_cut_to_rounds_only_where_a_part_is_the_same_load():
    daily = {"kind": "daily", "rate_per_s": 5, "day_s": 30}
    assert Workload(scenario="server", arrivals=daily, duration_seconds=30).rounds == 1
    assert Workload(scenario="server", arrivals={"kind": "poisson", "load": 0.7}).rounds == 3
    with pytest.raises(ValidationError, match="3 rounds would cut the daily arrivals"):
        Workload(scenario="server", arrivals=daily, duration_seconds=30, rounds=3)
    short = {"scenario": "server", "arrivals": {"kind": "poisson", "load": 0.7}}
    with pytest.raises(ValidationError, match=r"in each of 3 rounds\); raise it"):
        Workload(**short, duration_seconds=3, warmup_seconds=1)
    assert Workload(**short, duration_seconds=3, warmup_seconds=1, rounds=2).rounds == 2
