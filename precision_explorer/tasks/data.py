"""A card's examples, ready to be asked: checked, in one seeded order, with their identity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from precision_explorer.bounded import json_document
from precision_explorer.errors import TaskError
from precision_explorer.records import TaskIdentity, canonical_hash
from precision_explorer.tasks.cards import (
    LoadedCard,
    TaskCard,
    card_hash,
    prompt_fields,
    prompt_parts,
)
from precision_explorer.tasks.encoder_data import MAKERS
from precision_explorer.tasks.external import ExternalMetric
from precision_explorer.tasks.fields import label_of, list_of
from precision_explorer.tasks.fields import text_of as _text
from precision_explorer.tasks.fields import value_of as _value
from precision_explorer.tasks.fields import whole as _whole
from precision_explorer.tasks.images import files_digest, located
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
    - language-modeling: ``text``;
    - the kinds of `encoder_data`: as said there.
    - generation, summarization, translation: ``prompt``, ``references`` (list of text).

    `calibration` is None where it was not asked for, or where the card names none. `corpus`: the
    documents of a retrieval task, each with ``id`` and ``text``, whatever the limit.
    """

    card: TaskCard
    identity: TaskIdentity
    examples: list[Example]
    calibration: Calibration | None = None
    corpus: list[Example] = field(default_factory=list)
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
    corpus, corpus_hash = read_corpus(loaded, examples)
    order = np.random.default_rng(seed).permutation(len(examples))
    taken = [examples[i] for i in order[:limit]]
    card = loaded.card
    identity = TaskIdentity(
        name=card.name,
        version=card.version,
        kind=card.kind,
        card_hash=card_hash(card),
        data_hash=_data_hash(raw, files_digest(examples, raw.name), corpus_hash),
        item_ids_hash=canonical_hash([example["id"] for example in taken]),
        n=len(taken),
        order_hash=canonical_hash([examples[i]["id"] for i in order]),
    )
    external = tuple(loaded.external_metrics())
    return PreparedTask(card, identity, taken, corpus=corpus, external=external)


def _data_hash(raw: RawData, images: str | None, corpus_hash: str | None) -> str:
    """The hash of the rows, with that of the files that they name and of the corpus."""
    if images is None and corpus_hash is None:
        return raw.data_hash
    return canonical_hash([raw.data_hash, images, corpus_hash])


def read_corpus(loaded: LoadedCard, examples: list[Example]) -> tuple[list[Example], str | None]:
    """The card's corpus and its hash; ([], None) for kinds without one.

    TaskError where a document is bad, or a relevant one of `examples` is not in the corpus.
    """
    source = loaded.card.corpus
    if source is None:
        return [], None
    raw = read_source(loaded, source, sorted(set(source.columns.values())))
    documents = [
        {"id": str(row[source.columns["id"]]), "text": str(row[source.columns["text"]] or "")}
        for row in raw.rows
    ]
    known = {document["id"] for document in documents}
    if len(known) < len(documents):
        raise TaskError(f"{raw.name}: two documents have the same id; make the ids unique")
    empty = next((d["id"] for d in documents if not d["text"].strip()), None)
    if empty is not None:
        raise TaskError(f"{raw.name}: document {empty} has no text; fill it in or remove it")
    for example in examples:
        lost = sorted(set(example["relevant"]) - known)
        if lost:
            raise TaskError(
                f"query {example['id']}: document {lost[0]} is not in the corpus {raw.name}; "
                "correct the ids"
            )
    return documents, raw.data_hash


def check_labels(
    card: TaskCard, examples: Iterable[Example], id2label: dict[int, str]
) -> dict[str, int]:
    """The label id of each label in `examples`, keyed by the label as text.

    A label is the model's label id (an int, or its digits) or name; the exact name goes before one
    that differs in case only. TaskError names the labels that the model lacks and those it has.
    """
    labels = dict.fromkeys(str(example["label"]) for example in examples)
    known = id2label
    if card.labels and all(name == f"LABEL_{i}" for i, name in id2label.items()):
        # The model names none, so its numbers are taken for the data's.
        known = {i: name for i, name in enumerate(card.labels) if i in id2label}
    found = {label: _label_id(label, known) for label in labels}
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
            if "image" in example:
                example["image"] = located(example["image"], raw.folder)
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
    if card.kind == "similarity" and len({e["label"] for e in examples}) == 1:
        raise TaskError(f"{raw.name}: all labels are the same, so nothing can be ranked by them")
    return examples


def _classification(card: TaskCard, row: Example) -> Example:
    return {"text": _text(card, row, "text"), "label": label_of(card, row)}


def _language_modeling(card: TaskCard, row: Example) -> Example:
    return {"text": _text(card, row, "text")}


def _multiple_choice(card: TaskCard, row: Example) -> Example:
    if card.choices is not None:
        choices = _different([_filled(card, row, choice) for choice in card.choices])
    else:
        choices = _choices(card, row)
    label = _value(card, row, "label")
    names = choice_names(card, row)
    if names is not None and str(label) not in names:
        raise ValueError(f"label {label!r} is none of {', '.join(names)}; correct it")
    place = label if names is None else names.index(str(label))
    index = None if isinstance(place, bool) else _whole(place)
    if index is None or not 0 <= index < len(choices):
        raise ValueError(
            f"label {label!r} is no index into the {len(choices)} choices; "
            f"use 0 to {len(choices) - 1}"
        )
    return {"prompt": _filled(card, row, str(card.prompt)), "choices": choices, "label": index}


def _answering(card: TaskCard, row: Example) -> Example:
    prompt = _filled(card, row, card.prompt or "{text}")
    return {"prompt": prompt, "references": _references(card, row)}


def _filled(card: TaskCard, row: Example, template: str) -> str:
    """`template` with its fields filled in."""
    fields = {field: _prompt_value(card, row, field) for field in prompt_fields(template)}
    parts = prompt_parts(template)
    return "".join(text + (fields[field] if field else "") for text, field in parts)


_MAKERS: dict[str, Callable[[TaskCard, Example], Example]] = {
    "text-classification": _classification,
    "multiple-choice": _multiple_choice,
    "language-modeling": _language_modeling,
    **MAKERS,
    "generation": _answering,
    "summarization": _answering,
    "translation": _answering,
}


def _references(card: TaskCard, row: Example) -> list[str]:
    value = _value(card, row, "reference")
    if isinstance(value, str) and value.startswith("["):
        # A CSV file has no lists.
        with contextlib.suppress(ValueError):
            listed = json_document(value, strict=False)
            value = listed if all(isinstance(text, str) for text in listed) else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(_whole(value) if _whole(value) is not None else value)
    texts = [value] if isinstance(value, str) else value
    fine = isinstance(texts, list) and texts and all(isinstance(t, str) and t for t in texts)
    if not fine:
        raise ValueError("reference must be a text or a list of texts, none empty; correct it")
    return list(texts)


def _prompt_value(card: TaskCard, row: Example, field: str) -> str:
    value = _value(card, row, field)
    if isinstance(value, (list, dict)):
        raise ValueError(f"'{field}' is no text; take it out of the prompt")
    return _text(card, row, field) if field == "text" else str(value)


def choice_names(card: TaskCard, row: Example) -> list[str] | None:
    """What the choices are called, where the label is the right one's name and no index."""
    if "labels" in card.columns:
        return [str(name) for name in list_of(card, row, "labels")]
    return card.labels


def _choices(card: TaskCard, row: Example) -> list[str]:
    value = _value(card, row, "choices")
    if isinstance(value, str):
        # A CSV file has no lists.
        try:
            value = json_document(value, strict=False)
        except ValueError:
            value = None
    return _different(value)


def _different(value: Any) -> list[str]:
    texts = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
    if not texts or len(set(value)) < max(2, len(value)):
        raise ValueError("choices must be a list of at least two different texts; correct them")
    return list(value)


def _name(card: TaskCard, row: Example, role: str) -> str | None:
    return str(_value(card, row, role)) if role in card.columns else None


def _listed(labels: list[str]) -> str:
    shown = ", ".join(f"'{label}'" for label in labels[:_SHOWN])
    return shown + (", ..." if len(labels) > _SHOWN else "")
