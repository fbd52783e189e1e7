"""Series whose percentiles and dependence are known."""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

BURN_IN = 1000


def autoregressive(generator: np.random.Generator, n: int, coefficient: float) -> np.ndarray:
    """Gaussian AR(1) with variance 1."""
    noise = generator.normal(size=n + BURN_IN) * np.sqrt(1 - coefficient**2)
    return lfilter([1.0], [1.0, -coefficient], noise)[BURN_IN:]


def queue(generator: np.random.Generator, n: int, utilisation: float) -> np.ndarray:
    """Times in system of an M/M/1 queue with mean service 1: exponential, mean 1 / (1 - rho)."""
    gaps = generator.exponential(1 / utilisation, n + BURN_IN)
    services = generator.exponential(1.0, n + BURN_IN)
    walk = np.r_[0.0, np.cumsum(services[:-1] - gaps[1:])]
    return (walk - np.minimum.accumulate(walk) + services)[BURN_IN:]
