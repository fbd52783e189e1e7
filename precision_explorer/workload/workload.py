"""`Workload`: the scenario with its stop rules, from a preset or a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from precision_explorer.errors import UsageError, near_names, unknown_name
from precision_explorer.option_files import read_options
from precision_explorer.paths import expand_user

SCENARIOS = ("single-stream",)
_LATER = ("server", "bursty", "replay", "offline")


class Workload(BaseModel):
    """One scenario of MLPerf Inference's (Reddi et al. 2020) and the rules of its measurement.

    `single-stream`: the next request when the last is done. Measured until `min_requests` and
    `min_seconds` are both met, after warm-up by the same pair of rules; `budget_seconds` bounds the
    whole from the first, cold request. `energy_seconds` is the least window where a meter's counter
    is read over it. Offline: `offline_seconds` and `offline_min_batches` per batch size,
    `offline_budget_seconds` for all sizes of a cell. For language models a request is a document's
    first `prompt_tokens` tokens and `output_tokens` greedy ones. All of it is divided over `rounds`
    (`one_round`), between which the other formats are measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(default="single-stream", min_length=1, max_length=64)
    scenario: str = "single-stream"
    min_requests: int = Field(default=30, ge=1)
    min_seconds: float = Field(default=3.0, ge=0)
    warmup_requests: int = Field(default=3, ge=0)
    warmup_seconds: float = Field(default=0.5, ge=0)
    budget_seconds: float = Field(default=60.0, gt=0)
    energy_seconds: float = Field(default=5.0, ge=0)
    offline_seconds: float = Field(default=2.0, ge=0)
    offline_min_batches: int = Field(default=2, ge=1)
    offline_budget_seconds: float = Field(default=20.0, gt=0)
    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=16, ge=1)
    rounds: int = Field(default=3, ge=1, le=100)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        # YAML's `yes` and `on` are truth values, which would else count as 1.
        if isinstance(value, bool):
            raise ValueError(f"{str(value).lower()} is no number")
        return value

    @field_validator("scenario")
    @classmethod
    def _known_scenario(cls, value: str) -> str:
        if value not in SCENARIOS:
            raise ValueError(_unknown("scenario", value, SCENARIOS))
        return value

    def rules(self) -> dict[str, Any]:
        """All fields as JSON-able values: part of a cell's method, and enough to make it again."""
        return self.model_dump(mode="json")

    def one_round(self, first: bool) -> Workload:
        """The rules of one of `rounds`: least numbers (rounded up), seconds and budgets divided by
        them. The warm-up is whole in the `first` round of a process and divided in later ones.
        `energy_seconds` holds in each, since a meter's counter needs its window."""
        n = self.rounds
        counts = ["min_requests", "offline_min_batches"]
        seconds = ["min_seconds", "budget_seconds", "offline_seconds", "offline_budget_seconds"]
        if not first:
            counts.append("warmup_requests")
            seconds.append("warmup_seconds")
        shares: dict[str, Any] = {name: -(-getattr(self, name) // n) for name in counts}
        return self.model_copy(update=shares | {s: getattr(self, s) / n for s in seconds})


PRESETS: dict[str, Workload] = {"single-stream": Workload()}


def _unknown(kind: str, name: str, known: tuple[str, ...]) -> str:
    if name in _LATER:
        return f"{kind} '{name}' is not in this release; use {' or '.join(known)}"
    return unknown_name(kind, name, known)


def load_workload(name_or_path: str | Path | None) -> Workload:
    """A preset by name (None: ``single-stream``) or a YAML file with `Workload`'s fields.

    UsageError in one line for an unknown name, an unreadable file, an unknown or invalid value.
    """
    if name_or_path is None:
        return PRESETS["single-stream"]
    text = str(name_or_path)
    if text in PRESETS:
        return PRESETS[text]
    path = expand_user(name_or_path)
    if path.suffix.lower() in (".yaml", ".yml") or len(path.parts) > 1 or path.is_file():
        return _from_file(path)
    message = _unknown("workload", text, tuple(PRESETS))
    raise UsageError(message if message.endswith("?") else f"{message}, or give a .yaml file")


def _from_file(path: Path) -> Workload:
    values = read_options(path, "workload", "min_requests: 30")
    values.setdefault("name", path.stem)
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else "workload"
    if first["type"] == "extra_forbidden":
        return unknown_name("key", key, near_names(key, Workload.model_fields) or _keys())
    message = first["msg"].removeprefix("Value error, ")
    return message if key == "scenario" else f"{key}: {message}; correct the value"


def _keys() -> list[str]:
    return list(Workload.model_fields)
