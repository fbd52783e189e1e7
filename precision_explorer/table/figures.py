"""The figures that formats are compared by: their names on the command line, columns and better
end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.units import bytes_, count, joules, rate, seconds, significant, usd


@dataclass(frozen=True)
class Figure:
    """`maximise` None: the quality metric knows. `timed`: other work on the machine moves it."""

    name: str
    column: str
    words: str
    maximise: bool | None
    show: Callable[[float | None], str]
    timed: bool = True
    quantile: float | None = None
    """Of a percentile of the latency."""


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("quality", "quality", "quality", None, significant, timed=False),
        Figure("latency", "latency_p50_s", "median latency", False, seconds, quantile=0.5),
        Figure("latency_p90", "latency_p90_s", "p90 of the latency", False, seconds, quantile=0.9),
        Figure("latency_p99", "latency_p99_s", "p99 of the latency", False, seconds, quantile=0.99),
        Figure(
            "latency_p999", "latency_p999_s", "p99.9 of the latency", False, seconds, quantile=0.999
        ),
        Figure("rate", "held_rate_per_s", "largest rate that held", True, rate),
        Figure("throughput", "throughput_per_s", "throughput", True, rate),
        Figure("memory", "peak_memory_bytes", "peak memory", False, bytes_, timed=False),
        Figure("weights", "weight_bytes", "memory of the weights", False, bytes_, timed=False),
        Figure("cost", "cost_per_1k_requests_usd", "cost per 1,000 requests", False, usd),
        Figure("value", "value_per_usd", "useful results per dollar", True, count),
        Figure("net", "net_usd_per_1k_requests", "net dollars per 1,000 requests", True, usd),
        Figure("energy", "energy_per_request_j", "energy per request", False, joules),
    )
}
DEFAULT = ("quality", "latency", "rate", "memory", "cost", "energy")
_ALIASES = {"latency_p50": "latency", "efficiency": "energy"}


def parse_objectives(text: str) -> tuple[str, ...]:
    """Names of `FIGURES` from ``quality,latency_p99,cost``; UsageError for an unknown or repeated
    one, and for none."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError("objectives are empty; write them as --objectives quality,latency,cost")
    return tuple(dict.fromkeys(parse_objective(name) for name in names))


def parse_objective(name: str) -> str:
    """One name of `FIGURES`; UsageError for any other."""
    known = _ALIASES.get(name.strip().lower(), name.strip().lower())
    if known not in FIGURES:
        raise UsageError(unknown_name("objective", name, FIGURES))
    return known


def figure_words(name: str, is_share: Sequence[bool]) -> str:
    """The figure in words; a dollar's worth depends on whether quality `is_share` on the tasks:
    elsewhere no result is right or wrong."""
    if name != "value" or all(is_share):
        return FIGURES[name].words
    within = "requests within the quality budget"
    kinds = f"useful results or {within}" if any(is_share) else within
    return f"{kinds} per dollar"


def in_words(names: list[str] | tuple[str, ...]) -> str:
    """The objectives as a reader would name them."""
    return ", ".join(FIGURES[name].words for name in names)


def unfit_energy(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the rows' energy can be no objective, and what to do; None where it can."""
    problem = energy_problem(rows)
    return None if problem is None else f"{problem}, so it can be no objective; leave it out"


def energy_problem(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What keeps the rows' energy from being ranked; None where nothing does: an estimate ranks
    nothing, two meters don't read the same, and one meter's boundaries differ."""
    known = list(dict.fromkeys(row["power_source"] or "unavailable" for row in rows))
    bad = [source for source in known if not source.startswith("measured")]
    if bad:
        what = "was not measured" if bad[0] == "unavailable" else f"is an estimate ({bad[0]})"
        return f"energy {what}"
    if len(known) > 1:
        return f"energy was read from different meters ({', '.join(known)})"
    within = list(dict.fromkeys(b for row in rows if (b := row.get("energy_boundary"))))
    if len(within) > 1:
        return f"energy was read within different boundaries ({'; '.join(within)})"
    return None
