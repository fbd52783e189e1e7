"""How many independent values a series is worth that depends on its own past, as waiting times in a
queue do: a request behind a slow one is slow too."""

from __future__ import annotations

import numpy as np


def autocorrelation(values: np.ndarray) -> np.ndarray:
    """(n,) autocorrelation of a series at lags 0 .. n - 1 (divisor n at every lag; Box, Jenkins,
    Reinsel & Ljung 2016, equation 2.1.13); 1 and then zeros for a constant series."""
    centred = np.asarray(values, dtype=float)
    n = len(centred)
    if n == 0:
        return np.array([])
    centred = centred - centred.mean()
    # Twice the length: else the end of the series would be correlated with its beginning.
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    products = np.fft.irfft(np.abs(spectrum) ** 2, size)[:n]
    if products[0] <= 1e-12 * n:
        return np.r_[1.0, np.zeros(n - 1)]
    return np.asarray(products / products[0])


def correlation_time(values: np.ndarray) -> float:
    """1 + 2 x the sum of the autocorrelations, at least 1: so many values are worth one.

    The sum ends by Geyer's initial monotone sequence (Geyer 1992, Statistical Science 7, section
    3.3): sums of neighbouring pairs of lags, while they are positive, each at most the one before.
    It is exact for reversible chains in stationarity and the usual rule for others; a series of
    fewer than some 30 times its correlation time shows too little of it.
    """
    lags = autocorrelation(values)
    pairs = lags[: len(lags) // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    kept = pairs[: ends[0]] if len(ends) else pairs
    return max(1.0, 2 * float(np.minimum.accumulate(kept).sum()) - 1) if len(kept) else 1.0


def surely_correlated(time: float, n: int) -> bool:
    """Whether `correlation_time` of `n` values is more than chance: above 1 + 12 / sqrt(n).

    Of independent series at most 2 in 100 are above it, for the indicators that `tails` asks about
    and n from 30 to 3,000 (simulated, `scripts/simulate_tails.py`).
    """
    return time > 1 + 12 / np.sqrt(n) if n > 0 else False
