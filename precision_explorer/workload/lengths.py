"""How long requests are: tokens in and tokens out, drawn apart."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from precision_explorer.workload.declared import Declared

# The 99th percentile of the standard normal distribution.
_Z99 = 2.3263478740408408


class DataLengths(Declared):
    """The example's own length; of language models cut as `prompt_tokens` and `output_tokens` of
    the workload say."""

    kind: Literal["data"] = "data"

    def draw(self, rng: np.random.Generator, n: int) -> None:
        """None: nothing is drawn."""
        return None


class FixedLengths(Declared):
    """Every request has `tokens` tokens."""

    kind: Literal["fixed"] = "fixed"
    tokens: int = Field(ge=1)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) int64 tokens."""
        return np.full(n, self.tokens, dtype=np.int64)


class LognormalLengths(Declared):
    """exp(N(ln median, sigma²)), rounded, at least 1; longer ones are cut at `max`, as a server
    cuts them at its context. Given are `median` and one of `sigma` and `p99`, which papers on
    traces print: sigma = ln(p99 / median) / 2.326, the normal distribution's 99th percentile."""

    kind: Literal["lognormal"] = "lognormal"
    median: float = Field(ge=1)
    sigma: float | None = Field(default=None, ge=0, le=5)
    p99: float | None = None
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_spread(self) -> LognormalLengths:
        if (self.sigma is None) == (self.p99 is None):
            raise ValueError("give median with one of sigma and p99")
        if self.p99 is not None and self.p99 < self.median:
            raise ValueError(f"p99 {self.p99:g} is below the median {self.median:g}; exchange them")
        if self.max < self.median:
            raise ValueError(f"max {self.max} is below the median {self.median:g}; raise it")
        return self

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm."""
        if self.sigma is not None:
            return self.sigma
        assert self.p99 is not None
        return math.log(self.p99 / self.median) / _Z99

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) int64 tokens from 1 to `max`."""
        # Cut before the rounding: the largest float64 is no int64.
        drawn = np.minimum(rng.lognormal(math.log(self.median), self.spread, n), self.max)
        return np.clip(np.rint(drawn), 1, self.max).astype(np.int64)


class HistogramLengths(Declared):
    """Bins between k + 1 increasing `edges` (whole tokens; a bin holds its lower edge, not its
    upper one) with k `weights` of any sum; within a bin all lengths are equally likely."""

    kind: Literal["histogram"] = "histogram"
    edges: tuple[int, ...]
    weights: tuple[float, ...]

    @model_validator(mode="after")
    def _bins(self) -> HistogramLengths:
        if len(self.edges) != len(self.weights) + 1 or len(self.edges) < 2:
            raise ValueError(
                f"{len(self.edges)} edges and {len(self.weights)} weights don't fit; "
                "give one edge more than weights"
            )
        if self.edges[0] < 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must begin at 1 or more and increase; correct them")
        if min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError("weights must be 0 or more, and one above 0; correct them")
        return self

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """(n,) int64 tokens from the first edge to below the last."""
        edges, weights = np.array(self.edges), np.array(self.weights)
        bins = rng.choice(weights.size, size=n, p=weights / weights.sum())
        return rng.integers(edges[bins], edges[bins + 1], dtype=np.int64)


Length = Annotated[
    DataLengths | FixedLengths | LognormalLengths | HistogramLengths, Field(discriminator="kind")
]
LENGTHS: dict[str, type[Any]] = {
    "data": DataLengths,
    "fixed": FixedLengths,
    "lognormal": LognormalLengths,
    "histogram": HistogramLengths,
}


class Lengths(Declared):
    """Tokens in and tokens out, drawn independently of each other and of the example."""

    input: Length = DataLengths()
    output: Length = DataLengths()
