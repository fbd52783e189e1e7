"""Requests that come by their own clock, from a cell's request to its row: load, lengths, repeats,
cautions, columns, and one sweep of two formats."""

from __future__ import annotations

import csv
import gc
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from precision_explorer.errors import DoesNotFit, UsageError
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.measure.clock import VirtualClock
from precision_explorer.models.causal_lm import LanguageModeling
from precision_explorer.models.generation import Generation
from precision_explorer.models.seq2seq import Seq2Seq
from precision_explorer.records.serving import Serving
from precision_explorer.runner import serving as serving_module
from precision_explorer.runner.closed_loop import closed_loop
from precision_explorer.runner.offered import Load, check_served, offered
from precision_explorer.runner.served_cautions import served_cautions
from precision_explorer.runner.serving import Server, batch_sizes
from precision_explorer.runner.session import Session
from precision_explorer.stats import tail
from precision_explorer.store import read_run
from precision_explorer.table.scenario_words import latency_words
from precision_explorer.units import rate
from precision_explorer.workload import Workload, plan_schedule
from tests.test_models_causal_lm import BOTH, llama, tokenizer
from tests.test_models_generation import PAD, bart, card, examples, sequence_card

RULES: dict[str, Any] = {
    "scenario": "server",
    "arrivals": {"kind": "poisson", "rate_per_s": 20},
    "duration_seconds": 10,
    "warmup_requests": 1,
    "warmup_seconds": 1,
    "offline_seconds": 0,
    "offline_min_batches": 1,
    "max_batch": 4,
}
COUNT = 6


@pytest.fixture(autouse=True, scope="module")
def cheap_collections():
    """A window collects garbage first, which walks all that torch and transformers have made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def workload(**changes: Any) -> Workload:
    return Workload.model_validate({"rounds": 1} | RULES | changes)


class Stub:
    """An adapter that takes `seconds` of a clock for any batch."""

    generates = False

    def __init__(self, pause: Any) -> None:
        self.pause, self.batches = pause, []

    def offline(self, indices: list[int]) -> dict[str, Any]:
        self.batches.append(list(indices))
        self.pause()
        return {"answers": [f"answer {i}" for i in indices]}


def served(rules: Workload, adapter: Any, reference: dict[str, Any] | None = None) -> Any:
    server = Server(adapter, rules, 0, lambda: None, [None] * COUNT)
    return server.measure([1], reference or {}, UnavailableSensor(), 0, True)


@pytest.fixture
def virtual(monkeypatch):
    """A virtual clock in place of the loop's."""
    clock = VirtualClock()
    monkeypatch.setattr(serving_module, "RealClock", lambda: clock)
    return clock


def test_rows_hold_the_examples_of_the_plan_and_their_answers(virtual):
    rules = workload()
    made = served(rules, Stub(lambda: virtual.advance(0.01)))
    plan = plan_schedule(rules, COUNT, 0, None, 0)
    window = [row for row in made.rows if row["window"] in ("settle", "measure")]
    assert [row["index"] for row in window] == plan.items.tolist()
    np.testing.assert_allclose([row["scheduled_s"] for row in window], plan.times_s)
    assert all(row["answer"] == f"answer {row['index']}" for row in window)
    settled = [row["scheduled_s"] for row in window if row["window"] == "settle"]
    assert max(settled) < 1.0 <= min(r["scheduled_s"] for r in window if r["window"] == "measure")
    assert made.served == len(window)
    assert made.serving.load is None
    assert made.serving.offered_rate_per_s == pytest.approx(20, rel=0.4)
    # The offline part also tried the largest batch that a window may have.
    assert set(made.throughput.by_batch_size) == {"1", "4"}


def test_every_format_is_offered_the_same_share_of_the_references_capacity(virtual):
    rules = workload(arrivals={"kind": "poisson", "load": 0.5})
    slow, fast = (
        served(rules, Stub(lambda s=s: virtual.advance(s)), {"capacity_per_s": 40.0})
        for s in (0.02, 0.01)
    )
    for made in (slow, fast):
        assert (made.serving.load, made.serving.load_of) == (0.5, "reference")
        assert made.serving.capacity_per_s == 40.0
        assert made.serving.offered_rate_per_s == pytest.approx(20, rel=0.4)
    assert slow.serving.requests == fast.serving.requests
    assert slow.serving.utilisation > 1.5 * fast.serving.utilisation


@pytest.mark.parametrize(
    ("load_of", "reference", "named"),
    [
        ("own", {"capacity_per_s": 7.0}, "own"),
        ("reference", {"capacity_per_s": None, "is_reference": True}, "reference"),
        ("reference", {"capacity_per_s": None, "is_reference": False}, "own"),
    ],
)
def test_a_capacity_of_ones_own_is_that_of_the_largest_batch(virtual, load_of, reference, named):
    rules = workload(
        arrivals={"kind": "constant", "load": 0.5}, load_of=load_of, duration_seconds=2
    )

    def pause() -> None:
        time.sleep(0.004)
        virtual.advance(0.001)

    serving = served(rules, Stub(pause), reference).serving
    assert serving.load_of == named
    # 4 at a time, in 4 ms or more each.
    assert 0 < serving.capacity_per_s <= 1000
    assert serving.offered_rate_per_s == pytest.approx(serving.capacity_per_s / 2, rel=0.2)


def test_a_window_whose_loop_was_late_is_served_once_more(monkeypatch):
    class Late(VirtualClock):
        def sleep_until(self, moment: float) -> None:
            super().sleep_until(moment + 0.1 if moment > self.now() else moment)

    late, good = Late(), VirtualClock()
    for clocks, windows, refused in (
        ([late, good], 2, False),
        ([Late(), Late()], 2, True),
        ([VirtualClock()], 1, False),
    ):
        given = iter(clocks)
        current: list[VirtualClock] = []

        def clock(given=given, current=current) -> VirtualClock:
            current[:] = [next(given)]
            return current[0]

        monkeypatch.setattr(serving_module, "RealClock", clock)

        def pause(current=current) -> None:
            if current:
                current[0].advance(0.001)

        serving = served(workload(), Stub(pause)).serving
        assert serving.windows == windows
        assert (serving.refused is not None) is refused


def test_tails_make_the_window_as_long_as_they_need(virtual):
    plain = served(workload(), Stub(lambda: virtual.advance(0.001))).serving
    long = served(workload(tails="p99"), Stub(lambda: virtual.advance(0.001))).serving
    assert plain.duration_s == 10
    assert plain.requests < 299 <= long.requests
    # p99.9 needs more than the budget.
    longest = served(workload(tails="p999"), Stub(lambda: virtual.advance(0.001))).serving
    assert longest.duration_s == 60


def a_queue(clock: VirtualClock) -> Stub:
    """Exponential services of 10 ms in the mean: with 70 requests a second an M/M/1 queue."""
    generator = np.random.default_rng(1)
    return Stub(lambda: clock.advance(float(generator.exponential(0.01))))


BUSY = {
    "arrivals": {"kind": "poisson", "rate_per_s": 70}, "max_batch": 1, "tails": "p99",
    "budget_seconds": 2000,
}  # fmt: skip


def latencies_of(made: Any) -> np.ndarray:
    return np.array([row["latency_s"] for row in made.rows if row["window"] == "measure"])


def test_tails_go_on_until_a_queue_s_percentile_can_be_printed(virtual):
    """700 requests that wait for each other are too few for p99, though 299 independent ones would
    do: longer windows follow, and the last counts."""
    short = served(workload(**BUSY | {"tails": None}), a_queue(virtual))
    assert short.serving.windows == 1
    assert tail(latencies_of(short), 0.99).needed_n > len(latencies_of(short))
    made = served(workload(**BUSY), a_queue(virtual))
    assert made.serving.windows > 1
    assert made.serving.duration_s > short.serving.duration_s
    assert tail(latencies_of(made), 0.99).needed_n is None
    assert made.serving.requests == len(latencies_of(made))
    # The budget ends it: of 21 s a window of 10 s leaves 11 s.
    bounded = served(workload(**BUSY | {"budget_seconds": 21}), a_queue(virtual))
    assert bounded.serving.duration_s <= 11
    assert made.serving.cold_first_s == pytest.approx(short.serving.cold_first_s)


def test_no_longer_window_follows_one_that_is_saturated(virtual):
    rules = workload(**BUSY | {"arrivals": {"kind": "poisson", "rate_per_s": 200}})
    serving = served(rules, a_queue(virtual)).serving
    assert serving.saturated
    assert serving.windows == 1


def test_a_longer_window_that_came_late_takes_nothing_from_the_one_before(monkeypatch):
    class Late(VirtualClock):
        def sleep_until(self, moment: float) -> None:
            super().sleep_until(moment + 0.1 if moment > self.now() else moment)

    clocks = [VirtualClock(), Late()]
    given, current = iter(clocks), clocks[:1]

    def clock() -> VirtualClock:
        current[:] = [next(given)]
        return current[0]

    monkeypatch.setattr(serving_module, "RealClock", clock)
    generator = np.random.default_rng(1)
    adapter = Stub(lambda: current[0].advance(float(generator.exponential(0.01))))
    serving = served(workload(**BUSY), adapter).serving
    assert (serving.windows, serving.refused, serving.duration_s) == (2, None, 10.0)


@pytest.mark.parametrize("arrivals", [{"load": 0.5}, {"rate_per_s": 20}])
def test_a_largest_batch_that_does_not_fit_is_said_before_the_window(virtual, arrivals):
    class Small(Stub):
        def offline(self, indices: list[int]) -> dict[str, Any]:
            if len(indices) > 1:
                raise MemoryError
            return super().offline(indices)

    rules = workload(arrivals={"kind": "poisson"} | arrivals)
    with pytest.raises(DoesNotFit, match=r"a batch of 4 requests.*lower max_batch"):
        served(rules, Small(lambda: virtual.advance(0.01)), {"capacity_per_s": 40.0})


class Drawn:
    """An adapter that serves drawn lengths, of inputs at most 50 tokens."""

    generates = True

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.asked = clock, []

    def offline(self, indices: list[int]) -> dict[str, Any]:
        self.clock.advance(0.001)
        return {"output_tokens": len(indices)}

    def serve_batch(self, indices: list[int], **lengths: list[int]) -> list[dict[str, Any]]:
        self.clock.advance(0.01)
        self.asked.append((indices, lengths))
        pairs = zip(lengths["input_tokens"], lengths["output_tokens"], strict=True)
        return [
            {
                "input_tokens": min(i, 50),
                "output_tokens": o,
                "first_token_s": 0.001,
                "tpot_s": 0.001,
            }
            for i, o in pairs
        ]


def test_a_trace_s_lengths_are_served_and_those_that_were_cut_counted(virtual, tmp_path):
    path = tmp_path / "trace.csv"
    lines = [f"{0.05 * k},{40 + k % 20},{1 + k % 3}" for k in range(200)]
    path.write_text("time_s,input_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    rules = workload(arrivals={"kind": "trace", "path": str(path)}, duration_seconds=9)
    adapter = Drawn(virtual)
    made = served(rules, adapter)
    rows = [row for row in made.rows if "batch" in row]
    assert len(rows) > 150
    for row in rows:
        place = row["position"]
        assert row["input_tokens"] == min(40 + place % 20, 50)
        assert row["output_tokens"] == 1 + place % 3
    asked = [n for _, lengths in adapter.asked for n in lengths["input_tokens"]]
    assert max(asked) == 59
    too_long = sum(40 + row["position"] % 20 > 50 for row in rows)
    assert made.serving.cut_requests == too_long > 0
    assert made.serving.batching == "static"


def language_model(output_tokens: int = 3) -> LanguageModeling:
    texts = [{"id": f"d{i}", "text": "the film was very good indeed " * (i + 1)} for i in range(3)]
    asked = {"kind": "language-modeling", "metrics": ["bits_per_byte"], "max_length": 64}
    return LanguageModeling(
        llama(),
        tokenizer(**BOTH),
        "cpu",
        texts,
        asked,
        prompt_tokens=4,
        output_tokens=output_tokens,
    )


def test_a_static_batch_tells_of_each_requests_tokens():
    found = language_model()
    with torch.inference_mode():
        rows = found.serve_batch([0, 1, 2], output_tokens=[1, 2, 5], input_tokens=[9, 2, 4])
    assert [row["output_tokens"] for row in rows] == [1, 2, 5]
    assert [row["input_tokens"] for row in rows] == [9, 2, 4]
    assert rows[0]["tpot_s"] is None
    assert rows[1]["tpot_s"] > 0
    assert rows[2]["tpot_s"] > 0
    # The prompts are passed through the model together.
    assert len({row["first_token_s"] for row in rows}) == 1
    assert rows[0]["first_token_s"] > 0


def test_lengths_stay_within_the_models_positions():
    found = language_model()
    positions = found.model.config.max_position_embeddings
    with torch.inference_mode():
        row = found.serve_batch([0], input_tokens=[positions], output_tokens=[4])[0]
    assert row["input_tokens"] + row["output_tokens"] <= positions


@pytest.mark.parametrize("make", ["generation", "seq2seq"])
def test_generating_adapters_serve_batches(make):
    if make == "generation":
        found: Any = Generation(llama(), tokenizer(**BOTH), "cpu", examples(), card(), 4)
    else:
        found = Seq2Seq(bart(), tokenizer(**PAD), "cpu", examples(), sequence_card(), 4)
    with torch.inference_mode():
        rows = found.serve_batch([0, 1])
    assert len(rows) == 2
    for row in rows:
        assert row["output_tokens"] == 4
        assert row["first_token_s"] > 0
        assert row["tpot_s"] > 0


def test_multi_stream_and_offline_are_scenarios_of_a_cell():
    adapter = Stub(lambda: None)
    rules = Workload(scenario="multi-stream", streams=4, min_requests=3, min_seconds=0)
    series = closed_loop(adapter, COUNT, rules)
    assert {len(batch) for batch in adapter.batches} == {4}
    assert [row["samples"] for row in series.measured()] == [4, 4, 4]
    assert closed_loop(adapter, COUNT, Workload(scenario="offline")) is None


def test_a_compiler_knows_the_batches_of_a_window():
    assert batch_sizes([1, 8], RULES | {"max_batch": 6}) == [1, 2, 4, 6, 8]
    assert batch_sizes([1, 8], {"scenario": "single-stream"}) == [1, 8]


# -- what stands in the request and the record ------------------------------------------------


def planned(name: str, rules: dict[str, Any]) -> Any:
    return SimpleNamespace(cell_id=name, cell=SimpleNamespace(workload=rules))


def test_the_references_first_block_says_what_is_offered():
    answers = {"ref": {"serving": {"capacity_per_s": 12.5}}}
    folder = SimpleNamespace(read_answer=lambda cell_id, part: answers.get(cell_id))
    reference, other = planned("ref", RULES), planned("other", RULES)
    found = offered(Load(), other, reference, folder, 0)
    assert found["capacity_per_s"] == 12.5
    assert found["is_reference"] is False
    first, later = (offered(Load(), reference, reference, folder, k) for k in (0, 1))
    assert first["is_reference"] is later["is_reference"] is True
    assert (first["capacity_per_s"], later["capacity_per_s"]) == (None, 12.5)
    assert offered(Load(), other, planned("none", RULES), folder, 0)["capacity_per_s"] is None
    assert offered(Load(), planned("x", {"scenario": "single-stream"}), None, folder, 0) == {}


def test_a_share_of_its_own_capacity_is_the_same_in_all_rounds(virtual, monkeypatch):
    """Measured in the first one, and of drawn lengths no second time."""
    answers = {
        "ref": {"serving": {"capacity_per_s": 12.5, "load_of": "own"}},
        "other": {"serving": {"capacity_per_s": 8.0, "load_of": "own"}},
    }
    folder = SimpleNamespace(read_answer=lambda cell_id, part: answers.get(cell_id))
    reference, other = planned("ref", RULES), planned("other", RULES)
    first, later = (offered(Load(), other, reference, folder, k) for k in (0, 1))
    assert (first["own_capacity_per_s"], later["own_capacity_per_s"]) == (None, 8.0)
    assert offered(Load(), reference, reference, folder, 1)["own_capacity_per_s"] == 12.5
    answers["other"]["serving"]["load_of"] = "reference"
    assert offered(Load(), other, reference, folder, 1)["own_capacity_per_s"] is None
    rules = workload(
        arrivals={"kind": "constant", "load": 0.5}, load_of="own", lengths=LENGTHS | OUT
    )
    monkeypatch.setattr(Server, "_capacity", lambda *given: pytest.fail("measured once more"))
    made = served(rules, Drawn(virtual), later)
    assert (made.serving.capacity_per_s, made.serving.load_of) == (8.0, "own")


def test_a_trace_s_path_goes_to_the_worker_and_stands_in_no_rules():
    rules = RULES | {"arrivals": {"kind": "trace", "sha256": "0"}}
    folder = SimpleNamespace(read_answer=lambda cell_id, part: None)
    found = offered(Load("some/trace.csv"), planned("x", rules), None, folder, 0)
    assert found["workload"]["arrivals"]["path"] == "some/trace.csv"
    assert "path" not in rules["arrivals"]


def a_task(kind: str) -> Any:
    examples = [{"id": "e0", "group": "short"}, {"id": "e1", "group": None}]
    return SimpleNamespace(card=SimpleNamespace(kind=kind, name="some-task"), examples=examples)


def mix_of(*groups: str) -> dict[str, Any]:
    return {"mix": [{"name": f"of {g}", "weight": 1, "group": g} for g in groups]}


LENGTHS = {"input": {"kind": "fixed", "tokens": 7}}
OUT = {"output": {"kind": "fixed", "tokens": 2}}
SELDOM = {"kind": "poisson", "rate_per_s": 1e-6}
SHARE = {"kind": "poisson", "load": 0.5}


@pytest.mark.parametrize(
    ("rules", "kind", "runtime", "words"),
    [
        ({"lengths": LENGTHS}, "text-classification", "eager", "have their own"),
        ({"lengths": LENGTHS}, "generation", "compile", "use --runtime eager"),
        ({"arrivals": SELDOM}, "generation", "eager", "no request falls into 10"),
        (mix_of("short", "none"), "generation", "eager", "no example is of the group 'none'"),
        (
            mix_of("short", "none") | {"arrivals": SHARE},
            "generation",
            "eager",
            "no example is of the group 'none'",
        ),
        ({"arrivals": SHARE, "duration_seconds": 1.1}, "generation", "eager", None),
        ({"lengths": LENGTHS}, "generation", "eager", None),
        ({}, "text-classification", "compile", None),
    ],
)
def test_what_can_not_be_served_is_said_in_one_line(rules, kind, runtime, words):
    made = workload(**rules)
    if words is None:
        check_served(made, [a_task(kind)], [runtime])
        return
    with pytest.raises(UsageError, match=words) as raised:
        check_served(made, [a_task(kind)], [runtime])
    assert "\n" not in str(raised.value)


def window(**changes: Any) -> dict[str, Any]:
    made = {
        "scenario": "server", "batching": "dynamic", "max_batch": 4, "max_wait_s": 0.0,
        "requests": 40, "unfinished": 0, "batches": 30, "duration_s": 11.0, "settle_s": 1.0,
        "ended_s": 11.0, "offered_rate_per_s": 4.0, "achieved_rate_per_s": 4.0, "utilisation": 0.5,
        "lateness_p99_s": 1e-4, "lateness_limit_s": 1e-3, "full_share": 0.1, "saturated": False,
        "little": {
            "in_system": 1.0, "rate_times_latency": 1.0, "relative_gap": 0.0, "holds": True,
        },
    }  # fmt: skip
    return Serving.model_validate(made | changes).model_dump()


@pytest.mark.parametrize(
    ("changes", "shared", "ids"),
    [
        ({}, True, []),
        ({"refused": "the loop saw 1 % late"}, True, ["serving-refused"]),
        ({"saturated": True}, True, ["serving-saturated"]),
        ({"saturated": True, "unfinished": 3}, True, ["serving-saturated"]),
        ({"load_of": "own"}, True, ["serving-own-load"]),
        ({"load_of": "own"}, False, []),
        ({"cut_requests": 2}, True, ["lengths-cut"]),
        (
            {"little": {"in_system": 1.0, "rate_times_latency": 2.0, "relative_gap": 0.5,
                        "holds": False}},
            True,
            ["serving-unbalanced"],
        ),
    ],
)  # fmt: skip
def test_cautions_say_what_to_do(changes, shared, ids):
    found = served_cautions([window(), window(**changes)], shared)
    assert [caution.id for caution in found] == ids
    assert all(";" in c.message or ":" in c.message for c in found)


def test_a_load_of_its_own_names_the_reference_that_came_later():
    (found,) = served_cautions([window(load_of="own")], True)
    for words in ("memory did not hold it", "its rate not that of other rows", "give rate_per_s"):
        assert words in found.message


def test_a_load_is_told_in_words():
    rules = workload().rules()
    words = latency_words(
        workload(arrivals={"kind": "gamma", "load": 0.7, "burstiness": 0.25}).rules()
    )
    for part in ("burstiness 0.25", "70 % of the reference's", "scheduled arrival", "at most 4"):
        assert part in words
    assert f"at {rate(20)}" in latency_words(workload().rules())
    assert "rounds" not in latency_words(workload().rules())
    three = latency_words(workload(rounds=3, duration_seconds=12, tails="p99").rules())
    assert "requests come for 4.00 s in each of 3 rounds, or longer until p99 can be shown" in three
    assert "queued and batched as the server likes" in latency_words(rules, "endpoint")
    assert "4 in progress, joining at any step where" in latency_words(rules, "any")
    assert "single-stream" in latency_words(Workload().rules())
    assert "queries of 8" in latency_words(Workload(scenario="multi-stream").rules())
    assert "none" in latency_words(Workload(scenario="offline").rules())


def test_a_sweep_offers_two_formats_the_same_requests(tmp_path):
    rules = RULES | {"duration_seconds": 6, "warmup_seconds": 0.5, "budget_seconds": 30}
    rules["arrivals"] = {"kind": "poisson", "rate_per_s": 4}
    file, folder = tmp_path / "few.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(rules))
    asked = ["--formats", "fp32,int8-dynamic", "--limit", "12", "--workload", file, "--out", folder]
    command = ["sweep", *asked, "--device", "cpu", "--threads", "1", "--batch-size", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "precision_explorer", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (folder / "tradeoffs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["format"] for row in rows] == ["fp32", "int8-dynamic"]
    assert {row["scenario"] for row in rows} == {"server"}
    assert len({row["offered_rate_per_s"] for row in rows}) == 1
    assert len({row["method_id"] for row in rows}) == 1
    found, _ = read_run(folder)
    plans = []
    for row, cell in zip(rows, sorted(folder.glob("cells/*.json")), strict=True):
        record = found.read_record(cell.stem)
        windows = record.measurements.serving
        assert [w.round.round for w in windows] == [0, 1, 2]
        assert all(w.round.interleaved for w in windows)
        assert record.measurements.latency is None
        assert all(w.little.holds and w.duration_s == 2 for w in windows)
        requests = found.read_samples(cell.stem, "request")
        assert len(requests["id"]) > sum(w.requests for w in windows)
        assert int(row["rounds"]) == 3
        asked = zip(requests["round"], requests["scheduled_s"], requests["index"], strict=True)
        plans.append([one for one in asked if one[1] is not None])
        # A machine at work may be late or too slow for the rate: then it says so.
        if not any(w.refused or w.saturated for w in windows):
            assert float(row["latency_p50_s"]) > 0
    assert plans[0] == plans[1]
    # Each round has a draw of its own.
    first, second = ([t for k, t, _ in plans[0] if k == number] for number in (0, 1))
    assert first
    assert first != second
    assert "requests come by their own clock" in (folder / "tradeoffs.md").read_text()


def test_an_adapter_that_another_task_left_is_made_anew(monkeypatch):
    made = []

    def make(self: Session, request: dict[str, Any]) -> Any:
        made.append(request["examples"])
        return SimpleNamespace(of=request["examples"])

    monkeypatch.setattr(Session, "_adapter", make)
    session = object.__new__(Session)
    session.adapter, session._asked = None, None
    one, other = ({"card": {"kind": "k"}, "examples": [{"id": "0", "text": t}]} for t in "ab")
    assert session._adapter_of(one) is session._adapter_of(dict(one))
    assert session._adapter_of(other).of == other["examples"]
    assert len(made) == 2
