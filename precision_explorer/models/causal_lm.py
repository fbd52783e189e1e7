"""Adapters for causal language models: `multiple-choice` and `language-modeling` tasks.

Both follow lm-evaluation-harness's definitions: log-likelihood of a continuation after a context,
and rolling log-likelihood over disjoint windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item
from precision_explorer.models.causal_forward import CausalForward
from precision_explorer.models.choices import Choices, first_best
from precision_explorer.models.documents import document_row, rolling_windows
from precision_explorer.models.greedy import GreedyServing
from precision_explorer.models.scoring import Scorer
from precision_explorer.models.tokens import plain_ids, prefix_id


class _CausalLM:
    """What both kinds share: tokens, and log-probabilities at chosen positions."""

    generates = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.examples = examples
        positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.max_length = min(card["max_length"], positions)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.scorer = Scorer(CausalForward(model, device, self.pad))
        self._keeps = self.scorer.forward.keeps
        self._cache = self.scorer.forward.cache_name

    @property
    def prefix(self) -> int:
        """What a text without a context is conditioned on: BOS, else EOS."""
        return prefix_id(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """The same of many texts at once."""
        return plain_ids(self.tokenizer, texts)

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(scored positions, vocabulary) logits: each item's scored positions in order, once."""
        places = sorted({(i, t[1]) for i, item in enumerate(batch) for t in item.targets})
        return self.scorer.forward.logits([item.ids for item in batch], places)[0]

    def share(
        self, items: Sequence[Item], max_tokens: int, max_items: int, call_tokens: int
    ) -> list[list[int]]:
        """The batch plan of `items` in which `score` computes common prefixes once."""
        return self.scorer.share(items, max_tokens, max_items, call_tokens)

    @property
    def sharing(self) -> dict[str, int] | None:
        """{header: tokens that are common to the task}; None where rows are computed whole."""
        return {"header": len(self.scorer.header)} if self.scorer.shares else None

    def score(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        """{slot: summed log-probability in nats} per item."""
        return self.scorer.score(batch)

    def release(self) -> None:
        """Let go of what `score` kept between batches."""
        self.scorer.release()


class MultipleChoice(Choices, _CausalLM):
    """Chooses the continuation of the highest log-likelihood. Choices of one token share their
    prompt's row: one forward pass answers them all."""

    def _rows_of(self, *indices: int) -> list[Item]:
        pairs = self.pairs(indices)
        return [item for index in indices for item in self._rows(index, pairs)]

    def _rows(
        self, index: int, pairs: dict[tuple[int, int], tuple[list[int], list[int]]]
    ) -> Iterator[Item]:
        shared: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        cut = False
        example = self.examples[index]
        for slot, choice in enumerate(example["choices"]):
            context, continuation = pairs[index, slot]
            self.check(example, choice, len(continuation))
            whole = context + continuation
            kept = whole[-(self.max_length + 1) :]
            cut = cut or len(kept) < len(whole)
            ids = tuple(kept[:-1])
            first = len(ids) - len(continuation)
            targets = [(slot, first + k, token) for k, token in enumerate(continuation)]
            shared.setdefault(ids, []).extend(targets)
        for ids, found in shared.items():
            yield Item(index, ids, tuple(found), cut)

    def items(self) -> list[Item]:
        """One item per distinct row of each example."""
        return self._rows_of(*range(len(self.examples)))

    def rows(
        self, items: Sequence[Item], answers: Sequence[dict[int, float]]
    ) -> list[dict[str, Any]]:
        """id, target, prediction (indices), score, score_norm, loss, choice_logprobs."""
        merged: list[dict[int, float]] = [{} for _ in self.examples]
        tokens = [0] * len(self.examples)
        cut = [False] * len(self.examples)
        for item, answer in zip(items, answers, strict=True):
            merged[item.example] |= answer
            tokens[item.example] += len(item.ids)
            cut[item.example] |= item.cut
        return [
            self.row(example, merged[i], tokens[i], cut[i])
            for i, example in enumerate(self.examples)
        ]

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Prompt and choices in, index of the chosen one out."""
        with phases("tokenize"):
            items = self._rows_of(index)
        with phases("forward"):
            answers = self.scorer.whole(items)
        with phases("post"):
            merged = {slot: value for answer in answers for slot, value in answer.items()}
            answer = first_best([merged[slot] for slot in sorted(merged)])
        return {"answer": str(answer)}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of questions in one forward pass."""
        items = self._rows_of(*indices)
        self.scorer.whole(items)
        return {}


class LanguageModeling(GreedyServing, _CausalLM):
    """Scores whole documents in disjoint windows; a request is a prompt of `prompt_tokens` and
    `output_tokens` greedy tokens (always that many: an end token does not stop it)."""

    def __init__(self, *arguments: Any, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(*arguments)
        self.output_tokens = output_tokens
        self._ids = self.encode_all([e["text"] for e in self.examples])
        self._prompts = [
            self.tokenizer.decode(ids[:prompt_tokens], skip_special_tokens=False)
            for ids in self._ids
        ]
        self._prompt_tokens = prompt_tokens

    def prompt_ids(self, index: int) -> list[int]:
        """The first tokens of a document."""
        return self.encode(self._prompts[index])[: self._prompt_tokens]

    def items(self) -> list[Item]:
        """One item per window of each document."""
        result = []
        for index, ids in enumerate(self._ids):
            for inputs, targets in rolling_windows(ids, self.prefix, self.max_length):
                first = len(inputs) - len(targets)
                wanted = tuple((0, first + k, token) for k, token in enumerate(targets))
                result.append(Item(index, tuple(inputs), wanted))
        return result

    def rows(
        self, items: Sequence[Item], answers: Sequence[dict[int, float]]
    ) -> list[dict[str, Any]]:
        """id, loss (summed nats), tokens, words, bytes of each document."""
        losses = [0.0] * len(self.examples)
        for item, answer in zip(items, answers, strict=True):
            losses[item.example] -= answer[0]
        return [
            document_row(example, loss, len(self._ids[i]))
            for i, (example, loss) in enumerate(zip(self.examples, losses, strict=True))
        ]
