"""The keywords of `sweep` and of those that read a run, for type checkers and the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

from precision_explorer.errors import UsageError, unknown_name

Path = str | PathLike[str]


class SweepOptions(TypedDict, total=False):
    """One keyword per option of ``precision-explorer sweep`` (docs/commands.md), with ``_`` for
    ``-``. A list may be a text with commas; shares, durations and sizes are numbers in SI units or
    texts such as ``1%``, ``30s``, ``8GB``. None leaves an option at its default."""

    model: Path | Sequence[Path] | None
    task: Path | Sequence[Path] | None
    formats: str | Sequence[str] | None
    reference: str | None
    device: str | None
    runtime: str | Sequence[str] | None
    batch_size: int | str | Sequence[int] | None
    batch_tokens: int | None
    limit: int | None
    until_decided: bool | None
    calibration: Path | None
    workload: Path | None
    tails: str | None
    duration: float | str | None
    background: str | Sequence[str] | None
    find_rate: bool | None
    audit: bool | None
    out: Path | None
    cell_timeout: float | None
    price_per_hour: float | None
    price: Path | Mapping[str, Any] | None
    value_per_correct: float | None
    cost_per_error: float | None
    grid_g_per_kwh: float | None
    slo: str | None
    quality_budget: float | str | None
    seed: int | None
    executor: str | None
    on: str | Sequence[str] | None
    cores: int | None
    ray_address: str | None
    slurm: str | Sequence[str] | None
    one_at_a_time: bool | None
    devices: int | None
    split: str | None
    revision: str | None
    trust_remote_code: bool | None
    allow_pickle: bool | None
    threads: int | None
    memory_limit: int | str | None
    allow_metric: str | Sequence[str] | None
    spec: Path | None


class ReaderOptions(TypedDict, total=False):
    """What one who reads a run decides: the options of ``precision-explorer report``. Money in US
    dollars, shares as 0.01 or ``1%``, memory in bytes or ``8GB``, `slo` as ``p99=50ms``,
    `objectives` names as ``--objectives`` takes them."""

    price_per_hour: float | None
    price: Path | None
    value_per_correct: float | None
    cost_per_error: float | None
    grid_g_per_kwh: float | None
    slo: str | None
    quality_budget: float | str | None
    metric: str | None
    objectives: str | Iterable[str] | None
    max_quality_loss: float | str | None
    max_memory: int | str | None
    max_cost: float | None


_NUMBERS = (
    "price_per_hour", "value_per_correct", "cost_per_error", "grid_g_per_kwh", "max_cost",
)  # fmt: skip
_TEXTS = ("slo", "metric")
_EITHER = ("quality_budget", "max_quality_loss", "max_memory")


def given(options: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Those `options` that are not None; UsageError for a name that is not `known`."""
    names = list(known)
    for name in options:
        if name not in names:
            raise UsageError(unknown_name("option", name, names))
    return {name: value for name, value in options.items() if value is not None}


def given_reader(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those `options` of `ReaderOptions` that are not None; UsageError for a name that is none of
    them, and for a value of another type."""
    found = given(options, ReaderOptions.__annotations__)
    for name, value in found.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name in _NUMBERS and not number:
            raise UsageError(f"{name}: {value!r} is no number; give one, as in 1.5")
        if name in _TEXTS and not isinstance(value, str):
            raise UsageError(f"{name}: {value!r} is no text; write it in quotes")
        if name in _EITHER and not (number or isinstance(value, str)):
            raise UsageError(f"{name}: {value!r} is neither a number nor a text such as '1%'")
    return found
