"""What arrivals, services and latencies of one queue say of it: waits, balance, growth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from precision_explorer.stats.steady import mann_kendall_p

GROWTH = 0.02
"""Seconds by which latency grows per second from which a queue counts as growing. Where requests
come at a rate r and are served in their order at a rate c below it, latency grows by r / c - 1 per
second: less than 2 % above capacity passes as full, not as too much."""
GROWTH_ALPHA = 0.01
"""Level of the trend test beside `GROWTH`."""
# Runs of neighbours whose medians are tested for a trend, and the fewest: Mann and Kendall's test
# by its normal limit is for ten values and more (Kendall 1975). More runs would be shorter than a
# queue remembers; 20 is a declared choice, whose errors docs/method.md gives.
_PARTS = 20
_LEAST = 10


def lindley(times_s: np.ndarray, services_s: np.ndarray) -> np.ndarray:
    """(n,) seconds that each request waits for one server that serves in order of arrival.

    `times_s` (n,) ascending arrivals, `services_s` (n,) service times, both in seconds. Lindley
    1952: W[k + 1] = max(0, W[k] + S[k] - (T[k + 1] - T[k])), W[0] = 0, as the distance of a random
    walk from its lowest point so far (Asmussen, Applied Probability and Queues, 2003, III.6).
    ValueError for arrays of unlike lengths.
    """
    times, services = np.asarray(times_s, float), np.asarray(services_s, float)
    if times.shape != services.shape:
        raise ValueError("each arrival needs one service time")
    if not len(times):
        return np.zeros(0)
    walk = np.concatenate([[0.0], np.cumsum(services[:-1] - np.diff(times))])
    return walk - np.minimum.accumulate(walk)


@dataclass(frozen=True)
class Growth:
    """`slope`: seconds of latency per second of arrivals; `p_value`: of no monotonic trend;
    `grows`: both beyond their limits, so that there is no steady state to speak of."""

    slope: float
    p_value: float

    @property
    def grows(self) -> bool:
        """Whether the queue grew through the window."""
        return self.slope > GROWTH and self.p_value < GROWTH_ALPHA


def latency_growth(times_s: np.ndarray, latencies_s: np.ndarray) -> Growth | None:
    """The trend of latencies (n,) over their arrivals (n,), both in seconds; None below 10.

    On medians of up to 20 runs of equally many neighbours, so that one slow request is no trend:
    the median slope over all pairs (Sen 1968) and Mann-Kendall's test. ValueError for lengths that
    differ.
    """
    times, latencies = np.asarray(times_s, float), np.asarray(latencies_s, float)
    if times.shape != latencies.shape:
        raise ValueError("each latency needs its arrival")
    if len(times) < _LEAST:
        return None
    parts = min(_PARTS, len(times) // 2) if len(times) >= 2 * _LEAST else _LEAST
    cuts = list(np.array_split(np.arange(len(times)), parts))
    when = np.array([times[c].mean() for c in cuts])
    level = np.array([np.median(latencies[c]) for c in cuts])
    first, second = np.triu_indices(parts, 1)
    apart = when[second] - when[first]
    if not (apart > 0).any():
        return Growth(0.0, 1.0)  # All came at once.
    slopes = (level[second] - level[first])[apart > 0] / apart[apart > 0]
    return Growth(float(np.median(slopes)), mann_kendall_p(level))
