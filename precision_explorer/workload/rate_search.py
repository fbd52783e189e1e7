"""`RateSearch`: the objective at which a workload's rate is searched."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from precision_explorer.units import parse_share
from precision_explorer.workload.declared import Declared

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}


class RateSearch(Declared):
    """The largest rate is searched at which `percentile` of the latency is at most `limit_s`
    seconds. Neighbouring rates that are tried differ by `resolution`, a share."""

    percentile: Literal["p50", "p90", "p95", "p99", "p999"] = "p99"
    limit_s: float = Field(gt=0)
    resolution: float = 0.05

    @field_validator("resolution", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return parse_share(value) if isinstance(value, str) else value

    @field_validator("resolution")
    @classmethod
    def _some_resolution(cls, value: float) -> float:
        if not 0.001 <= value <= 1:
            raise ValueError(
                f"{value:g} is no resolution; give a share from 0.1% to 100%, such as 5%"
            )
        return value
