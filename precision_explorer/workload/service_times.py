"""`ServiceTimes`: how long a batch takes, by its size, as it was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

LEVELS = 1024
"""Equally likely service times that a table holds for each batch size: enough for a p99.9, which is
the second largest of them."""


class ServiceTimes:
    """Seconds of whole batches for some batch sizes, in the order in which they were measured.

    `by_batch`: size to one time (always taken) or a series (drawn from). A size between two that
    were measured takes, at every quantile, what lies on the line between them; one below the
    smallest takes the smallest one's time, since a part of a batch takes no longer than the batch.
    Nothing is known above the largest. `rounds`: of a size, the number of the round in which each
    of its times was measured; one round for those without. ValueError without a size, for a size
    below 1, for times that are not finite and above 0, and for rounds of another length.
    """

    def __init__(
        self,
        by_batch: Mapping[int, float | Sequence[float] | np.ndarray],
        rounds: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        series = {
            int(size): np.atleast_1d(np.asarray(times, dtype=float))
            for size, times in sorted(by_batch.items())
        }
        if not series or min(series) < 1:
            raise ValueError("service times need a batch size of at least 1; give one")
        for size, times in series.items():
            if times.size == 0 or not np.isfinite(times).all() or times.min() <= 0:
                raise ValueError(
                    f"a service time at batch {size} is not above 0; check the samples"
                )
        self._series = series
        labels = {
            size: np.asarray((rounds or {}).get(size, [0] * len(series[size]))) for size in series
        }
        if any(len(labels[size]) != len(times) for size, times in series.items()):
            raise ValueError("each service time has one round; check the samples")
        self._rounds = labels

    @property
    def sizes(self) -> tuple[int, ...]:
        """The measured batch sizes, ascending."""
        return tuple(self._series)

    @property
    def largest(self) -> int:
        """The largest batch about which anything is known."""
        return max(self._series)

    def count(self, size: int) -> int:
        """How many times were measured at a measured `size`."""
        return len(self._series[size])

    def mean_s(self, size: int) -> float:
        """Mean seconds of a batch of `size`; ValueError above `largest`."""
        low, high, share = self._between(size)
        means = [float(self._series[edge].mean()) for edge in (low, high)]
        return means[0] + share * (means[1] - means[0])

    def rate_per_s(self, size: int) -> float:
        """Requests per second of one machine that serves nothing but full batches of `size`."""
        return size / self.mean_s(size)

    def table(self, largest: int, levels: int = LEVELS) -> np.ndarray:
        """(`largest`, `levels`) seconds, row n - 1 for a batch of n: the measured distribution at
        `levels` equally likely quantiles, ascending. ValueError above `largest` measured."""
        at = (np.arange(levels) + 0.5) / levels
        known = {
            size: np.quantile(times, at, method="inverted_cdf")
            for size, times in self._series.items()
        }
        rows = []
        for size in range(1, largest + 1):
            low, high, share = self._between(size)
            rows.append(known[low] + share * (known[high] - known[low]))
        return np.array(rows)

    def draw(self, size: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """(`count`,) independent seconds of batches of `size`."""
        return self.table(size)[size - 1][rng.integers(0, LEVELS, count)]

    @property
    def rounds(self) -> int:
        """In how many rounds they were measured."""
        return len(self._numbers())

    def resampled(
        self, rng: np.random.Generator, round_rng: np.random.Generator | None = None
    ) -> ServiceTimes:
        """The series as they might have come out. Rounds are drawn first, by `round_rng` (`rng`
        without), the same for all sizes, since a round's machine is common to what was measured in
        it (`stats.rounds`). Within each drawn round: circular block bootstrap (Politis & Romano
        1992) with blocks of the cube root of its length, which keeps neighbours together, since a
        machine's slow moments come in rows. A size that no drawn round has keeps its own rounds."""
        numbers = self._numbers()
        drawn = numbers
        if len(numbers) > 1:
            drawn = (round_rng or rng).choice(numbers, len(numbers))
        return ServiceTimes({size: self._drawn(size, drawn, rng) for size in self._series})

    def _numbers(self) -> np.ndarray:
        return np.unique(np.concatenate(list(self._rounds.values())))

    def _drawn(self, size: int, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        labels, times = self._rounds[size], self._series[size]
        own = [number for number in numbers if number in labels]
        parts = [times[labels == number] for number in own or np.unique(labels)]
        return np.concatenate([_blocks(part, rng) for part in parts])

    def _between(self, size: int) -> tuple[int, int, float]:
        """The measured sizes around `size`, and how far it lies from the lower to the upper."""
        if not 1 <= size <= self.largest:
            raise ValueError(
                f"no batch of {size} was measured; the largest is {self.largest}, stay within it"
            )
        high = next(edge for edge in self._series if edge >= size)
        low = max((edge for edge in self._series if edge <= size), default=high)
        return low, high, (size - low) / (high - low) if high > low else 0.0


def _blocks(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n = len(times)
    width = math.ceil(n ** (1 / 3))
    begins = rng.integers(0, n, math.ceil(n / width))
    places = (begins[:, None] + np.arange(width)).ravel()[:n] % n
    return times[places]
