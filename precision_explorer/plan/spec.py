"""`SweepSpec`: the options of a sweep, validated whole before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from precision_explorer.economics import parse_slo
from precision_explorer.errors import PrecisionExplorerError, UsageError, near_names, unknown_name
from precision_explorer.formats.catalog import CATALOG, DEFAULT_FORMATS
from precision_explorer.records import canonical_hash
from precision_explorer.units import parse_share, parse_size

RUNTIMES = ("eager",)
EXECUTORS = ("local",)
# Options that a reader decides later: they change tables, not what is measured.
READER_FIELDS = frozenset({"price_per_hour", "slo", "quality_budget", "reference"})
_SPEC_BYTES = 1_000_000


class SweepSpec(BaseModel):
    """One field per option of `sweep`; a spec file holds the same names (``-`` or ``_``).

    `quality_budget` is a share (0.01 for 1%), `cell_timeout` seconds, `memory_limit` bytes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: tuple[str, ...] = ("demo",)
    task: tuple[str, ...] = ()
    formats: tuple[str, ...] = DEFAULT_FORMATS
    reference: str = "fp32"
    device: str = "auto"
    runtime: tuple[str, ...] = ("eager",)
    batch_size: tuple[int, ...] = (1, 8)
    limit: int | None = None
    workload: str = "single-stream"
    out: str | None = None
    cell_timeout: float = Field(default=3600.0, gt=0)
    price_per_hour: float | None = None
    slo: str | None = None
    quality_budget: float = Field(default=0.01, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    executor: str = "local"
    revision: str | None = None
    trust_remote_code: bool = False
    threads: int | None = Field(default=None, ge=1)
    memory_limit: int | None = Field(default=None, gt=0)

    @field_validator("model", "task", "formats", "runtime", "batch_size", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """A comma-separated text or a single value stands for a list."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int) else value

    @field_validator("quality_budget", mode="before")
    @classmethod
    def _share(cls, value: Any) -> Any:
        return parse_share(value) if isinstance(value, str) else value

    @field_validator("memory_limit", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else value

    @field_validator("formats")
    @classmethod
    def _formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no format")
        if "all" in value:
            return tuple(CATALOG)
        for name in value:
            if name not in CATALOG:
                raise ValueError(unknown_name("format", name, CATALOG))
        return tuple(dict.fromkeys(value))

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

    @field_validator("price_per_hour")
    @classmethod
    def _price(cls, value: float | None) -> float | None:
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"price-per-hour {value} is no price; give dollars above 0")
        return value

    @model_validator(mode="after")
    def _names(self) -> SweepSpec:
        if self.reference not in self.formats:
            hint = unknown_name("format", self.reference, CATALOG)
            in_catalog = self.reference in CATALOG
            wanted = f"add {self.reference} to --formats" if in_catalog else hint
            raise ValueError(f"the reference {self.reference} is not among the formats; {wanted}")
        given = [("runtime", one, RUNTIMES) for one in self.runtime]
        for name, one, known in [*given, ("executor", self.executor, EXECUTORS)]:
            if one not in known:
                raise ValueError(f"{unknown_name(name, one, known)} in this release")
        if not self.model:
            raise ValueError("names no model")
        if self.slo is not None:
            parse_slo(self.slo)
        return self

    def measuring_hash(self) -> str:
        """6 hex digits over what is measured: the same spec gives the same name of the run."""
        skipped = READER_FIELDS | {"out", "cell_timeout"}
        return canonical_hash(self.model_dump(mode="json", exclude=set(skipped)), 6)


def _one_line(error: ValidationError) -> str:
    """pydantic's first finding as one line with the option's name."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = near_names(where.replace("-", "_"), SweepSpec.model_fields)
        hint = f"; did you mean {near[0].replace('_', '-')}?" if near else ""
        return f"unknown option '{where}'{hint}"
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
    try:
        if path.stat().st_size > _SPEC_BYTES:
            raise UsageError(f"{path} is larger than 1 MB; a spec file holds options only")
        document = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the spec file {path}; check the path") from error
    except yaml.YAMLError as error:
        line = str(error).splitlines()[0]
        raise UsageError(f"{path} is no YAML ({line}); see docs/spec.md for an example") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no YAML mapping of options; write lines such as 'limit: 300'")
    options = {str(k).replace("-", "_"): v for k, v in document.items()}
    try:
        return make_spec(options | overrides)
    except PrecisionExplorerError as error:
        raise UsageError(f"{path}: {error}") from error
