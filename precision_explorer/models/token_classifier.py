"""Adapter for token-classification heads and `token-classification` tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right
from precision_explorer.models.text_classifier import pad_token, position_limit
from precision_explorer.tasks import entity_counts

# A tag that the model has no label for: no loss can be taken of it.
_UNKNOWN = -1


class TokenClassifier:
    """`examples` hold words and their tags; `label_ids` maps tags of the data to the model's ids.

    A word's tag is that of its first token, as in transformers' run_ner.py; a word that was cut off
    or has no token is outside of entities.
    """

    generates = False

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
        label_ids: dict[str, int],
    ) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                "the model's tokenizer can't say which word a token belongs to; save a fast one "
                "(tokenizer.json) with the model"
            )
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.examples, self.label_ids = examples, label_ids
        self.max_length = min(card["max_length"], position_limit(model, tokenizer))
        self.names = {int(k): str(v) for k, v in model.config.id2label.items()}
        self.pad = pad_token(model, tokenizer)

    def _encode(self, index: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and (word, position of its first token) of the words that have one."""
        encoded = self.tokenizer(
            self.examples[index]["text"],
            is_split_into_words=True,
            truncation=True,
            max_length=self.max_length,
        )
        first: dict[int, int] = {}
        for position, word in enumerate(encoded.word_ids()):
            if word is not None:
                first.setdefault(word, position)
        return encoded["input_ids"], list(first.items())

    def items(self) -> list[Item]:
        """One item per example; its targets are (word, position, id of its tag)."""
        items = []
        for index, example in enumerate(self.examples):
            ids, first = self._encode(index)
            targets = [
                (word, position, self.label_ids.get(example["label"][word], _UNKNOWN))
                for word, position in first
            ]
            # A word without a token shifts nothing: what was cut lies behind the last one.
            cut = len(ids) == self.max_length and self._longer(index)
            items.append(Item(index, tuple(ids), tuple(targets), cut))
        return items

    def _longer(self, index: int) -> bool:
        words = self.examples[index]["text"]
        whole = self.tokenizer(words, is_split_into_words=True, truncation=False, verbose=False)
        return len(whole["input_ids"]) > self.max_length

    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        ids, mask = pad_right(rows, self.pad, self.device)
        return self.model(input_ids=ids, attention_mask=mask).logits

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(words of all items, labels) logits."""
        logits = self._logits([item.ids for item in batch])
        places = [(i, position) for i, item in enumerate(batch) for _, position, _ in item.targets]
        if not places:
            return logits[:0, 0]
        rows, positions = (torch.tensor(c, device=logits.device) for c in zip(*places, strict=True))
        return logits[rows, positions]

    def score(self, batch: Sequence[Item]) -> list[list[tuple[int, float]]]:
        """(label id, loss in nats) of each item's words; the loss is 0 for a tag that the model
        lacks, and NaN where the logits are not finite."""
        logprobs = self.scores(batch).float().log_softmax(-1)
        wanted = [label for item in batch for _, _, label in item.targets]
        target = torch.tensor(wanted, dtype=torch.long, device=logprobs.device)
        loss = -logprobs.gather(-1, target.clamp_min(0)[:, None]).squeeze(-1)
        # Of one infinite logit log-softmax makes NaN; -inf alone would pass for a certain no.
        loss = torch.where(target == _UNKNOWN, torch.zeros_like(loss), loss)
        loss = loss.masked_fill(~logprobs.isfinite().all(-1), torch.nan)
        found = torch.stack([logprobs.argmax(-1).double(), loss.double()], -1).cpu().tolist()
        pairs = iter([(int(label), value) for label, value in found])
        return [[next(pairs) for _ in item.targets] for item in batch]

    def rows(
        self, items: Sequence[Item], answers: Sequence[list[tuple[int, float]]]
    ) -> list[dict[str, Any]]:
        """id, target and prediction (lists of tags), right, predicted and true entities, score (1.0
        if all entities and no others were found), loss (nats, summed over the words)."""
        return [self._row(item, answer) for item, answer in zip(items, answers, strict=True)]

    def _row(self, item: Item, answer: list[tuple[int, float]]) -> dict[str, Any]:
        example = self.examples[item.example]
        loss = sum(value for _, value in answer)
        row = {
            "id": example["id"],
            "group": example.get("group"),
            "target": example["label"],
            "prediction": None,
            "score": None,
            "right": None,
            "predicted": None,
            "true": None,
            "loss": None,
            "input_tokens": len(item.ids),
            "cut": item.cut,
        }
        if loss == loss:
            tags = self._tags(len(example["text"]), [t[0] for t in item.targets], answer)
            right, predicted, true = entity_counts(example["label"], tags)
            row |= {
                "prediction": tags,
                "score": float(right == predicted == true),
                "right": right,
                "predicted": predicted,
                "true": true,
                "loss": loss,
            }
        return row

    def _tags(
        self, words: int, found: Sequence[int], answer: Sequence[tuple[int, float]]
    ) -> list[str]:
        tags = ["O"] * words
        for word, (label, _) in zip(found, answer, strict=True):
            tags[word] = self.names[label]
        return tags

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Words in, tags out."""
        with phases("tokenize"):
            encoded, first = self._encode(index)
        with phases("copy"):
            ids, mask = pad_right([encoded], self.pad, self.device)
        with phases("forward"):
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            if logits.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            labels = logits[0].argmax(-1).tolist()
            found = [(labels[position], 0.0) for _, position in first]
            words = len(self.examples[index]["text"])
            tags = self._tags(words, [word for word, _ in first], found)
        return {"answer": " ".join(tags)}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """Words in, tags out, a batch at once."""
        encoded = [self._encode(i) for i in indices]
        labels = self._logits([ids for ids, _ in encoded]).argmax(-1).tolist()
        answers = []
        for i, (_, first), row in zip(indices, encoded, labels, strict=True):
            found = [(row[position], 0.0) for _, position in first]
            words = [word for word, _ in first]
            answers.append(self._tags(len(self.examples[i]["text"]), words, found))
        return {"answers": answers}
