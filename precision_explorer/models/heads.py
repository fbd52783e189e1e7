"""The heads of models: how each is known in a config, and which class of transformers loads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """`suffixes`: how the names of its architectures end in config.json, `but` those that end so
    too and are others. `auto`: transformers' class. `decodes`: it makes text token by token.
    `sees`: it takes images. `embeds`: it gives vectors, and no distribution over anything."""

    suffixes: tuple[str, ...]
    auto: str
    decodes: bool = False
    sees: bool = False
    embeds: bool = False
    but: tuple[str, ...] = ()

    def fits(self, architecture: str) -> bool:
        """Whether a model of this architecture was saved with this head."""
        return architecture.endswith(self.suffixes) and not architecture.endswith(self.but)


HEADS: dict[str, Head] = {
    "sequence-classification": Head(
        ("ForSequenceClassification",), "AutoModelForSequenceClassification"
    ),
    "causal-lm": Head(("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", decodes=True),
    "token-classification": Head(("ForTokenClassification",), "AutoModelForTokenClassification"),
    "question-answering": Head(("ForQuestionAnswering",), "AutoModelForQuestionAnswering"),
    # A model without a head. Encoders taken out of an encoder-decoder have no such class.
    "sentence-encoder": Head(
        ("Model",), "AutoModel", embeds=True, but=("LMHeadModel", "HeadsModel", "EncoderModel")
    ),
    "image-classification": Head(
        ("ForImageClassification",), "AutoModelForImageClassification", sees=True
    ),
    "seq2seq-lm": Head(("ForConditionalGeneration",), "AutoModelForSeq2SeqLM"),
}
