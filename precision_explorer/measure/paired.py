"""Two ways of serving timed in turn, in blocks of ABBA and BAAB: what the machine does in the
meantime falls on both alike."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from precision_explorer.measure.quiet import quiet_gc
from precision_explorer.stats import Ratio, ratio_over_rounds

# Declared: of eight quads Student's t is 2.36, of the four that a slow model is given 3.18; of
# fewer an interval says little.
QUADS = 8
LEAST_QUADS = 4
# Blocks of each side in a quad, and how often the side changes in it.
_BLOCKS = 2
_CHANGES = 3
# Longer blocks would be no finer: 64 requests have a median known to a fifth of their spread.
_MOST_IN_A_BLOCK = 64

Serve = Callable[[int], object]
"""Serves the query of this number, counted from 0 on each side; -1 is one before the first."""


@dataclass(frozen=True)
class Quads:
    """`first`, `second`: per quad the seconds of every query of that side, in order."""

    first: list[list[float]]
    second: list[list[float]]

    @property
    def queries(self) -> int:
        """Queries that were timed, both sides together."""
        return sum(map(len, (*self.first, *self.second)))

    @property
    def medians_s(self) -> tuple[float, float]:
        """The median of each side over all its queries, in seconds."""
        sides = (self.first, self.second)
        first, second = (median(s for quad in side for s in quad) for side in sides)
        return first, second

    @property
    def ratio(self) -> Ratio:
        """`ratio_at` 95 %."""
        return self.ratio_at(0.95)

    def ratio_at(self, confidence: float) -> Ratio:
        """Second over first: the geometric mean of the quads' ratios of medians, with the interval
        that these make (`stats.ratio_over_rounds`, quads for rounds). A drift that goes on evenly
        cancels within a quad."""
        first, second = ([median(quad) for quad in side] for side in (self.first, self.second))
        if min(*first, *second) <= 0:
            return Ratio(math.nan, None, None)
        logs = [math.log(b / a) for a, b in zip(first, second, strict=True)]
        return ratio_over_rounds(math.exp(fmean(logs)), first, second, confidence)


class Repeating:
    """Serves each of `count` queries over and over: the next one where a block begins after the
    other side's, so that what is timed follows its like. `which`: {number: query} of those timed.
    """

    def __init__(self, serve: Serve, count: int) -> None:
        self._serve, self._count = serve, count
        self._last, self._query = -2, 0
        self.which: dict[int, int] = {}

    def __call__(self, number: int) -> object:
        """Serve; a number that was served before is the untimed one that a block begins with."""
        if number <= self._last:
            self._query = (self._query + 1) % self._count
        else:
            self.which[number] = self._query
        self._last = number
        return self._serve(self._query)


def of_one_query(quads: Quads, first: Sequence[int], second: Sequence[int]) -> Quads:
    """`quads` as they would be of one query: `first`, `second` name that of each side's, in their
    order. Seconds are divided by their query's level, the geometric mean of the two sides' medians
    of it, so that what is between the sides stays. What one side alone has served is left out."""
    times = [[s for quad in side for s in quad] for side in (quads.first, quads.second)]
    if min(map(min, times)) <= 0:
        return quads
    levels: list[dict[int, float]] = []
    for names, side in zip((first, second), times, strict=True):
        own = defaultdict(list)
        for name, s in zip(names, side, strict=True):
            own[name].append(math.log(s))
        levels.append({name: median(logs) for name, logs in own.items()})
    level = {name: fmean(side[name] for side in levels) for name in levels[0] if name in levels[1]}
    common = fmean(level.values())
    made: list[list[list[float]]] = []
    for names, timed in zip((first, second), (quads.first, quads.second), strict=True):
        left = iter(names)
        pairs = [[(s, next(left)) for s in quad] for quad in timed]
        made.append(
            [[s * math.exp(common - level[n]) for s, n in quad if n in level] for quad in pairs]
        )
    both = [(a, b) for a, b in zip(*made, strict=True) if a and b]
    return Quads([a for a, _ in both], [b for _, b in both])


def of_one_size(quads: Quads, first: Sequence[float], second: Sequence[float]) -> Quads:
    """`quads` as they would be of queries of one size: `first`, `second` are the sizes of each
    side's queries, in their order.

    The logarithm of the seconds is taken to rise evenly with that of the size. The slope is fitted
    within the sides, so that what is between them stays (analysis of covariance; Montgomery, Design
    and Analysis of Experiments, chapter 15). Unchanged where all sizes are the same.
    """
    sizes = [[math.log(size) for size in side] for side in (first, second)]
    times = [[s for quad in side for s in quad] for side in (quads.first, quads.second)]
    if min(map(min, times)) <= 0:
        return quads
    above = below = 0.0
    for own, side in zip(sizes, times, strict=True):
        logs, middle = [math.log(s) for s in side], fmean(own)
        level = fmean(logs)
        above += sum((x - middle) * (y - level) for x, y in zip(own, logs, strict=True))
        below += sum((x - middle) ** 2 for x in own)
    if below == 0:
        return quads
    slope, common = above / below, fmean([*sizes[0], *sizes[1]])
    made = []
    for own, timed in zip(sizes, (quads.first, quads.second), strict=True):
        left = iter(own)
        made.append([[s * math.exp(slope * (common - next(left))) for s in quad] for quad in timed])
    return Quads(made[0], made[1])


def in_quads(
    first: Serve,
    second: Serve,
    *,
    budget_s: float,
    most_s: float,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] = lambda: None,
) -> Quads | float:
    """Serve `QUADS` quads of blocks, ABBA and BAAB in turn, in about `budget_s` seconds.

    A block is as many queries as the budget has room for, at least one. Where the side changes its
    last query is served again, untimed, so that nothing timed follows one of the other side. Where
    the least number of quads would take more than `most_s` seconds, the seconds of one query are
    returned in their place. Two queries of the first side and one of the other warm up; `sync` is
    called before each end is read.
    """

    def timed(serve: Serve, number: int) -> float:
        start = clock()
        serve(number)
        sync()
        return clock() - start

    with quiet_gc():
        timed(first, -1)  # What was served last may be query 0, and be kept.
        took = fmean([timed(first, 0), timed(second, 0)])
        if took * (2 * _BLOCKS + _CHANGES) * LEAST_QUADS > most_s:
            return took
        began, size = clock(), _MOST_IN_A_BLOCK
        if took > 0:
            size = int((budget_s / took / QUADS - _CHANGES) / (2 * _BLOCKS))
            size = min(max(size, 1), _MOST_IN_A_BLOCK)
        sides: tuple[list[list[float]], list[list[float]]] = ([], [])
        serves, done, before = (first, second), [0, 0], -1
        for quad in range(QUADS):
            spent_s = clock() - began
            if quad >= LEAST_QUADS and spent_s > max(budget_s, most_s / 2):
                break
            if 0 < quad < LEAST_QUADS and spent_s > most_s:
                # Slower than the first: on a machine with other work, say.
                return spent_s / (quad * (2 * _BLOCKS * size + _CHANGES))
            for taken in sides:
                taken.append([])
            for side in (0, 1, 1, 0) if quad % 2 == 0 else (1, 0, 0, 1):
                if side != before:
                    timed(serves[side], done[side] - 1)
                before = side
                for _ in range(size):
                    sides[side][-1].append(timed(serves[side], done[side]))
                    done[side] += 1
    return Quads(*sides)
