"""A round in which cells were timed in turn."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LatencyRound(BaseModel):
    """One of the rounds in which a cell was timed, between those of other formats.

    `place`: which of the `cells` that took part in the round it was, from 0. `interleaved`: whether
    the reference (for the reference: another format) was timed in the same round of the same run of
    the sweep; None where there was nothing to be timed beside.
    """

    model_config = ConfigDict(extra="ignore")

    round: int
    requests: int
    window_s: float
    started_s: float
    """Since the sweep, or its continuation after an interruption, began."""
    place: int
    cells: int
    interleaved: bool | None = None
    other_work_share: float | None = None
    temperature_c: float | None = None
    """Of a GPU, just before, after cooling down for `waited_s`."""
    waited_s: float = 0.0
