"""Rows that begin alike: what is worth computing once, and how the rows of a batch are then run.

A row is header + stem + tail. The header is common to the task (few-shot examples, an instruction),
the stem to the rows of one example (the context of its choices), the tail is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from precision_explorer.models.partition import partition

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Item

# A prefix is shared where that spares at least this share of the tokens: below, what calls after a
# cache cost more than a plain one (copies of the cache, a mask in place of the causal kernel)
# weighs about as much.
WORTH = 0.125
# Slots of the cache in a batch, per padded token that the batch may have: bounds its memory.
_SLOTS_PER_TOKEN = 4


@dataclass(frozen=True)
class Stem:
    """Items (by index) of one example whose rows have their first `length` tokens in common, and
    the tokens of each one's tail. A row by itself is a stem of its whole length."""

    items: tuple[int, ...]
    length: int
    tails: tuple[int, ...]

    @property
    def forks(self) -> bool:
        """Whether any row goes on beyond the stem."""
        return any(self.tails)


def common_prefix(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all `rows` begin with in common."""
    # Of all strings, the least and the greatest differ first.
    low, high = min(rows), max(rows)
    count = next((k for k, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    return min(len(low), len(high)) if count is None else count


def find_header(items: Sequence[Item]) -> tuple[int, ...]:
    """The tokens with which all items begin, those apart that were cut from the left; empty where
    sharing it spares too little. No position of it is scored."""
    whole = [item for item in items if not item.cut]
    if len(whole) < 2:
        return ()
    length = common_prefix([item.ids for item in whole])
    length = min(length, *(min(t[1] for t in item.targets) for item in whole))
    spared = length * (len(whole) - 1)
    worth = spared >= WORTH * sum(len(item.ids) for item in whole)
    return whole[0].ids[:length] if worth else ()


def begins_with(item: Item, header: tuple[int, ...]) -> bool:
    """Whether the row begins with `header` and no position of it is scored."""
    length = len(header)
    return item.ids[:length] == header and all(t[1] >= length for t in item.targets)


def find_stems(items: Sequence[Item], header: Sequence[int], max_items: int) -> list[Stem]:
    """The items, those of one example together where they begin alike for long enough beyond
    `header`, at most `max_items` in one."""
    stems: list[Stem] = []
    for _, group in groupby(range(len(items)), key=lambda i: items[i].example):
        indices = list(group)
        for start in range(0, len(indices), max_items):
            stems += _stems(items, indices[start : start + max_items], len(header))
    return stems


def _stems(items: Sequence[Item], indices: list[int], header: int) -> list[Stem]:
    lengths = [len(items[i].ids) for i in indices]
    shared = common_prefix([items[i].ids for i in indices])
    spared = max(shared - header, 0) * (len(indices) - 1)
    if spared and spared >= WORTH * sum(length - header for length in lengths):
        return [Stem(tuple(indices), shared, tuple(length - shared for length in lengths))]
    return [whole_row(i, length) for i, length in zip(indices, lengths, strict=True)]


def whole_row(index: int, length: int) -> Stem:
    """The stem of a row that is computed by itself."""
    return Stem((index,), length, (0,))


def plan_shared(
    items: Sequence[Item],
    header: tuple[int, ...],
    max_tokens: int,
    max_items: int,
    call_tokens: int,
) -> list[list[int]]:
    """The frozen batch plan with prefixes shared: stems from the longest on, cut into batches
    whose padded stems, and tails, stay within `max_tokens` and whose rows within `max_items`,
    where tokens and `call_tokens` for each call are least. A batch in which rows of one example
    meet that were planned apart puts them together, and may have a few rows more. Items that do
    not begin with `header` are kept apart, first."""
    found = find_stems(items, header, max_items)
    found = sorted(found, key=lambda stem: -stem.length)
    begins = [all(begins_with(items[i], header) for i in stem.items) for stem in found]
    bounds = (max_tokens, max_items, call_tokens)
    batches: list[list[int]] = []
    for with_header in (False, True):
        stems = [s for s, begin in zip(found, begins, strict=True) if begin == with_header]
        offset = len(header) if with_header else 0
        runs = partition(len(stems), partial(_costs, stems, offset, *bounds))
        batches += [[i for k in run for i in stems[k].items] for run in runs]
    return batches


def _costs(
    stems: Sequence[Stem], header: int, max_tokens: int, max_items: int, call_tokens: int, end: int
) -> Iterator[float]:
    """The costs of batches of the last 1, 2, ... of ``stems[:end]`` after `header` tokens, in
    tokens, as long as they stay within the bounds; see `partition`."""
    rows, tails, longest = 0, 0, 0
    for size in range(1, end + 1):
        stem = stems[end - size]
        rows += sum(tail > 0 for tail in stem.tails)
        tails, longest = tails + sum(stem.tails), max(longest, *stem.tails)
        stem_length = stem.length - header
        most = max(size, rows)
        slots = most * (header + stem_length + longest) if header or tails else 0
        fits = max(size * stem_length, tails) <= max_tokens and most <= max_items
        if size > 1 and not (fits and slots <= _SLOTS_PER_TOKEN * max_tokens):
            return
        yield size * stem_length + tails + call_tokens * (2 if tails else 1)
