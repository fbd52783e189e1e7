"""Scores computed after a cell, from its stored answers: one file per cell beside the record, which
they leave as it is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from precision_explorer.bounded import json_document
from precision_explorer.errors import StoreError

SCORES_VERSION = 1


class AddedScore(BaseModel):
    """One metric of one cell. `value` is None where it could not be computed, `error` says why.

    `by` is what computed it (``evaluate 0.4.6``), `module` the hash of the module's Python,
    `results` every number that it returned. `draws` are its values on resampled examples, or on
    resampled groups of them: the first ``len(draws)`` of ``stats.resample_counts(units,
    draws_of, seed)``, so that two cells of the same examples are drawn as pairs; empty where a
    thousand computations would take too long. `again` is the value of the same examples' second
    pass in other batches, of a reference that had one: with `value` it gives the noise floor.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    value: float | None
    again: float | None = None
    by: str
    module: str | None = None
    results: dict[str, float] = Field(default_factory=dict)
    higher_is_better: bool | None = None
    draws: list[float] = Field(default_factory=list)
    draws_of: int = 0
    seed: int = 0
    error: str | None = None


class AddedScores(BaseModel):
    """`samples`: the SHA-256 of the samples' file that they were computed from; scores of another
    file are not those of this cell."""

    model_config = ConfigDict(extra="ignore")

    schema_version: int = SCORES_VERSION
    samples: str
    metrics: dict[str, AddedScore] = Field(default_factory=dict)


def read_scores(content: bytes, where: str) -> AddedScores:
    """The scores in a file's `content`; StoreError if it holds none, or a newer release's."""
    try:
        scores = AddedScores.model_validate(json_document(content))
    except ValueError as error:
        raise StoreError(f"{where} holds no readable scores; remove it and rescore") from error
    if scores.schema_version > SCORES_VERSION:
        raise StoreError(f"{where} was written by a newer release; upgrade precision-explorer")
    return scores
