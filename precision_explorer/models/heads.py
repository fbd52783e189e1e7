"""The heads of models: how each is known in a config, and which class of transformers loads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """`suffixes`: how the names of its architectures end in config.json. `auto`: transformers'
    class. `decodes`: it makes text token by token."""

    suffixes: tuple[str, ...]
    auto: str
    decodes: bool = False


HEADS: dict[str, Head] = {
    "sequence-classification": Head(
        ("ForSequenceClassification",), "AutoModelForSequenceClassification"
    ),
    "causal-lm": Head(("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", decodes=True),
    "seq2seq-lm": Head(("ForConditionalGeneration",), "AutoModelForSeq2SeqLM"),
}
