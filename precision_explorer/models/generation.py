"""Adapter for causal language models and `generation` tasks: a prompt, and a greedy answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError, TaskError
from precision_explorer.models.adapter import Item
from precision_explorer.models.answering import Answering, end_tokens
from precision_explorer.models.causal_forward import CausalForward
from precision_explorer.models.greedy import Generated, GreedyServing
from precision_explorer.models.states import positions_of
from precision_explorer.models.tokens import plain_ids, prompt_ids
from precision_explorer.tasks import GenerationRules


class Generation(Answering, GreedyServing):
    """Answers prompts with the tokens of the highest logits, as many as the card allows; the
    model's generation settings (penalties, sampling) are left out. A request of the timed part is a
    prompt and `output_tokens` tokens, whatever the answer."""

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
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.ends = end_tokens(model, tokenizer)
        self._forward = CausalForward(model, device, self.pad)
        self._keeps, self._cache = self._forward.keeps, self._forward.cache_name
        positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.max_length = min(card["max_length"], positions - self.new_tokens)
        if self.max_length < 1:
            raise TaskError(
                f"{self.new_tokens} new tokens leave no room for a prompt in the {positions} "
                "positions of the model; lower generation.max_new_tokens in the card or the "
                "workload's output_tokens"
            )

    @property
    def new_tokens(self) -> int:
        """The most tokens that are generated after a prompt, for an answer or a request."""
        return max(self.rules.max_new_tokens, self.output_tokens)

    def _whole(self, index: int) -> list[int]:
        example = self.examples[index]
        ids = self._encode(example["prompt"])
        if not ids:
            raise TaskError(f"example {example['id']}: its prompt holds no token; correct the data")
        return ids

    def _encode(self, prompt: str) -> list[int]:
        # A chat template has written the special tokens.
        if self.rules.chat:
            return plain_ids(self.tokenizer, [self._chat(prompt)])[0]
        return prompt_ids(self.tokenizer, [prompt])[0]

    def _chat(self, prompt: str) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                "the model's tokenizer has no chat template; take generation.chat out of the card "
                "or choose a model that was trained to chat"
            )
        turns = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def prompt_ids(self, index: int) -> list[int]:
        """The prompt of example `index`; of one that is too long its end."""
        return self._whole(index)[-self.max_length :]

    def items(self) -> list[Item]:
        """One item per example, with room for its answer."""
        found = []
        for index in range(len(self.examples)):
            whole = self._whole(index)
            kept = tuple(whole[-self.max_length :])
            cut = len(kept) < len(whole)
            found.append(Item(index, kept, cut=cut, room=self.rules.max_new_tokens))
        return found

    def along(self, outputs: Mapping[str, str]) -> list[Item]:
        """Items whose answers are given: per example of `outputs` (text by id) its prompt and the
        text, tokenised by itself. `targets`: each place that a token of the text, or its end,
        follows."""
        found = []
        for index, example in enumerate(self.examples):
            if example["id"] not in outputs:
                continue
            prompt = self.prompt_ids(index)
            answer = plain_ids(self.tokenizer, [outputs[example["id"]]])[0][: self.new_tokens]
            follow = [*answer, next(iter(self.ends), self.pad)]
            targets = tuple((k, len(prompt) - 1 + k, token) for k, token in enumerate(follow))
            found.append(Item(index, (*prompt, *answer), targets))
        return found

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(rows, vocabulary) logits: after each prompt, what chooses the answer's first token; of
        an item with targets at each of their positions, once."""
        places = [
            (row, position)
            for row, item in enumerate(batch)
            for position in positions_of(item) or [len(item.ids) - 1]
        ]
        return self._forward.logits([item.ids for item in batch], places)[0]

    def score(self, batch: Sequence[Item]) -> list[Generated]:
        """Each prompt's greedy tokens."""
        ended = self.stopped if self.rules.stop else None
        rows = [item.ids for item in batch]
        return self.decode(rows, self.rules.max_new_tokens, self.ends, ended)
