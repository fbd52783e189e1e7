"""Greedy decoding with causal models: rows padded on the left, in step, through the KV cache."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import pad_left

# Steps between two looks at whether all rows have ended: each look waits for the device, and what
# was generated meanwhile is thrown away.
LOOK = 8

Ended = Callable[[Sequence[Sequence[int]]], list[bool]]
"""Whether each row, given the tokens that were generated, holds a text that ends it."""


@dataclass(frozen=True)
class Generated:
    """What one row came to. `tokens`: up to an end token, which is left out, or to the limit;
    `finite`: whether every distribution that chose them was."""

    tokens: list[int]
    ended: bool
    finite: bool


def is_finite(logits: torch.Tensor) -> torch.Tensor:
    """(rows,) whether the distributions of (rows, vocabulary) logits are numbers. Minus infinity
    alone is none to a single token, as models mask some."""
    return logits.float().logsumexp(-1).isfinite()


def up_to_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[list[int], bool]:
    """(the tokens before the first of `ends`, whether there is one)."""
    known = set(ends)
    place = next((k for k, token in enumerate(tokens) if token in known), None)
    return (list(tokens), False) if place is None else (list(tokens[:place]), True)


def cache_arguments(model: nn.Module) -> tuple[bool, str]:
    """(whether `model` can be asked for some positions' logits, the argument of its cache)."""
    taken = inspect.signature(model.forward).parameters
    # transformers 5.24 renamed it and drops the old name in 5.40.
    return "logits_to_keep" in taken, "cache" if "cache" in taken else "past_key_values"


class GreedyServing:
    """Requests of a fixed number of greedy tokens (an end token does not stop them, so that every
    format does the same work), and `decode`, for adapters of causal models."""

    generates = True
    model: nn.Module
    tokenizer: Any
    device: str
    examples: list[dict[str, Any]]
    pad: int
    output_tokens: int
    served_tokens: Sequence[int] = ()
    """What the last `request` generated, for audits of it."""
    batch_tokens: Sequence[Sequence[int]] = ()
    """The same of each request of the last batch."""
    _keeps: bool
    _cache: str

    def prompt_ids(self, index: int) -> list[int]:
        """The tokens of the prompt of example `index`."""
        raise NotImplementedError

    @property
    def new_tokens(self) -> int:
        """The most tokens that are generated after a prompt."""
        return self.output_tokens

    # -- steps -------------------------------------------------------------------------------

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        keep = {"logits_to_keep": 1} if self._keeps else {}
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **keep
        )

    def _next(self, token: torch.Tensor, mask: torch.Tensor, out: Any) -> Any:
        """The output after one more `token` (rows, 1), which `mask` counts already."""
        return self.model(
            input_ids=token,
            attention_mask=mask,
            position_ids=mask.sum(-1, keepdim=True) - 1,
            use_cache=True,
            **{self._cache: getattr(out, self._cache)},
        )

    # -- answers -----------------------------------------------------------------------------

    def decode(
        self, rows: Sequence[Sequence[int]], limit: int, ends: Sequence[int], ended: Ended | None
    ) -> list[Generated]:
        """Greedy tokens after each of `rows`, at most `limit`, until one of the tokens `ends` or
        until `ended` says so. Everything is moved off the device once; where rows have ended is
        looked at every `LOOK` steps."""
        ids, mask = pad_left(rows, self.pad, self.device)
        last = torch.tensor(sorted(ends), dtype=torch.long, device=self.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        finite = torch.ones_like(done)
        made: list[torch.Tensor] = []
        out = self._prefill(ids, mask)
        while True:
            logits = out.logits[:, -1]
            finite = finite & (done | is_finite(logits))
            token = torch.where(done, self.pad, logits.argmax(-1))
            made.append(token)
            done = done | torch.isin(token, last) | ~finite
            if len(made) % LOOK == 0:
                done = done | _stopped(made, done, ended)
                if bool(done.all()):
                    break
            if len(made) == limit:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            out = self._next(token[:, None], mask, out)
        whole = torch.cat([torch.stack(made, 1), finite[:, None]], dim=1).tolist()
        return [Generated(*up_to_end(row[:-1], ends), bool(row[-1])) for row in whole]

    # -- requests ----------------------------------------------------------------------------

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Prompt in, greedy tokens out; time to the first token counts its tokenisation."""
        start = time.perf_counter()
        with phases("tokenize"):
            ids = self.prompt_ids(index)
        with phases("copy"):
            inputs = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(inputs)
        clocks, tokens = self._greedy(inputs, mask, phases, self.output_tokens)
        with phases("post"):
            answer = self.tokenizer.decode(tokens[0])
        end = time.perf_counter()
        self.served_tokens = tokens[0]
        rest = self.output_tokens - 1
        return {
            "answer": answer,
            "ttft_s": clocks[0] - start,
            "tpot_s": (end - clocks[0]) / rest if rest else None,
            "output_tokens": self.output_tokens,
        }

    def _greedy(
        self, ids: torch.Tensor, mask: torch.Tensor, phases: Phases | NullPhases, count: int
    ) -> tuple[list[float], list[list[int]]]:
        """(clock at each of `count` tokens, (batch, count) token ids); left-padded inputs."""
        with phases("prefill"):
            out = self._prefill(ids, mask)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens = [token.tolist()]
        clocks = [time.perf_counter()]
        with phases("decode"):
            for _ in range(count - 1):
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
                out = self._next(token, mask, out)
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                # A server streams each token, so each is moved off the device when it is made.
                tokens.append(token.tolist())
                clocks.append(time.perf_counter())
        return clocks, [[step[row][0] for step in tokens] for row in range(len(ids))]

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of prompts, padded on the left, decoded in step."""
        ids, mask = pad_left([self.prompt_ids(i) for i in indices], self.pad, self.device)
        _, tokens = self._greedy(ids, mask, NullPhases(), self.output_tokens)
        self.batch_tokens = tokens
        return {"output_tokens": sum(map(len, tokens))}

    def batch_answers(self) -> list[dict[str, Any]]:
        """Tokens and text (`answer`) of each request of the last batch."""
        return [{"answer": self.tokenizer.decode(t), "tokens": t} for t in self.batch_tokens]

    @property
    def _positions(self) -> int:
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 30

    def _prompt(self, index: int, count: int | None) -> list[int]:
        ids = self.prompt_ids(index)
        return ids if count is None else resized(ids, count)

    def request_tokens(
        self, index: int, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> tuple[list[int], int]:
        """(the prompt of a request by itself, how many tokens follow it), of lengths as in
        `serve_batch`."""
        made = self.output_tokens if output_tokens is None else output_tokens
        made = min(made, self._positions - 1)
        return self._prompt(index, input_tokens)[-(self._positions - made) :], made

    def greedy_tokens(self, ids: list[int], count: int) -> list[int]:
        """The `count` tokens of the highest logits after `ids`."""
        inputs = torch.tensor([ids], device=self.device)
        return self._greedy(inputs, torch.ones_like(inputs), NullPhases(), count)[1][0]

    def serve_batch(
        self,
        indices: Sequence[int],
        input_tokens: Sequence[int] | None = None,
        output_tokens: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """A static batch: prompts padded on the left, decoded in step until the longest output is
        there. Of each request `first_token_s` since the batch's start, `tpot_s` between its own
        tokens (None for one token), `input_tokens` and `output_tokens`.

        `input_tokens`, `output_tokens`: how many each request has, by default the workload's. A
        longer prompt is cut there, a shorter one begins again, and both are cut to what the
        model's positions hold.
        """
        start = time.perf_counter()
        made = [self.output_tokens] * len(indices) if output_tokens is None else output_tokens
        made = [min(count, self._positions - 1) for count in made]
        # All rows of a batch are as long as the longest.
        room = self._positions - max(made)
        given = [None] * len(indices) if input_tokens is None else input_tokens
        prompts = [self._prompt(i, n)[-room:] for i, n in zip(indices, given, strict=True)]
        ids, mask = pad_left(prompts, self.pad, self.device)
        clocks, tokens = self._greedy(ids, mask, NullPhases(), max(made))
        self.batch_tokens = [row[:n] for row, n in zip(tokens, made, strict=True)]
        return [
            {
                "first_token_s": clocks[0] - start,
                "tpot_s": (clocks[n - 1] - clocks[0]) / (n - 1) if n > 1 else None,
                "input_tokens": len(prompt),
                "output_tokens": n,
            }
            for prompt, n in zip(prompts, made, strict=True)
        ]


def resized(ids: list[int], count: int) -> list[int]:
    """`count` tokens: the first of `ids`, which begin again where they are too few."""
    return (ids * -(-count // len(ids)))[:count]


def _stopped(made: list[torch.Tensor], done: torch.Tensor, ended: Ended | None) -> torch.Tensor:
    """(rows,) whether rows that are not done hold a text that ends them."""
    if ended is None:
        return done
    open_rows = torch.nonzero(~done).flatten()
    found = ended(torch.stack(made, 1)[open_rows].tolist())
    stopped = torch.zeros_like(done)
    stopped[open_rows] = torch.tensor(found, dtype=torch.bool, device=done.device)
    return stopped
