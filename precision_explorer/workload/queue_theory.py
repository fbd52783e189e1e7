"""What queueing theory says exactly, to hold the simulator against: M/M/1, M/M/c and M/D/1, first
come first served, in the steady state.

`rate_per_s`: Poisson arrivals per second; `service_s`: mean seconds of a service. All raise
ValueError for a queue without a steady state (offered load at or above the number of servers).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammainc

# Enough for a load of 0.9999 at the p99, which takes seconds; no fleet is meant to be nearer to 1.
_MOST_STATES = 100_000


def erlang_c(load: float, servers: int) -> float:
    """Probability that a request has to wait in M/M/c with `load` = rate x service time in Erlang.

    Erlang 1917, by the recursion of Erlang B, B(n) = load B(n-1) / (n + load B(n-1)), which neither
    overflows nor cancels (Cooper 1981, section 3.3), and C = B / (1 - rho (1 - B)).
    """
    _check(load, 1.0, servers)
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


def mmc_mean_wait(rate_per_s: float, service_s: float, servers: int = 1) -> float:
    """Mean wait in M/M/c: C / (c / service - rate); M/M/1 for one server, where C = rho."""
    waiting = erlang_c(rate_per_s * service_s, servers)
    return waiting / (servers / service_s - rate_per_s)


def mmc_wait_quantile(q: float, rate_per_s: float, service_s: float, servers: int = 1) -> float:
    """Quantile `q` of the wait in M/M/c, from P(W > t) = C exp(-(c / service - rate) t); 0 where at
    most 1 - q of the requests wait."""
    waiting = erlang_c(rate_per_s * service_s, servers)
    if waiting <= 1 - q:
        return 0.0
    return math.log(waiting / (1 - q)) / (servers / service_s - rate_per_s)


def mg1_mean_wait(rate_per_s: float, service_s: float, service_squared_s2: float) -> float:
    """Mean wait in M/G/1 by Pollaczek & Khinchine: rate E[S^2] / (2 (1 - rho)).

    `service_squared_s2`: the mean of the squared service time.
    """
    _check(rate_per_s, service_s, 1)
    return rate_per_s * service_squared_s2 / (2 * (1 - rate_per_s * service_s))


def md1_mean_wait(rate_per_s: float, service_s: float) -> float:
    """Mean wait in M/D/1, where every service takes `service_s`: `mg1_mean_wait`."""
    return mg1_mean_wait(rate_per_s, service_s, service_s**2)


def md1_wait_cdf(wait_s: float, rate_per_s: float, service_s: float) -> float:
    """P(W <= `wait_s`) in M/D/1, exact.

    Crommelin's series (1932) cancels for long waits and loads near 1, so after Iversen & Staalhagen
    1999 (Electronics Letters 35, 2184): at a whole number of services, P(W <= k D) is the
    probability of at most k requests in the system; between them, with t = (k + u) D and
    a = rate u D < 1, P(W <= t) = exp(a) sum_j (-a)^j / j! P(W <= (k - j) D), j = 0 .. k, which
    solves Takacs' equation F'(t) = rate (F(t) - F(t - D)).
    """
    _check(rate_per_s, service_s, 1)
    if wait_s < 0:
        return 0.0
    whole, part = divmod(wait_s / service_s, 1.0)
    at_most = np.cumsum(_md1_states(rate_per_s * service_s, int(whole)))
    return _between(at_most, int(whole), rate_per_s * service_s * part)


def md1_wait_quantile(q: float, rate_per_s: float, service_s: float) -> float:
    """Quantile `q` of the wait in M/D/1 by bisection of `md1_wait_cdf`; 0 where at most 1 - q of
    the requests wait."""
    _check(rate_per_s, service_s, 1)
    load = rate_per_s * service_s
    if 1 - load >= q:
        return 0.0
    count = 64
    while (at_most := np.cumsum(_md1_states(load, count)))[-1] < q:
        if count > _MOST_STATES:
            raise ValueError(f"a load of {load} is too near to 1 for this quantile; lower it")
        count *= 2
    whole = int(np.searchsorted(at_most, q)) - 1
    low, high = 0.0, 1.0
    # 52 halvings: to the last bit of a number between 0 and 1.
    for _ in range(52):
        middle = (low + high) / 2
        if _between(at_most, whole, load * middle) < q:
            low = middle
        else:
            high = middle
    return (whole + high) * service_s


def _between(at_most: np.ndarray, whole: int, share: float) -> float:
    """P(W <= (`whole` + u) D) with `share` = load x u, from `at_most` = P(N <= k), k = 0, 1, ..."""
    total, term = 0.0, 1.0
    for j in range(whole + 1):
        total += term * float(at_most[whole - j])
        term *= -share / (j + 1)
        if abs(term) < 1e-18:
            break
    return math.exp(share) * total


def _md1_states(load: float, count: int) -> np.ndarray:
    """(`count` + 1,) probabilities of 0, 1, ... requests in an M/D/1 system.

    Ramaswami's recursion (1988) for chains of the M/G/1 type, which only adds:
    p(i) = [p(0) A(i) + sum_{j=1}^{i-1} p(j) A(i + 1 - j)] / (1 - A(1)), with A(i) the probability
    of at least i arrivals, Poisson with mean `load`, during a service, and p(0) = 1 - load.
    """
    states = np.empty(count + 1)
    states[0] = 1 - load
    # P(Poisson(load) >= i) is the regularised lower incomplete gamma function.
    tails = gammainc(np.arange(1, count + 2), load)
    for i in range(1, count + 1):
        before = float(states[1:i] @ tails[1:i][::-1])
        states[i] = (states[0] * tails[i - 1] + before) / math.exp(-load)
    return states


def _check(rate_per_s: float, service_s: float, servers: int) -> None:
    if servers < 1 or not (rate_per_s > 0 and service_s > 0):
        raise ValueError("a queue needs a rate, a service time and a server above 0")
    if rate_per_s * service_s >= servers:
        raise ValueError(
            f"a load of {rate_per_s * service_s} on {servers} servers grows without end; lower it"
        )
