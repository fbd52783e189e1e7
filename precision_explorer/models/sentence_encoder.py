"""Adapters for models without a head: `similarity` and `retrieval` tasks by embeddings of texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from precision_explorer.bounded import json_file
from precision_explorer.errors import ModelError
from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right, plan_batches
from precision_explorer.models.reference import POOLING_FILE
from precision_explorer.models.text_classifier import pad_token, position_limit
from precision_explorer.tasks import ranking

# Padded tokens and documents of one batch, where the corpus is not embedded by the quality pass.
_INDEX_BATCH = (1024, 16)
_PARTS = ("Transformer", "Pooling", "Normalize")


def pooling_of(folder: Path) -> str:
    """``mean``, ``cls``, ``max`` or ``lasttoken``, as the model's `1_Pooling/config.json` says;
    ``mean`` where there is none.

    ModelError for other poolings, and where sentence-transformers' modules.json names a part that
    is none of Transformer, Pooling and Normalize: the embeddings would not be the model's.
    """
    modules = _json(folder / "modules.json") or []
    others = [m["type"] for m in modules if m["type"].rpartition(".")[2] not in _PARTS]
    if others:
        raise ModelError(
            f"the model's embeddings pass through {others[0]}, which is not supported; choose a "
            "model of Transformer, Pooling and Normalize"
        )
    stored = _json(folder / POOLING_FILE)
    if stored is None:
        return "mean"
    marks = {
        "mean": "pooling_mode_mean_tokens",
        "cls": "pooling_mode_cls_token",
        "max": "pooling_mode_max_tokens",
        "lasttoken": "pooling_mode_lasttoken",
    }
    on = [key for key, value in stored.items() if key.startswith("pooling_mode_") and value is True]
    found = [
        name for name, key in marks.items() if on == [key] or stored.get("pooling_mode") == name
    ]
    if len(found) != 1:
        raise ModelError(
            f"the pooling in the model's {POOLING_FILE} is none of {', '.join(marks)}, one at a "
            "time; choose another model"
        )
    return found[0]


def _json(path: Path) -> Any:
    try:
        return json_file(path, strict=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"the model's {path.name} can't be read; fetch the model again") from error


def pooled(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """(texts, size) float32 from (texts, tokens, size), padded on the right."""
    hidden, mask = hidden.float(), mask[..., None]
    if how == "cls":
        return hidden[:, 0]
    if how == "lasttoken":
        return hidden[torch.arange(len(hidden)), mask[..., 0].sum(-1) - 1]
    if how == "max":
        return hidden.masked_fill(mask == 0, -torch.inf).amax(1)
    # Where, since 0 x NaN of padding would be NaN.
    return torch.where(mask > 0, hidden, torch.zeros_like(hidden)).sum(1) / mask.sum(1)


class _SentenceEncoder:
    """What both kinds share: texts to normalised embeddings, whose products are cosines."""

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
        folder = Path(model.name_or_path)
        self.pooling = pooling_of(folder)
        own = (_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
        self.max_length = min(card["max_length"], position_limit(model, tokenizer), own or 1 << 30)
        self.pad = pad_token(model, tokenizer)

    def _texts(self) -> Iterator[tuple[int, str]]:
        """(example, text) of every item."""
        raise NotImplementedError

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]

    def items(self) -> list[Item]:
        """One item per text."""
        found = list(self._texts())
        texts = [text for _, text in found]
        full = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return [
            Item(index, tuple(ids), cut=len(whole) > len(ids))
            for (index, _), ids, whole in zip(found, self._encode(texts), full, strict=True)
        ]

    def embed(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """(texts, size) float32 embeddings of length 1, on the device."""
        ids, mask = pad_right(rows, self.pad, self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return nn.functional.normalize(pooled(hidden, mask, self.pooling), dim=-1)

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(texts, size) embeddings: these models give no distribution."""
        return self.embed([item.ids for item in batch])

    def score(self, batch: Sequence[Item]) -> list[np.ndarray]:
        """The embedding of each text."""
        return list(self.scores(batch).cpu().numpy())


class Similarity(_SentenceEncoder):
    """The cosine of two texts' embeddings, against how similar the label says they are."""

    def _texts(self) -> Iterator[tuple[int, str]]:
        for index, example in enumerate(self.examples):
            yield index, example["text"]
            yield index, example["pair"]

    def rows(self, items: Sequence[Item], answers: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """id, target (the label), cosine; prediction is the cosine too."""
        result = []
        for index, example in enumerate(self.examples):
            both, found = items[2 * index : 2 * index + 2], answers[2 * index : 2 * index + 2]
            cosine = float(found[0].astype(float) @ found[1].astype(float))
            finite = bool(np.isfinite(cosine))
            result.append(
                {
                    "id": example["id"],
                    "group": example.get("group"),
                    "target": example["label"],
                    "prediction": cosine if finite else None,
                    "score": None,
                    "cosine": cosine if finite else None,
                    "input_tokens": sum(len(item.ids) for item in both),
                    "cut": any(item.cut for item in both),
                }
            )
        return result

    def _pairs(self, indices: Sequence[int]) -> list[str]:
        return [self.examples[i][role] for i in indices for role in ("text", "pair")]

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Two texts in, their cosine out; they go through the model together."""
        with phases("tokenize"):
            rows = self._encode(self._pairs([index]))
        with phases("forward"):
            found = self.embed(rows)
            if found.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            answer = float(found[0] @ found[1])
        return {"answer": f"{answer:.6f}"}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of pairs at once."""
        found = self.embed(self._encode(self._pairs(indices)))
        return {"answers": (found[0::2] * found[1::2]).sum(-1).tolist()}


class Retrieval(_SentenceEncoder):
    """Documents of `corpus` ranked by the cosine of their embedding with the query's.

    Items are the queries and then the documents, which the quality pass embeds like any text. A
    request is a query against documents that were embedded before, as a user would send it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
        corpus: list[dict[str, Any]],
    ) -> None:
        super().__init__(model, tokenizer, device, examples, card)
        self.corpus = corpus
        self._index: torch.Tensor | None = None

    def _texts(self) -> Iterator[tuple[int, str]]:
        for index, text in enumerate([*self.examples, *self.corpus]):
            yield index, text["text"]

    def rows(self, items: Sequence[Item], answers: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """id, target (relevant documents, best first), prediction (the first 10 found), ndcg_at_10,
        recall_at_10, score (1.0 if the first one is relevant)."""
        count = len(self.examples)
        documents = torch.from_numpy(np.stack(answers[count:]))
        self._index = documents.to(self.device)
        queries = torch.from_numpy(np.stack(answers[:count]))
        # In float64, where the order does not hang on how a product is summed up.
        cosines = queries.double() @ documents.double().T
        return [self._row(item, row) for item, row in zip(items[:count], cosines, strict=True)]

    def _row(self, item: Item, cosines: torch.Tensor) -> dict[str, Any]:
        example = self.examples[item.example]
        relevant = example["relevant"]
        row = {
            "id": example["id"],
            "group": example.get("group"),
            "target": sorted(relevant, key=lambda i: (-relevant[i], i)),
            "prediction": None,
            "score": None,
            "ndcg_at_10": None,
            "recall_at_10": None,
            "input_tokens": len(item.ids),
            "cut": item.cut,
        }
        if bool(cosines.isfinite().all()):
            # Stable, so that of equals the earlier document comes first.
            order = cosines.argsort(descending=True, stable=True)[: ranking.DEPTH].tolist()
            found = [self.corpus[i]["id"] for i in order]
            row |= {
                "prediction": found,
                "score": float(found[0] in relevant),
                "ndcg_at_10": ranking.ndcg(found, relevant),
                "recall_at_10": ranking.recall(found, relevant),
            }
        return row

    def index(self) -> torch.Tensor:
        """(documents, size) embeddings on the device, of the quality pass or, where that ran in
        another process, made now."""
        if self._index is None:
            rows = self._encode([document["text"] for document in self.corpus])
            kept: list[torch.Tensor] = [torch.empty(0)] * len(rows)
            for batch in plan_batches([len(row) for row in rows], *_INDEX_BATCH):
                found = self.embed([rows[i] for i in batch])
                for i, vector in zip(batch, found, strict=True):
                    kept[i] = vector
            self._index = torch.stack(kept)
        return self._index

    def _best(self, queries: torch.Tensor) -> list[list[str]]:
        cosines = queries @ self.index().T
        best = cosines.topk(min(ranking.DEPTH, len(self.corpus)), dim=-1).indices.tolist()
        return [[self.corpus[i]["id"] for i in row] for row in best]

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """A query in, the ids of the ten nearest documents out."""
        with phases("tokenize"):
            rows = self._encode([self.examples[index]["text"]])
        with phases("forward"):
            query = self.embed(rows)
            if query.is_cuda:
                torch.cuda.synchronize()
        with phases("post"):
            answer = self._best(query)[0]
        return {"answer": " ".join(answer)}

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of queries at once."""
        found = self.embed(self._encode([self.examples[i]["text"] for i in indices]))
        return {"answers": self._best(found)}
