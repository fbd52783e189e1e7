"""The kinds of task: what a card of each must name, which metrics fit it, which head answers."""

from __future__ import annotations

from dataclasses import dataclass

COMMON_ROLES = ("text", "label", "id", "group", "choices")


@dataclass(frozen=True)
class Kind:
    """`required`: the roles that its columns must name; `own`: those beside `COMMON_ROLES` that
    they may. `metrics`: those that fit. `head`: what answers it (a key of `models.heads.HEADS`).

    `prompts`: the card's prompt counts. `generates`: an answer is generated token by token.
    `proof`: the column of an example's row that is None where the model's output was not finite.
    """

    required: tuple[str, ...]
    metrics: tuple[str, ...]
    head: str
    own: tuple[str, ...] = ()
    prompts: bool = False
    generates: bool = False
    proof: str = "loss"
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
        prompts=True,
    ),
    "language-modeling": Kind(
        ("text",),
        ("bits_per_byte", "word_perplexity", "token_perplexity"),
        "causal-lm",
        generates=True,
    ),
    "lm-eval": Kind(
        (),
        (),
        "causal-lm",
        proof="finite",
        imports=("lm_eval.tasks", "lm_eval.models.huggingface"),
    ),
}
