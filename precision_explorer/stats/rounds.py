"""Values measured in several rounds: how far the rounds lie apart, and a bootstrap that heeds it.

What differs from round to round (clocks, temperature, where memory came to lie) is common to all
requests of a round, so requests alone, however many, make an interval too narrow. Rounds are drawn
first and values within them second: the hierarchical bootstrap (Davison & Hinkley 1997, section
3.8; for benchmarks Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time", ISMM). Few
rounds show less spread than there is: of R rounds the draws show about (R - 1) / R of the variance
between them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import stdtrit

from precision_explorer.stats.ratios import Ratio

Rounds = Sequence[np.ndarray]


def round_spread(values: Sequence[float]) -> float | None:
    """(largest - smallest) / smallest of one positive value per round; None below two rounds."""
    if len(values) < 2 or min(values) <= 0:
        return None
    return (max(values) - min(values)) / min(values)


def round_draws(
    rounds: Rounds,
    of: Callable[[Rounds], float],
    draws: int,
    round_seed: int,
    seed: int,
    sizes: Sequence[int] | None = None,
) -> np.ndarray:
    """(draws,) values of `of`, a statistic of rounds, each a (n,) array, under resampling of both.

    Rounds are drawn with replacement by `round_seed`: the same rounds for all formats that share
    it, since interleaved rounds are blocks, in which what the machine did is common to all. Values
    within a round are drawn with replacement by `seed`, anew for each time that the round is drawn:
    `sizes` of them, as many independent ones as a round's are worth, repeated to the round's own
    number, so that it keeps its weight; all by default. ValueError without a value.
    """
    if not rounds or min(len(values) for values in rounds) < 1:
        raise ValueError("a round without a value cannot be resampled; leave it out")
    n = len(rounds)
    picked = np.random.default_rng(round_seed).integers(0, n, (draws, n))
    generator = np.random.default_rng(seed)
    worth = [len(values) for values in rounds] if sizes is None else sizes

    def resampled(number: int) -> np.ndarray:
        values = rounds[number]
        drawn: np.ndarray = values[generator.integers(0, len(values), worth[number])]
        return np.resize(drawn, len(values))

    return np.array([of([resampled(k) for k in row]) for row in picked], dtype=float)


def ratio_over_rounds(
    value: float, first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> Ratio:
    """`value`, a ratio of two figures over all rounds, second over first, with the interval that
    the rounds' own ratios make.

    `first`, `second`: the positive figure of each round, in the same order. Two measurements in one
    round share what the machine did and what was asked in it, so the round is the unit: Student's t
    of R - 1 degrees of freedom on the logarithms of the R ratios (the paired t interval; rounds as
    the batches of the method of batch means, Law & Kelton, Simulation Modeling and Analysis,
    section 9.5.3), around `value`. No interval below two rounds, or where rounds are missing.
    """
    count = len(first)
    if count < 2 or len(second) != count or min(*first, *second) <= 0:
        return Ratio(value, None, None)
    logs = np.log(np.asarray(second, dtype=float) / np.asarray(first, dtype=float))
    error = float(logs.std(ddof=1)) / math.sqrt(count)
    spread = float(stdtrit(count - 1, 0.5 + confidence / 2)) * error
    return Ratio(value, value * math.exp(-spread), value * math.exp(spread))
