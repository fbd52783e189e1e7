"""What a sweep was expected to take before it ran, and what it took: a run's ``estimate.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

ESTIMATE_SCHEMA = 1
PARTS = ("load", "quality", "timed", "closing", "compare", "audit")
"""What a sweep's time goes into, in the order in which it comes: starting workers, loading and
compiling; scoring the examples; the timed rounds; certificate, profile and record; the noise floor
and distances to the reference; audits."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class PartEstimate(_Data):
    """Seconds of one part of a cell, between `low_s` and `high_s`; `source` says from what."""

    part: str
    seconds: float
    low_s: float
    high_s: float
    source: str


class CellEstimate(_Data):
    """One cell. `power_w` is the mean power while it works, None where nothing tells it, with
    `power_source`; in `parts` stand those that the cell has."""

    cell_id: str
    model: str
    task: str
    format: str
    runtime: str
    parts: list[PartEstimate]
    power_w: float | None = None
    power_source: str = "unavailable"

    @property
    def seconds(self) -> float:
        """Of all parts."""
        return sum(part.seconds for part in self.parts)

    @property
    def energy_j(self) -> float | None:
        """Joules of all parts; None without a power."""
        return None if self.power_w is None else self.power_w * self.seconds


class Took(_Data):
    """What one session of the sweep took. `parts`: seconds by part, of all cells together; what is
    before the first cell and after the last is in none. `cells`: ids of those that were finished
    in it."""

    wall_s: float
    parts: dict[str, float]
    cells: list[str]


class Estimate(_Data):
    """All cells that were to be measured. `roof`: where the device's roofs come from, in words;
    `usd_per_hour`, with its `price_basis`, is None where there is no price for the device."""

    schema_version: int = ESTIMATE_SCHEMA
    device_name: str
    roof: str
    cells: list[CellEstimate]
    usd_per_hour: float | None = None
    price_basis: str | None = None
    took: list[Took] = Field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of all cells."""
        return sum(cell.seconds for cell in self.cells)

    @property
    def energy_j(self) -> float | None:
        """Joules of all cells; None where one has none."""
        found = [cell.energy_j for cell in self.cells]
        return None if None in found else sum(j for j in found if j is not None)

    @property
    def usd(self) -> float | None:
        """Dollars at the price per hour."""
        return None if self.usd_per_hour is None else self.usd_per_hour * self.seconds / 3600

    def of_part(self, part: str) -> tuple[float, float, float]:
        """(seconds, low, high) of one part of all cells; intervals add up, as what is wrong with
        one cell's is likely wrong with all."""
        found = [p for cell in self.cells for p in cell.parts if p.part == part]
        return (
            sum(p.seconds for p in found), sum(p.low_s for p in found), sum(p.high_s for p in found)
        )  # fmt: skip

    @property
    def took_s(self) -> float:
        """Seconds of all sessions, in parts."""
        return sum(seconds for took in self.took for seconds in took.parts.values())

    def took_part(self, part: str) -> float:
        """Seconds that one part took in all sessions."""
        return sum(took.parts.get(part, 0.0) for took in self.took)

    @property
    def unfinished(self) -> list[str]:
        """Ids of the cells that no session has finished: until there are none, what was taken is no
        measure of what was expected."""
        done = {cell_id for took in self.took for cell_id in took.cells}
        return [cell.cell_id for cell in self.cells if cell.cell_id not in done]
