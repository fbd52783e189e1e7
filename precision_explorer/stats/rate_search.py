"""The largest rate that keeps a percentile within a limit: what the windows at a rate say of it,
and which rate to try next. Rates are those of a ladder, so that every format meets the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from precision_explorer.stats.percentiles import lower_bound
from precision_explorer.stats.tails import Tail, tail

Verdict = Literal["held", "missed", "unsure"]
LATE, LEFT, ABOVE = "the loop was late", "requests were left", "above the limit"
GREW, CLOSE = "the queue grew", "too close to tell"
_GREW_TWICE = 2


def rate_at(rung: int, resolution: float) -> float:
    """Requests per second of a rung: (1 + resolution) to its power, so that neighbours differ by
    the resolution wherever a search begins."""
    return (1 + resolution) ** rung


def rung_below(rate_per_s: float, resolution: float) -> int:
    """The highest rung at or below a rate above 0."""
    # A rate that is a rung's own must not fall below it by rounding.
    return math.floor(math.log(rate_per_s) / math.log1p(resolution) + 1e-9)


@dataclass(frozen=True)
class Seen:
    """One window: latencies (n,) of what counts, in order of time; whether its loop was late, its
    queue grew, and requests were left without a turn."""

    latencies_s: np.ndarray
    refused: bool = False
    grew: bool = False
    unserved: bool = False


@dataclass(frozen=True)
class Judgement:
    """What the windows at a rate say of it, `why` in a few words (empty where it held), and the
    percentile on which that rests."""

    verdict: Verdict
    why: str
    tail: Tail


def judge(windows: list[Seen], q: float, limit_s: float) -> Judgement:
    """Whether the windows at one rate, taken together, keep quantile `q` within `limit_s`.

    `held`: the whole 95 % interval of the quantile (`stats.tails`, by effective n) is within the
    limit. `missed`: the whole interval is above it, of which its lower end is enough; or requests
    were left; or the queue grew in two windows, so that the limit is passed in time. `unsure`: the
    interval holds the limit or takes more requests, or the queue grew in one window. Nothing is
    read from a window whose loop was late.
    """
    kept = [window for window in windows if not window.refused]
    values = np.concatenate([np.zeros(0), *(window.latencies_s for window in kept)])
    found = tail(values, q)
    low = lower_bound(values, q, n_eff=found.n_eff)
    grew = sum(window.grew for window in kept)
    if any(window.unserved for window in kept):
        return Judgement("missed", LEFT, found)
    if low is not None and low > limit_s:
        return Judgement("missed", ABOVE, found)
    if grew >= _GREW_TWICE:
        return Judgement("missed", GREW, found)
    if grew:
        return Judgement("unsure", GREW, found)
    if found.high is None:
        return Judgement("unsure", (found.note or CLOSE) if len(values) else LATE, found)
    return (
        Judgement("held", "", found) if found.high <= limit_s else Judgement("unsure", CLOSE, found)
    )


@dataclass(frozen=True)
class Bracket:
    """Where a search ended: the largest rung that held, and the least above it that missed; None
    where none did. In between it could not be told, or nobody tried."""

    held: int | None
    missed: int | None


def bracket(verdicts: Mapping[int, Verdict]) -> Bracket:
    """The bracket of the rungs that were tried."""
    held = max((rung for rung, found in verdicts.items() if found == "held"), default=None)
    above = (
        rung
        for rung, found in verdicts.items()
        if found == "missed" and (held is None or rung > held)
    )
    return Bracket(held, min(above, default=None))


@dataclass
class Search:
    """Bisection over rungs, with a third answer: a rung of which nobody knows is left where it is,
    and the search goes on at both of its sides, so that what it could not tell stands between the
    ends of its bracket.

    Begins at `start` and goes on to the caller's `guess`; where nothing held and the lowest missed,
    to `floor`, and gives up where `floor` missed too.
    `top` is thought to be the highest that can hold, and the search goes beyond it only where none
    up to it missed. When no rung is left that would narrow the bracket, those that could not be
    told get further windows, from its middle. A rung gets `most` windows. Beside a rung that could
    not be told the next is no farther than `stride` for each of those, since that is where the
    answer changes.
    """

    start: int
    floor: int
    top: int
    most: int
    stride: int
    found: dict[int, Judgement] = field(default_factory=dict)
    tries: dict[int, int] = field(default_factory=dict)

    def told(self, rung: int, judgement: Judgement) -> None:
        """What all windows at `rung` say, one more than before."""
        self.found[rung] = judgement
        self.tries[rung] = self.tries.get(rung, 0) + 1

    @property
    def bracket(self) -> Bracket:
        """As far as is known."""
        return bracket({rung: found.verdict for rung, found in self.found.items()})

    def next(self, guess: int) -> int | None:
        """The rung that a window should be served at next; None where none would tell more.
        `guess`: where the answer may be, by what is known of the first rung."""
        if not self.found:
            return self.start
        guess = min(max(guess, self.floor), self.top)
        if len(self.found) == 1 and guess not in self.found:
            return guess
        held, missed = self.bracket.held, self.bracket.missed
        lowest = min(self.found)
        if held is None and missed == lowest:
            return self.floor if lowest > self.floor else None
        low = self.floor - 1 if held is None else held
        return self._between(low, self.top + 1 if missed is None else missed, missed is None)

    def _between(self, low: int, high: int, is_guess: bool) -> int | None:
        """`is_guess`: nothing at `high` has missed."""
        open_ = [rung for rung in self.found if low < rung < high]
        gaps = [(low, min(open_, default=high)), (max(open_, default=low), high)]
        below, above = max(gaps, key=lambda gap: gap[1] - gap[0])
        if above - below > 1:
            middle, reach = (below + above) // 2, self.stride * max(len(open_), 1)
            middle = min(middle, below + reach) if below in open_ else middle
            return max(middle, above - reach) if above in open_ else middle
        if is_guess:
            # Half of the way again that it was thought to be.
            self.top = high - 1 + max(1, (high - self.floor) // 4)
            return self._between(low, self.top + 1, True)
        again = [rung for rung in open_ if self.tries[rung] < self.most]
        return min(again, key=lambda rung: abs(2 * rung - low - high), default=None)
