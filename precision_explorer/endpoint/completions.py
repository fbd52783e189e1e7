"""What is asked of ``/completions`` and ``/chat/completions``, and what the answers say."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.endpoint.client import Client, Json
from precision_explorer.errors import EndpointError

Prompt = str | Sequence[int]
"""A text, or token ids."""
AT_ONCE = 8
"""Requests of the quality pass that are under way together."""
GREEDY: Json = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""The most likely token each time, whatever the server's own settings are."""
NO_PENALTY: Json = {"repetition_penalty": 1.0}
EXACT_LENGTH: Json = {"ignore_eos": True}
"""Fields beyond OpenAI's that vLLM, SGLang and others take, each only where the server took it when
it was asked: no penalty (a model's own generation settings may set one), and as many tokens as were
asked for, whatever the answer."""
# OpenAI takes no more of them; all are applied to the output here as well.
_MOST_STOPS = 4


@dataclass(frozen=True)
class Answer:
    """`output_tokens`, `input_tokens`: as the server counts them; None where it does not say."""

    text: str
    finish_reason: str | None
    output_tokens: int | None
    input_tokens: int | None


@dataclass(frozen=True)
class Streamed:
    """An answer with its moments, seconds of `time.perf_counter`: when it was asked for, when its
    first and its last token came."""

    answer: Answer
    asked_s: float
    first_s: float
    last_s: float

    @property
    def first_token_s(self) -> float:
        """From asking to the first token."""
        return self.first_s - self.asked_s

    def tpot_s(self) -> float | None:
        """Seconds between tokens after the first; None for one token."""
        count = self.answer.output_tokens or 0
        return (self.last_s - self.first_s) / (count - 1) if count > 1 else None


@dataclass(frozen=True)
class Asking:
    """How a model's server is asked. `extras`: the fields beyond OpenAI's that it takes. `chat`:
    prompts are a user's turns."""

    client: Client
    model: str
    extras: Json
    chat: bool = False

    @property
    def path(self) -> str:
        """Where answers are asked for."""
        return "chat/completions" if self.chat else "completions"

    def body(self, prompt: Prompt, max_tokens: int, stops: Sequence[str] = ()) -> Json:
        """A greedy request of at most `max_tokens` tokens."""
        asked = {"model": self.model, "max_tokens": max_tokens} | GREEDY | self._taken(NO_PENALTY)
        if stops:
            asked["stop"] = list(stops[:_MOST_STOPS])
        if self.chat:
            return asked | {"messages": [{"role": "user", "content": prompt}]}
        return asked | {"prompt": prompt}

    def _taken(self, wanted: Json) -> Json:
        return {name: value for name, value in wanted.items() if name in self.extras}

    async def answer(self, prompt: Prompt, max_tokens: int, stops: Sequence[str]) -> Answer:
        """One whole answer, up to its end."""
        found = await self.client.post_patiently(self.path, self.body(prompt, max_tokens, stops))
        choice = first_choice(found)
        text = _object(choice, "message").get("content") if self.chat else choice.get("text")
        if not isinstance(text, str):
            raise EndpointError("the endpoint's answer holds no text; is it such a server?")
        return _answer(text, choice.get("finish_reason"), found.get("usage"), max_tokens)

    async def streamed(self, prompt: Prompt, max_tokens: int) -> Streamed:
        """One answer of `max_tokens` tokens as it comes; fewer where the server lets it end."""
        body = self.body(prompt, max_tokens) | self._taken(EXACT_LENGTH)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        texts, moments, finish, usage = [], [], None, None
        asked_s = time.perf_counter()
        async for event in self.client.stream(self.path, body):
            now = time.perf_counter()
            usage = event.get("usage") or usage
            if not event.get("choices"):
                continue
            choice = first_choice(event)
            finish = choice.get("finish_reason") or finish
            text = _object(choice, "delta").get("content") if self.chat else choice.get("text")
            if not isinstance(text, str | None):
                raise EndpointError("the endpoint's stream holds no text; is it such a server?")
            # Of a chat's turns the first event names the role alone. An empty text is a token of
            # which no letter can be shown yet.
            if text is not None and not (self.chat and not text):
                texts.append(text)
                moments.append(now)
        if not moments:
            raise EndpointError("the endpoint's stream held no token; see the server's log")
        answer = _answer("".join(texts), finish, usage, max_tokens)
        if answer.output_tokens is None:
            raise EndpointError(
                "the endpoint's streams don't say how many tokens they hold (usage, by "
                "stream_options.include_usage), so no time per token can be told; use a server "
                "that does"
            )
        return Streamed(answer, asked_s, moments[0], moments[-1])

    async def prompt_logprobs(self, prompt: Prompt) -> list[float | None]:
        """The log-probability of each of the prompt's tokens in nats, None for the first.

        As lm-evaluation-harness asks for them: the prompt is echoed, and one token generated, as
        not every server generates none."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": 1} | GREEDY
        body |= self._taken(NO_PENALTY) | {"echo": True, "logprobs": 1}
        found = await self.client.post_patiently("completions", body)
        return echoed(found, len(prompt) if not isinstance(prompt, str) else None)


def first_choice(found: Json) -> Json:
    """The first of an answer's choices."""
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise EndpointError("the endpoint's answer holds no choices; is it such a server?")
    return choices[0]


def echoed(found: Json, count: int | None) -> list[float | None]:
    """The log-probabilities of an echoed prompt of `count` tokens (None: as many as the server
    counted). EndpointError where they are not there: some servers echo nothing and give those of
    the generated token alone."""
    values = _object(first_choice(found), "logprobs").get("token_logprobs")
    count = _object(found, "usage").get("prompt_tokens") if count is None else count
    if not isinstance(values, list) or not isinstance(count, int) or len(values) < count:
        raise EndpointError(
            "the endpoint gives no log-probabilities of the prompt (echo with logprobs)"
        )
    if any(v is not None and not isinstance(v, (int, float)) for v in values):
        raise EndpointError("the endpoint's log-probabilities are no numbers")
    return values[:count]


def _object(found: Json, name: str) -> Json:
    """The object `name` in `found`; empty where it is none."""
    value = found.get(name)
    return value if isinstance(value, dict) else {}


def _answer(text: str, finish: Any, usage: Any, max_tokens: int) -> Answer:
    usage = usage if isinstance(usage, dict) else {}
    made = _whole(usage.get("completion_tokens"))
    if made is None and finish == "length":
        made = max_tokens
    return Answer(
        text, finish if isinstance(finish, str) else None, made, _whole(usage.get("prompt_tokens"))
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
