"""The latency objective as the reader writes it: `p99=200ms`."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.units import parse_duration
from precision_explorer.workload import PERCENTILES as QUANTILES


@dataclass(frozen=True)
class Slo:
    """At least the share `quantile` of the requests must take at most `limit_s` seconds."""

    quantile: float
    limit_s: float

    @property
    def name(self) -> str:
        """The percentile as the reader writes it."""
        return next(name for name, quantile in QUANTILES.items() if quantile == self.quantile)


def parse_slo(text: str) -> Slo:
    """`p99=200ms` as an `Slo`; UsageError for an unknown percentile or a limit that is none."""
    name, equals, limit = (part.strip() for part in text.partition("="))
    if not equals or not name or not limit:
        raise UsageError(f"'{text}' is no latency objective; write it as p99=200ms")
    if name.lower() not in QUANTILES:
        raise UsageError(unknown_name("percentile", name, QUANTILES))
    try:
        seconds = parse_duration(limit)
    except ValueError as error:
        raise UsageError(f"latency objective: {error}") from error
    if not 0 < seconds < float("inf"):
        raise UsageError(f"the limit in '{text}' must be above 0; write it as p99=200ms")
    return Slo(QUANTILES[name.lower()], seconds)
