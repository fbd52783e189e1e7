"""Price sheets: what an hour of a device costs, from where, and as of when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from precision_explorer.bounded import yaml_file
from precision_explorer.errors import UsageError
from precision_explorer.units import significant

BUNDLED = Path(__file__).with_name("prices.yaml")
Term = Literal["on-demand", "reserved", "spot"]
"""How an hour is bought: as it comes, by commitment, or of capacity that may be taken back."""


class _Strict(BaseModel):
    # A sheet is written by hand: a misspelt key must not be dropped in silence.
    model_config = ConfigDict(extra="forbid", frozen=True)


class Listed(_Strict):
    """A list price of the whole instance, in US dollars per hour."""

    instance_usd_per_hour: float = Field(gt=0, allow_inf_nan=False)
    source: str
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")
    """For which day, month or year the source states the price."""


class Offer(Listed):
    """One instance type; its own price is on demand. `terms`: those by commitment or of spare
    capacity, each with a source and a date of its own."""

    provider: str
    instance_type: str
    region: str
    terms: dict[Literal["reserved", "spot"], Listed] = Field(default_factory=dict)

    def of(self, term: Term) -> Listed | None:
        """The price under `term`; None where the sheet has none."""
        return self if term == "on-demand" else self.terms.get(term)


class DeviceOffer(Offer):
    """An accelerator. `names`: patterns of whole NVML names, matched without regard to case."""

    device: str
    names: list[str] = Field(min_length=1)
    devices_per_instance: int = Field(ge=1)


class CpuOffer(Offer):
    """A CPU instance. `vcpus_per_core`: 2 where a vCPU is a hyperthread, as on most x86 types."""

    vcpus: int = Field(ge=1)
    vcpus_per_core: int = Field(ge=1)


class PriceSheet(_Strict):
    """All prices a reader uses; `devices` are tried in order."""

    schema_version: Literal[1]
    currency: Literal["USD"]
    devices: list[DeviceOffer] = Field(default_factory=list)
    cpu: CpuOffer | None = None


@dataclass(frozen=True)
class Price:
    """`per_hour_usd` of the device or the CPU threads used; `basis` says in one line how it came
    about; `date` as the source has it. `kind`: ``list``, ``given``, ``hourly`` or ``ownership``;
    `term`: how it is bought, None where nobody said; `inputs`: every number that it is computed
    from, by its name with the unit."""

    per_hour_usd: float
    source: str
    date: str
    basis: str
    kind: str = "list"
    term: str | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)


def load_sheet(path: Path | str | None = None) -> PriceSheet:
    """The sheet at `path`, by default the bundled one; UsageError if it is none."""
    return _bundled() if path is None else _read(Path(path))


@lru_cache(maxsize=1)
def _bundled() -> PriceSheet:
    return _read(BUNDLED)


def _read(path: Path) -> PriceSheet:
    try:
        return PriceSheet.model_validate(yaml_file(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UsageError(
            f"price sheet {path.name}, {where}: {first['msg']}; compare it with the bundled sheet"
        ) from error
    except (OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"price sheet {path.name} can't be read ({line}); check the file"
        ) from error


def price_for(
    device_kind: str,
    device_name: str,
    threads: int,
    override_per_hour: float | None,
    sheet: PriceSheet,
    term: Term = "on-demand",
) -> Price | None:
    """The price per hour of what a cell uses, or None when the sheet has none for it (under
    `term`).

    `device_kind`: ``cuda`` looks `device_name` (NVML's) up; ``cpu`` charges one whole core for each
    of the `threads` used, whatever the processor's name; others have no list price.
    `override_per_hour`, in dollars, goes before the sheet; UsageError unless it is finite and
    above 0.
    """
    if override_per_hour is not None:
        return _given(override_per_hour)
    if device_kind == "cuda":
        name = device_name.strip().lower()
        for offer in sheet.devices:
            if any(fnmatchcase(name, pattern.lower()) for pattern in offer.names):
                return _device_price(offer, term)
        return None
    if device_kind == "cpu" and sheet.cpu is not None:
        return _cpu_price(sheet.cpu, threads, term)
    return None


def of_several(price: Price, devices: int) -> Price:
    """The price of so many devices of one machine that a model is spread over. Its inputs, and what
    it is made of, stay those of one."""
    return replace(
        price,
        per_hour_usd=price.per_hour_usd * devices,
        basis=f"{price.basis} x {devices} devices",
        inputs={**price.inputs, "devices": devices},
    )


def _given(per_hour: float) -> Price:
    if not math.isfinite(per_hour) or per_hour <= 0:
        raise UsageError(
            f"a price of {per_hour} dollars per hour can't be; give one above 0, such as 1.25"
        )
    basis = f"{exact_usd(per_hour)} per hour, as given by the reader"
    return Price(
        float(per_hour),
        "given with --price-per-hour",
        "undated",
        basis,
        "given",
        inputs={"usd_per_hour": float(per_hour)},
    )


def _device_price(offer: DeviceOffer, term: Term) -> Price | None:
    listed, count = offer.of(term), offer.devices_per_instance
    if listed is None:
        return None
    per_hour = listed.instance_usd_per_hour / count
    shared = f" / {count} devices = {exact_usd(per_hour)}" if count > 1 else ""
    return Price(
        per_hour,
        listed.source,
        listed.date,
        f"{_words(offer, listed, term)}{shared}",
        term=term,
        inputs={
            "instance_usd_per_hour": listed.instance_usd_per_hour,
            "devices_per_instance": count,
        },
    )


def _cpu_price(offer: CpuOffer, threads: int, term: Term) -> Price | None:
    if threads < 1:
        raise ValueError(f"{threads} threads can't be priced; need 1 or more")
    listed = offer.of(term)
    if listed is None:
        return None
    cores = offer.vcpus / offer.vcpus_per_core
    per_core = listed.instance_usd_per_hour / cores
    basis = (
        f"{_words(offer, listed, term)} / {cores:g} cores of {offer.vcpus_per_core} vCPUs = "
        f"{exact_usd(per_core)} per core-hour x {threads} threads, a core each"
    )
    return Price(
        per_core * threads,
        listed.source,
        listed.date,
        basis,
        term=term,
        inputs={
            "instance_usd_per_hour": listed.instance_usd_per_hour,
            "vcpus": offer.vcpus,
            "vcpus_per_core": offer.vcpus_per_core,
            "threads": threads,
        },
    )


def _words(offer: Offer, listed: Listed, term: Term) -> str:
    return (
        f"{offer.provider} {offer.instance_type} in {offer.region}, {term} list price "
        f"{exact_usd(listed.instance_usd_per_hour)} per hour as of {listed.date}"
    )


def exact_usd(value: float) -> str:
    """Enough digits to check the arithmetic, which three would round away."""
    return f"${significant(value, 6)}"
