"""Examples of the kinds that encoders and vision models answer."""

from __future__ import annotations

from typing import Any

from precision_explorer.tasks.cards import TaskCard
from precision_explorer.tasks.fields import (
    label_of,
    list_of,
    named,
    number_of,
    text_of,
    value_of,
    whole,
)
from precision_explorer.tasks.images import checked_image

Example = dict[str, Any]


def token_classification(card: TaskCard, row: Example) -> Example:
    """``text``: a list of words; ``label``: a tag for each, by the card's labels if in numbers."""
    words, tags = list_of(card, row, "text"), list_of(card, row, "label")
    if not all(isinstance(word, str) and word for word in words):
        raise ValueError(f"'{card.column_of('text')}' must be a list of words, none empty")
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words have {len(tags)} labels; give each word one")
    names = [named(card, tag) if isinstance(tag, (int, str)) else None for tag in tags]
    for name in names:
        if not isinstance(name, str) or whole(name) is not None:
            raise ValueError(
                f"label {name!r} is no tag such as B-PER; name the data's numbers in the card's "
                "labels"
            )
    return {"text": words, "label": names}


def extractive_qa(card: TaskCard, row: Example) -> Example:
    """``text``: the question; ``context``; ``references``: the accepted answers."""
    value = value_of(card, row, "reference")
    # A CSV file has no lists, so there JSON stands for one.
    listed = isinstance(value, list) or str(value).lstrip().startswith("[")
    if value == []:
        raise ValueError(
            "no accepted answer; questions that the context does not answer are not supported: "
            "remove them"
        )
    references = list_of(card, row, "reference") if listed else [value]
    if not all(isinstance(text, str) and text for text in references):
        raise ValueError(f"'{card.column_of('reference')}' must hold texts, none empty")
    question, context = text_of(card, row, "text"), text_of(card, row, "context")
    return {"text": question, "context": context, "references": references}


def similarity(card: TaskCard, row: Example) -> Example:
    """``text``, ``pair``: the two texts; ``label``: how similar they are, on any scale."""
    pair = text_of(card, row, "pair")
    return {
        "text": text_of(card, row, "text"),
        "pair": pair,
        "label": number_of(card, row, "label"),
    }


def retrieval(card: TaskCard, row: Example) -> Example:
    """``text``: the query; ``relevant``: {id of a document: grade, 1 where the card names none}."""
    value = value_of(card, row, "label")
    listed = isinstance(value, list) or (isinstance(value, str) and value.startswith("["))
    ids = [str(i) for i in (list_of(card, row, "label") if listed else [value])]
    grades = list_of(card, row, "grade") if "grade" in card.columns else [1] * len(ids)
    if len(grades) != len(ids):
        raise ValueError(f"{len(ids)} documents have {len(grades)} grades; give each one")
    if not all(isinstance(g, (int, float)) and g >= 0 for g in grades) or not any(grades):
        raise ValueError("grades must be numbers from 0, at least one above it; correct them")
    relevant = {i: float(g) for i, g in zip(ids, grades, strict=True) if g > 0}
    return {"text": text_of(card, row, "text"), "relevant": relevant}


def image_classification(card: TaskCard, row: Example) -> Example:
    """``image`` as `images.checked_image` leaves it; ``label``: a label id or name of the model."""
    image = checked_image(value_of(card, row, "image"), card.column_of("image"))
    return {"image": image, "label": label_of(card, row)}


MAKERS = {
    "token-classification": token_classification,
    "extractive-qa": extractive_qa,
    "similarity": similarity,
    "retrieval": retrieval,
    "image-classification": image_classification,
}
