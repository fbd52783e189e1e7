"""Adapter for sequence-classification heads and `text-classification` tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right
from precision_explorer.models.class_rows import class_row


class TextClassifier:
    """`examples` hold text and label; `label_ids` maps each label in the data to its id."""

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
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.examples, self.label_ids = examples, label_ids
        self.max_length = min(card["max_length"], position_limit(model, tokenizer))
        self.names = {int(k): str(v) for k, v in model.config.id2label.items()}
        self.pad = pad_token(model, tokenizer)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def items(self) -> list[Item]:
        """One item per example. An input that fills the limit and is longer uncut was cut."""
        texts = [e["text"] for e in self.examples]
        found = self._encode(texts)
        full = [i for i, ids in enumerate(found) if len(ids) >= self.max_length]
        # Only these are tokenised again.
        long = [texts[i] for i in full]
        uncut = self.tokenizer(long, truncation=False, verbose=False)["input_ids"] if full else []
        cut = {i for i, ids in zip(full, uncut, strict=True) if len(ids) > len(found[i])}
        return [Item(i, tuple(ids), cut=i in cut) for i, ids in enumerate(found)]

    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        ids, mask = pad_right(rows, self.pad, self.device)
        return self.model(input_ids=ids, attention_mask=mask).logits

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(items, labels) logits."""
        return self._logits([item.ids for item in batch])

    def score(self, batch: Sequence[Item]) -> list[list[float]]:
        """(labels,) logits of each item, as float32."""
        return self._logits([item.ids for item in batch]).float().cpu().tolist()

    def rows(self, items: Sequence[Item], answers: Sequence[list[float]]) -> list[dict[str, Any]]:
        """id, target, prediction (label names), score, loss (nats), logprobs per label."""
        result = []
        for item, logits in zip(items, answers, strict=True):
            example = self.examples[item.example]
            row = class_row(example, self.label_ids[str(example["label"])], self.names, logits)
            result.append(row | {"input_tokens": len(item.ids), "cut": item.cut})
        return result

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Text in, label name out."""
        with phases("tokenize"):
            encoded = self._encode([self.examples[index]["text"]])
        with phases("copy"):
            ids, mask = pad_right(encoded, self.pad, self.device)
        with phases("forward"):
            logits = self.model(input_ids=ids, attention_mask=mask).logits
            if logits.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            answer = self.names[int(logits[0].argmax())]
        return {"answer": answer}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """Texts in, label names out."""
        logits = self._logits(self._encode([self.examples[i]["text"] for i in indices]))
        return {"answers": [self.names[i] for i in logits.argmax(-1).tolist()]}


def position_limit(model: nn.Module, tokenizer: Any) -> int:
    """The smaller of what model and tokenizer declare (the tokenizer's "none" is a huge number)."""
    positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    for name, module in model.named_modules():
        offset = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and offset is not None:
            # Roberta and its kin count positions from behind the padding's.
            positions -= offset + 1
            break
    return int(min(positions, tokenizer.model_max_length or 1 << 30))


def pad_token(model: nn.Module, tokenizer: Any) -> int:
    """The token to pad with: the model's own, by which decoders find a text's last token and
    Roberta counts positions. A model that names none is told the tokenizer's."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = next(
            (t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0
        )
    return int(config.pad_token_id)
