"""When requests arrive, by a clock of their own: every process is seeded and planned before a run.

All but the replay are stationary from the window's first moment on: the mean number of requests in
a window is rate x duration, however short it is.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from precision_explorer.errors import UsageError
from precision_explorer.units import seconds
from precision_explorer.workload.process import MOST_REQUESTS, ArrivalProcess
from precision_explorer.workload.replay import TraceArrivals


class ConstantArrivals(ArrivalProcess):
    """One request every 1 / rate seconds, the first at 0."""

    kind: Literal["constant"] = "constant"

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        times = np.arange(math.ceil(duration_s * rate) + 1) / rate
        return times[times < duration_s]

    def _first(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        return np.arange(n) / rate


class PoissonArrivals(ArrivalProcess):
    """Independent requests: exponential gaps, coefficient of variation 1. MLPerf's server scenario;
    what many users who don't know of each other make together."""

    kind: Literal["poisson"] = "poisson"

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        # Given their number, the times of a Poisson process are uniform (Ross 1996, theorem 2.3.1).
        return np.sort(rng.uniform(0.0, duration_s, rng.poisson(rate * duration_s)))

    def _first(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        return np.cumsum(rng.exponential(1 / rate, n))


class GammaArrivals(ArrivalProcess):
    """Independent gamma gaps. `burstiness` is vLLM's (`vllm bench serve --burstiness`): the gamma
    distribution's shape, so that the coefficient of variation of the gaps is 1 / sqrt(burstiness).
    1 is Poisson, below 1 bursty, above 1 more regular.
    """

    kind: Literal["gamma"] = "gamma"
    burstiness: float = Field(ge=0.01, le=10_000)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the gaps."""
        return self.burstiness**-0.5

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        expected = rate * duration_s
        block = math.ceil(expected + 4 * self.cv * math.sqrt(expected)) + 16
        times = self._first(rng, rate, block)
        while times[-1] < duration_s:
            more = times[-1] + np.cumsum(self._gaps(rng, rate, block))
            times = np.concatenate([times, more])
        return times[times < duration_s]

    def _first(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        # The gap that the window's start falls into is one drawn by its length, cut at a uniform
        # place (Cox 1962, Renewal Theory, section 5.4); by its length, the shape is one more.
        gaps = self._gaps(rng, rate, n)
        if n:
            scale = 1 / (rate * self.burstiness)
            gaps[0] = rng.uniform() * rng.gamma(self.burstiness + 1, scale)
        return np.cumsum(gaps)

    def _gaps(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        return rng.gamma(self.burstiness, 1 / (rate * self.burstiness), n)


class OnOffArrivals(ArrivalProcess):
    """Bursts: exponential on and off periods of mean `on_s` and `off_s` seconds; Poisson requests
    while on, none while off (the interrupted Poisson process, Kuczura 1973). The declared rate is
    the mean over both, so that the rate while on is (on_s + off_s) / on_s times it."""

    kind: Literal["on-off"] = "on-off"
    on_s: float = Field(ge=0.001)
    off_s: float = Field(ge=0.001)

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        cycle_s = self.on_s + self.off_s
        if duration_s > MOST_REQUESTS * cycle_s:
            raise UsageError(
                f"bursts every {seconds(cycle_s)} are more than can be planned over "
                f"{seconds(duration_s)}; make them longer"
            )
        starts_on = bool(rng.uniform() < self.on_s / cycle_s)
        means = (self.on_s, self.off_s) if starts_on else (self.off_s, self.on_s)
        block = math.ceil(1.2 * duration_s / cycle_s) + 16
        lengths: np.ndarray = np.empty(0)
        while lengths.sum() < duration_s:
            lengths = np.append(lengths, rng.exponential(means, (block, 2)))
        begins = np.cumsum(lengths) - lengths
        on = slice(0 if starts_on else 1, None, 2)
        begins, lengths = begins[on], lengths[on]
        counts = rng.poisson(rate * cycle_s / self.on_s * lengths)
        places = rng.uniform(size=int(np.sum(counts))) * np.repeat(lengths, counts)
        times = np.sort(np.repeat(begins, counts) + places)
        return times[times < duration_s]

    def _block_s(self, least_s: float) -> float:
        return max(least_s, 1000 * (self.on_s + self.off_s))


class DailyArrivals(ArrivalProcess):
    """A day's rise and fall, compressed into `day_s` seconds (None: the window is one day).

    The rate follows `hours`, 24 weights of any sum from midnight on, each constant over its hour;
    or, without them, a sinusoid with its highest point at `peak_hour` that is `peak_to_trough`
    times its lowest. 3.6 is the ratio between the busiest and the quietest hour of the conversation
    service in the Azure LLM trace of 2024. Times are Poisson with that rate, by thinning (Lewis and
    Shedler 1979). The declared rate is the mean over a day."""

    kind: Literal["daily"] = "daily"
    day_s: float | None = Field(default=None, gt=0)
    peak_to_trough: float = Field(default=3.6, ge=1)
    peak_hour: float = Field(default=15.0, ge=0, lt=24)
    hours: tuple[float, ...] | None = None

    @field_validator("hours")
    @classmethod
    def _a_day(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and len(value) != 24:
            raise ValueError(f"{len(value)} hours are no day; give 24 weights from midnight on")
        if value is not None and (min(value) < 0 or sum(value) <= 0):
            raise ValueError("weights must be 0 or more, and one above 0; correct them")
        return value

    @property
    def peak(self) -> float:
        """The highest rate over the mean."""
        if self.hours is not None:
            return max(self.hours) * 24 / sum(self.hours)
        return 2 * self.peak_to_trough / (self.peak_to_trough + 1)

    def shape(self, day: np.ndarray) -> np.ndarray:
        """The rate over its mean at the times `day`, in days: mean 1 over a whole day."""
        if self.hours is not None:
            weights = np.array(self.hours)
            return weights[np.floor(24 * (day % 1)).astype(int) % 24] / weights.mean()
        return 1 + (self.peak - 1) * np.cos(2 * math.pi * (day - self.peak_hour / 24))

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        day_s = self.day_s or duration_s
        count = rng.poisson(rate * self.peak * duration_s)
        times = np.sort(rng.uniform(0.0, duration_s, count))
        kept = rng.uniform(0.0, self.peak, count) < self.shape(times / day_s)
        return times[kept]

    def _block_s(self, least_s: float) -> float:
        # Whole days, so that the curve goes on where a block ends.
        return least_s if self.day_s is None else self.day_s * math.ceil(least_s / self.day_s)


Arrivals = Annotated[
    ConstantArrivals
    | PoissonArrivals
    | GammaArrivals
    | OnOffArrivals
    | DailyArrivals
    | TraceArrivals,
    Field(discriminator="kind"),
]
ARRIVALS: dict[str, type[ArrivalProcess]] = {
    "constant": ConstantArrivals,
    "poisson": PoissonArrivals,
    "gamma": GammaArrivals,
    "on-off": OnOffArrivals,
    "daily": DailyArrivals,
    "trace": TraceArrivals,
}
