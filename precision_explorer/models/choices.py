"""Multiple choice as tokens: which are scored after which, and what an example's row says of it. No
torch: what computes the log-probabilities stands elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from precision_explorer.errors import TaskError
from precision_explorer.models.tokens import plain_ids, prefix_id, prompt_ids
from precision_explorer.tasks import example_bytes


class Choices:
    """The tokens of prompts and choices. `max_length`: the most that are given to the model."""

    tokenizer: Any
    examples: list[dict[str, Any]]
    max_length: int

    def pairs(self, indices: Sequence[int]) -> dict[tuple[int, int], tuple[list[int], list[int]]]:
        """{(example, slot): (context, continuation) ids}: the choice is tokenised after its prompt;
        spaces at the prompt's end move to the choice, as in the harness's `_encode_pair`, and an
        empty prompt becomes the prefix, as in its `loglikelihood`, where its choices have no
        special tokens either."""
        texts: dict[tuple[int, int], tuple[str, str]] = {}
        for index in indices:
            example = self.examples[index]
            prompt = example["prompt"].rstrip()
            spaces = example["prompt"][len(prompt) :]
            for slot, choice in enumerate(example["choices"]):
                texts[index, slot] = (prompt, prompt + spaces + choice)
        after = list(dict.fromkeys(t for pair in texts.values() if pair[0] for t in pair))
        alone = list(dict.fromkeys(whole for prompt, whole in texts.values() if not prompt))
        ids = dict(zip(after, prompt_ids(self.tokenizer, after), strict=True)) | {"": []}
        bare = dict(zip(alone, plain_ids(self.tokenizer, alone), strict=True))
        return {
            key: self._pair(ids[prompt], (ids if prompt else bare)[whole])
            for key, (prompt, whole) in texts.items()
        }

    def _pair(self, context: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
        if not context:
            prefix = prefix_id(self.tokenizer)
            if whole[:1] != [prefix]:
                whole = [prefix, *whole]
            context = whole[:1]
        return context, whole[len(context) :]

    def check(self, example: dict[str, Any], choice: str, tokens: int) -> None:
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

    def row(
        self, example: dict[str, Any], found: dict[int, float], tokens: int | None, cut: bool
    ) -> dict[str, Any]:
        """The example's row from the log-probability of each choice in nats."""
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
            best = first_best(logprobs)
            row |= {
                "prediction": best,
                "score": float(best == target),
                "score_norm": float(first_best(per_byte) == target),
                "loss": -logprobs[target],
                "choice_logprobs": logprobs,
            }
        return row


def first_best(values: Sequence[float]) -> int:
    """The first index of the largest of `values`."""
    return max(range(len(values)), key=values.__getitem__)
