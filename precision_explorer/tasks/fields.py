"""One field of a data row, checked: what the readers of every kind's examples share.

A ValueError says what is wrong with the field; `data.make_examples` adds where.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

from precision_explorer.bounded import json_document
from precision_explorer.tasks.cards import TaskCard
from precision_explorer.tasks.kinds import KINDS

Row = dict[str, Any]


def value_of(card: TaskCard, row: Row, field: str) -> Any:
    """The field's value; a missing one is refused, and an empty text where the field is a role."""
    column = card.column_of(field)
    value = row[column]
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    # Only a role must say something: another field of a prompt, such as a context, may be empty.
    if missing or (value == "" and field in KINDS[card.kind].roles):
        raise ValueError(f"'{column}' is empty; fill it in or remove the example")
    return value


def text_of(card: TaskCard, row: Row, field: str) -> str:
    """The field's value, which must be a text that is more than white space."""
    value, column = value_of(card, row, field), card.column_of(field)
    if not isinstance(value, str):
        raise ValueError(f"'{column}' is no text but {type(value).__name__}; correct columns")
    if not value.strip():
        raise ValueError(f"'{column}' is empty; fill it in or remove the example")
    return value


def list_of(card: TaskCard, row: Row, field: str) -> list[Any]:
    """The field's value, which must be a list; JSON in a cell of a CSV file, which has no lists."""
    value, column = value_of(card, row, field), card.column_of(field)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json_document(value, strict=False)
    if not isinstance(value, list) or not value:
        raise ValueError(f"'{column}' must be a list of at least one; correct it")
    return value


def number_of(card: TaskCard, row: Row, field: str) -> float:
    """The field's value, which must be a finite number, or one in text."""
    value, column = value_of(card, row, field), card.column_of(field)
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            number = float(value)
            if math.isfinite(number):
                return number
    raise ValueError(f"'{column}' is {value!r}, no number; correct it")


def label_of(card: TaskCard, row: Row) -> int | str:
    """The label id or name; a number by its name where the card's `labels` has one."""
    label = value_of(card, row, "label")
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise ValueError(f"label {label!r} is no label; use a label id or name of the model")
    return named(card, label)


def named(card: TaskCard, label: int | str) -> int | str:
    """`label`, or its name where it is a number and the card says what its numbers stand for."""
    number = whole(label)
    if not card.labels or number is None:
        return label
    if not 0 <= number < len(card.labels):
        raise ValueError(f"label {label!r} is none of the {len(card.labels)} of the card's labels")
    return card.labels[number]


def whole(value: Any) -> int | None:
    """`value` as int where it is one, also as 1.0 or in digits; else None."""
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None
