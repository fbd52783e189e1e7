"""Which of a model's labels the labels of the data are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from precision_explorer.errors import TaskError
from precision_explorer.tasks.cards import TaskCard
from precision_explorer.tasks.data import check_labels
from precision_explorer.tasks.entities import type_of
from precision_explorer.tasks.kinds import KINDS

Example = dict[str, Any]
_ONE_LABEL = ("sequence-classification", "image-classification")


def label_ids(
    card: TaskCard, examples: Iterable[Example], id2label: dict[int, str]
) -> dict[str, int] | None:
    """{label in the data: id of the model's label}; None for kinds whose head has no labels.

    TaskError names labels, or types of entities, that the model lacks.
    """
    head = KINDS[card.kind].head
    if head in _ONE_LABEL:
        return check_labels(card, examples, id2label)
    if head == "token-classification":
        return check_tags(card, examples, id2label)
    return None


def check_tags(
    card: TaskCard, examples: Iterable[Example], id2label: dict[int, str]
) -> dict[str, int]:
    """The id of each tag that the model has too. It may mark where entities begin in another way
    (IOB1, say), which changes no entity; but it must know all of the data's types."""
    known = {name: label_id for label_id, name in sorted(id2label.items(), reverse=True)}
    tags = dict.fromkeys(tag for example in examples for tag in example["label"])
    have = {type_of(name) for name in known} - {""}
    missing = sorted({type_of(tag) for tag in tags} - {""} - have)
    if missing:
        raise TaskError(
            f"task {card.name}: the model knows no entities of type {', '.join(missing)}; it has "
            f"{', '.join(sorted(have)) or 'none'}; rename the data's, or choose another model"
        )
    return {tag: known[tag] for tag in tags if tag in known}
