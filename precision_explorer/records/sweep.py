"""`SweepDocument`: what ``sweep.json`` of a run's folder holds. The program reads the document as
it is; these types say what others may rely on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from precision_explorer.records.record import Caution, Environment


class _Data(BaseModel):
    # A newer minor release may add fields.
    model_config = ConfigDict(extra="ignore")


class SweptCell(_Data):
    """One cell of the plan."""

    cell_id: str
    model: str
    task: str
    format: str
    runtime: str
    device: str
    execution: str
    """``native``, ``dequantized``, ``emulated`` or ``unsupported``: what the device promised."""
    reason: str
    skip: str | None
    """Why it is not run; None where it is."""


class SweptPlan(_Data):
    """All cells in the order in which they are run."""

    cells: list[SweptCell]
    method_ids: list[str]


class SweptModel(_Data):
    """A model: its name, which is no path, and what pins it."""

    name: str
    revision: str
    """The hub's commit, ``files:`` and a hash of the folder's files, or ``synthetic:`` and one of
    what random weights were made with."""
    cautions: list[Caution]


class SweptTask(_Data):
    """A task: what a reader must know of its card."""

    name: str
    version: int
    kind: str
    metric: str
    higher_is_better: bool | None = None
    """Of a metric that the registry does not know."""
    n: int
    licence: str
    source: str


class SweepDocument(_Data):
    """One JSON per run, ``sweep.json``; `schema_version` stands first."""

    schema_version: int
    run: str
    spec: dict[str, Any]
    """The options of the sweep by their names, in which names stand for paths."""
    reader: dict[str, Any]
    """Those of them that a reader decides: price, objective, budget, reference."""
    plan: SweptPlan
    batch_tokens: dict[str, int] = Field(default_factory=dict)
    """Padded tokens of a batch of the quality pass, as they were probed."""
    models: list[SweptModel]
    tasks: list[SweptTask]
    groups: list[dict[str, Any]] = Field(default_factory=list)
    """Groups of tasks that have a score of their own."""
    environment: Environment
    device: dict[str, Any]
    """Facts of the device."""
    methods: dict[str, dict[str, Any]]
    """Method id to what cells must share to be comparable."""
