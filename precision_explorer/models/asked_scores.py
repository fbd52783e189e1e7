"""Log-likelihoods asked of a server: multiple choice and language modeling by the log-probabilities
that it gives of prompts. No torch.

lm-evaluation-harness's definitions, as in `models.causal_lm`; every continuation is a prompt of its
own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from precision_explorer.endpoint.completions import AT_ONCE, Asking, Prompt
from precision_explorer.errors import TaskError
from precision_explorer.models.asked import Asked, Row, Streaming, in_turn
from precision_explorer.models.choices import Choices, first_best
from precision_explorer.models.documents import document_row, rolling_windows
from precision_explorer.models.tokens import plain_ids, prefix_id

# The token after the last that is scored, and the one that a server generates at least.
_BESIDE = 2


def window_for(max_length: int, window: int | None) -> int:
    """The most tokens before a scored one: the card's, or what a server's window holds."""
    return max_length if window is None else min(max_length, window - _BESIDE)


def summed(values: Sequence[float | None]) -> float:
    """Nats; NaN where the server gave no number for one of them."""
    return sum(math.nan if value is None else value for value in values)


class AskedChoices(Choices, Asked):
    """`multiple-choice`: the continuation of the highest log-likelihood."""

    def __init__(
        self,
        asking: Asking,
        examples: list[Row],
        card: Row,
        tokenizer: Any | None,
        window: int | None,
    ) -> None:
        Asked.__init__(self, asking, examples, tokenizer, window)
        self.max_length = window_for(card["max_length"], window)
        self._pairs = self.pairs(range(len(examples))) if tokenizer is not None else {}
        self._before: dict[str, int] = {}

    async def ask(self, index: int) -> tuple[dict[int, float], int | None, bool]:
        """({slot: log-probability in nats}, tokens, whether the prompt was cut)."""
        slots = range(len(self.examples[index]["choices"]))
        if self.tokenizer is None:
            found = [await self._by_text(index, slot) for slot in slots]
            return dict(enumerate(found)), None, False
        made = [await self._by_tokens(index, slot) for slot in slots]
        values, counts, cuts = zip(*made, strict=True)
        return dict(enumerate(values)), sum(counts), any(cuts)

    async def _by_tokens(self, index: int, slot: int) -> tuple[float, int, bool]:
        example = self.examples[index]
        context, continuation = self._pairs[index, slot]
        self.check(example, example["choices"][slot], len(continuation))
        whole = context + continuation
        kept = whole[-(self.max_length + 1) :]
        values = await self.asking.prompt_logprobs(kept)
        return summed(values[-len(continuation) :]), len(kept) - 1, len(kept) < len(whole)

    async def _by_text(self, index: int, slot: int) -> float:
        """The server makes the tokens: how many the prompt has is asked once, so that the choice's
        are those after them, as where they are made here."""
        example = self.examples[index]
        prompt, choice = example["prompt"].rstrip(), example["choices"][slot]
        if not prompt:
            raise TaskError(
                f"example {example['id']}: its prompt is empty, and a server gives no "
                "log-probability of a text's first token; give the model's folder as --model, "
                "whose tokenizer can put a token before it"
            )
        await self._count(prompt)
        whole = prompt + example["prompt"][len(prompt) :] + choice
        values = (await self.asking.prompt_logprobs(whole))[self._before[prompt] :]
        self.check(example, choice, len(values))
        return summed(values)

    async def _count(self, prompt: str) -> None:
        if prompt not in self._before:
            self._before[prompt] = len(await self.asking.prompt_logprobs(prompt))

    def ready(self) -> None:
        """Have the tokens of each prompt counted, which an earlier process may have done."""
        if self.tokenizer is None:
            prompts = sorted({example["prompt"].rstrip() for example in self.examples} - {""})
            work = in_turn(lambda k: self._count(prompts[k]), range(len(prompts)), AT_ONCE)
            self.asking.client.run(work)

    def rows(self, answers: Sequence[tuple[dict[int, float], int | None, bool]]) -> list[Row]:
        """As of `models.causal_lm.MultipleChoice`."""
        return [
            self.row(example, *answer)
            for example, answer in zip(self.examples, answers, strict=True)
        ]

    async def send(
        self, index: int, input_tokens: int | None = None, output_tokens: int | None = None
    ) -> Row:
        """Prompt and choices out together, the index of the chosen one back."""
        slots = range(len(self.examples[index]["choices"]))
        if self.tokenizer is None:
            values = await asyncio.gather(*(self._by_text(index, slot) for slot in slots))
        else:
            made = await asyncio.gather(*(self._by_tokens(index, slot) for slot in slots))
            values = [value for value, _, _ in made]
        return {"answer": str(first_best(values))}


class AskedDocuments(Streaming):
    """`language-modeling`: documents in disjoint windows, as token ids. A timed request is a
    document's first `prompt_tokens` tokens and `output_tokens` more."""

    def __init__(
        self,
        asking: Asking,
        examples: list[Row],
        card: Row,
        tokenizer: Any,
        window: int | None,
        prompt_tokens: int,
        output_tokens: int,
    ) -> None:
        super().__init__(asking, examples, tokenizer, window)
        self.max_length = window_for(card["max_length"], window)
        self.output_tokens = output_tokens
        self._ids = plain_ids(tokenizer, [example["text"] for example in examples])
        self.prompts: list[Prompt] = [ids[:prompt_tokens] for ids in self._ids]

    async def ask(self, index: int) -> float:
        """The log-likelihood of a document in nats."""
        total = 0.0
        prefix = prefix_id(self.tokenizer)
        for inputs, targets in rolling_windows(self._ids[index], prefix, self.max_length):
            values = await self.asking.prompt_logprobs([*inputs, targets[-1]])
            total += summed(values[-len(targets) :])
        return total

    def rows(self, answers: Sequence[float]) -> list[Row]:
        """As of `models.causal_lm.LanguageModeling`."""
        return [
            document_row(example, -answer, len(ids))
            for example, answer, ids in zip(self.examples, answers, self._ids, strict=True)
        ]
