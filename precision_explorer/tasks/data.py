"""A card's examples, ready to be asked: checked, in one seeded order, with their identity."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import TaskError
from precision_explorer.records import TaskIdentity, canonical_hash
from precision_explorer.tasks.cards import (
    LoadedCard,
    TaskCard,
    card_hash,
    prompt_fields,
    prompt_parts,
)
from precision_explorer.tasks.external import ExternalMetric
from precision_explorer.tasks.kinds import KINDS
from precision_explorer.tasks.sources import RawData, read_source

if TYPE_CHECKING:
    from precision_explorer.tasks.calibration import Calibration

Example = dict[str, Any]
_SHOWN = 8


@dataclass(frozen=True)
class PreparedTask:
    """`examples`, in the order in which they are asked: ``id`` (text), ``group`` (text or None) and

    - text-classification: ``text``, ``label`` (a model's label id as int or text, or its name);
    - multiple-choice: ``prompt``, ``choices`` (list of text), ``label`` (index into them);
    - language-modeling: ``text``.

    `calibration` is None where it was not asked for, or where the card names none.
    """

    card: TaskCard
    identity: TaskIdentity
    examples: list[Example]
    calibration: Calibration | None = None
    external: tuple[ExternalMetric, ...] = ()
    """The card's metrics of the `evaluate` library, computed from the stored answers."""


def prepare(loaded: LoadedCard, limit: int | None, seed: int) -> PreparedTask:
    """The first `limit` (None: all) of the examples in the order ``numpy.random.default_rng(seed)
    .permutation(n)`` over the data's n rows.

    Every row is checked, also those that `limit` leaves out, so that it hides no fault. TaskError,
    one line, where card and data don't fit or the data can't be read.
    """
    import numpy as np

    if limit is not None and limit < 1:
        raise TaskError(f"a limit of {limit} leaves no examples; give 1 or more, or no limit")
    raw = read_source(loaded)
    if not raw.rows:
        raise TaskError(f"{raw.name} holds no examples; put at least one in it")
    examples = make_examples(loaded.card, raw)
    order = np.random.default_rng(seed).permutation(len(examples))[:limit]
    taken = [examples[i] for i in order]
    card = loaded.card
    identity = TaskIdentity(
        name=card.name,
        version=card.version,
        kind=card.kind,
        card_hash=card_hash(card),
        data_hash=raw.data_hash,
        item_ids_hash=canonical_hash([example["id"] for example in taken]),
        n=len(taken),
    )
    return PreparedTask(card, identity, taken, external=tuple(loaded.external_metrics()))


def check_labels(
    card: TaskCard, examples: Iterable[Example], id2label: dict[int, str]
) -> dict[str, int]:
    """The label id of each label in `examples`, keyed by the label as text.

    A label is the model's label id (an int, or its digits) or name; the exact name goes before one
    that differs in case only. TaskError names the labels that the model lacks and those it has.
    """
    labels = dict.fromkeys(str(example["label"]) for example in examples)
    found = {label: _label_id(label, id2label) for label in labels}
    missing = sorted(label for label, label_id in found.items() if label_id is None)
    if missing:
        have = ", ".join(f"{i}: {name}" for i, name in sorted(id2label.items())[:_SHOWN])
        raise TaskError(
            f"task {card.name}: the model has no label {_listed(missing)}; it has {have}"
            f"{', ...' if len(id2label) > _SHOWN else ''}; use these ids or names in the data"
        )
    return {label: label_id for label, label_id in found.items() if label_id is not None}


def _label_id(label: str, id2label: dict[int, str]) -> int | None:
    by_id = _whole(label)
    by_id = by_id if by_id in id2label else None
    exact = [i for i, name in id2label.items() if name == label]
    if by_id is not None and exact and exact != [by_id]:
        raise TaskError(
            f"label '{label}' is the id of one of the model's labels and the name of another "
            f"({by_id}: {id2label[by_id]}, {exact[0]}: {label}); rename the model's labels"
        )
    if by_id is not None:
        return by_id
    matches = exact or [i for i, n in id2label.items() if n.casefold() == label.casefold()]
    if len(matches) > 1:
        raise TaskError(
            f"label '{label}' is the name of {len(matches)} of the model's labels; use label ids"
        )
    return matches[0] if matches else None


def make_examples(card: TaskCard, raw: RawData) -> list[Example]:
    """Every row of `raw` as an example (see `PreparedTask`); TaskError names the first bad one."""
    make = _MAKERS[card.kind]
    examples: list[Example] = []
    first_row: dict[str, int] = {}
    for index, row in enumerate(raw.rows):
        try:
            identity = _name(card, row, "id") or str(index)
            group = _name(card, row, "group")
            example = {"id": identity, "group": group, **make(card, row)}
        except ValueError as error:
            where = f"{raw.name}, example {index + 1}"
            raise TaskError(f"{where}: {error}") from error
        if identity in first_row:
            raise TaskError(
                f"{raw.name}: examples {first_row[identity] + 1} and {index + 1} have the same id "
                f"'{identity}'; make the ids unique or take columns.id out of the card"
            )
        first_row[identity] = index
        examples.append(example)
    return examples


def _classification(card: TaskCard, row: Example) -> Example:
    label = _value(card, row, "label")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise ValueError(f"label {label!r} is no label; use a label id or name of the model")
    return {"text": _text(card, row, "text"), "label": label}


def _language_modeling(card: TaskCard, row: Example) -> Example:
    return {"text": _text(card, row, "text")}


def _multiple_choice(card: TaskCard, row: Example) -> Example:
    prompt = str(card.prompt)
    fields = {field: _prompt_value(card, row, field) for field in prompt_fields(prompt)}
    parts = (text + (fields[field] if field else "") for text, field in prompt_parts(prompt))
    choices = card.choices if card.choices is not None else _choices(card, row)
    label = _value(card, row, "label")
    index = None if isinstance(label, bool) else _whole(label)
    if index is None or not 0 <= index < len(choices):
        raise ValueError(
            f"label {label!r} is no index into the {len(choices)} choices; "
            f"use 0 to {len(choices) - 1}"
        )
    return {"prompt": "".join(parts), "choices": list(choices), "label": index}


_MAKERS: dict[str, Callable[[TaskCard, Example], Example]] = {
    "text-classification": _classification,
    "multiple-choice": _multiple_choice,
    "language-modeling": _language_modeling,
}


def _prompt_value(card: TaskCard, row: Example, field: str) -> str:
    value = _value(card, row, field)
    if isinstance(value, (list, dict)):
        raise ValueError(f"'{field}' is no text; take it out of the prompt")
    return _text(card, row, field) if field == "text" else str(value)


def _choices(card: TaskCard, row: Example) -> list[str]:
    value = _value(card, row, "choices")
    if isinstance(value, str):
        # A CSV file has no lists.
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    texts = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
    if not texts or len(set(value)) < max(2, len(value)):
        raise ValueError("choices must be a list of at least two different texts; correct them")
    return list(value)


def _value(card: TaskCard, row: Example, field: str) -> Any:
    column = card.column_of(field)
    value = row[column]
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    # Only a role must say something: another field of a prompt, such as a context, may be empty.
    if missing or (value == "" and field in KINDS[card.kind].roles):
        raise ValueError(f"'{column}' is empty; fill it in or remove the example")
    return value


def _text(card: TaskCard, row: Example, field: str) -> str:
    value, column = _value(card, row, field), card.column_of(field)
    if not isinstance(value, str):
        raise ValueError(f"'{column}' is no text but {type(value).__name__}; correct columns")
    if not value.strip():
        raise ValueError(f"'{column}' is empty; fill it in or remove the example")
    return value


def _name(card: TaskCard, row: Example, role: str) -> str | None:
    return str(_value(card, row, role)) if role in card.columns else None


def _whole(value: Any) -> int | None:
    """`value` as int where it is one, also as 1.0 or in digits; else None."""
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def _listed(labels: list[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:_SHOWN])
    return shown + (", ..." if len(labels) > _SHOWN else "")
