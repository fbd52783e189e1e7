"""A long series cut into windows of time, and its first minute against what it can keep up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from precision_explorer.stats.correlation import correlation_time
from precision_explorer.stats.intervals import two_sided_z
from precision_explorer.stats.ratios import Ratio
from precision_explorer.stats.tails import Tail, tails

PEAK_S = 60.0
"""What a row's peak is: its first minute, the window by default (`workload.WINDOW_S`); a declared
choice."""
Spans = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Window:
    """Requests that ended in [start_s, start_s + seconds). `p50` and `p99` are None without any;
    `memory_growth_bytes` is against the first window whose memory is known."""

    start_s: float
    seconds: float
    n: int
    throughput_per_s: float
    p50: Tail | None
    p99: Tail | None
    memory_growth_bytes: float | None = None


@dataclass(frozen=True)
class Rates:
    """Requests per second in the first minute, and in all that came after; `kept` is the second
    over the first."""

    peak_per_s: float
    sustained_per_s: float
    kept: Ratio


def spans(origin_s: float, end_s: float, window_s: float) -> list[tuple[float, float]]:
    """(start, length) of the whole windows of `window_s` seconds between two times."""
    if not window_s > 0:
        raise ValueError(f"a window of {window_s} s is none; give seconds above 0")
    # A series that was stopped on time may end a rounding error short of its last window.
    count = max(math.floor((end_s - origin_s) / window_s + 1e-6), 0)
    return [(origin_s + k * window_s, window_s) for k in range(count)]


def cut_windows(
    end_s: np.ndarray,
    latency_s: np.ndarray,
    cuts: Spans,
    memory_bytes: Sequence[float | None] | None = None,
) -> tuple[Window, ...]:
    """The windows of a series: `end_s`, `latency_s` (n,), when each request ended and how long it
    took; `cuts` (start, length) of each window, `memory_bytes` one for each. Seconds, bytes."""
    ends, latencies = np.asarray(end_s, dtype=float), np.asarray(latency_s, dtype=float)
    memory = list(memory_bytes) if memory_bytes is not None else [None] * len(cuts)
    first = next((m for m in memory if m is not None), None)
    found = []
    for (start, seconds), own in zip(cuts, memory, strict=True):
        inside = latencies[_inside(ends, start, seconds)]
        p50, p99 = tails(inside, (0.5, 0.99)) if len(inside) else (None, None)
        growth = None if own is None or first is None else own - first
        found.append(Window(start, seconds, len(inside), len(inside) / seconds, p50, p99, growth))
    return tuple(found)


def peak_and_sustained(
    end_s: np.ndarray, cuts: Spans, confidence: float = 0.95, skipped: Sequence[int] = ()
) -> Rates | None:
    """The rate of the first minute (the first window where that is shorter) against that of all
    the rest; None for fewer than two windows, or where either part ended no request.

    `skipped`: windows that don't count, as something else disturbed them. The interval is that of
    the log of the ratio: a count of n over a time has a relative variance of cv^2 tau / n, with the
    gaps' coefficient of variation and correlation time (the central limit theorem of counting
    processes; Whitt 2002, Stochastic-Process Limits, theorem 7.3.1). None below three requests.
    """
    if len(cuts) < 2 or 0 in skipped:
        return None
    start, seconds = cuts[0]
    early = [(start, min(seconds, PEAK_S))]
    rest = [cut for k, cut in enumerate(cuts) if k > 0 and k not in skipped]
    if seconds > PEAK_S:
        rest.insert(0, (start + PEAK_S, seconds - PEAK_S))
    ends = np.sort(np.asarray(end_s, dtype=float))
    peak, sustained = _rate(ends, early), _rate(ends, rest)
    if not peak or not sustained:
        return None
    ratio = sustained / peak
    spread = _log_variance(ends, early), _log_variance(ends, rest)
    if spread[0] is None or spread[1] is None:
        return Rates(peak, sustained, Ratio(ratio, None, None))
    half = two_sided_z(confidence) * math.sqrt(spread[0] + spread[1])
    return Rates(peak, sustained, Ratio(ratio, ratio * math.exp(-half), ratio * math.exp(half)))


def _inside(ends: np.ndarray, start: float, seconds: float) -> np.ndarray:
    return (ends >= start) & (ends < start + seconds)


def _rate(ends: np.ndarray, parts: Spans) -> float | None:
    counted = sum(int(_inside(ends, *part).sum()) for part in parts)
    lasted = sum(seconds for _, seconds in parts)
    return counted / lasted if counted and lasted > 0 else None


def _log_variance(ends: np.ndarray, parts: Spans) -> float | None:
    """Variance of the log of the rate, from the gaps within each part."""
    gaps = np.concatenate([np.diff(ends[_inside(ends, *part)]) for part in parts])
    if len(gaps) < 2 or gaps.mean() <= 0:
        return None
    spread = float(gaps.var(ddof=1) / gaps.mean() ** 2)
    return spread * correlation_time(gaps) / len(gaps)
