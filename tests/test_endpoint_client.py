"""Where a server is, how it is asked, and each way in which it fails: one line, no key, no host."""

from __future__ import annotations

import json

import pytest
import torch

from precision_explorer.endpoint import AS_SERVED, parse_address
from precision_explorer.endpoint.address import may_carry_key, without_host
from precision_explorer.endpoint.capabilities import Capabilities, ask_capabilities
from precision_explorer.endpoint.client import Client, Limits, api_key
from precision_explorer.endpoint.completions import Asking, echoed
from precision_explorer.errors import EndpointError
from tests.test_models_causal_lm import BOTH, llama, tokenizer
from tests.tiny_server import Faults, TinyServer

KEY = "sk-not-to-be-seen-anywhere"
QUICK = Limits(connect_s=20, silence_s=60, whole_s=90, tries=2, pause_s=0.01)


@pytest.fixture(scope="module")
def running():
    torch.set_num_threads(1)
    with TinyServer(llama(), tokenizer(**BOTH)) as server:
        yield server


@pytest.fixture
def server(running):
    running.faults = Faults()
    running.seen.clear()
    running.keys.clear()
    yield running
    running.faults = Faults()


@pytest.fixture
def client(server):
    with Client(server.url, limits=QUICK) as found:
        yield found


def said(client, work):
    """The one line that comes of `work`."""
    with pytest.raises(EndpointError) as caught:
        client.run(work)
    text = str(caught.value)
    assert "\n" not in text
    assert "127.0.0.1" not in text
    return text


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "url", "label", "model"),
    [
        ("endpoint:http://h:8000/v1", "http://h:8000/v1", None, None),
        ("endpoint:http://h:8000", "http://h:8000/v1", None, None),
        ("endpoint:http://h:8000/", "http://h:8000/v1", None, None),
        ("endpoint:https://h/some/v1/", "https://h/some/v1", None, None),
        ("endpoint:bf16:http://h:8000/v1", "http://h:8000/v1", "bf16", None),
        ("endpoint:Q4_K_M:http://[::1]:80/v1#org/name-8B", "http://[::1]:80/v1", "Q4_K_M",
         "org/name-8B"),
    ],
)  # fmt: skip
def test_an_address_has_a_url_a_declared_format_and_a_model(runtime, url, label, model):
    found = parse_address(runtime)
    assert (found.url, found.label, found.model) == (url, label, model)
    assert found.format == (f"declared:{label}" if label else AS_SERVED)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("endpoint", "write endpoint:http"),
        ("endpoint:", "write endpoint:http"),
        ("endpoint:ftp://h/v1", "http or https"),
        ("endpoint:h:8000/v1", "http or https"),
        ("endpoint:http:///v1", "http or https"),
        ("endpoint:http://h:port/v1", "can't be read"),
        ("endpoint:http://h :80/v1", "http or https"),
        ("endpoint:http://me:secret@h/v1", "no name and no password"),
        ("endpoint:http://token@h/v1", "no name and no password"),
        ("endpoint:http://h/v1?key=secret", "may hold a key"),
        ("endpoint:a b:http://h/v1", "names no format"),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(runtime, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_address(runtime)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_two_servers_and_two_models_of_one_have_digests_of_their_own():
    one, other = parse_address("endpoint:http://h/v1"), parse_address("endpoint:http://g/v1")
    assert len({one.digest("a"), one.digest("b"), other.digest("a")}) == 3
    assert len(one.digest("a")) == 12


# -- what a server can -------------------------------------------------------------------------


def test_a_server_is_asked_what_it_can_and_what_it_says_of_itself(server, client):
    can = ask_capabilities(client, "tiny")
    assert can.scores
    assert can.token_ids
    assert can.extras == ("repetition_penalty", "ignore_eos")
    assert can.window == 512
    # A path on the server names people: its last name is kept.
    assert can.reported == {
        "version": "1.2.3", "owned_by": "tiny", "max_model_len": 512, "root": "tiny-fp32",
    }  # fmt: skip
    assert Capabilities(**can.document()).reported == can.reported


def test_what_it_lacks_is_told(server, client):
    server.faults = Faults(no_echo=True, text_only=True, strict=True)
    can = ask_capabilities(client, "tiny")
    assert not can.scores
    assert "no echo" in str(can.why)
    assert not can.token_ids
    assert can.extras == ()


def test_a_server_without_lists_or_versions_is_asked_all_the_same(server, client):
    server.faults = Faults(status={"/v1/models": 404, "/version": 404})
    assert ask_capabilities(client, "tiny").reported == {}


def test_a_model_that_it_has_not_is_named_with_those_it_has(server, client):
    with pytest.raises(EndpointError, match="no model 'other'; it has tiny"):
        ask_capabilities(client, "other")


def test_log_probabilities_of_the_answer_alone_are_no_prompt_s():
    # Some servers echo nothing and say nothing of it.
    found = {"choices": [{"logprobs": {"token_logprobs": [-0.5]}}], "usage": {"prompt_tokens": 5}}
    with pytest.raises(EndpointError, match="no log-probabilities of the prompt"):
        echoed(found, None)
    with pytest.raises(EndpointError, match="no log-probabilities of the prompt"):
        echoed({"choices": [{"logprobs": None}]}, 3)


# -- what can go wrong -------------------------------------------------------------------------


def test_nobody_there(client):
    with Client("http://127.0.0.1:9/v1", limits=QUICK) as gone:
        assert "refused the connection" in said(gone, gone.get("models"))
    with Client("http://no-such-host.invalid/v1", limits=QUICK) as gone:
        assert "no server answers" in said(gone, gone.get("models"))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "does not take what was asked"),
        (404, "no such model"),
        (302, "redirects"),
        (429, "lower the rate"),
        (500, "see the server's log"),
        (503, "see the server's log"),
    ],
)
def test_each_status_has_its_words(server, client, status, words):
    server.faults = Faults(status={"/v1/completions": status})
    text = said(client, client.post("completions", {"prompt": "a"}))
    assert f"HTTP {status}" in text
    assert "as the test wants it" in text
    assert words in text


def test_a_key_is_sent_and_never_told(server, monkeypatch):
    server.faults = Faults(key=KEY)
    with Client(server.url, limits=QUICK) as client:
        text = said(client, client.get("models"))
        assert "it wants a key: set the environment variable OPENAI_API_KEY" in text
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Client(server.url, api_key(), QUICK) as client:
        assert client.run(client.get("models"))["data"]
        assert server.keys[-1] == f"Bearer {KEY}"
        server.faults.key = "another"
        # The server's own words hold the key, as OpenAI's do.
        text = said(client, client.get("models"))
    assert "HTTP 401" in text
    assert "wants another key" in text
    assert "***" in text
    assert KEY not in text


def test_no_part_of_a_key_or_host_is_left_where_words_are_cut(server):
    # The key begins within the 200 characters that are kept, and ends behind them.
    for text in ("x" * 190 + KEY, "y" * 192 + " 127.0.0.1:8000"):
        event = json.dumps({"error": {"message": text}})
        server.faults = Faults(body=f"data: {event}\n\n".encode())
        with Client(server.url, KEY, QUICK) as client:
            told = said(client, Asking(client, "tiny", {}).streamed("a", 2))
        assert f"broke its stream off ({text[:100]}" in told
        assert "sk-" not in told
        assert "127" not in told


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://api.example.com/v1", True),
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.9:8000/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://10.0.0.5:8000/v1", True),
        ("http://100.64.0.1/v1", True),
        ("http://gpu-one:8000/v1", True),
        ("http://gpu.internal/v1", True),
        ("http://api.example.com/v1", False),
        ("http://8.8.8.8/v1", False),
        ("http://134744072/v1", False),
        ("http://[2001:4860:4860::8888]/v1", False),
        ("http://[::ffff:8.8.8.8]/v1", False),
        ("http://localhost.example.com/v1", False),
    ],
)
def test_a_key_goes_over_https_or_stays_in_a_network_of_one_s_own(url, may):
    assert may_carry_key(url) is may


def test_a_key_that_is_not_sent_says_so(server, monkeypatch):
    monkeypatch.setattr("precision_explorer.endpoint.client.may_carry_key", lambda url: False)
    server.faults = Faults(key=KEY)
    with Client(server.url, KEY, QUICK) as client:
        assert "is sent only over https" in said(client, client.get("models"))
    assert server.keys == [None]


def test_a_host_is_taken_out_of_a_server_s_words():
    text = "GPU-one.example:8000 said\n no, gpu-one.example. Not my-gpu-one.example"
    found = without_host(text, "http://gpu-one.example:8000/v1")
    assert found == "(host) said no, (host). Not my-gpu-one.example"


def test_no_other_secret_of_the_environment_is_sent(server, client, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    client.run(client.get("models"))
    assert server.keys == [None]


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"", b"[1, 2]", b'{"a": '])
def test_what_is_no_json_object_is_refused(server, client, body):
    server.faults = Faults(body=body)
    assert "no JSON" in said(client, client.post("completions", {"prompt": "a"}))


@pytest.mark.parametrize("body", [b"{}", b'{"choices": []}', b'{"choices": [{"text": 5}]}'])
def test_an_answer_without_text_is_refused(server, client, body):
    server.faults = Faults(body=body)
    asking = Asking(client, "tiny", {})
    assert "is it such a server?" in said(client, asking.answer("a", 2, ()))


ODD = [
    {"choices": {"text": "a"}},
    {"choices": [{"message": None, "text": None}]},
    {"choices": [{"message": [], "text": []}]},
    {"choices": [5], "usage": []},
]


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("chat", [False, True])
def test_odd_answers_are_refused_in_one_line(server, client, body, chat):
    server.faults = Faults(body=json.dumps(body).encode())
    said(client, Asking(client, "tiny", {}, chat).answer("a", 2, ()))


@pytest.mark.parametrize("body", [*ODD, {"choices": [{"delta": {"content": 5}, "text": 5}]}])
@pytest.mark.parametrize("chat", [False, True])
def test_odd_streams_are_refused_in_one_line(server, client, body, chat):
    server.faults = Faults(body=b"data: " + json.dumps(body).encode() + b"\n\ndata: [DONE]\n\n")
    said(client, Asking(client, "tiny", {}, chat).streamed("a", 2))


@pytest.mark.parametrize(
    "more", [{"logprobs": [1]}, {"logprobs": {"token_logprobs": [-1.0]}}, {"logprobs": "no"}]
)
def test_odd_log_probabilities_are_refused(more):
    with pytest.raises(EndpointError, match="no log-probabilities of the prompt"):
        echoed({"choices": [more], "usage": [3]}, None)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(silence_s=0.2, tries=1), "silent for 0.2 s"),
        (Limits(whole_s=0.2, tries=1), "no whole answer within 0.2 s"),
    ],
)
def test_a_server_that_never_answers_is_left_after_a_time(server, limits, words):
    server.faults = Faults(silent=True)
    with Client(server.url, limits=limits) as client:
        assert words in said(client, client.post("completions", {"prompt": "a"}))


def test_a_busy_server_is_still_there_and_one_that_is_gone_is_not(server, client):
    server.faults = Faults(status={"/v1/models": 503})
    client.run(client.still_there())
    with Client("http://127.0.0.1:9/v1", limits=QUICK) as gone:
        assert "no server answers" in said(gone, gone.still_there())


def test_a_stream_that_breaks_off(server, client):
    server.faults = Faults(breaks=True)
    text = said(client, Asking(client, "tiny", {}).streamed("the film", 8))
    assert "broke off" in text or "in the middle" in text


def test_a_stream_that_does_not_count_is_refused_where_nothing_else_tells(server, client):
    server.faults = Faults(no_usage=True)
    asking = Asking(client, "tiny", {"ignore_eos": None})
    # An answer that met its limit has as many tokens as the limit.
    assert client.run(asking.streamed("the film", 3)).answer.output_tokens == 3
    text = "the film was"
    server.tokenizer.eos_token_id, real = first_token(server, text), server.tokenizer.eos_token_id
    try:
        ends = Asking(client, "tiny", {})
        assert "how many tokens" in said(client, ends.streamed(text, 3))
    finally:
        server.tokenizer.eos_token_id = real


def first_token(server, text):
    return next(iter(server.steps(server.ids(text), {"max_tokens": 1})))[0]


def test_a_busy_server_is_asked_again_where_nothing_is_timed(server, client):
    server.faults = Faults(status={"/v1/completions": 503}, times=1)
    asking = Asking(client, "tiny", {})
    assert client.run(asking.answer("the film", 2, ())).output_tokens == 2
    server.faults = Faults(status={"/v1/completions": 503}, times=2)
    assert "HTTP 503" in said(client, asking.answer("the film", 2, ()))
    # A mistake stays one: it is not asked again.
    server.faults = Faults(status={"/v1/completions": 400}, times=1)
    assert "HTTP 400" in said(client, asking.answer("the film", 2, ()))


def test_a_timed_request_is_never_sent_twice(server, client):
    server.faults = Faults(status={"/v1/completions": 503}, times=1)
    assert "HTTP 503" in said(client, Asking(client, "tiny", {}).streamed("the film", 2))
    assert len(server.seen) == 1


# -- what is asked -----------------------------------------------------------------------------


def test_requests_are_greedy_and_ask_for_nothing_that_the_server_refuses(server, client):
    plain, more = Asking(client, "tiny", {}), Asking(client, "tiny", {"ignore_eos": None})
    client.run(plain.streamed("the film", 3))
    client.run(more.streamed("the film", 3))
    first, second = server.seen
    assert first["temperature"] == 0
    assert "ignore_eos" not in first
    assert second["ignore_eos"] is True


def test_moments_of_a_stream_are_in_order(server, client):
    made = client.run(Asking(client, "tiny", {"ignore_eos": None}).streamed("the film", 4))
    assert made.answer.output_tokens == 4
    assert made.answer.finish_reason == "length"
    assert 0 < made.first_token_s < made.last_s - made.asked_s
    assert made.tpot_s() == pytest.approx((made.last_s - made.first_s) / 3)
    assert client.run(Asking(client, "tiny", {}).streamed("the film", 1)).tpot_s() is None


def test_turns_of_a_chat_are_asked_for_as_such(server, client):
    asking = Asking(client, "tiny", {"ignore_eos": None}, chat=True)
    whole = client.run(asking.answer("good?", 4, ()))
    assert server.seen[-1]["messages"] == [{"role": "user", "content": "good?"}]
    assert whole.output_tokens == 4
    made = client.run(asking.streamed("good?", 4))
    # The event that names the role is no token.
    assert made.answer.output_tokens == 4
    assert made.tpot_s() > 0
