"""`SweepSpec`: the options of a sweep, validated whole before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from precision_explorer.economics import load_prices, parse_prices, parse_slo
from precision_explorer.endpoint import Address, is_endpoint, parse_address
from precision_explorer.errors import PrecisionExplorerError, UsageError, unknown_name
from precision_explorer.formats.catalog import CATALOG, DEFAULT_FORMATS, MIXED, is_mixed
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.option_files import read_options
from precision_explorer.records import canonical_hash
from precision_explorer.units import parse_duration, parse_share, parse_size
from precision_explorer.workload import TAILS, Neighbour, RateSearch
from precision_explorer.workload.background import as_list

EXECUTORS = ("local", "ray", "slurm")
SPLITS = ("layers", "tensors")
# Fields that say where cells run: of no sweep from before there was more than one place.
OF_PLACES = ("on", "cores", "ray_address", "slurm", "one_at_a_time")
# Options that a reader decides later: they change tables, not what is measured.
READER_FIELDS = frozenset(
    {
        "price_per_hour",
        "price",
        "grid_g_per_kwh",
        "value_per_correct",
        "cost_per_error",
        "slo",
        "quality_budget",
        "reference",
    }
)
_OF_EXECUTORS = {"ray_address": ("ray",), "on": ("ray", "slurm"), "slurm": ("slurm",)}
_TRUTH_VALUES = (
    "trust_remote_code",
    "allow_pickle",
    "until_decided",
    "find_rate",
    "audit",
    "one_at_a_time",
)
# A longer wait than some 24 days is more milliseconds than poll() takes.
_LONGEST_S = 1_000_000
# pydantic's types of errors whose own words say nothing to one who writes options.
_WORDS = {
    "tuple_type": "give a list, or values separated by commas",
    "int_parsing": "give whole numbers",
    "int_from_float": "give a whole number",
}


class SweepSpec(BaseModel):
    """One field per option of `sweep`; a spec file holds the same names (``-`` or ``_``).

    `quality_budget` is a share (0.01 for 1%), `cell_timeout` and `duration` seconds, `memory_limit`
    bytes, `price` a price file or its models. `tails`, `duration`, `background` and `find_rate`
    change the workload (`workload.changed`). `audit` checks what was measured and changes nothing
    of it, so that it can be asked of a run that is there. The reference is always among `formats`:
    one that was not named is put in front.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: tuple[str, ...] = ("demo",)
    task: tuple[str, ...] = ()
    # Before the formats, which are completed by it.
    reference: str = "fp32"
    formats: tuple[str, ...] = Field(default=DEFAULT_FORMATS, validate_default=True)
    device: str = "auto"
    runtime: tuple[str, ...] = ("eager",)
    batch_size: tuple[int, ...] = (1, 8)
    batch_tokens: int | None = None
    limit: int | None = None
    until_decided: bool = False
    calibration: str | None = None
    workload: str = "single-stream"
    tails: str | None = None
    duration: float | None = Field(default=None, gt=0, le=_LONGEST_S)
    background: tuple[str, ...] | None = None
    find_rate: bool = False
    audit: bool = False
    out: str | None = None
    cell_timeout: float = Field(default=3600.0, gt=0, le=_LONGEST_S)
    price_per_hour: float | None = None
    price: dict[str, Any] | None = None
    value_per_correct: float | None = Field(default=None, ge=0)
    cost_per_error: float | None = Field(default=None, ge=0)
    grid_g_per_kwh: float | None = Field(default=None, ge=0)
    slo: str | None = None
    quality_budget: float = Field(default=0.01, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**63)
    executor: str = "local"
    on: tuple[str, ...] = ()
    cores: int | None = Field(default=None, ge=1)
    ray_address: str | None = None
    slurm: tuple[str, ...] = ()
    one_at_a_time: bool = False
    devices: int | None = Field(default=None, ge=1)
    split: str = "layers"
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    threads: int | None = Field(default=None, ge=1)
    memory_limit: int | None = Field(default=None, gt=0)
    allow_metric: tuple[str, ...] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML's `yes` and `on` are truth values, which would else count as 1.
        if isinstance(value, bool) and info.field_name not in _TRUTH_VALUES:
            raise ValueError(f"{str(value).lower()} is no value for it; see sweep --help")
        return value

    @field_validator(
        "model",
        "task",
        "formats",
        "runtime",
        "batch_size",
        "allow_metric",
        "on",
        "slurm",
        mode="before",
    )
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A comma-separated text or a single value stands for a list."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int) else value

    @field_validator("background", mode="before")
    @classmethod
    def _background(cls, value: Any) -> Any:
        return value if value is None else as_list(value)

    @field_validator("background")
    @classmethod
    def _neighbours(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for one in value or ():
            try:
                Neighbour.model_validate(one)
            except ValidationError as error:
                raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return value

    @field_validator("quality_budget", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return parse_share(value) if isinstance(value, str) else value

    @field_validator("duration", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return parse_duration(value) if isinstance(value, str) else value

    @field_validator("memory_limit", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("model", "task", "runtime")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @field_validator("formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no format; give some as in fp32,int8-dynamic, or all")
        for name in value:
            if name == f"{MIXED}:":
                raise ValueError("mixed: names no recipe; write it as mixed:recipe.yaml")
            if name != "all" and name not in CATALOG and not is_mixed(name):
                raise ValueError(unknown_name("format", name, (*CATALOG, "all")))
        mixed = tuple(filter(is_mixed, value))
        names = (*CATALOG, *mixed) if "all" in value else value
        reference = info.data.get("reference", names[0])
        return tuple(dict.fromkeys(names if reference in names else (reference, *names)))

    @field_validator("limit")
    @classmethod
    def _limit(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"limit {value} leaves no example; give 1 or more, or leave it out")
        return value

    @field_validator("batch_size")
    @classmethod
    def _batch_sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("batch-size takes whole numbers of at least 1, as in 1,8")
        return tuple(sorted(set(value)))

    @field_validator("batch_tokens")
    @classmethod
    def _batch_tokens(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"batch-tokens {value} has room for nothing; give 1 or more, as 1024")
        return value

    @field_validator("memory_limit")
    @classmethod
    def _sensible_size(cls, value: int | None) -> int | None:
        if value is not None and value < 1_000_000:
            raise ValueError(f"memory-limit {value} bytes is too small; give a unit, as in 8GB")
        return value

    @field_validator("price", mode="before")
    @classmethod
    def _price_file(cls, value: Any) -> Any:
        """The file's models themselves: the run must not depend on a file that may change."""
        if value is None:
            return None
        return as_document(value)

    @field_validator("price_per_hour")
    @classmethod
    def _price(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"price-per-hour {value} is no price; give dollars above 0")
        return value

    @model_validator(mode="after")
    def _names(self) -> SweepSpec:
        self._check_endpoints()
        given: list[tuple[str, str, Any]] = [("runtime", r, RUNTIMES) for r in self.local_runtimes]
        if self.local_runtimes or "reference" not in self.model_fields_set:
            given.append(("format", self.reference, CATALOG))
        given += [("executor", self.executor, EXECUTORS), ("split", self.split, SPLITS)]
        for name, one, known in given:
            if one not in known:
                raise ValueError(unknown_name(name, one, known))
        self._check_places()
        if not self.model:
            raise ValueError("names no model; give one by --model, such as demo")
        if not self.runtime:
            raise ValueError(f"names no runtime; give {' or '.join(RUNTIMES)}")
        if self.tails is not None and self.tails not in TAILS:
            raise ValueError(unknown_name("tails", self.tails, TAILS))
        if self.duration is not None and self.duration >= self.cell_timeout:
            raise ValueError(
                f"duration {self.duration:g} s leaves no time within the cell-timeout of "
                f"{self.cell_timeout:g} s; raise --cell-timeout"
            )
        if self.price is not None and self.price_per_hour is not None:
            raise ValueError("price and price-per-hour are two prices; give one of them")
        if self.slo is not None:
            parse_slo(self.slo)
        elif self.find_rate:
            raise ValueError(
                "--find-rate needs the objective that the rate is to hold; give --slo p99=200ms"
            )
        return self

    def _check_places(self) -> None:
        """Options of one executor are not silently ignored by another."""
        for name, executors in _OF_EXECUTORS.items():
            if getattr(self, name) and self.executor not in executors:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option} is for --executor {' or '.join(executors)}; leave it out, or name "
                    "that executor"
                )
        if self.executor != "local" and self.endpoints:
            raise ValueError(
                f"endpoints are asked from this machine, not by --executor {self.executor}; leave "
                "one of them out"
            )
        if self.executor == "local":
            if self.cores is not None and self.device.startswith("cuda"):
                raise ValueError(
                    f"cores divide a machine between places, and device {self.device} is one; use "
                    "--device all, or leave cores out"
                )
            if self.one_at_a_time and self.device != "all" and self.cores is None:
                raise ValueError(
                    "one-at-a-time is for several places, as --device all or --cores N make them; "
                    "leave it out"
                )
        alone = self.executor != "local" or self.device == "all" or self.cores is not None
        if alone and (self.devices or 1) > 1:
            raise ValueError(
                f"devices {self.devices} is for cells that run in turn on this machine; a place of "
                "--device all, --cores or another executor has one; leave it out"
            )
        if alone and self.split != "layers":
            raise ValueError(
                f"split {self.split} is for cells that run in turn on this machine; a place of "
                "--device all, --cores or another executor has one device; leave it out"
            )
        for one in self.on:
            # A name of a folder, where there are several.
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", one):
                raise ValueError(f"on {one!r} is no type of a device; give some as in h100,l4")
        for one in self.slurm:
            if not re.fullmatch(r"[a-z_]+=[^,=]+", one):
                raise ValueError(f"slurm {one!r} is no setting; give some as in partition=gpu")

    def _check_endpoints(self) -> None:
        addresses = self.endpoints
        labels = [address.format for address in addresses]
        if len(set(labels)) < len(labels):
            raise ValueError(
                "two endpoints are of one format, so that their rows could not be told apart; "
                "declare each one's, as in endpoint:bf16:URL,endpoint:fp8:URL"
            )
        if not addresses:
            return
        if not self.local_runtimes and self.formats_named:
            raise ValueError(
                "formats are what is made here, and a server's is its own; declare it in the "
                "runtime, as endpoint:bf16:URL, and leave formats out"
            )
        named = "reference" in self.model_fields_set and not self.local_runtimes
        if named and self.served_reference is None:
            known = ", ".join(address.label or address.format for address in addresses)
            raise ValueError(f"reference {self.reference} is no endpoint's format; give {known}")
        if self.until_decided:
            raise ValueError("until-decided is not for endpoints; leave it out")

    @property
    def local_runtimes(self) -> tuple[str, ...]:
        """The runtimes in which a model is run here."""
        return tuple(runtime for runtime in self.runtime if not is_endpoint(runtime))

    @property
    def endpoints(self) -> tuple[Address, ...]:
        """The servers that are asked."""
        return tuple(parse_address(runtime) for runtime in self.runtime if is_endpoint(runtime))

    @property
    def served_reference(self) -> str | None:
        """The format of the endpoint that other endpoints are compared with: the one that is named
        as the reference, else the first. None beside runtimes here, whose reference is theirs."""
        if self.local_runtimes or not self.endpoints:
            return None
        if "reference" not in self.model_fields_set:
            return self.endpoints[0].format
        fit = (a.format for a in self.endpoints if self.reference in (a.label, a.format))
        return next(fit, None)

    @property
    def search(self) -> RateSearch | None:
        """The objective at which a rate is to be found; None where none is."""
        if not self.find_rate or self.slo is None:
            return None
        slo = parse_slo(self.slo)
        return RateSearch.model_validate({"percentile": slo.name, "limit_s": slo.limit_s})

    def by_type(self) -> list[SweepSpec]:
        """This sweep for each type of device that `on` names, in a folder of its own: `out`'s of
        that name, or one with another default name. Cells of unlike devices are cells of their
        own, and no comparison is made between them."""
        if len(self.on) < 2:
            return [self]
        return [
            self.model_copy(update={"on": (one,), "out": self.out and str(Path(self.out) / one)})
            for one in self.on
        ]

    @property
    def formats_named(self) -> bool:
        """Whether formats were named, rather than left to the default."""
        return "formats" in self.model_fields_set

    def measuring_hash(self) -> str:
        """6 hex digits over what is measured: the same spec gives the same name of the run."""
        # Metrics that may be fetched are computed afterwards, from what was measured, and audits
        # are taken of it.
        skipped = READER_FIELDS | {"out", "cell_timeout", "allow_metric", "audit"}
        if self.until_decided:
            skipped -= {"quality_budget", "reference"}  # They say when the scoring stops.
        else:
            skipped |= {"until_decided"}  # Sweeps from before there was any keep their name.
        if self.find_rate:
            skipped -= {"slo"}  # It says what is searched.
        else:
            skipped |= {"find_rate"}  # As above.
        later = ("devices", "batch_tokens", "tails", "duration", "background")
        skipped |= {name for name in later if getattr(self, name) is None}  # As above.
        skipped |= set() if self.allow_pickle else {"allow_pickle"}  # As above.
        skipped |= {"split"} if self.split == "layers" else set()  # As above.
        # Where cells run is no part of what is measured, but on which devices, or how many cores.
        skipped |= {"ray_address", "slurm", "one_at_a_time"}
        skipped |= {name for name in ("on", "cores") if not getattr(self, name)}
        measured = self.model_dump(mode="json", exclude=set(skipped)) | {"executor": "local"}
        return canonical_hash(measured, 6)


def as_document(price: Any) -> dict[str, Any]:
    """The document of the price models in the file that `price` names, or that it is."""
    prices = parse_prices(price) if isinstance(price, dict) else load_prices(str(price))
    return prices.model_dump(mode="json")


def _one_line(error: ValidationError) -> str:
    """pydantic's first finding as one line with the option's name."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
    message = _WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "extra_forbidden":
        names = [name.replace("_", "-") for name in SweepSpec.model_fields]
        return unknown_name("option", where, names)
    if where and where not in message and not message.startswith("unknown"):
        return f"{where}: {message}"
    return message


def make_spec(options: dict[str, Any]) -> SweepSpec:
    """A spec from options given by name; UsageError in one line."""
    try:
        return SweepSpec.model_validate(options)
    except ValidationError as error:
        raise UsageError(_one_line(error)) from error


def load_spec(path: Path, overrides: dict[str, Any]) -> SweepSpec:
    """The spec in a YAML file, with `overrides` (the command line's) over it."""
    options = read_options(path, "spec", "limit: 300")
    try:
        return make_spec(options | overrides)
    except PrecisionExplorerError as error:
        raise UsageError(f"{path}: {error}") from error


def spec_from(options: dict[str, Any]) -> SweepSpec:
    """A spec from options as the command line and Python give them: those that are None or an empty
    tuple were not given, and `spec` is a file over which the others win."""
    given = {k: v for k, v in options.items() if v is not None and v != ()}
    path = given.pop("spec", None)
    return load_spec(Path(path), given) if path is not None else make_spec(given)
