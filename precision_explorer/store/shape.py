"""What those who read a run rely on in its ``sweep.json``, which may come from a stranger."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from precision_explorer.records import Caution, Environment


class _Strict(BaseModel):
    # A newer minor release may add fields; the readers are given the document itself.
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Reader(_Strict):
    reference: str
    quality_budget: float
    price_per_hour: float | None
    slo: str | None
    price: dict[str, Any] | None = None
    """Checked where it is read (`economics`)."""
    grid_g_per_kwh: float | None = None
    value_per_correct: float | None = None
    cost_per_error: float | None = None


class _Cell(_Strict):
    cell_id: str
    format: str
    task: str


class _Plan(_Strict):
    cells: list[_Cell]


class _Model(_Strict):
    name: str
    revision: str
    cautions: list[Caution]


class _Task(_Strict):
    name: str
    version: int
    kind: str
    metric: str
    higher_is_better: bool | None = None
    n: int
    licence: str
    source: str


class _GroupMetric(_Strict):
    metric: str
    by_size: bool


class _Group(_Strict):
    name: str
    tasks: list[str]
    metrics: list[_GroupMetric]


class _Method(_Strict):
    """Of the workload no more: its words are made of it where the table is (`table.context`)."""

    workload: dict[str, Any]
    batch_plan: dict[str, Any]
    rules: dict[str, Any]


class _Device(_Strict):
    """Of the facts of a device those that a table shows."""

    kind: str | None = None
    cpu_flags: list[str] | None = None


class _Sweep(_Strict):
    run: str
    spec: dict[str, Any] = Field(default_factory=dict)
    reader: _Reader
    plan: _Plan
    batch_tokens: dict[str, int] = Field(default_factory=dict)
    models: list[_Model]
    tasks: list[_Task]
    groups: list[_Group] = Field(default_factory=list)
    environment: Environment
    device: dict[str, Any] = Field(default_factory=dict)
    methods: dict[str, _Method]

    @field_validator("environment")
    @classmethod
    def _shown(cls, found: Environment) -> Environment:
        _Device.model_validate(found.device, strict=True)
        return found


def fault_of(sweep: Any) -> str | None:
    """Where a sweep.json is not what its readers rely on, and what is expected there; None where it
    is."""
    try:
        _Sweep.model_validate(sweep, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        return f"{place}: {first['msg']}"[:200]
    return None


def planned_ids(sweep: dict[str, Any] | None) -> list[str]:
    """The ids of the cells of a plan that stands in a folder to be written to; none where it is
    damaged: it is about to be replaced."""
    plan = (sweep or {}).get("plan")
    cells = plan.get("cells") if isinstance(plan, dict) else None
    listed = cells if isinstance(cells, list) else []
    known = [cell.get("cell_id") for cell in listed if isinstance(cell, dict)]
    return [cell_id for cell_id in known if isinstance(cell_id, str)]
