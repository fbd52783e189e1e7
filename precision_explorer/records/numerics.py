"""What `inspect` stores: the numerics of each layer in each format, and how they came about."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from precision_explorer.bounded import json_file
from precision_explorer.errors import StoreError
from precision_explorer.records.record import Caution, Environment, Execution

NUMERICS_SCHEMA = 1
NUMERICS_FILE = "numerics.json"

SqnrState = Literal["measured", "exact", "not-finite", "no-signal", "unavailable"]
LayerKind = Literal["linear", "head", "embedding", "norm"]


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class LayerNumerics(_Data):
    """One layer in one format; the fields are the columns of numerics.csv (docs/numerics.md).

    Magnitudes are those of the reference's values, shares those of them that the format's number
    type would treat so. Missing is None.
    """

    order: int
    layer: str
    kind: LayerKind
    converted: bool
    rows: int
    output_state: SqnrState
    output_sqnr_db: float | None = None
    local_state: SqnrState
    local_sqnr_db: float | None = None
    weight_state: SqnrState
    weight_sqnr_db: float | None = None
    non_finite_outputs: int = 0
    weight_type: str | None = None
    weight_scale: str | None = None
    weight_elements: int | None = None
    weight_max_abs: float | None = None
    weight_min_abs: float | None = None
    weight_overflow_share: float | None = None
    weight_saturated_share: float | None = None
    weight_subnormal_share: float | None = None
    weight_flushed_share: float | None = None
    input_type: str | None = None
    input_scale: str | None = None
    input_max_abs: float | None = None
    input_min_abs: float | None = None
    input_overflow_share: float | None = None
    input_saturated_share: float | None = None
    input_subnormal_share: float | None = None
    input_flushed_share: float | None = None
    input_outlier_ratio: float | None = None
    output_type: str | None = None
    output_max_abs: float | None = None
    output_overflow_share: float | None = None


class NonFinite(_Data):
    """The first module, in the order of execution, whose output was not finite where the
    reference's was. `after` is the last module before it whose output was finite."""

    module: str
    example: str
    inputs_finite: bool
    input_max_abs: float | None
    """Of the finite ones, in the format's own run."""
    reference_output_max_abs: float | None
    type: str
    type_largest: float | None
    after: str | None
    examples: int
    """How many of the examples had such a module."""


class FormatNumerics(_Data):
    """One format: its layers, or why there are none."""

    format: str
    status: Literal["ok", "skipped", "failed"]
    reason: str
    """Why the format is labelled as it is; of a skip or a failure, why."""
    execution: Execution
    kernel: str | None = None
    compute_dtype: str | None = None
    layers: list[LayerNumerics] = Field(default_factory=list)
    first_non_finite: NonFinite | None = None
    cautions: list[Caution] = Field(default_factory=list)


class NumericsDocument(_Data):
    """All that `inspect` found; numerics.csv, .md and .html are made from it alone."""

    schema_version: int = NUMERICS_SCHEMA
    model: str
    revision: str
    task: str
    task_version: int
    device: str
    reference: str
    seed: int
    max_tokens: int
    """Longest input, in tokens; longer ones were cut."""
    examples: list[str]
    tokens: int
    cautions: list[Caution]
    environment: Environment
    formats: list[FormatNumerics]


def read_numerics(folder: Path) -> NumericsDocument:
    """The document in `folder`; StoreError in one line where there is none that can be read."""
    path = folder / NUMERICS_FILE
    try:
        document: Any = json_file(path)
        if isinstance(document, dict) and document.get("schema_version", 0) > NUMERICS_SCHEMA:
            raise StoreError(f"{path} was written by a newer release; update precision-explorer")
        return NumericsDocument.model_validate(document)
    except OSError as error:
        raise StoreError(f"{folder} holds no {NUMERICS_FILE}; make it by: inspect") from error
    except (ValueError, ValidationError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is no record of inspect; run inspect again") from error
