"""Continuous batching: the loop on a virtual clock, transformers' batches against each request
alone, and a cell that is served so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import yaml

from precision_explorer.errors import DoesNotFit, PrecisionExplorerError, UsageError
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.measure.clock import VirtualClock
from precision_explorer.measure.continuous import Step, full_rate, serve_continuously
from precision_explorer.measure.served import ServingSeries
from precision_explorer.measure.serving import ServingRules
from precision_explorer.models import continuous
from precision_explorer.models.causal_lm import LanguageModeling
from precision_explorer.models.continuous import continuous_batches, why_not
from precision_explorer.models.seq2seq import Seq2Seq
from precision_explorer.runner import continuous as runner_continuous
from precision_explorer.runner.continuous import choose_batching, stepping
from precision_explorer.runner.offered import check_served
from precision_explorer.runner.served_cautions import served_cautions
from precision_explorer.runner.serving import Server
from precision_explorer.stats.queueing import lindley
from precision_explorer.store import read_run
from precision_explorer.table.scenario_words import latency_words
from precision_explorer.workload import Workload, plan_schedule
from tests.test_generation_sweep import card_of, command, folder_of, rows_of
from tests.test_models_causal_lm import BOTH, bloom, llama, tokenizer
from tests.test_models_generation import PAD, bart, examples, sequence_card
from tests.test_models_generation import llama as small
from tests.test_serving_cells import (
    LENGTHS,
    OUT,
    Stub,
    a_task,
    cheap_collections,
    language_model,
    window,
    workload,
)

# Each closed batch collects garbage, too.
__all__ = ["cheap_collections"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Steps:
    """A stepper whose requests have `tokens[position]` tokens, of which each step gives one;
    `seconds(n)` of the clock for a step of n requests. A request whose turn comes late waits
    `held[position]` steps for its first."""

    def __init__(
        self, clock: VirtualClock, tokens: Any, seconds: Any, held: dict[int, int] | None = None
    ) -> None:
        self.clock, self.tokens, self.seconds, self.held = clock, tokens, seconds, held or {}
        self.left: dict[int, int] = {}
        self.wait: dict[int, int] = {}
        self.sizes: list[int] = []
        self.joined: list[int] = []

    def join(self, position: int) -> tuple[int, dict[str, Any]]:
        ticket = len(self.joined)
        self.joined.append(position)
        self.left[ticket] = self.tokens[position]
        self.wait[ticket] = self.held.get(position, 0)
        return ticket, {"output_tokens": self.tokens[position]}

    def step(self) -> Step:
        self.sizes.append(len(self.left))
        self.clock.advance(self.seconds(len(self.left)))
        served = [t for t in self.left if not self.wait[t]]
        for ticket in self.left:
            self.wait[ticket] = max(self.wait[ticket] - 1, 0)
        for ticket in served:
            self.left[ticket] -= 1
        finished = [t for t in served if not self.left[t]]
        self.left = {t: n for t, n in self.left.items() if n}
        return Step(served, served, finished)


def run(
    times: Any,
    tokens: Any,
    seconds: Any = lambda n: 1.0,
    rules: ServingRules | None = None,
    held: dict[int, int] | None = None,
    **more: Any,
) -> ServingSeries:
    clock = VirtualClock()
    stepper = Steps(clock, tokens, seconds, held)
    return serve_continuously(times, stepper, rules or ServingRules(), clock=clock, **more)


# -- the loop ----------------------------------------------------------------------------------


def test_a_request_joins_at_the_next_step_and_leaves_with_its_last_token():
    series = run([0.0, 0.5, 1.5], [4, 1, 2], rules=ServingRules(max_batch=3))
    rows = series.rows()
    np.testing.assert_allclose([r["started_s"] for r in rows], [0.0, 1.0, 2.0], atol=1e-9)
    np.testing.assert_allclose([r["finished_s"] for r in rows], [4.0, 2.0, 4.0], atol=1e-9)
    np.testing.assert_allclose([r["queue_s"] for r in rows], [0.0, 0.5, 0.5], atol=1e-9)
    np.testing.assert_allclose([r["service_s"] for r in rows], [4.0, 1.0, 2.0], atol=1e-9)
    # From the scheduled arrival, not from when it joined.
    np.testing.assert_allclose([r["ttft_s"] for r in rows], [1.0, 1.5, 1.5], atol=1e-9)
    assert [r["tpot_s"] for r in rows] == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert [r["output_tokens"] for r in rows] == [4, 1, 2]
    assert [r["batch"] for r in rows] == [0, 1, 2]
    assert series.sizes.tolist() == [1, 2, 2, 2]
    np.testing.assert_allclose(series.overhead_s(), 0.0, atol=1e-9)


def test_no_more_are_in_progress_than_may_be_and_the_first_to_come_is_the_first_to_join():
    times, tokens = np.arange(20) * 0.1, [1 + k % 4 for k in range(20)]
    clock = VirtualClock()
    stepper = Steps(clock, tokens, lambda n: 1.0)
    series = serve_continuously(times, stepper, ServingRules(max_batch=3, drain_s=99), clock=clock)
    assert max(stepper.sizes) == 3
    assert series.sizes.tolist() == stepper.sizes
    assert stepper.joined == list(range(20))
    assert (np.diff(series.begins_s()) >= 0).all()
    assert (np.diff(series.ends_s()) < 0).any(), "a short one overtakes a long one"


def test_one_at_a_time_is_lindleys_queue():
    times = np.cumsum(np.random.default_rng(0).exponential(5, 800))
    tokens = np.random.default_rng(1).integers(1, 8, 800).tolist()
    series = run(times, tokens, rules=ServingRules(drain_s=1e6))
    np.testing.assert_allclose(series.queue_s(), lindley(times, np.array(tokens)), atol=1e-6)
    assert abs(series.lateness_s()).max() < 1e-9


def test_littles_law_holds_and_utilisation_is_the_time_at_which_any_is_served():
    times = np.array([0.0, 0.0, 10.0, 10.5, 30.0])
    series = run(times, [3, 5, 2, 2, 1], rules=ServingRules(max_batch=2), duration_s=40.0)
    record = series.record("server", batching="continuous")
    assert record.little.relative_gap < 1e-9
    # 0 to 5, 10 to 13, 30 to 31, of 40 s.
    assert record.utilisation == pytest.approx(9 / 40)
    assert record.batches == 9
    assert record.unfinished == 0
    many = run(
        np.cumsum(np.random.default_rng(2).exponential(1.0, 300)),
        np.random.default_rng(3).integers(1, 9, 300).tolist(),
        lambda n: 0.1 + 0.05 * n,
        ServingRules(max_batch=8, drain_s=1e4),
    )
    assert many.little().relative_gap < 1e-9


def test_a_request_that_had_to_wait_for_its_first_step_waits_in_the_queue():
    # Long prompts of others may fill a step: it has joined, but nothing is done for it.
    rows = run([0.0, 0.0], [3, 1], rules=ServingRules(max_batch=2), held={1: 2}).rows()
    assert rows[1]["queue_s"] == pytest.approx(2.0)
    assert rows[1]["service_s"] == pytest.approx(1.0)
    assert rows[1]["ttft_s"] == pytest.approx(3.0)


def test_at_the_cut_those_in_progress_are_served_to_their_end_and_no_other_joins():
    rules = ServingRules(max_batch=2, drain_s=0.5)
    series = run([0.0, 0.1, 0.2, 0.3], [6, 1, 1, 6], rules=rules, duration_s=1.0)
    rows = series.rows()
    assert [r["latency_s"] is None for r in rows] == [False, False, True, True]
    assert series.unfinished == 2
    assert series.ended_s == pytest.approx(6.0)
    assert rows[3]["noticed_s"] is not None
    assert series.record("server", batching="continuous").saturated
    assert series.little().holds


def test_a_queue_that_grows_is_saturated_and_one_that_does_not_is_not():
    for gap, expected in ((0.9, True), (2.0, False)):
        series = run(np.arange(200) * gap, [4] * 200, rules=ServingRules(max_batch=4, drain_s=1e4))
        assert series.record("server", batching="continuous").saturated is expected


def test_warm_up_serves_whole_requests_before_the_window():
    rules = ServingRules(max_batch=4, warmup_requests=3)
    series = run([0.0, 1.0], [2, 3], rules=rules)
    assert [w.size for w in series.warm] == [1, 2, 4]
    assert [w.seconds for w in series.warm] == [2.0, 3.0, 3.0]
    assert series.begins_s()[0] == pytest.approx(0.0)


def test_capacity_is_the_rate_at_which_requests_leave_a_full_batch():
    clock = VirtualClock()
    tokens = [2, 4, 6]
    stepper = Steps(clock, tokens, lambda n: 0.25 * n)
    rules = {"least_requests": 200, "least_s": 1.0, "budget_s": 1e6, "clock": clock.now}
    rate = full_rate(stepper, 3, 4, **rules)
    assert set(stepper.sizes) == {4}
    # A step takes 1 s and gives 4 tokens; a request has 4 in the mean.
    assert rate == pytest.approx(1.0, rel=0.05)
    assert stepper.joined[:7] == [0, 1, 2, 0, 1, 2, 0]
    short = Steps(clock, [50], lambda n: 1.0)
    begun = clock.now()
    assert full_rate(short, 1, 2, **rules | {"budget_s": 10.0}) == pytest.approx(2 / 50)
    assert clock.now() - begun == 100, "one request is measured whatever the budget"


# -- transformers' batches ---------------------------------------------------------------------

ASKED = [(k % 3, 3 + 7 * k % 40, 1 + 5 * k % 9) for k in range(12)]


def adapter_of(model: Any) -> LanguageModeling:
    texts = [{"id": f"d{i}", "text": "the film was very good indeed " * (i + 1)} for i in range(3)]
    card = {"kind": "language-modeling", "metrics": ["bits_per_byte"], "max_length": 64}
    return LanguageModeling(
        model, tokenizer(**BOTH), "cpu", texts, card, prompt_tokens=30, output_tokens=5
    )


def tokens_of(found: LanguageModeling, asked: list[Any], max_batch: int) -> list[list[int]]:
    """Of each request, which join as others leave."""
    made: dict[int, list[int]] = {}
    places: dict[int, int] = {}
    with torch.inference_mode(), continuous_batches(found.model, max_batch, 64) as batches:
        while len(made) < len(asked):
            while len(places) < len(asked) and len(places) - len(made) < max_batch:
                place = len(places)
                places[batches.join(*found.request_tokens(*asked[place]))] = place
            done = batches.step()
            assert len(done.served) <= max_batch
            for ticket in done.finished:
                made[places[ticket]] = batches.tokens.pop(ticket)
    return [made[place] for place in range(len(asked))]


def alone(found: LanguageModeling, asked: list[Any]) -> list[list[int]]:
    with torch.inference_mode():
        return [found.greedy_tokens(*found.request_tokens(*request)) for request in asked]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tokens_are_those_of_each_request_alone(attention):
    found = adapter_of(llama())
    found.model.set_attn_implementation(attention)
    made = tokens_of(found, ASKED, 4)
    assert made == alone(found, ASKED)
    assert [len(tokens) for tokens in made] == [count for _, _, count in ASKED]
    # The model is as it was.
    assert found.model.config._attn_implementation == attention


def test_tokens_are_those_of_a_static_batch():
    found = adapter_of(llama())
    asked = [(k, 20, 6) for k in range(3)]
    with torch.inference_mode():
        prompts = torch.tensor([found.request_tokens(*request)[0] for request in asked])
        _, static = found._greedy(prompts, torch.ones_like(prompts), continuous_phases(), 6)
    assert tokens_of(found, asked, 3) == static


def continuous_phases() -> Any:
    from precision_explorer.measure import NullPhases

    return NullPhases()


def test_a_prompt_longer_than_a_step_is_divided_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(continuous, "STEP_TOKENS", 16)
    found = adapter_of(llama())
    asked = [(0, 4, 8), (1, 50, 3), (2, 45, 3)]
    assert tokens_of(found, asked, 3) == alone(found, asked)
    with torch.inference_mode(), continuous_batches(found.model, 3, 64) as batches:
        first = batches.join(*found.request_tokens(*asked[0]))
        batches.step()
        second = batches.join(*found.request_tokens(*asked[1]))
        third = batches.join(*found.request_tokens(*asked[2]))
        done = batches.step()
        assert (done.served, done.made) == ([first, second], [first])
        assert third not in done.served


def test_an_end_token_ends_nothing_and_the_models_own_settings_change_nothing():
    found = adapter_of(llama())
    made = alone(found, [(0, 9, 8)])[0]
    found.model.generation_config.eos_token_id = made[1]
    found.model.generation_config.repetition_penalty = 5.0
    assert tokens_of(found, [(0, 9, 8)], 2) == [made]


def test_the_cache_is_as_large_as_its_requests_and_no_larger():
    found = adapter_of(llama())
    config = found.model.config
    token_bytes = 2 * config.num_hidden_layers * config.hidden_size * 4
    with torch.inference_mode(), continuous_batches(found.model, 4, 100) as batches:
        held = batches._processor.cache.cache_tensor.numel()
    # Whole pages, one more of each request, and two that transformers writes padding to.
    assert 4 * 100 * token_bytes <= held <= (4 * (128 + 32) + 64) * token_bytes


def test_numbers_that_are_none_still_give_as_many_tokens():
    found = adapter_of(llama())
    with torch.no_grad():
        found.model.lm_head.weight.fill_(float("nan"))
    made = tokens_of(found, ASKED[:4], 2)
    assert [len(tokens) for tokens in made] == [count for _, _, count in ASKED[:4]]


def narrowed(name: str) -> Any:
    if name != "int8-dynamic":
        return llama().to(getattr(torch, name))
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = llama()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


@pytest.mark.parametrize("name", ["bfloat16", "int8-dynamic"])
def test_formats_are_served_continuously(name):
    found = adapter_of(narrowed(name))
    with torch.inference_mode():
        assert why_not(found) is None
    made = tokens_of(found, ASKED, 4)
    assert [len(tokens) for tokens in made] == [count for _, _, count in ASKED]


# -- whether a model can -----------------------------------------------------------------------


def reason(found: Any) -> str:
    with torch.inference_mode():
        why = why_not(found)
    assert why is not None
    assert "\n" not in why
    return why


def test_models_that_can_not_be_served_so_say_why(monkeypatch):
    assert "fails (AttributeError" in reason(adapter_of(bloom()))
    encoder_decoder = Seq2Seq(bart(), tokenizer(**PAD), "cpu", examples(), sequence_card(), 4)
    assert "no model of this kind" in reason(encoder_decoder)
    compiled = adapter_of(llama())
    compiled.model.forward.__func__.pads = True
    try:
        assert "compiled" in reason(compiled)
    finally:
        del compiled.model.forward.__func__.pads
    # A model that came to other tokens would be measured at another work.
    wrong = adapter_of(llama())
    monkeypatch.setattr(wrong, "greedy_tokens", lambda ids, count: [-1] * count)
    assert "other tokens" in reason(wrong)


def test_continuous_where_it_can_be_and_nothing_else_was_asked():
    found = language_model()
    with torch.inference_mode():
        assert choose_batching(found, workload()).name == "continuous"
        assert choose_batching(found, workload(batching="continuous")).name == "continuous"
        for changes, words in (
            ({"batching": "static"}, "no request joins it"),
            ({"max_batch": 1}, "max_batch is 1"),
            ({"max_wait_s": 0.01}, "max_wait_s"),
        ):
            chosen = choose_batching(found, workload(**changes))
            assert (chosen.name, chosen.is_fallback) == ("static", False)
            assert words in chosen.note
        other = choose_batching(adapter_of(bloom()), workload())
        assert (other.name, other.is_fallback) == ("static", True)
        assert "AttributeError" in other.note
        with pytest.raises(PrecisionExplorerError, match="set batching: static") as raised:
            choose_batching(adapter_of(bloom()), workload(batching="continuous"))
    assert "\n" not in str(raised.value)
    assert choose_batching(Stub(lambda: None), workload()).name == "dynamic"


def test_a_fallback_is_a_caution_of_the_row():
    assert served_cautions([window(batching="static", note="as asked")], True) == []
    told = window(batching="static", note="the model can't", batching_fallback=True)
    found = served_cautions([told], True)
    assert [caution.id for caution in found] == ["static-batching"]
    assert "the model can't" in found[0].message


# -- the workload ------------------------------------------------------------------------------


def test_batching_is_a_rule_of_server_and_no_rule_where_it_is_not_named():
    assert "batching" not in workload().rules()
    assert workload(batching="static").rules()["batching"] == "static"
    for rules, words in (
        ({"scenario": "single-stream", "batching": "static"}, "batching is for the scenario"),
        (workload().rules() | {"batching": "sometimes"}, "continuous"),
        (workload().rules() | {"batching": "continuous", "max_wait_s": 0.1}, "max_wait_s"),
    ):
        with pytest.raises(ValueError, match=words):
            Workload.model_validate(rules)


def test_the_way_that_was_asked_for_is_told_in_words():
    assert "static batches of at most 4;" in latency_words(workload(batching="static").rules())
    asked = latency_words(workload(batching="continuous").rules())
    assert "at most 4 in progress, joining at any step" in asked
    assert "batches" not in asked


@pytest.mark.parametrize(
    ("batching", "kind", "runtime", "words"),
    [
        ("static", "text-classification", "eager", "generates nothing"),
        ("continuous", "text-classification", "eager", "generates nothing"),
        ("continuous", "generation", "compile", "use --runtime eager"),
        ("static", "generation", "compile", None),
        ("continuous", "language-modeling", "eager", None),
    ],
)
def test_batching_that_means_nothing_is_refused_in_one_line(batching, kind, runtime, words):
    made = workload(batching=batching)
    if words is None:
        check_served(made, [a_task(kind)], [runtime])
        return
    with pytest.raises(UsageError, match=words) as raised:
        check_served(made, [a_task(kind)], [runtime])
    assert "\n" not in str(raised.value)


# -- a cell ------------------------------------------------------------------------------------


def measured(rules: Workload, found: Any) -> Any:
    with torch.inference_mode():
        server = Server(found, rules, 0, lambda: None, [None] * 3)
        return server.measure([1], {}, UnavailableSensor(), 0, True)


def few(**changes: Any) -> Workload:
    rules = {
        "arrivals": {"kind": "poisson", "rate_per_s": 16}, "duration_seconds": 1,
        "warmup_seconds": 0, "lengths": LENGTHS | OUT,
    }  # fmt: skip
    return workload(**rules | changes)


def test_a_cell_serves_the_same_requests_in_both_ways():
    lengths = LENGTHS | {"output": {"kind": "histogram", "edges": [1, 9], "weights": [1]}}
    both = {
        name: measured(few(batching=name, lengths=lengths), language_model())
        for name in ("continuous", "static")
    }
    for name, made in both.items():
        assert made.serving.batching == name
        assert made.serving.little.holds
        assert made.serving.generates
        assert made.serving.cut_requests == 0
    shapes = [
        [
            (r["scheduled_s"], r["index"], r["input_tokens"], r["output_tokens"])
            for r in made.rows
            if "batch" in r
        ]
        for made in both.values()
    ]
    assert shapes[0] == shapes[1]
    assert len({n for *_, n in shapes[0]}) > 3
    for row in both["continuous"].rows:
        if "batch" not in row:
            continue
        assert row["ttft_s"] >= row["queue_s"] >= 0
        assert row["latency_s"] == pytest.approx(row["queue_s"] + row["service_s"])
        spent = row["ttft_s"] + (row["tpot_s"] or 0) * (row["output_tokens"] - 1)
        assert spent == pytest.approx(row["latency_s"])


def test_capacity_is_measured_in_the_way_of_the_window(monkeypatch):
    seen = []
    true = runner_continuous.full_rate

    def full(*given: Any, **more: Any) -> float:
        seen.append(more["least_requests"])
        return true(*given, **more)

    monkeypatch.setattr(runner_continuous, "full_rate", full)
    share = {"kind": "constant", "load": 0.5}
    made = measured(few(arrivals=share, max_batch=2), language_model())
    assert made.serving.batching == "continuous"
    assert seen == [2]
    assert made.serving.offered_rate_per_s == pytest.approx(
        made.serving.capacity_per_s / 2, rel=0.3
    )
    measured(few(arrivals=share, max_batch=2, batching="static"), language_model())
    assert seen == [2]


def test_a_cache_that_does_not_fit_is_said_in_one_line(monkeypatch):
    def none(*given: Any) -> None:
        raise MemoryError("Memory footprint 9 is more than available memory 8")

    found = language_model()
    plan = plan_schedule(few(), 3, 0, 16.0)
    monkeypatch.setattr(continuous, "ContinuousBatches", none)
    match = r"4 requests of up to 9 tokens.*lower max_batch"
    with pytest.raises(DoesNotFit, match=match) as error, stepping(found, plan, 4):
        pass
    assert "\n" not in str(error.value)


# -- a sweep -----------------------------------------------------------------------------------


def test_a_sweep_serves_two_formats_continuously(tmp_path_factory):
    model = folder_of(tmp_path_factory, "llama", small(), tokenizer(**PAD))
    task = card_of(
        tmp_path_factory, "generation", prompt="{text}:", metrics=["exact_match"],
        generation={"max_new_tokens": 2},
    )  # fmt: skip
    lengths = {"output": {"kind": "histogram", "edges": [1, 6], "weights": [1]}}
    rules = few(lengths=lengths).rules() | {"duration_seconds": 2, "rounds": 1}
    file = tmp_path_factory.mktemp("rules") / "few.yaml"
    file.write_text(yaml.safe_dump(rules | {"arrivals": {"kind": "poisson", "rate_per_s": 6}}))
    out = tmp_path_factory.mktemp("runs") / "continuous"
    code, printed = command(
        "sweep", "--model", model, "--task", task, "--formats", "fp32,int8-weight-only", "--device",
        "cpu", "--threads", 1, "--batch-size", 1, "--workload", file, "--out", out,
    )  # fmt: skip
    assert code == 0, printed
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [row["batching"] for row in rows] == ["continuous", "continuous"]
    assert not any("static-batching" in row["cautions"] for row in rows)
    assert "| Batching |" in (out / "tradeoffs.md").read_text()
    folder, plan = read_run(out)
    for cell in plan["plan"]["cells"]:
        (window,) = folder.read_record(cell["cell_id"]).measurements.serving
        assert window.little.holds
        made = folder.read_samples(cell["cell_id"], "request")
        rows_made = zip(made["output_tokens"], made["batch"], strict=True)
        asked = [count for count, batch in rows_made if batch is not None]
        assert window.batches >= max(asked)
        assert set(asked) <= {1, 2, 3, 4, 5}
