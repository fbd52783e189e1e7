"""A model asked over HTTP against the same model run here: the same answers, the same scores."""

from __future__ import annotations

from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch

from precision_explorer.endpoint.capabilities import Capabilities
from precision_explorer.errors import EndpointError, InvalidNumerics, TaskError
from precision_explorer.measure.sent import SentSeries
from precision_explorer.models.adapter import plan_batches
from precision_explorer.models.asked import AskedAnswers
from precision_explorer.models.causal_lm import LanguageModeling, MultipleChoice
from precision_explorer.models.generation import Generation
from precision_explorer.runner.endpoint_session import EndpointSession
from precision_explorer.runner.join import _cautions, _ended_early
from tests.test_models_causal_lm import BOTH, llama, tokenizer
from tests.tiny_server import Faults, TinyServer

WORKLOAD = {"prompt_tokens": 8, "output_tokens": 4, "rounds": 1, "warmup_seconds": 0.0,
            "warmup_requests": 1, "min_seconds": 0.0, "min_requests": 3, "offline_seconds": 0.0,
            "offline_min_batches": 1}  # fmt: skip
CAN = Capabilities(
    {"max_model_len": 512, "owned_by": "tiny"}, True, True, None, ("ignore_eos",)
).document()
CELL = SimpleNamespace(workload={})
CHOICES = [
    {"id": str(k), "group": None, "prompt": prompt, "choices": list(choices), "label": k % 2}
    for k, (prompt, choices) in enumerate(
        [
            ("Review: the film was good.\nSentiment:", [" positive", " negative indeed"]),
            ("the music was ", ["bad", "very good", "quiet"]),
            ("Nobody knows what", [" it is", " the weather will be tomorrow"]),
            ("film", ["s", " music"]),
        ]
    )
]
DOCUMENTS = [
    {"id": str(k), "group": None, "text": text}
    for k, text in enumerate(
        ["the film was good " * 9, "Nobody knows what the weather will be", "indeed"]
    )
]
PROMPTS = [
    {"id": str(k), "group": None, "prompt": text, "references": ["good"]}
    for k, text in enumerate(["the film was", "Sentiment:", "a quiet evening " * 12, "nobody"])
]
CARDS = {
    "multiple-choice": {"metrics": ["accuracy"], "max_length": 40},
    "language-modeling": {"metrics": ["bits_per_byte"], "max_length": 24},
    "generation": {
        "metrics": ["exact_match"],
        "max_length": 30,
        "generation": {"max_new_tokens": 6, "stop": ["\n"], "chat": False},
    },
}
EXAMPLES = {"multiple-choice": CHOICES, "language-modeling": DOCUMENTS, "generation": PROMPTS}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module", params=[BOTH, {"eos_token": "<eos>"}], ids=["bos", "no-bos"])
def coder(request):
    return tokenizer(**request.param)


@pytest.fixture(scope="module")
def folder(coder, tmp_path_factory):
    path = tmp_path_factory.mktemp("coder")
    coder.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def server(model, coder):
    with TinyServer(model, coder) as found:
        yield found


def request_of(kind, **more):
    card = {"kind": kind} | CARDS[kind]
    return {"card": card, "examples": EXAMPLES[kind], "workload": WORKLOAD} | more


def session_of(server, folder, **more):
    server.faults = Faults()
    request = {
        "url": server.url, "model": "tiny", "format": "declared:fp32", "reason": "by word",
        "tokenizer": folder, "capabilities": CAN, "seed": 0, "limits": {"tries": 1},
    }  # fmt: skip
    return EndpointSession(request | more, lambda *_: None)


def asked(session, kind, op="quality"):
    answer, stream = getattr(session, op)(request_of(kind))
    return answer, pa.ipc.open_stream(stream).read_all().to_pylist()


@torch.inference_mode()
def run_here(model, coder, kind):
    card = {"kind": kind} | CARDS[kind]
    common = model, coder, "cpu", EXAMPLES[kind], card
    if kind == "multiple-choice":
        adapter = MultipleChoice(*common)
    elif kind == "language-modeling":
        adapter = LanguageModeling(*common, prompt_tokens=8, output_tokens=4)
    else:
        adapter = Generation(*common, 4)
    items = adapter.items()
    answers = [None] * len(items)
    for batch in plan_batches([item.size for item in items], 400, 4):
        for k, found in zip(batch, adapter.score([items[k] for k in batch]), strict=True):
            answers[k] = found
    return adapter.rows(items, answers)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_scores_are_those_of_the_model_run_here(server, folder, model, coder, kind):
    session = session_of(server, folder)
    answer, rows = asked(session, kind)
    here = run_here(model, coder, kind)
    assert answer["quality"]["examples"] == len(here)
    for own, row in zip(here, rows, strict=True):
        assert row["id"] == own["id"]
        assert row["prediction"] == own["prediction"]
        if kind == "generation":
            same = ("output", "finish_reason", "output_tokens", "input_tokens", "cut", "score")
            assert {n: row[n] for n in same} == {n: own[n] for n in same}
        else:
            assert row["loss"] == pytest.approx(own["loss"], abs=1e-3)
        if kind == "multiple-choice":
            assert row["choice_logprobs"] == pytest.approx(own["choice_logprobs"], abs=1e-3)
    assert any("prompt" in body and not isinstance(body["prompt"], str) for body in server.seen)
    session.close()


def test_choices_as_text_score_as_choices_as_tokens(server, coder, model):
    server.seen.clear()
    session = session_of(server, None)
    _, rows = asked(session, "multiple-choice")
    assert all(isinstance(body["prompt"], str) for body in server.seen)
    for own, row in zip(run_here(model, coder, "multiple-choice"), rows, strict=True):
        assert row["choice_logprobs"] == pytest.approx(own["choice_logprobs"], abs=1e-3)
    session.close()


def test_answers_as_text_are_those_of_token_ids(server, folder):
    by_ids, by_text = session_of(server, folder), session_of(server, None)
    # Of the third prompt only the end is asked for where it can be cut by tokens.
    first, second = (asked(s, "generation")[1] for s in (by_ids, by_text))
    kept = (0, 1, 3)
    assert [first[k]["output"] for k in kept] == [second[k]["output"] for k in kept]
    assert [r["cut"] for r in first] == [False, False, True, False]
    assert not any(r["cut"] for r in second)
    by_ids.close()
    by_text.close()


def test_an_empty_prompt_has_no_first_token_to_score_as_text(server):
    session = session_of(server, None)
    request = request_of("multiple-choice")
    request["examples"] = [CHOICES[0] | {"prompt": ""}]
    with pytest.raises(TaskError, match="its prompt is empty"):
        session.quality(request)
    session.close()


def test_the_second_pass_asks_in_another_order(server, folder):
    session = session_of(server, folder)
    _, first = asked(session, "generation")
    answer, again = asked(session, "generation", "noise")
    assert [row["id"] for row in again] == [row["id"] for row in first]
    assert answer["noise"]["examples"] == len(first)
    assert [row["prediction"] for row in again] == [row["prediction"] for row in first]
    session.close()


def test_each_request_is_answered_of_its_own_task(server, folder):
    session = session_of(server, folder)
    first = asked(session, "generation")[1]
    asked(session, "multiple-choice")
    again = asked(session, "generation", "noise")[1]
    assert [row["prediction"] for row in again] == [row["prediction"] for row in first]
    other = request_of("generation") | {"examples": PROMPTS[:2]}
    assert session.noise(other)[0]["noise"]["examples"] == 2
    assert not block(session, "multiple-choice")[0]["latency"]["generates"]
    assert block(session, "generation")[0]["latency"]["generates"]
    session.close()


def test_nothing_of_the_server_is_claimed(server, folder):
    session = session_of(server, folder)
    applied = session.load_answer["applied"]
    asked(session, "generation")
    proved, _ = session.certificate(request_of("generation"))
    assert applied["execution"] == proved["execution"] == "unverified"
    for name in ("weight_bytes", "converted_share", "kernel", "compute_dtype", "certificate"):
        assert applied[name] is None
    assert applied["reported"] == {"max_model_len": 512, "owned_by": "tiny"}
    told = {c["id"]: c["message"] for c in proved["cautions"]}
    assert "owned_by tiny" in told["served-as-declared"]
    assert "4 prompts" in told["prompts-repeated"]
    assert "memory" not in session.load_answer
    session.close()


@pytest.mark.parametrize(
    ("kind", "can", "tokens", "words"),
    [
        ("multiple-choice", {"scores": False, "why": "no echo here"}, True, "no echo here, which"),
        ("language-modeling", {"token_ids": False}, True, "needs token ids"),
        ("language-modeling", {}, False, "needs token ids"),
    ],
)
def test_what_the_server_lacks_is_said_in_one_line(server, folder, kind, can, tokens, words):
    session = session_of(server, folder if tokens else None, capabilities=CAN | can)
    with pytest.raises(EndpointError, match=words) as caught:
        session.quality(request_of(kind))
    assert "\n" not in str(caught.value)
    session.close()


def test_a_server_that_is_up_only_now_is_asked_what_it_can(server, folder):
    session = session_of(server, folder, capabilities=None)
    assert session.can.scores
    assert session.can.reported["version"] == "1.2.3"
    session.close()


def test_a_server_that_is_up_again_must_be_the_one_that_was_planned_for(server, folder):
    session = session_of(server, folder, capabilities=None)
    recipe = {"reported": session.can.reported, "extras": list(session.can.extras)}
    recipe["prompts"] = "token ids"
    session.close()
    session_of(server, folder, capabilities=None, recipe=recipe).close()
    newer = recipe | {"reported": recipe["reported"] | {"version": "2"}}
    with pytest.raises(EndpointError, match="another than in the stored run"):
        session_of(server, folder, capabilities=None, recipe=newer)


def test_scores_that_are_no_numbers_are_refused(server, folder):
    session = session_of(server, folder)
    server.faults = Faults(
        body=b'{"choices": [{"logprobs": {"token_logprobs": [' + b"NaN, " * 60 + b"NaN]}}]}"
    )
    with pytest.raises(InvalidNumerics):
        session.quality(request_of("multiple-choice"))
    session.close()


# -- timed requests ----------------------------------------------------------------------------


def block(session, kind, **workload):
    return session.block(
        request_of(kind)
        | {"workload": WORKLOAD | workload, "batch_sizes": [1, 3], "round": 0, "first": True}
    )


def rows_of(stream):
    return pa.ipc.open_stream(stream).read_all().to_pylist()


def test_a_request_after_the_other(server, folder):
    session = session_of(server, folder)
    answer, stream = block(session, "generation")
    measured = [r for r in rows_of(stream) if r["window"] == "measure"]
    assert len(measured) == answer["latency"]["requests"] == 3
    assert answer["latency"]["generates"]
    for row in measured:
        assert 0 < row["ttft_s"] < row["latency_s"]
        assert row["output_tokens"] == 4
        assert 0 < row["tpot_s"] * 3 < row["latency_s"]
    rates = answer["throughput"]["by_batch_size"]
    assert rates["1"]["requests_per_s"] > 0
    assert rates["3"]["output_tokens_per_s"] == pytest.approx(rates["3"]["requests_per_s"] * 4)
    assert answer["energy"]["energy_j"] is None
    assert answer["peak_bytes"] is answer["other_work_share"] is None
    session.close()


def test_streams_are_sent_at_once(server, folder):
    session = session_of(server, folder)
    server.most_running = 0
    _, stream = block(session, "language-modeling", scenario="multi-stream", streams=3)
    measured = [r for r in rows_of(stream) if r["window"] == "measure"]
    assert all(r["samples"] == 3 and r["output_tokens"] == 12 for r in measured)
    assert server.most_running >= 3
    session.close()


def test_choices_are_timed_without_tokens_of_their_own(server, folder):
    session = session_of(server, folder)
    answer, stream = block(session, "multiple-choice")
    row = rows_of(stream)[-1]
    assert row["answer"] in "012"
    assert "ttft_s" not in row
    assert not answer["latency"]["generates"]
    session.close()


def test_prompts_are_counted_before_choices_are_timed(server):
    """In a process that did not score: else the first request of each prompt would ask for more."""
    session = session_of(server, None)
    server.seen.clear()
    block(session, "multiple-choice")
    whole = {example["prompt"].rstrip() for example in CHOICES}
    asked_for = [body["prompt"] for body in server.seen]
    assert sorted(asked_for[: len(whole)]) == sorted(whole)
    assert not whole & set(asked_for[len(whole) :])
    session.close()


def test_answers_that_ended_early_are_told(server, folder, coder):
    session = session_of(server, folder, capabilities=CAN | {"extras": []})
    ids = server.ids(PROMPTS[0]["prompt"])
    real = coder.eos_token_id
    coder.eos_token_id = next(iter(server.steps(ids, {"max_tokens": 1})))[0]
    try:
        answer, _ = block(session, "generation")
    finally:
        coder.eos_token_id = real
    # Whichever process measured a block, its record tells of it.
    assert answer["ended_early"] > 0
    parts = {"ended_early": _ended_early({"block-0": answer, "block-1": {"ended_early": 2}})}
    told = {
        c.id: c.message
        for c in _cautions(SimpleNamespace(cautions=(), cell=CELL), None, None, parts)
    }
    assert f"{answer['ended_early'] + 2} timed answers" in told["answers-ended"]
    assert block(session, "generation")[0]["ended_early"] == 0
    session.close()


def test_the_first_error_ends_the_timed_part(server, folder):
    session = session_of(server, folder)
    server.faults = Faults(status={"/v1/completions": 500}, after=3)
    with pytest.raises(EndpointError, match="HTTP 500"):
        block(session, "generation")
    session.close()


def test_a_server_that_drops_requests_of_a_window_is_saturated(server, folder, monkeypatch):
    # However busy this machine is.
    monkeypatch.setattr(SentSeries, "refused", lambda self: None)
    session = session_of(server, folder)
    # After the offline batches and the warm-up, which are 9 requests.
    server.faults = Faults(status={"/v1/completions": 503}, after=12, times=2)
    arrivals = {"kind": "poisson", "rate_per_s": 20}
    rules = {k: v for k, v in WORKLOAD.items() if k not in ("min_requests", "min_seconds")}
    more = {"scenario": "server", "arrivals": arrivals, "duration_seconds": 1.0}
    request = request_of("generation", batch_sizes=[1, 3], round=0, first=True)
    answer, stream = session.block(request | {"workload": rules | more})
    rows = [row for row in rows_of(stream) if row["window"] == "measure"]
    assert answer["serving"]["dropped"] == sum(row["dropped"] for row in rows) == 2
    assert answer["serving"]["saturated"]
    session.close()


def test_a_server_that_ends_in_a_window_is_no_overloaded_one(server, folder, monkeypatch):
    session = session_of(server, folder, limits={"tries": 1, "pause_s": 0.01})
    rules = {k: v for k, v in WORKLOAD.items() if k not in ("min_requests", "min_seconds")}
    more = {"scenario": "server", "arrivals": {"kind": "poisson", "rate_per_s": 20}}
    request = request_of("generation", batch_sizes=[1], round=0, first=True)
    request |= {"workload": rules | more | {"duration_seconds": 1.0}}
    send, sent = AskedAnswers.send, []

    async def dies(self, *arguments, **named):
        sent.append(1)
        if len(sent) == 10:
            session.client._url = "http://127.0.0.1:9/v1"
        return await send(self, *arguments, **named)

    monkeypatch.setattr(AskedAnswers, "send", dies)
    with pytest.raises(EndpointError, match="no server answers"):
        session.block(request)
    session.close()
