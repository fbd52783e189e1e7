"""In what order cells are timed: rounds in which every cell has one block, so that a machine that
gets slower or faster on the way does so for all of them alike.

Every cell has the same mean place, so a steady drift cancels out of every difference (Cox 1951,
"Some systematic experimental designs", Biometrika 38, 312-323). Who has which places is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def interleaved(
    cells: Sequence[T], rounds: int, seed: int, reference: T | None = None
) -> list[tuple[T, int]]:
    """[(cell, round), ...] in order of time: every cell once in each of `rounds` rounds.

    `reference`, one of `cells`, comes first of all and, with two rounds or more, last of all. The
    sum of a cell's places (0 .. n - 1) over the rounds is the same for all cells; with an odd
    number of rounds (three or more) of an even number of cells, where that is impossible, two sums
    differ by 1 at most. One seed gives one order. ValueError without a round.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds measure nothing; give 1 or more")
    generator = np.random.default_rng(seed)
    first = [cell for cell in cells if cell is reference]
    others = [cell for cell in cells if cell is not reference]
    outer = first + _drawn(others, generator)
    # From the outside in: each pair of an order and the same backwards is balanced by itself.
    made = list(_triple(outer)) if rounds % 2 and rounds > 1 else [outer]
    begin, end = made[:1], made[1:]
    if rounds % 2 == 0:
        end = [outer[::-1]]
    while len(begin) + len(end) < rounds:
        pair = _drawn(cells, generator)
        begin.append(pair)
        end.insert(0, pair[::-1])
    return [(cell, number) for number, row in enumerate([*begin, *end]) for cell in row]


def _drawn(cells: Sequence[T], generator: np.random.Generator) -> list[T]:
    return [cells[i] for i in generator.permutation(len(cells))]


def _triple(cells: list[T]) -> Iterator[list[T]]:
    """Three orders in which the places of each cell add up to the same; the first cell is first, in
    the middle and last."""
    n = len(cells)
    first = np.arange(n)
    # Even cells take the lower half of the second order backwards, odd ones the upper half: no two
    # cells then have the same sum so far, and who has less of it comes later in the third.
    second = np.where(first % 2 == 0, (n - 1) // 2 - first // 2, n - 1 - first // 2)
    third = np.argsort(np.argsort(-(first + second)))
    for places in (first, second, third):
        yield [cells[i] for i in np.argsort(places)]
