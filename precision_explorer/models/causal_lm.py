"""Adapters for causal language models: `multiple-choice` and `language-modeling` tasks.

Both follow lm-evaluation-harness's definitions: log-likelihood of a continuation after a context,
and rolling log-likelihood over disjoint windows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right
from precision_explorer.models.greedy import GreedyServing, cache_arguments
from precision_explorer.tasks import example_bytes, example_words

# Positions whose vocabulary-wide log-sum-exp is taken at a time: bounds the float32 copy.
_CHUNK = 256


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
        self._keeps, self._cache = cache_arguments(model)

    @property
    def prefix(self) -> int:
        """What a text without a context is conditioned on: BOS, else EOS."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ModelError(
            "the model's tokenizer has neither a BOS nor an EOS token, on which a text's first "
            "token would be conditioned; name one in tokenizer_config.json or choose another model"
        )

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens (the harness's default for causal models)."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _logits(self, rows: Sequence[Sequence[int]], positions: list[int]) -> torch.Tensor:
        """(batch, len(positions), vocabulary) logits after the given positions of each row."""
        ids, mask = pad_right(rows, self.pad, self.device)
        index = torch.tensor(positions, device=self.device)
        if self._keeps:
            return self.model(
                input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=index
            ).logits
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, index]

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(scored positions, vocabulary) logits: each item's scored positions in order, once."""
        positions = sorted({p for item in batch for _, p, _ in item.targets})
        logits = self._logits([item.ids for item in batch], positions)
        place = {p: k for k, p in enumerate(positions)}
        rows, places = zip(
            *(
                (i, place[p])
                for i, it in enumerate(batch)
                for p in sorted({t[1] for t in it.targets})
            ),
            strict=True,
        )
        return logits[list(rows), list(places)]

    def score(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        """{slot: summed log-probability in nats} per item."""
        positions = sorted({p for item in batch for _, p, _ in item.targets})
        logits = self._logits([item.ids for item in batch], positions)
        place = {p: k for k, p in enumerate(positions)}
        wanted = [(i, place[p], tok) for i, it in enumerate(batch) for _, p, tok in it.targets]
        logprobs = _gather(logits, wanted)
        sums: list[dict[int, float]] = [defaultdict(float) for _ in batch]
        step = iter(logprobs)
        for i, item in enumerate(batch):
            for slot, _, _ in item.targets:
                sums[i][slot] += next(step)
        return [dict(s) for s in sums]


def _gather(logits: torch.Tensor, wanted: list[tuple[int, int, int]]) -> list[float]:
    """log softmax(logits[row, place])[token] for each (row, place, token), in float32."""
    rows, places, tokens = (
        torch.tensor(c, device=logits.device) for c in zip(*wanted, strict=True)
    )
    parts = []
    for start in range(0, len(wanted), _CHUNK):
        part = slice(start, start + _CHUNK)
        chosen = logits[rows[part], places[part]].float()
        value = chosen.gather(-1, tokens[part, None]).squeeze(-1) - chosen.logsumexp(-1)
        parts.append(value)
    return torch.cat(parts).double().cpu().tolist()


class MultipleChoice(_CausalLM):
    """Chooses the continuation of the highest log-likelihood. Choices of one token share their
    prompt's row: one forward pass answers them all."""

    def _pair(self, prompt: str, choice: str) -> tuple[list[int], list[int]]:
        """(context, continuation) ids: the choice is tokenised after its prompt; spaces at the
        prompt's end move to the choice, as in the harness's `_encode_pair`, and an empty prompt
        becomes the prefix, as in its `loglikelihood`."""
        stripped = prompt.rstrip()
        choice, prompt = prompt[len(stripped) :] + choice, stripped
        whole, context = self.encode(prompt + choice), self.encode(prompt)
        if not prompt:
            if whole[:1] != [self.prefix]:
                whole = [self.prefix, *whole]
            context = whole[:1]
        return context, whole[len(context) :]

    def _check(self, example: dict[str, Any], choice: str, tokens: int) -> None:
        """TaskError where there is no token to score, or more than the window holds."""
        where = f"example {example['id']}, choice '{choice}'"
        if tokens == 0:
            raise TaskError(
                f"{where}: the model's tokenizer makes no token of its own of it after the prompt; "
                "change the prompt's end or the choices"
            )
        if tokens > self.max_length:
            raise TaskError(
                f"{where}: its {tokens} tokens are more than the {self.max_length} that fit; "
                "raise max_length in the card, or choose a model with a longer window"
            )

    def _rows_of(self, index: int) -> Iterator[Item]:
        example = self.examples[index]
        shared: dict[tuple[int, ...], list[tuple[int, int, int]]] = {}
        cut = False
        for slot, choice in enumerate(example["choices"]):
            context, continuation = self._pair(example["prompt"], choice)
            self._check(example, choice, len(continuation))
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
        return [item for i in range(len(self.examples)) for item in self._rows_of(i)]

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
            self._row(example, merged[i], tokens[i], cut[i])
            for i, example in enumerate(self.examples)
        ]

    def _row(
        self, example: dict[str, Any], found: dict[int, float], tokens: int, cut: bool
    ) -> dict[str, Any]:
        logprobs = [found[slot] for slot in range(len(example["choices"]))]
        target = int(example["label"])
        row = {
            "id": example["id"],
            "group": example.get("group"),
            "target": target,
            "prediction": None,
            "score": None,
            "score_norm": None,
            "loss": None,
            "choice_logprobs": None,
            "input_tokens": tokens,
            "cut": cut,
        }
        if all(map(math.isfinite, logprobs)):
            per_byte = [
                value / max(example_bytes(choice), 1)
                for value, choice in zip(logprobs, example["choices"], strict=True)
            ]
            best = _first_best(logprobs)
            row |= {
                "prediction": best,
                "score": float(best == target),
                "score_norm": float(_first_best(per_byte) == target),
                "loss": -logprobs[target],
                "choice_logprobs": logprobs,
            }
        return row

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Prompt and choices in, index of the chosen one out."""
        with phases("tokenize"):
            items = list(self._rows_of(index))
        with phases("forward"):
            answers = self.score(items)
        with phases("post"):
            merged = {slot: value for answer in answers for slot, value in answer.items()}
            answer = _first_best([merged[slot] for slot in sorted(merged)])
        return {"answer": str(answer)}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of questions in one forward pass."""
        items = [item for i in indices for item in self._rows_of(i)]
        self.score(items)
        return {}


class LanguageModeling(GreedyServing, _CausalLM):
    """Scores whole documents in disjoint windows; a request is a prompt of `prompt_tokens` and
    `output_tokens` greedy tokens (always that many: an end token does not stop it)."""

    def __init__(self, *arguments: Any, prompt_tokens: int, output_tokens: int) -> None:
        super().__init__(*arguments)
        self.output_tokens = output_tokens
        self._ids = [self.encode(e["text"]) for e in self.examples]
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
            {
                "id": example["id"],
                "group": example.get("group"),
                "target": None,
                "prediction": None,
                "score": None,
                "loss": loss if math.isfinite(loss) else None,
                "tokens": len(self._ids[i]),
                "words": example_words(example["text"]),
                "bytes": example_bytes(example["text"]),
                "input_tokens": len(self._ids[i]),
                "cut": False,
            }
            for i, (example, loss) in enumerate(zip(self.examples, losses, strict=True))
        ]


def _first_best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def rolling_windows(
    ids: list[int], prefix: int, max_length: int
) -> Iterator[tuple[list[int], list[int]]]:
    """(inputs, targets) so that each token of `ids` is a target once, in windows of `max_length`.

    The first window is conditioned on `prefix`, each later full one on the one token before it, and
    a last one of k tokens on the ``max_length - k + 1`` before it: lm-evaluation-harness's
    `get_rolling_token_windows` with context_len=1 (its `make_disjoint_window` changes only how the
    pair is cut, not which tokens the model sees).
    """
    if not ids:
        return
    first = ids[:max_length]
    yield [prefix, *first[:-1]], first
    done = len(first)
    while done < len(ids):
        count = min(len(ids) - done, max_length)
        end = done + count
        yield ids[max(end - max_length - 1, 0) : end - 1], ids[done:end]
        done = end
