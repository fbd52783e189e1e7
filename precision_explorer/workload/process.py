"""What all arrival processes share: the mean rate, and how they are asked for times."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
from pydantic import field_validator, model_validator

from precision_explorer.errors import UsageError
from precision_explorer.units import parse_share, significant
from precision_explorer.workload.declared import Declared
from precision_explorer.workload.rate_search import RateSearch

Own = TypeVar("Own", bound="ArrivalProcess")
# More than these take gigabytes to plan and store; they are days of a busy server.
MOST_REQUESTS = 20_000_000
# A load above this is a share that was written in percent.
_HIGHEST_LOAD = 5.0


class ArrivalProcess(Declared):
    """Arrivals with a mean rate, declared as `rate_per_s` or as `load`, the share of a measured
    capacity, or found by `search`: exactly one of them."""

    rate_per_s: float | None = None
    load: float | None = None
    search: RateSearch | None = None

    @field_validator("load", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return parse_share(value) if isinstance(value, str) else value

    @field_validator("rate_per_s")
    @classmethod
    def _some_rate(cls, value: float | None) -> float | None:
        if value is not None and value <= 0:
            raise ValueError(f"a rate of {value:g} gives no requests; give one above 0")
        return value

    @field_validator("load")
    @classmethod
    def _some_load(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value <= _HIGHEST_LOAD:
            raise ValueError(
                f"{value:g} is no load; give a share of the capacity, such as 0.7 or 70%"
            )
        return value

    @model_validator(mode="after")
    def _one_rate(self: Own) -> Own:
        if len(self.declared()) != 1:
            *names, last = self.speeds()
            raise ValueError(f"give one of {', '.join(names)} and {last}, such as load: 0.7")
        return self

    @classmethod
    def speeds(cls) -> tuple[str, ...]:
        """The fields of which exactly one says how fast requests come."""
        return ("rate_per_s", "load", "search")

    def declared(self) -> list[str]:
        """Those of `speeds` that are given."""
        return [name for name in self.speeds() if getattr(self, name) is not None]

    def rate(self, capacity_per_s: float | None = None) -> float:
        """Mean requests per second; a `load` is taken of `capacity_per_s`, without which it is a
        UsageError, as it is of a rate that is still to be searched."""
        if self.rate_per_s is not None:
            return self.rate_per_s
        if self.search is not None:
            raise UsageError("the arrivals' rate is searched, and not known yet; give rate_per_s")
        if self.load is None or capacity_per_s is None:
            raise UsageError(
                "the arrivals declare a load, a share of a capacity that is not known yet; "
                "give rate_per_s"
            )
        return self.load * capacity_per_s

    def at(self: Own, rate_per_s: float) -> Own:
        """The same process with this mean rate in place of what it declared; UsageError unless it
        is above 0 and finite."""
        if not 0 < rate_per_s < math.inf:
            raise UsageError(f"a rate of {rate_per_s:g} gives no requests; give one above 0")
        others = dict.fromkeys(self.speeds())
        return self.model_copy(update=others | {"rate_per_s": float(rate_per_s)})

    def searching(self: Own, search: RateSearch) -> Own:
        """The same process with its rate to be searched, in place of what it declared."""
        return self.model_copy(update=dict.fromkeys(self.speeds()) | {"search": search})

    def times(
        self, rng: np.random.Generator, *, duration_s: float | None = None, n: int | None = None
    ) -> np.ndarray:
        """(n,) float64 seconds from the window's start, non-decreasing: those within `duration_s`,
        or the first `n`. UsageError where the rate is not resolved, or for more than
        `MOST_REQUESTS`."""
        if (duration_s is None) == (n is None):
            raise ValueError("give one of duration_s and n")
        rate = self.rate()
        expected = n if n is not None else rate * float(duration_s or 0)
        if expected > MOST_REQUESTS:
            raise UsageError(
                f"{significant(expected)} requests are more than can be planned "
                f"({MOST_REQUESTS:,}); lower the rate or the duration"
            )
        if n is not None:
            return self._first(rng, rate, n)
        assert duration_s is not None
        return self._within(rng, rate, float(duration_s))

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        raise NotImplementedError

    def _first(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        """Windows one after the other until there are `n`: exact where what comes next does not
        depend on what was; elsewhere such a seam stands in some 1,000 requests."""
        block_s = self._block_s(max(n, 1000) / rate)
        found, count, start = [np.empty(0)], 0, 0.0
        while count < n:
            times = self._within(rng, rate, block_s)
            found.append(times + start)
            count, start = count + times.size, start + block_s
        return np.concatenate(found)[:n]

    def _block_s(self, least_s: float) -> float:
        return least_s
