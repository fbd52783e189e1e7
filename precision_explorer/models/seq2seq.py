"""Adapter for encoder-decoders: `summarization` and `translation` tasks, answered greedily."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.adapter import Item, pad_right
from precision_explorer.models.answering import Answering, end_tokens
from precision_explorer.models.greedy import LOOK, Generated, is_finite, up_to_end
from precision_explorer.tasks import GenerationRules


class Seq2Seq(Answering):
    """Source text in, text out, by transformers' `generate` with one beam and no sampling. The
    model's other generation settings hold: a forced first token is how some know their language.
    A request of the timed part is a source and `output_tokens` tokens, whatever the answer."""

    generates = True
    batch_tokens: Sequence[Sequence[int]] = ()
    """What each request of the last batch generated, for audits of it."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        device: str,
        examples: list[dict[str, Any]],
        card: dict[str, Any],
        output_tokens: int,
    ) -> None:
        self.model, self.tokenizer, self.device = model, tokenizer, device
        self.examples, self.metrics = examples, card["metrics"]
        self.rules = GenerationRules.model_validate(card["generation"])
        self.output_tokens = output_tokens
        # T5's positions are relative: it names no limit, but its tokenizer does.
        positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.max_length = int(min(card["max_length"], positions, tokenizer.model_max_length))
        self.pad = next(
            int(token)
            for token in (model.config.pad_token_id, tokenizer.pad_token_id, 0)
            if token is not None
        )
        self.ends = end_tokens(model, tokenizer)

    @property
    def new_tokens(self) -> int:
        """The most tokens that are generated, for an answer or a request."""
        return max(self.rules.max_new_tokens, self.output_tokens)

    def _encode(self, index: int) -> list[int]:
        """The source's tokens, the special ones that the model was trained with included."""
        source = self.examples[index]["prompt"]
        return self.tokenizer(source, truncation=True, max_length=self.max_length)["input_ids"]

    def items(self) -> list[Item]:
        """One item per example, with room for its answer."""
        found = []
        for index, example in enumerate(self.examples):
            ids = self._encode(index)
            full = self.tokenizer(example["prompt"], verbose=False)["input_ids"]
            cut = len(full) > len(ids)
            found.append(Item(index, tuple(ids), cut=cut, room=self.rules.max_new_tokens))
        return found

    def _first(self, batch: Sequence[Item]) -> torch.Tensor:
        ids, mask = pad_right([item.ids for item in batch], self.pad, self.device)
        begin = ids.new_full((len(ids), 1), self._start)
        return self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=begin).logits[:, -1]

    @property
    def _start(self) -> int:
        token = self.model.config.decoder_start_token_id
        return self.pad if token is None else int(token)

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(items, vocabulary) logits of the first token of each answer."""
        return self._first(batch)

    def score(self, batch: Sequence[Item]) -> list[Generated]:
        """Each source's greedy tokens."""
        ids, mask = pad_right([item.ids for item in batch], self.pad, self.device)
        with _Watch(self.model, len(ids)) as watch:
            made = self._generate(ids, mask, max_new_tokens=self.rules.max_new_tokens)
        whole = torch.cat([made, watch.finite[:, None]], dim=1).tolist()
        return [Generated(*up_to_end(row[:-1], self.ends), bool(row[-1])) for row in whole]

    def _generate(self, ids: torch.Tensor, mask: torch.Tensor, **how: int) -> torch.Tensor:
        """(rows, tokens): what was generated, without the token that the decoder begins with."""
        stopping = {"stopping_criteria": [_StopTexts(self)]} if self.rules.stop else {}
        made = self.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad,
            **stopping,
            **how,
        )
        return made[:, 1:]

    # -- requests ----------------------------------------------------------------------------

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Source in, greedy tokens out; time to the first token counts its tokenisation."""
        start = time.perf_counter()
        with phases("tokenize"):
            source = self._encode(index)
        with phases("copy"):
            ids, mask = pad_right([source], self.pad, self.device)
        with phases("forward"), _Watch(self.model, 1, streams=True) as watch:
            tokens = self._fixed(ids, mask)[0]
        with phases("post"):
            answer = self.tokenizer.decode(tokens)
        end = time.perf_counter()
        rest = self.output_tokens - 1
        return {
            "answer": answer,
            "ttft_s": watch.first_s - start,
            "tpot_s": (end - watch.first_s) / rest if rest else None,
            "output_tokens": self.output_tokens,
        }

    def _fixed(self, ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
        count = self.output_tokens
        return self._generate(ids, mask, max_new_tokens=count, min_new_tokens=count).tolist()

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of sources, decoded in step."""
        ids, mask = pad_right([self._encode(i) for i in indices], self.pad, self.device)
        self.batch_tokens = self._fixed(ids, mask)
        return {"output_tokens": sum(map(len, self.batch_tokens))}

    def batch_answers(self) -> list[dict[str, Any]]:
        """Tokens and text (`answer`) of each request of the last batch."""
        return [{"answer": self.tokenizer.decode(t), "tokens": t} for t in self.batch_tokens]

    def serve_batch(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """A static batch of sources; of each request `first_token_s` since the batch's start,
        `tpot_s` and `output_tokens`."""
        start = time.perf_counter()
        ids, mask = pad_right([self._encode(i) for i in indices], self.pad, self.device)
        with _Watch(self.model, len(ids), streams=True) as watch:
            self.batch_tokens = self._fixed(ids, mask)
        end, rest = time.perf_counter(), self.output_tokens - 1
        served = {
            "first_token_s": watch.first_s - start,
            "tpot_s": (end - watch.first_s) / rest if rest else None,
            "output_tokens": self.output_tokens,
        }
        return [dict(served) for _ in indices]


class _Watch:
    """Looks at the logits of each step as the model gives them, before any setting masks some.

    `finite`: (rows,) whether all of them were; `first_s`: the clock at the first token, with
    `streams`, where each step's token is moved off the device as a server would.
    """

    def __init__(self, model: nn.Module, rows: int, streams: bool = False) -> None:
        self._model, self._streams = model, streams
        self.finite = torch.ones(rows, dtype=torch.bool, device=next(model.parameters()).device)
        self.first_s = 0.0

    def _look(self, module: nn.Module, arguments: Any, output: Any) -> None:
        logits = output.logits[:, -1]
        if self._streams:
            logits.argmax(-1).tolist()
            self.first_s = self.first_s or time.perf_counter()
        else:
            self.finite = self.finite & is_finite(logits)

    def __enter__(self) -> _Watch:
        self._handle = self._model.register_forward_hook(self._look)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._handle.remove()


class _StopTexts:
    """transformers' StoppingCriteria: rows whose text holds a stop text, looked at now and then."""

    def __init__(self, answering: Answering) -> None:
        self._answering, self._steps = answering, 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **named: Any) -> torch.Tensor:
        self._steps += 1
        if self._steps % LOOK:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        found = self._answering.stopped(input_ids[:, 1:].tolist())
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)
