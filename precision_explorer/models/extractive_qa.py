"""Adapter for question-answering heads and `extractive-qa` tasks: the answer is a span of the
context.

As in transformers' run_qa.py: a long context comes in windows that share `stride` tokens, and the
answer is the span with the largest sum of its first token's start logit and its last token's end
logit, over all windows. There the 20 best starts and ends are paired, here all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right
from precision_explorer.models.text_classifier import pad_token, position_limit
from precision_explorer.tasks import squad

# The longest answer in tokens: run_qa.py's max_answer_length.
ANSWER_TOKENS = 30

Answer = tuple[float, int, int]
"""(sum of the logits, first token, last token) of a window's best span."""


@dataclass(frozen=True)
class _Window:
    """`first` to `last`: the tokens of the context; `offsets`: each one's characters in it."""

    ids: list[int]
    types: list[int] | None
    offsets: list[tuple[int, int]]
    first: int
    last: int


class ExtractiveQA:
    """`examples` hold question (`text`), context and accepted answers (`references`)."""

    generates = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "the model's tokenizer can't say where in the text a token stands; save a fast one "
                "(tokenizer.json) with the model"
            )
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.examples = examples
        self.max_length = min(card["max_length"], position_limit(model, tokenizer))
        self.stride = min(card["stride"], self.max_length // 3)
        self.pad = pad_token(model, tokenizer)
        self._kept: dict[int, list[_Window]] = {}

    def _windows(self, index: int) -> list[_Window]:
        example = self.examples[index]
        # Leading space of a question fills the window for nothing (run_qa.py).
        question = example["text"].lstrip()
        room = self.max_length - len(self.tokenizer(question, " ")["input_ids"])
        if room <= self.stride:
            raise TaskError(
                f"example {example['id']}: the question leaves {max(room, 0)} tokens of "
                f"{self.max_length} for the context; raise max_length, or lower the stride"
            )
        encoded = self.tokenizer(
            question,
            example["context"],
            truncation="only_second",
            max_length=self.max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        types = encoded.get("token_type_ids")
        windows = []
        for k, ids in enumerate(encoded["input_ids"]):
            inside = [i for i, part in enumerate(encoded.sequence_ids(k)) if part == 1]
            if inside:
                spans = [tuple(span) for span in encoded["offset_mapping"][k]]
                own = types[k] if types else None
                windows.append(_Window(ids, own, spans, inside[0], inside[-1]))
        if not windows:
            raise TaskError(f"example {example['id']}: its context has no token; remove it")
        return windows

    def items(self) -> list[Item]:
        """One item per window of each example."""
        return [
            Item(i, tuple(window.ids), ((k, window.first, window.last),))
            for i in range(len(self.examples))
            for k, window in enumerate(self._known(i))
        ]

    def _known(self, index: int) -> list[_Window]:
        """The windows of an example, tokenised once."""
        if index not in self._kept:
            self._kept[index] = self._windows(index)
        return self._kept[index]

    def _forward(self, windows: Sequence[_Window]) -> tuple[torch.Tensor, torch.Tensor]:
        """(windows, longest) start and end logits."""
        ids, mask = pad_right([w.ids for w in windows], self.pad, self.device)
        more = {}
        if windows[0].types is not None:
            types, _ = pad_right([w.types or [] for w in windows], 0, self.device)
            more["token_type_ids"] = types
        out = self.model(input_ids=ids, attention_mask=mask, **more)
        return out.start_logits, out.end_logits

    def _of(self, batch: Sequence[Item]) -> list[_Window]:
        return [self._known(item.example)[item.targets[0][0]] for item in batch]

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(2 per item, longest) logits of where the answer starts and ends; -1e4 outside of the
        context, which 16-bit floats hold too."""
        windows = self._of(batch)
        both = torch.stack(self._forward(windows), 1)
        outside = ~_inside(windows, both.shape[-1], both.device)
        return both.masked_fill(outside[:, None], -1e4).flatten(0, 1)

    def score(self, batch: Sequence[Item]) -> list[Answer]:
        """Each window's best span."""
        windows = self._of(batch)
        return best_spans(*self._forward(windows), windows)

    def _text(self, index: int, windows: Sequence[_Window], answers: Sequence[Answer]) -> str:
        best = max(range(len(answers)), key=lambda k: answers[k][0])
        _, first, last = answers[best]
        offsets = windows[best].offsets
        return self.examples[index]["context"][offsets[first][0] : offsets[last][1]]

    def rows(self, items: Sequence[Item], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """id, target (the accepted answers), prediction (text), score (exact match), token_f1,
        span_score (the sum of the best span's two logits), windows."""
        found: list[list[Answer]] = [[] for _ in self.examples]
        tokens = [0] * len(self.examples)
        for item, answer in zip(items, answers, strict=True):
            found[item.example].append(answer)
            tokens[item.example] += len(item.ids)
        return [self._row(i, found[i], tokens[i]) for i in range(len(self.examples))]

    def _row(self, index: int, answers: list[Answer], tokens: int) -> dict[str, Any]:
        example = self.examples[index]
        row = {
            "id": example["id"],
            "group": example.get("group"),
            "target": example["references"],
            "prediction": None,
            "score": None,
            "token_f1": None,
            "span_score": None,
            "windows": len(answers),
            "input_tokens": tokens,
            "cut": False,
        }
        if all(math.isfinite(value) for value, _, _ in answers):
            text = self._text(index, self._known(index), answers)
            row |= {
                "prediction": text,
                "score": squad.exact_match(text, example["references"]),
                "token_f1": squad.token_f1(text, example["references"]),
                "span_score": max(value for value, _, _ in answers),
            }
        return row

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Question and context in, answer out; its windows go through the model together."""
        with phases("tokenize"):
            windows = self._windows(index)
        with phases("forward"):
            start, end = self._forward(windows)
            if start.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            answer = self._text(index, windows, best_spans(start, end, windows))
        return {"answer": answer}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """All windows of a batch of questions at once."""
        of = [self._windows(i) for i in indices]
        flat = [window for windows in of for window in windows]
        found = iter(best_spans(*self._forward(flat), flat))
        answers = [
            self._text(i, windows, [next(found) for _ in windows])
            for i, windows in zip(indices, of, strict=True)
        ]
        return {"answers": answers}


def _inside(windows: Sequence[_Window], longest: int, device: torch.device) -> torch.Tensor:
    """(windows, longest) whether a token is one of the context."""
    first = torch.tensor([w.first for w in windows], device=device)
    last = torch.tensor([w.last for w in windows], device=device)
    place = torch.arange(longest, device=device)
    return (place >= first[:, None]) & (place <= last[:, None])


def best_spans(start: torch.Tensor, end: torch.Tensor, windows: Sequence[_Window]) -> list[Answer]:
    """Each window's span of 1 to `ANSWER_TOKENS` tokens of the context with the largest
    ``start + end``, the earliest of equals; NaN for a window whose logits are not finite.

    `start`, `end`: (windows, longest) logits. Moved off the device once.
    """
    longest = start.shape[-1]
    inside = _inside(windows, longest, start.device)
    first, last = start.float(), end.float()
    # Padding is no part of the answer, and in a few models not finite.
    finite = ((first.isfinite() & last.isfinite()) | ~inside).all(-1)
    first = first.masked_fill(~inside, -torch.inf)
    last = last.masked_fill(~inside, -torch.inf)
    place = torch.arange(longest, device=start.device)
    length = place[None, :] - place[:, None]
    allowed = (length >= 0) & (length < ANSWER_TOKENS)
    sums = (first[:, :, None] + last[:, None, :]).masked_fill(~allowed, -torch.inf)
    value, index = sums.flatten(1).max(-1)
    value = value.masked_fill(~finite, torch.nan)
    found = torch.stack([value.double(), index.double()], -1).cpu().tolist()
    return [(best, int(at) // longest, int(at) % longest) for best, at in found]
