"""What worked beside a disturbed measurement, and how fast it went itself."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")


class NeighbourRound(_Data):
    """Operations per second over all processes of one kind: with the rest of the background and no
    measurement (`alone_per_s`), and beside the cell's whole block (`beside_per_s`)."""

    round: int
    alone_per_s: float
    beside_per_s: float


class NeighbourWork(_Data):
    """One kind of background work. `label`: as it was asked for (``cpu:1``); `what` it did, in
    words; `operation`: what the rates count."""

    label: str
    what: str
    operation: str
    processes: int
    rounds: list[NeighbourRound]
