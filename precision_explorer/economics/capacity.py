"""How many machines serve a rate of requests within a latency objective, found by simulating their
queues with measured service times; nothing here was measured under load."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from precision_explorer.economics.slo import Slo
from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.stats.queueing import latency_growth
from precision_explorer.workload import ArrivalProcess, TraceArrivals
from precision_explorer.workload.queueing import DISPATCHES, Dispatch, Served, assign, serve
from precision_explorer.workload.service_times import ServiceTimes

HOURS_PER_MONTH = 730
"""8,760 hours of a year in 12 months."""
_ABOVE = 200
"""Requests that each simulation has above the objective's percentile: its rank is then known to
7 % (binomial, one standard deviation)."""
_LEAST_REQUESTS = 20_000
"""What `_ABOVE` takes at the p99; fewer, for a median, would leave queues no time to fill."""
_STEPS = 8
"""Halvings in the search for one machine's best rate: to 0.4 % of what it serves at most."""
_LEAST_BUSY = 0.01
"""A fleet less busy than this is no answer: whatever fails there, further machines don't mend."""


ArrivalTimes = Callable[[float, int, np.random.Generator], np.ndarray]
"""(n,) ascending seconds at which requests come at a mean rate per second: (rate, n, generator)."""
# Limits of memory and time, far above what one asks for: 160 MB of arrivals, minutes of simulation.
_MOST_ARRIVALS = 20_000_000
_MOST_SHARED = 100_000


@dataclass(frozen=True)
class Demand:
    """What a fleet must do.

    `rate_per_s` requests per second within `slo`, and within it still at `head_room` times that
    rate. `cv`: coefficient of variation of the times between arrivals (gamma distributed); 1 is
    Poisson, above 1 is bursty. `arrivals`, where given, says instead when the fleet's requests come
    (bursts that last, a day, a trace). `max_batch` None: each format's best of its measured batch
    sizes. `draws`: how often all is simulated, each time with other arrivals and with service times
    resampled. UsageError for values that can't be.
    """

    rate_per_s: float
    slo: Slo
    head_room: float = 1.3
    cv: float = 1.0
    dispatch: Dispatch = "round-robin"
    max_batch: int | None = None
    max_wait_s: float = 0.0
    draws: int = 8
    seed: int = 0
    arrivals: ArrivalTimes | None = None
    workload: str | None = None
    """The workload's name that `arrivals` are of."""

    def __post_init__(self) -> None:
        above = "must be a number above 0; write it as"
        rules = [
            (0 < self.rate_per_s < math.inf, f"the rate {above} --rate 200/s"),
            (1 <= self.head_room < math.inf, "the head-room must be 1 or more; 1.3 is 30 % more"),
            (0 < self.cv < math.inf, f"the burstiness {above} --arrivals gamma:2"),
            (self.max_batch is None or self.max_batch >= 1, f"the largest batch {above} 8"),
            (0 <= self.max_wait_s < math.inf, "the longest wait must be 0 or more, as in 5ms"),
            (self.draws >= 1, "at least 1 draw is needed"),
            (self.seed >= 0, "the seed must be 0 or more"),
        ]
        for holds, rule in rules:
            if not holds:
                raise UsageError(rule)
        if self.dispatch not in DISPATCHES:
            raise UsageError(unknown_name("dispatch", self.dispatch, DISPATCHES))

    @property
    def peak_per_s(self) -> float:
        """The rate with its head-room, at which the objective must still be met."""
        return self.rate_per_s * self.head_room

    @property
    def requests(self) -> int:
        """How many requests each simulation counts."""
        return max(_LEAST_REQUESTS, math.ceil(_ABOVE / (1 - self.slo.quantile)))


def parse_arrivals(text: str) -> float:
    """The coefficient of variation of `poisson` (1) or `gamma:CV`; UsageError for anything else."""
    name, colon, value = (part.strip() for part in text.partition(":"))
    if name.lower() == "poisson" and not colon:
        return 1.0
    try:
        cv = float(value) if name.lower() == "gamma" else math.nan
    except ValueError:
        cv = math.nan
    if not 0 < cv < math.inf:
        raise UsageError(
            f"'{text}' is no way for requests to come; write poisson, or gamma:2 for times between "
            "them that vary twice as much"
        )
    return cv


def declared_arrivals(process: ArrivalProcess) -> ArrivalTimes:
    """The times of a workload's `process` at any mean rate; a trace begins again at its end."""

    def times(rate_per_s: float, count: int, rng: np.random.Generator) -> np.ndarray:
        placed = process.at(rate_per_s)
        if not isinstance(placed, TraceArrivals):
            return placed.times(rng, n=count)
        span_s = placed.span_s(rate_per_s)
        once = placed.times(rng, duration_s=span_s)
        rounds = np.arange(math.ceil(count / len(once)))
        return (once + span_s * rounds[:, None]).ravel()[:count]

    return times


@dataclass(frozen=True)
class Spread:
    """Least, median and largest over the draws."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Capacity:
    """What one format's machines do.

    `machines`: least and most over the draws that could be met, None where none could; `met_draws`
    says how many of `draws` could. `latency_s` and `peak_latency_s`: the objective's percentile
    with the most machines at the rate and at its head-room, None without machines. `idle_s`: the
    same percentile of a request that finds everything idle. `best_rate_per_s`: what one machine
    serves within the objective, 0 where it meets it at no rate. `utilisation`: the rate over what
    those machines serve at most.
    """

    max_batch: int
    machines: tuple[int, int] | None
    met_draws: int
    draws: int
    idle_s: float
    latency_s: Spread | None
    peak_latency_s: Spread | None
    best_rate_per_s: Spread
    utilisation: float | None


class Simulation:
    """One draw: machines with these service times, and arrivals from one seed.

    The same seed at every rate and number of machines, so that these are compared on the same
    chances (common random numbers).
    """

    def __init__(
        self, service: ServiceTimes, demand: Demand, max_batch: int, seed: tuple[int, ...]
    ) -> None:
        self._service, self._demand, self._max_batch, self._seed = service, demand, max_batch, seed

    def idle_s(self) -> float:
        """The objective's percentile where every request finds a machine idle, and, unless it is
        served alone anyway, waits for company that does not come."""
        company = self._demand.max_wait_s if self._max_batch > 1 else 0.0
        alone = self._service.table(1)[0]
        return company + _percentile(alone, self._demand.slo.quantile)

    def utilisation(self, machines: int, rate_per_s: float) -> float:
        """The rate over what the machines serve in full batches, as they do when queues grow."""
        return rate_per_s / (machines * self._service.rate_per_s(self._max_batch))

    def latency_s(self, machines: int, rate_per_s: float) -> float | None:
        """The objective's percentile in the steady state; None where there is none, since more
        requests come than are served or latency grows through the window (`latency_growth`)."""
        if self.utilisation(machines, rate_per_s) >= 1:
            return None
        served = self._serve(machines, rate_per_s)
        latencies = served.latencies_s
        growth = latency_growth(served.arrivals_s, latencies)
        if growth is not None and growth.grows:
            return None
        return _percentile(latencies, self._demand.slo.quantile)

    def meets(self, machines: int, rate_per_s: float) -> bool:
        """Whether these machines hold the objective at this rate, and when they are idle: a fleet
        that keeps it only while its batches fill up fails at night."""
        limit = self._demand.slo.limit_s
        if self.idle_s() > limit:
            return False
        latency = self.latency_s(machines, rate_per_s)
        return latency is not None and latency <= limit

    def best_rate_per_s(self) -> float:
        """The largest rate at which one machine holds the objective, by bisection; 0 where it does
        at none."""
        most = self._service.rate_per_s(self._max_batch)
        if self.idle_s() > self._demand.slo.limit_s:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if self.meets(1, middle * most):
                low = middle
            else:
                high = middle
        return low * most

    def least_machines(self, rate_per_s: float, guess: int) -> int | None:
        """The least number that holds the objective; None where not even machines that are hardly
        ever busy do. `guess` is where the search begins."""
        least = math.floor(self.utilisation(1, rate_per_s)) + 1
        most = math.ceil(self.utilisation(1, rate_per_s) / _LEAST_BUSY)
        if self.idle_s() > self._demand.slo.limit_s:
            return None
        if self._demand.dispatch == "shared" and least > _MOST_SHARED:
            raise UsageError(
                f"more than {_MOST_SHARED:,} machines behind one queue are not simulated; use "
                "--dispatch round-robin"
            )
        return _least(lambda n: self.meets(n, rate_per_s), max(guess, least), least, most)

    def _serve(self, machines: int, rate_per_s: float) -> Served:
        """A window after its warm-up: the first tenth, and ten requests for each machine. Where
        each machine has a queue of its own one of them is simulated, for all are alike."""
        demand, rng = self._demand, np.random.default_rng(self._seed)
        shared = demand.dispatch == "shared"
        warm = max(demand.requests // 10, 10 * machines if shared else 0)
        times = self._share_of_process if demand.arrivals else self._renewal
        arrivals = times(1 if shared else machines, rate_per_s, demand.requests + warm, rng)
        return serve(
            arrivals,
            self._service,
            rng,
            max_batch=self._max_batch,
            max_wait_s=demand.max_wait_s,
            replicas=machines if shared else 1,
        ).after(warm)

    def _renewal(
        self, queues: int, rate_per_s: float, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """(`count`,) arrivals at one of `queues` that share gamma gaps: under round-robin its gaps
        are sums of as many of the fleet's, under random dispatch of a geometric number of them."""
        shape = 1 / self._demand.cv**2
        gaps: int | np.ndarray = queues
        if self._demand.dispatch == "random":
            gaps = rng.geometric(1 / queues, count)
        return np.cumsum(rng.standard_gamma(gaps * shape, count)) / (shape * rate_per_s)

    def _share_of_process(
        self, queues: int, rate_per_s: float, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """One of `queues`' share of `Demand.arrivals`: about `count` requests."""
        assert self._demand.arrivals is not None
        if count * queues > _MOST_ARRIVALS:
            raise UsageError(
                f"with these arrivals more than {_MOST_ARRIVALS // count:,} machines are not "
                "simulated; lower the rate, or use --arrivals poisson"
            )
        whole = self._demand.arrivals(rate_per_s, count * queues, rng)
        return whole[assign(len(whole), queues, self._demand.dispatch, rng) == 0]


def plan_capacity(service: ServiceTimes, demand: Demand) -> Capacity:
    """Machines for `demand`, each with these service times.

    Each draw resamples the rounds in which times were measured, the same for all formats, and the
    times within them, and simulates arrivals of its own; the answer is the range over the draws.
    UsageError where `demand.max_batch` is beyond what was measured.
    """
    max_batch = _batch_limit(service, demand)
    rng = np.random.default_rng(demand.seed)
    (rounds,) = rng.spawn(1)
    draws = [
        Simulation(service.resampled(rng, rounds), demand, max_batch, (demand.seed, index))
        for index in range(demand.draws)
    ]
    rates = [draw.best_rate_per_s() for draw in draws]
    found = [_fleet(draw, rate, demand) for draw, rate in zip(draws, rates, strict=True)]
    met = [n for n in found if n is not None]
    most = max(met, default=None)
    whole = Simulation(service, demand, max_batch, (demand.seed,))
    return Capacity(
        max_batch=max_batch,
        machines=(min(met), max(met)) if met else None,
        met_draws=len(met),
        draws=demand.draws,
        idle_s=whole.idle_s(),
        latency_s=_latencies(draws, most, demand.rate_per_s),
        peak_latency_s=_latencies(draws, most, demand.peak_per_s),
        best_rate_per_s=_spread(rates),
        utilisation=whole.utilisation(most, demand.rate_per_s) if most else None,
    )


def _batch_limit(service: ServiceTimes, demand: Demand) -> int:
    """The batch limit that was asked for, else the measured size with which one machine serves
    most within the objective (the smallest of equals)."""
    if demand.max_batch is not None:
        if demand.max_batch > service.largest:
            raise UsageError(
                f"no batch of {demand.max_batch} was measured, the largest is {service.largest}; "
                "lower --max-batch, or sweep again with that --batch-size"
            )
        return demand.max_batch
    limits = sorted({1, *service.sizes})
    rates = [
        Simulation(service, demand, limit, (demand.seed,)).best_rate_per_s() for limit in limits
    ]
    return limits[int(np.argmax(rates))]


def _fleet(draw: Simulation, rate_of_one: float, demand: Demand) -> int | None:
    if rate_of_one <= 0:
        return draw.least_machines(demand.peak_per_s, 1)
    return draw.least_machines(demand.peak_per_s, math.ceil(demand.peak_per_s / rate_of_one))


def _least(holds: Callable[[int], bool], guess: int, least: int, most: int) -> int | None:
    """The smallest n from `least` to `most` from which `holds` is true, by doubling steps away from
    `guess` and bisection; None where it does not hold at `most`."""
    low, high, step = least - 1, most + 1, 1
    n = min(guess, most)
    # low fails (or is too small), high holds (or is beyond the end).
    while high - low > 1:
        if holds(n):
            high = n
        else:
            low = n
        if high == most + 1:
            n = min(low + step, most)
        elif low == least - 1:
            n = max(high - step, least)
        else:
            n = (low + high) // 2
        step *= 2
    return high if high <= most else None


def _latencies(draws: list[Simulation], machines: int | None, rate: float) -> Spread | None:
    if machines is None:
        return None
    found = [draw.latency_s(machines, rate) for draw in draws]
    known = [latency for latency in found if latency is not None]
    return _spread(known) if known else None


def _spread(values: list[float]) -> Spread:
    return Spread(min(values), float(np.median(values)), max(values))


def _percentile(values: np.ndarray, q: float) -> float:
    """The nearest rank, as `stats.percentile` has it for tails."""
    return float(np.quantile(values, q, method="inverted_cdf"))
