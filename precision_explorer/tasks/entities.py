"""Entities in a sequence of tags, and how many of them were found: the CoNLL evaluation."""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[str, int, int]


def type_of(tag: str) -> str:
    """``PER`` of ``B-PER``; empty for ``O``."""
    return _parts(tag)[1]


def _parts(tag: str) -> tuple[str, str]:
    # A tag without a mark, such as PER, is taken as inside.
    if tag == "O":
        return "O", ""
    mark, dash, kind = tag.partition("-")
    return (mark, kind) if dash and mark in ("B", "I", "E", "S") else ("I", tag)


def entities(tags: Sequence[str]) -> set[Span]:
    """{(type, first word, last word)} of tags in IOB1, IOB2 (BIO) or IOBES.

    The rules are those of conlleval.pl, as in seqeval's `get_entities`: an entity begins at B or S,
    after an E, S or O, and where the type changes; it ends before the next one begins. So an I that
    follows no entity of its type begins one.
    """
    found: set[Span] = set()
    begun: tuple[str, int] | None = None
    before, kind_before = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        mark, kind = _parts(tag)
        begins = mark in ("B", "S") or before in ("E", "S", "O") or kind != kind_before
        if begun is not None and (mark == "O" or begins):
            found.add((begun[0], begun[1], index - 1))
            begun = None
        if mark != "O" and begun is None:
            begun = (kind, index)
        before, kind_before = mark, kind
    return found


def entity_counts(target: Sequence[str], prediction: Sequence[str]) -> tuple[int, int, int]:
    """(right, predicted, true) entities; right are those of the same type and the same words."""
    true, predicted = entities(target), entities(prediction)
    return len(true & predicted), len(predicted), len(true)
