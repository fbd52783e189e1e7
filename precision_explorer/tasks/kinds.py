"""The kinds of task: what a card of each must name, which metrics fit it, which head answers."""

from __future__ import annotations

from dataclasses import dataclass

COMMON_ROLES = ("text", "label", "id", "group", "choices")


@dataclass(frozen=True)
class Kind:
    """`required`: the roles that its columns must name; `own`: those beside `COMMON_ROLES` that
    they may. `metrics`: those that fit. `head`: what answers it (a key of `models.heads.HEADS`).

    `prompts`: the card's prompt counts. `generates`: an answer is generated token by token.
    `corpus`: queries are held against the card's corpus. `shown`: the roles that hold what a model
    is shown, where that is no prompt.
    `answers`: it is read by the card's `generation` key and scored against references.
    `proof`: the column of an example's row that is None where the model's output was not finite.
    """

    required: tuple[str, ...]
    metrics: tuple[str, ...]
    head: str
    own: tuple[str, ...] = ()
    prompts: bool = False
    generates: bool = False
    answers: bool = False
    proof: str = "loss"
    corpus: bool = False
    shown: tuple[str, ...] = ("text",)
    imports: tuple[str, ...] = ()
    """Modules that a worker imports before it loads the model, whose memory is not the model's."""

    @property
    def roles(self) -> tuple[str, ...]:
        """All roles that its columns may name."""
        return (*COMMON_ROLES, *self.own)


KINDS: dict[str, Kind] = {
    "text-classification": Kind(
        ("text", "label"), ("accuracy", "macro_f1"), "sequence-classification"
    ),
    "multiple-choice": Kind(
        ("label",),
        ("accuracy", "accuracy_norm"),
        "causal-lm",
        own=("labels",),
        prompts=True,
    ),
    "language-modeling": Kind(
        ("text",),
        ("bits_per_byte", "word_perplexity", "token_perplexity"),
        "causal-lm",
        generates=True,
    ),
    "token-classification": Kind(
        ("text", "label"),
        ("entity_f1", "entity_precision", "entity_recall"),
        "token-classification",
    ),
    "extractive-qa": Kind(
        ("text", "context", "reference"),
        ("exact_match", "token_f1"),
        "question-answering",
        own=("context", "reference"),
        proof="span_score",
        shown=("text", "context"),
    ),
    "similarity": Kind(
        ("text", "pair", "label"),
        ("spearman",),
        "sentence-encoder",
        own=("pair",),
        proof="prediction",
        shown=("text", "pair"),
    ),
    "retrieval": Kind(
        ("text", "label"),
        ("ndcg_at_10", "recall_at_10"),
        "sentence-encoder",
        own=("grade",),
        proof="ndcg_at_10",
        corpus=True,
    ),
    "image-classification": Kind(
        ("image", "label"),
        ("accuracy", "macro_f1"),
        "image-classification",
        own=("image",),
        shown=("image",),
    ),
    "generation": Kind(
        ("reference",),
        ("exact_match", "token_f1", "rouge1", "rouge2", "rougeL", "bleu", "chrf"),
        "causal-lm",
        own=("reference",),
        prompts=True,
        generates=True,
        proof="output_tokens",
        answers=True,
    ),
    "summarization": Kind(
        ("text", "reference"),
        ("rouge1", "rouge2", "rougeL", "token_f1", "exact_match", "bleu", "chrf"),
        "seq2seq-lm",
        own=("reference",),
        prompts=True,
        generates=True,
        proof="output_tokens",
        answers=True,
    ),
    "translation": Kind(
        ("text", "reference"),
        ("bleu", "chrf", "token_f1", "exact_match", "rouge1", "rouge2", "rougeL"),
        "seq2seq-lm",
        own=("reference",),
        prompts=True,
        generates=True,
        proof="output_tokens",
        answers=True,
    ),
    "lm-eval": Kind(
        (),
        (),
        "causal-lm",
        proof="finite",
        imports=("lm_eval.tasks", "lm_eval.models.huggingface"),
    ),
}
