"""What adapters of generated answers share: where outputs end, and the examples' rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from precision_explorer.models.item import Item
from precision_explorer.tasks import GenerationRules, answer_columns, cut_at_stop, extract

if TYPE_CHECKING:
    from torch import nn

    from precision_explorer.models.greedy import Generated

# Characters of an output that a row keeps: enough to see what a model did.
SHOWN = 4000


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """The tokens that end an output: those of the model's generation settings and its
    configuration, and the tokenizer's."""
    found: set[int | None] = set()
    settings = getattr(model, "generation_config", None)
    for named in (
        getattr(settings, "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        found |= set(named) if isinstance(named, (list, tuple)) else {named}
    return sorted(int(token) for token in found if token is not None)


class Answering:
    """Makes rows of what was generated. `rules` and `metrics` are the card's."""

    tokenizer: Any
    examples: list[dict[str, Any]]
    rules: GenerationRules
    metrics: list[str]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of generated tokens, special ones left out."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def has_stop(self, tokens: Sequence[int]) -> bool:
        """Whether the text of `tokens` holds one of the stop texts."""
        text = self.text_of(tokens)
        return any(stop in text for stop in self.rules.stop)

    def stopped(self, rows: Sequence[Sequence[int]]) -> list[bool]:
        """`has_stop` of each row."""
        return [self.has_stop(row) for row in rows]

    def rows(self, items: Sequence[Item], answers: Sequence[Generated]) -> list[dict[str, Any]]:
        """id, target (the first reference), references, prediction (the answer; None where nothing
        could be extracted), unparsed, output (its beginning), finish_reason, output_tokens (None
        where an output's distributions were not finite), and the columns of the metrics."""
        read = [self._read(answer) for answer in answers]
        examples = [self.examples[item.example] for item in items]
        sizes = [{"input_tokens": len(item.ids), "cut": item.cut} for item in items]
        return answer_rows(examples, read, sizes, self.metrics, self.rules)

    def _read(self, answer: Generated) -> dict[str, Any]:
        if not answer.finite:
            return {
                "prediction": None, "unparsed": None, "output": None, "finish_reason": None,
                "output_tokens": None,
            }  # fmt: skip
        stopped = self.has_stop(answer.tokens)
        count = len(answer.tokens) + answer.ended
        if stopped:
            # The shortest beginning that holds a stop text: later tokens were made before the look.
            ends = range(1, len(answer.tokens) + 1)
            count = 1 + bisect_left(ends, True, key=lambda n: self.has_stop(answer.tokens[:n]))
        output = cut_at_stop(self.text_of(answer.tokens), self.rules.stop)
        prediction = extract(output, self.rules.extract)
        return {
            "prediction": prediction,
            "unparsed": prediction is None if self.rules.extract.pattern else None,
            "output": output[:SHOWN],
            "finish_reason": "stop" if stopped or answer.ended else "length",
            "output_tokens": count,
        }


def answer_rows(
    examples: Sequence[dict[str, Any]],
    read: Sequence[dict[str, Any]],
    sizes: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    rules: GenerationRules,
) -> list[dict[str, Any]]:
    """One row per example: what it asked, what was `read` in its output, and how it scores.
    `sizes`: input_tokens and cut."""
    references = [example["references"] for example in examples]
    predictions = [row["prediction"] for row in read]
    columns = answer_columns(list(metrics), predictions, references, rules)
    return [
        {
            "id": example["id"],
            "group": example.get("group"),
            "target": example["references"][0],
            "references": example["references"],
            **read[k],
            "score": None,
            **{name: values[k] for name, values in columns.items()},
            "loss": None,
            **sizes[k],
        }
        for k, example in enumerate(examples)
    ]
