"""Whether a latency objective holds: at least a share q of the requests within a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, bdtrc, betainc

from precision_explorer.stats.percentiles import needed_n
from precision_explorer.stats.tails import effective_n

_MOST = 10_000_000


@dataclass(frozen=True)
class Within:
    """`verdict`: ``within`` and ``outside`` are sure at 95 %, one-sided. `share` of `n` values are
    at most the limit; `n_eff`: how many independent ones these are worth. `needed_n`: from how many
    values like these it would be sure, None where it is, or where none would. `probability` that at
    least the share q of all requests are within the limit (Jeffreys' prior)."""

    verdict: str
    share: float
    n: int
    n_eff: float
    needed_n: int | None
    probability: float


def share_within(
    values: Sequence[float] | np.ndarray, limit: float, q: float, confidence: float = 0.95
) -> Within | None:
    """`values` (n,) in order of time against `limit`; None without values.

    Exact binomial tests of the number of values beyond the limit, at the effective n: it takes 299
    values without one beyond to be sure of p99 (Hahn & Meeker 1991, section 5.2; the same rule as
    `needed_n`).
    """
    array = np.asarray(values, dtype=float)
    n = len(array)
    if not n:
        return None
    n_eff = effective_n(array, q)
    beyond = float((array > limit).mean())
    size, count = math.floor(n_eff), beyond * math.floor(n_eff)
    verdict = _verdict(count, size, q, confidence)
    needed = None
    if verdict == "cannot-tell":
        least = _needed(beyond, q, confidence)
        needed = None if least is None else max(n + 1, math.ceil(least * n / n_eff))
    chance = float(betainc(count + 0.5, size - count + 0.5, 1 - q))
    return Within(verdict, 1 - beyond, n, n_eff, needed, chance)


def _verdict(count: float, size: int, q: float, confidence: float) -> str:
    # A part of a value beyond, which dependence makes, counts against both answers.
    if size and bdtr(math.ceil(count - 1e-9), size, 1 - q) <= 1 - confidence:
        return "within"
    if count >= 1 and bdtrc(math.floor(count + 1e-9) - 1, size, 1 - q) <= 1 - confidence:
        return "outside"
    return "cannot-tell"


def _needed(beyond: float, q: float, confidence: float) -> int | None:
    """The least number of independent values with this share beyond that tell."""
    if beyond == 0:
        return needed_n(q, confidence)
    return _least(lambda m: _verdict(beyond * m, m, q, confidence) != "cannot-tell")


def _least(tells: Callable[[int], bool]) -> int | None:
    """By doubling and bisection, as if once told stayed told."""
    high = 1
    while not tells(high):
        high *= 2
        if high > _MOST:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tells(middle) else (middle, high)
    return high
