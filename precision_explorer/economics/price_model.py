"""Price models of the reader's own, from a YAML file: an hourly price, a list price under another
term, or ownership (capital and energy)."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from precision_explorer.economics.formulas import ownership_per_hour
from precision_explorer.economics.price_sheet import (
    CpuOffer,
    DeviceOffer,
    Price,
    PriceSheet,
    Term,
    exact_usd,
    load_sheet,
    price_for,
)
from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.option_files import read_options
from precision_explorer.units import significant

MEASURED = "measured"
"""What stands for `power_w` where the meter's own figure is to be taken."""
# A number that YAML wrote as a text or a truth value is none.
_Usd = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Model(BaseModel):
    # Written by hand: a misspelt key must not be dropped in silence.
    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str = "*"
    """Pattern of the device's name, without regard to case; * is any text."""

    def fits(self, device_name: str) -> bool:
        """Whether the model is for this device."""
        return fnmatchcase(device_name.strip().lower(), self.device.strip().lower())


class _Sourced(_Model):
    source: str = Field(min_length=1)
    date: str = Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")

    @field_validator("date", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads 2026-11-26 as a date and 2026 as a number.
        return value if isinstance(value, (bool, float)) else str(value)


class Hourly(_Sourced):
    """`usd_per_hour` of what a cell uses: the device, or all CPU threads of it."""

    kind: Literal["hourly"]
    usd_per_hour: Annotated[_Usd, Field(gt=0)]
    term: Term | None = None


class Ownership(_Sourced):
    """An owned device (`ownership_per_hour`). `power_w`: watts while it serves, or ``measured``:
    those of the row's own window."""

    kind: Literal["ownership"]
    purchase_usd: _Usd
    life_years: _Usd
    utilisation: _Usd
    power_w: _Usd | Literal["measured"]
    pue: _Usd
    usd_per_kwh: _Usd

    def per_hour(self, power_w: float) -> float:
        """Dollars per hour of use; UsageError for a figure that can't be."""
        found = ownership_per_hour(
            self.purchase_usd,
            self.life_years,
            self.utilisation,
            power_w,
            self.pue,
            self.usd_per_kwh,
        )
        assert found is not None
        return found


class Listed(_Model):
    """A list price under `term`: of the bundled sheet, or of `devices` and `cpu` written here as
    that has them."""

    kind: Literal["list"]
    term: Term = "on-demand"
    devices: list[DeviceOffer] | None = None
    cpu: CpuOffer | None = None

    @property
    def sheet(self) -> PriceSheet:
        """Where the price is looked up."""
        if self.devices is None and self.cpu is None:
            return load_sheet()
        return PriceSheet(
            schema_version=1, currency="USD", devices=self.devices or [], cpu=self.cpu
        )


Model = Annotated[Hourly | Ownership | Listed, Field(discriminator="kind")]
KINDS = ("hourly", "ownership", "list")


class Prices(BaseModel):
    """The models of one file; the first whose `device` fits is a row's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prices: list[Model] = Field(min_length=1)
    file: str = ""
    """The file's name, for messages."""

    def model_for(self, device_name: str) -> Hourly | Ownership | Listed | None:
        """The device's model; None where the file has none."""
        return next((model for model in self.prices if model.fits(device_name)), None)


def load_prices(path: Path | str) -> Prices:
    """The price models in the YAML file at `path`: one at its top, or several under ``prices``.
    UsageError in one line for what can't be."""
    path = Path(path)
    options = read_options(path, "price", "kind: hourly")
    currency = options.pop("currency", None)
    if currency != "USD":
        known = "names no currency" if currency is None else f"currency '{currency}' is not known"
        raise UsageError(
            f"price file {path.name}: {known}; figures are in US dollars, so convert them and "
            "write currency: USD"
        )
    models = options.pop("prices", None)
    if models is not None and options:
        raise UsageError(
            f"price file {path.name}: {', '.join(sorted(options))} beside prices; put it into the "
            "entries that it is for"
        )
    return parse_prices({"prices": [options] if models is None else models, "file": path.name})


def parse_prices(document: Any) -> Prices:
    """`Prices` of a document as `Prices.model_dump` makes it; UsageError in one line."""
    name = document.get("file", "") if isinstance(document, dict) else ""
    try:
        found = Prices.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"price file {name}: {_one_line(error, document)}") from error
    for model in found.prices:
        if isinstance(model, Ownership):
            _check_ownership(model, name)
    return found


def _check_ownership(model: Ownership, name: str) -> None:
    power_w = 0.0 if model.power_w == MEASURED else float(model.power_w)
    try:
        per_hour = model.per_hour(power_w)
    except UsageError as error:
        raise UsageError(f"price file {name}: {error}") from error
    # Measured watts that cost nothing change nothing.
    if per_hour == 0 and (model.power_w != MEASURED or model.usd_per_kwh == 0):
        raise UsageError(f"price file {name}: an hour comes to 0 dollars; correct its figures")


def _one_line(error: ValidationError, document: Any) -> str:
    first = error.errors()[0]
    # The place is (prices, number, kind, key): the kind is said by the file itself.
    parts = [str(part) for part in first["loc"][1:] if part not in (*KINDS, "float")]
    parts = [part for part in parts if not part.startswith("literal")]
    prices = document.get("prices") if isinstance(document, dict) else None
    several = isinstance(prices, list) and len(prices) > 1
    where = ".".join(parts if several else parts[1:])
    if first["type"] == "union_tag_not_found":
        return f"no kind; write kind: {' or kind: '.join(KINDS)}"
    if first["type"] == "union_tag_invalid":
        return unknown_name("kind", str(first["ctx"]["tag"]), KINDS)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'; docs/economics.md has those of each kind"
    return f"{where or 'prices'}: {first['msg']}; docs/economics.md has an example"


def price_by(
    prices: Prices,
    device_kind: str,
    device_name: str,
    threads: int,
    measured_power_w: float | None,
) -> Price | None:
    """The price per hour of what a cell uses by the reader's `prices`; None where no model is for
    the device, where its sheet has no such term, or where the power was to be measured and no meter
    did (`measured_power_w` None)."""
    model = prices.model_for(device_name)
    if model is None:
        return None
    if isinstance(model, Listed):
        return price_for(device_kind, device_name, threads, None, model.sheet, model.term)
    if isinstance(model, Hourly):
        bought = f", {model.term}" if model.term else ""
        basis = f"{exact_usd(model.usd_per_hour)} per hour{bought}, by {prices.file}"
        inputs = {"usd_per_hour": model.usd_per_hour}
        return Price(
            model.usd_per_hour, model.source, model.date, basis, "hourly", model.term, inputs
        )
    power_w = measured_power_w if model.power_w == MEASURED else float(model.power_w)
    return None if power_w is None else _owned(model, power_w)


def owned_inputs(model: Ownership, power_w: float) -> dict[str, float]:
    """What `ownership_per_hour` takes, by name, in its order."""
    return {
        "purchase_usd": model.purchase_usd,
        "life_years": model.life_years,
        "utilisation": model.utilisation,
        "power_w": power_w,
        "pue": model.pue,
        "usd_per_kwh": model.usd_per_kwh,
    }


def _owned(model: Ownership, power_w: float) -> Price | None:
    per_hour = model.per_hour(power_w)
    if not 0 < per_hour < math.inf:
        return None
    energy = power_w / 1000 * model.pue * model.usd_per_kwh
    seen = " measured" if model.power_w == MEASURED else ""
    basis = (
        f"owned: {exact_usd(model.purchase_usd)} / ({model.life_years:g} years x 8,760 h x "
        f"{model.utilisation:g} of them used) = {exact_usd(per_hour - energy)}, plus "
        f"{significant(power_w, 4)} W{seen} / 1,000 x PUE {model.pue:g} x "
        f"{exact_usd(model.usd_per_kwh)} per kWh = {exact_usd(energy)}"
    )
    inputs = owned_inputs(model, power_w)
    return Price(per_hour, model.source, model.date, basis, "ownership", "owned", inputs)
