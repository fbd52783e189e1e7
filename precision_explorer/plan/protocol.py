"""What a cell's card and options declare of how its results come about: part of its method."""

from __future__ import annotations

from typing import Any

from precision_explorer.records import canonical_hash
from precision_explorer.tasks import KINDS, HarnessCard, PreparedTask, TaskCard

ENERGY = (
    "joules of the latency window, those of the idle device included, within the boundary of the "
    "device's own meter"
)
NO_ENERGY = "not measured"
# A longer text is kept by its hash: the card has it, and few-shot headers are thousands of words.
_LONGEST = 300


def protocol_of(task: PreparedTask, energy: str = ENERGY) -> dict[str, Any]:
    """``prompt``, ``decoding`` (of kinds that answer in text), ``quality_metric`` and ``energy``.

    The card's hash, which the method holds too, stands for all of the card; these are what a reader
    is told of it where two methods differ.
    """
    card = task.card
    found: dict[str, Any] = {"prompt": _prompt(card)}
    if isinstance(card, HarnessCard):
        found["decoding"] = {"by": f"lm-evaluation-harness, {card.output_type}"}
    elif KINDS[card.kind].answers:
        rules = card.rules.model_dump(mode="json", exclude={"chat", "rouge_stemmer"})
        found["decoding"] = {"by": "greedy"} | rules
    # Those of the `evaluate` library are computed afterwards, as a reader likes.
    metrics = card.metrics if isinstance(card, HarnessCard) else card.own_metrics
    return found | {"quality_metric": metrics[0], "energy": energy}


def _prompt(card: TaskCard) -> dict[str, Any]:
    if isinstance(card, HarnessCard):
        return {"by": "lm-evaluation-harness"}
    found: dict[str, Any] = {"max_length": card.max_length}
    if KINDS[card.kind].prompts:
        found["template"] = None if card.prompt is None else _kept(card.prompt)
        if card.choices is not None:
            found["choices"] = [_kept(choice) for choice in card.choices]
    if KINDS[card.kind].answers:
        found["chat"] = card.rules.chat
    return found


def _kept(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"sha256:{canonical_hash(text)} ({len(text):,} characters)"
