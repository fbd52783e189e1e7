"""The budget's verdict while examples still come in: sound at every look, and at any stop.

A fixed-n test that is repeated until it says something is wrong far more often than it states.
Here each side of the verdict is an e-process: a wealth that starts at 1 and, where the format is
truly on the other side of the margin, is not expected to grow. By Ville's inequality it then ever
reaches 1 / alpha with a chance of at most alpha, however often one looks and whenever one stops
(Ramdas, Gruenwald, Vovk & Shafer 2023, "Game-theoretic statistics and safe anytime-valid
inference"). Examples count as drawn from the task, as in the fixed verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, logsumexp

from precision_explorer.stats.intervals import root
from precision_explorer.stats.paired import Verdict, VerdictWord

# The one-sided 5 % of the fixed verdict, shared between all looks on the way and the one fixed-n
# test where every planned example was seen: the union bound keeps their sum.
# How it is shared is a declared choice: three fifths to those that save examples.
ALPHA_LOOKS = 0.03
ALPHA_END = 0.02
# From about 30 values on a mean is called nearly normal, on which the bound for values of any size
# rests; scripts/simulate_until_decided.py shows how often the verdicts are wrong.
FIRST_LOOK = 32
# Bets as shares of the largest that can't lose everything, and the wealth put on each at the start.
# Large bets win soonest where hardly anything flips, small ones where much does; a bet within a
# factor of 1.4 of the best grows at least 5/6 as fast.
_BETS = np.array([0.9, 0.5, 0.25, 0.125, 0.0625, 0.03125])
_SHARES = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
# The asymptotic bound is tightest at about this many examples.
_TIGHTEST_N = 100


@dataclass(frozen=True)
class SequentialVerdict:
    """`verdict` after `n` examples, at look number `look`; `cannot-tell` is that of the last look.

    `needed_n`: about how many examples would tell, as in `Verdict`, where every planned one was
    seen.
    """

    verdict: VerdictWord
    n: int
    look: int
    needed_n: int | None = None


def looks(planned: int) -> list[int]:
    """Numbers of examples at which to look: 32, then each time an eighth more (at least 32 more, in
    steps of 32), and at last all `planned`. ValueError for fewer than 1."""
    if planned < 1:
        raise ValueError(f"{planned} examples leave nothing to look at; plan at least 1")
    found = []
    n = FIRST_LOOK
    while n < planned:
        found.append(n)
        n += FIRST_LOOK * max(1, n // (8 * FIRST_LOOK))
    return [*found, planned]


def log_wealth_betting(values: np.ndarray, least: float) -> np.ndarray:
    """(n,) log wealth after each of `values` against "their mean is 0 or less".

    `values`: (n,), none below -`least` < 0. The wealth is that of several gamblers who each bet a
    constant share on every value: sum over g of share_g x prod over i of (1 + bet_g values_i /
    least), a nonnegative supermartingale under that hypothesis. No assumption but the bound
    (Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B
    86: the capital process, with a mixture over a grid of bets in place of one).
    ValueError where a value is below the bound.
    """
    values = np.asarray(values, dtype=float)
    if least <= 0 or (values < -least - 1e-12).any():
        raise ValueError(f"values below the bound of -{least}; give the least possible value")
    grown = np.cumsum(np.log1p(np.multiply.outer(values / least, _BETS)), axis=0)
    return np.asarray(logsumexp(grown + np.log(_SHARES), axis=1))


def log_wealth_asymptotic(values: np.ndarray) -> np.ndarray:
    """(n,) the same for values of any size: sound as n grows, so only from `FIRST_LOOK` on.

    The running sums over the running standard deviation, S, as a Brownian motion, against the
    half-normal mixture of its drifts: wealth 2 / sqrt(V) x exp(r^2 S^2 / (2 V)) x Phi(r S /
    sqrt(V)) with V = n r^2 + 1 (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform
    central limit theory and asymptotic confidence sequences", Annals of Statistics 52: the
    one-sided sequence, here by its mixture itself and not a bound of it; Howard, Ramdas, McAuliffe
    & Sekhon 2021 for the mixture). r is chosen to be tightest near n = 100 (the former, section 3).
    Values that are all the same say nothing of their spread: their log wealth is 0.
    """
    values = np.asarray(values, dtype=float)
    n = np.arange(1, len(values) + 1)
    mean = np.cumsum(values) / n
    # About any one of them, so that a large common part takes no digits from the spread.
    moved = values - values[:1]
    variance = np.maximum(np.cumsum(moved**2) / n - (np.cumsum(moved) / n) ** 2, 0.0)
    spread = variance > 1e-24 * mean**2
    scaled = np.zeros(len(values))
    np.divide(n * mean, np.sqrt(variance), out=scaled, where=spread)
    v = n * _scale() + 1
    normal = math.sqrt(_scale()) * scaled / np.sqrt(v)
    wealth = math.log(2) - np.log(v) / 2 + normal**2 / 2 + log_ndtr(normal)
    return np.where(spread, wealth, 0.0)


def _scale() -> float:
    """r squared, above."""
    level = -2 * math.log(ALPHA_LOOKS)
    return (level + math.log(level + 1)) / _TIGHTEST_N


def decide(
    made: Sequence[int],
    within: np.ndarray,
    outside: np.ndarray,
    planned: int,
    at_the_end: Callable[[float], Verdict],
) -> SequentialVerdict:
    """The verdict of the first look at which one is sure, or `cannot-tell` at the last.

    `made`: numbers of examples at the looks made, at least one. `within`, `outside`: log wealth at
    each of them against "outside the budget" and against "within it". `at_the_end`: the fixed-n
    verdict of all examples at a given one-sided confidence; asked only where the last look is at
    `planned` and no look was sure.
    """
    bar = -math.log(ALPHA_LOOKS)
    for look, n in enumerate(made, 1):
        if within[look - 1] >= bar:
            return SequentialVerdict("within", n, look)
        if outside[look - 1] >= bar:
            return SequentialVerdict("outside", n, look)
    if made[-1] < planned:
        return SequentialVerdict("cannot-tell", made[-1], len(made))
    last = at_the_end(1 - ALPHA_END)
    return SequentialVerdict(last.verdict, made[-1], len(made), last.needed_n)


def wealth_of_shares(differences: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Log wealth, (n,) each, against "mean <= margin" and against "mean >= margin".

    `differences`: (n,) in [-1, 1], as of 0/1 scores, format minus reference; -1 < `margin` < 1.
    """
    above = np.asarray(differences, dtype=float) - margin
    return (
        log_wealth_betting(above, 1 + margin),
        log_wealth_betting(-above, 1 - margin),
    )


def wealth_of_values(values: np.ndarray, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """The same against "mean <= 0" and "mean >= 0" for values without a bound; asymptotic.

    Where all values so far are one and above 0, there is no spread to go by: then against "mean <=
    0" the wealth of shares that never differ, at `budget`, as the fixed verdict takes Tango's.
    """
    values = np.asarray(values, dtype=float)
    same = np.maximum.accumulate(values) == np.minimum.accumulate(values)
    silent = log_wealth_betting(np.full(len(values), budget), 1 - budget)
    above = np.where(same & (values > 0), silent, log_wealth_asymptotic(values))
    return above, log_wealth_asymptotic(-values)


def wealth_of_few(values: np.ndarray, budget: float, weight: float) -> np.ndarray:
    """(n,) log wealth against "mean <= 0" where too few examples differ to show a spread
    (`clusters.FEW`), by betting: `weight` is by how much one example moves the mean at most, so
    that no value is below `budget` - `weight`."""
    least = weight - budget
    return log_wealth_betting(np.maximum(values, -least), least)


def interval_of_shares(differences: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of the confidence sequence for the mean of `differences` in [-1, 1] at its last
    value: every mean against which neither side's wealth reached 2 / (1 - confidence)."""
    bar = math.log(2 / (1 - confidence))
    differences = np.asarray(differences, dtype=float)
    centre = float(differences.mean())

    def excess(mean: float, side: int) -> float:
        return float(wealth_of_shares(differences, mean)[side][-1]) - bar

    low = _edge(lambda mean: excess(mean, 0), -1 + 1e-9, centre)
    high = _edge(lambda mean: excess(mean, 1), 1 - 1e-9, centre)
    return low, high


def interval_of_values(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of the asymptotic confidence sequence for the mean of `values` at its last value
    (Waudby-Smith et al. 2024, theorem 2.2)."""
    values = np.asarray(values, dtype=float)
    n, alpha = len(values), 1 - confidence
    v = n * _scale() + 1
    half = float(values.std()) * math.sqrt(
        2 * v / (n * n * _scale()) * math.log(math.sqrt(v) / alpha)
    )
    return float(values.mean()) - half, float(values.mean()) + half


def p_value_of(above: np.ndarray, below: np.ndarray) -> float:
    """Two-sided p value that holds at any stop, from the log wealth of both sides at the looks: the
    inverse of the largest mean of the two, at most 1 (Ramdas et al. 2023)."""
    both = np.logaddexp(above, below) - math.log(2)
    return float(math.exp(-max(0.0, float(both.max()))))


def _edge(excess: Callable[[float], float], outer: float, inner: float) -> float:
    """Where `excess` turns from positive (at `outer`) to negative (at `inner`); the outer end where
    it is nowhere positive."""
    return root(excess, outer, inner) if excess(outer) > 0 else math.copysign(1.0, outer)
