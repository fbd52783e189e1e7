"""How large the batches of the quality pass are, and that this is fixed once."""

import json
from types import SimpleNamespace

import pytest

from precision_explorer.hardware import device_facts, library_versions
from precision_explorer.plan.batches import batch_plan
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import batch_budget, batch_job
from precision_explorer.runner.batch_budget import batch_budgets, choose
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.sweep import prepare_sweep, run_sweep, sweep_document
from precision_explorer.tasks import GenerationRules
from tests.conftest import real_probe


def entry(max_tokens: int, rate: float) -> dict:
    return {"max_tokens": max_tokens, "tokens": 1000, "seconds": 1000 / rate}


@pytest.mark.parametrize(
    ("rates", "ended", "chosen"),
    [
        ((100, 200, 300), "ladder", 1024),
        ((100, 296, 300), "ladder", 512),  # Within 5 %: not worth the memory.
        ((100, 280, 300), "ladder", 1024),
        ((300, 200, 100), "whole", 256),
        ((100, 200, 300), "time", 1024),
    ],
)
def test_the_smallest_budget_that_is_about_as_fast_as_the_best_is_taken(rates, ended, chosen):
    tried = [entry(256 * 2**k, rate) for k, rate in enumerate(rates)]
    assert choose(tried, ended, 1024) == chosen


def test_what_was_not_timed_far_enough_decides_nothing():
    assert choose([], "time", 1024) is None
    assert choose([entry(256, 300), entry(512, 100)], "time", 1024) is None
    assert choose([entry(256, 300), entry(512, 100)], "memory", 1024) == 256


# -- where a budget comes from ----------------------------------------------------------------


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A small sweep, with a cache of its own and a probe that counts and answers 512."""
    monkeypatch.setattr(batch_budget, "cache_dir", lambda: tmp_path / "cache")
    options = {"formats": "fp32,bf16", "device": "cpu", "limit": 12, "threads": 1}
    spec = make_spec(options | {"out": str(tmp_path / "run")})
    first = prepare_sweep(make_spec(options), lambda event: None, batches=False)
    asked, notes = [], []

    def answer(planned, *rest):
        asked.append(planned.cell.format)
        return 512

    monkeypatch.setattr(batch_budget, "_probe", answer)

    def budgets(stored=None, ask=True, **more):
        facts = device_facts("cpu")
        changed = make_spec(options | more)
        inputs = (changed, first.plan, facts, library_versions(), 1, stored or {})
        return batch_budgets(*inputs, lambda event: notes.append(event.data["text"]), ask)

    return SimpleNamespace(spec=spec, budgets=budgets, asked=asked, notes=notes, plan=first.plan)


def test_the_reference_is_probed_once_and_the_answer_kept(given):
    (key,) = given.budgets()
    assert given.budgets() == {key: 512}
    assert given.asked == ["fp32"]
    # What the run's folder was begun with comes before the cache.
    assert given.budgets(stored={key: 2048}) == {key: 2048}
    assert given.asked == ["fp32"]


def test_a_probe_without_an_answer_keeps_the_usual_size_and_is_asked_again(given, monkeypatch):
    monkeypatch.setattr(batch_budget, "_probe", real_probe)

    def fail(*args):
        raise JobFailed("batches: no memory")

    monkeypatch.setattr(batch_budget, "run_job", fail)
    (found,) = given.budgets().values()
    assert found == batch_plan("cpu")["max_tokens"]
    assert "keep the usual size (batches: no memory)" in given.notes[-1]
    monkeypatch.setattr(batch_budget, "_probe", lambda *args: 256)
    assert list(given.budgets().values()) == [256]


def test_a_declared_budget_asks_for_nothing(given):
    assert given.budgets(batch_tokens=300) == {}
    assert given.asked == []


def test_plan_runs_nothing(given):
    assert list(given.budgets(ask=False).values()) == [batch_plan("cpu")["max_tokens"]]
    assert (given.asked, given.notes) == ([], [])


def test_the_folder_keeps_its_budget_when_the_cache_is_lost(given, tmp_path, monkeypatch):
    prepared = prepare_sweep(given.spec, lambda event: None)
    assert {c.cell.batch_plan["max_tokens"] for c in prepared.plan.cells} == {512}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(sweep_document(prepared, "run")))
    monkeypatch.setattr(batch_budget, "cache_dir", lambda: tmp_path / "other")
    monkeypatch.setattr(batch_budget, "_probe", lambda *args: 4096)
    again = prepare_sweep(given.spec, lambda event: None)
    assert [c.cell_id for c in again.plan.cells] == [c.cell_id for c in prepared.plan.cells]


# -- the job ----------------------------------------------------------------------------------


def ask(limit: int, **more):
    """The job's answer on the demo model, for real."""
    spec = make_spec({"formats": "fp32", "device": "cpu", "limit": limit, "threads": 1})
    (planned,) = prepare_sweep(spec, lambda event: None, batches=False).plan.cells
    request = {
        "device": "cpu",
        "load": batch_budget.load_request(planned, spec, device_facts("cpu"), ""),
        "task": batch_budget.task_request(planned, ""),
        "ladder": (256, 512, 1024),
        "free_bytes": 10**12,
    }
    return run_job("batches", request | more, 1, lambda event: None, 120)[0]


def test_real_batches_are_timed_at_rising_budgets():
    found = ask(400)
    assert [e["max_tokens"] for e in found["tried"]] == [256, 512, 1024]
    assert found["ended"] == "ladder"
    for one, budget in zip(found["tried"], (256, 512, 1024), strict=True):
        assert 0 < one["tokens"] <= 3 * budget
        assert one["seconds"] > 0
    assert found["tried"][0]["tokens"] < found["tried"][2]["tokens"]


def test_the_climb_ends_where_nothing_larger_can_be_had():
    whole = ask(2)
    assert (whole["ended"], len(whole["tried"])) == ("whole", 1)
    # A batch of 256 tokens takes some 30 MB beside the model, and 1,024 some 80: the one that takes
    # too much is not among those to choose from, however fast it is, unless it is the smallest.
    none = ask(400, free_bytes=1000)
    assert (none["ended"], [e["max_tokens"] for e in none["tried"]]) == ("memory", [256])
    assert choose(none["tried"], none["ended"], 1024) == 256
    # The model itself, of 25 MB in weights, is not held to the batches' share.
    peaks = [e["peak_bytes"] for e in ask(400)["tried"]]
    some = ask(400, free_bytes=4 * (peaks[-1] - 25_000_000))
    assert len(some["tried"]) == 3


def test_long_answers_are_extrapolated_from_a_few_steps(monkeypatch):
    rules = GenerationRules(max_new_tokens=101)
    adapter = SimpleNamespace(rules=rules)
    session = SimpleNamespace(adapter=adapter)
    batch = [SimpleNamespace(room=101)]
    # A prompt's pass and the first token take 2 s, each further token 0.1 s.
    monkeypatch.setattr(
        batch_job, "_timed", lambda *_: 2.0 + 0.1 * (adapter.rules.max_new_tokens - 1)
    )
    assert batch_job._seconds(session, [batch]) == pytest.approx(12.0)
    assert adapter.rules is rules
    # Of what answers nothing the pass itself is timed.
    assert batch_job._seconds(session, [[SimpleNamespace(room=0)]]) == pytest.approx(12.0)


def test_a_budget_is_timed_on_short_and_long_inputs():
    batches = [[k] for k in range(9)]
    assert batch_job._spread(batches) == [[4], [7], [1]]
    assert batch_job._spread(batches[:2]) == [[1], [0]]
    assert batch_job._spread(batches[:1]) == [[0]]


def test_a_sweep_scores_in_batches_of_the_probed_size(tmp_path, quick_workload, monkeypatch):
    """The whole way: the plan of the record, and batches that keep to it."""
    options = {
        "formats": "fp32", "device": "cpu", "limit": 40, "threads": 1, "batch_size": (1,),
        "workload": str(quick_workload), "out": str(tmp_path / "run"),
    }  # fmt: skip
    monkeypatch.setattr(batch_budget, "_probe", lambda *args: 256)
    monkeypatch.setattr(batch_budget, "_cached", lambda key: None)
    monkeypatch.setattr(batch_budget, "_store", lambda *args: None)
    prepared = prepare_sweep(make_spec(options), lambda event: None)
    folder, tally = run_sweep(prepared, lambda event: None)
    assert (tally.ran, tally.failed) == (1, 0)
    (planned,) = prepared.plan.cells
    record = folder.read_record(planned.cell_id)
    assert record.cell.batch_plan["max_tokens"] == 256
    quality = record.measurements.quality
    assert quality.batches >= quality.tokens / 256
