"""A comparison of two runs as data; how it reads is `report`'s affair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precision_explorer.table.methods import Field

Verdict = Literal["better", "worse", "not-different", "cannot-tell"]


@dataclass(frozen=True)
class Change:
    """One figure of one row in both runs. `one`, `other`: its values, SI units, None where not
    shown. `change`: `other` against `one`, relative (0.1: a tenth more); of a quality that is a
    share the difference itself; `low`, `high` its 95 % interval, None where nothing makes one.

    `verdict`: ``better`` or ``worse`` only where `p_value_holm`, adjusted over all tests of the two
    runs, is at most 5 %. `word` says the same of this figure (``slower``, ``cheaper``); `note` why
    it is not told, or what to know of it. `resting`: whose test it is, where the figure is another
    one divided by a price.
    """

    figure: str
    one: float | None
    other: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_value_holm: float | None = None
    verdict: Verdict = "cannot-tell"
    word: str = "cannot tell"
    note: str | None = None
    is_points: bool = False
    resting: str | None = None
    higher_is_better: bool | None = None
    """None where nobody said, for a metric of the `evaluate` library."""
    metric: str | None = None
    """Of the quality: what it is counted in."""


@dataclass(frozen=True)
class RowChanges:
    """One row of both runs, of one model, task, format and runtime. `system`: in what its own
    making differs (kernel, type of arithmetic, execution)."""

    model: str
    task: str
    format: str
    runtime: str
    devices: tuple[str, str]
    method_ids: tuple[str, str]
    changes: tuple[Change, ...]
    system: tuple[Field, ...]
    cautions: tuple[tuple[str, ...], tuple[str, ...]]
    is_reference: bool = False
    """Whether it is what its run's other formats are compared with."""


@dataclass(frozen=True)
class Refused:
    """Rows (their labels) that are not compared, as their methods differ in `fields`."""

    rows: tuple[str, ...]
    method_ids: tuple[str, str]
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Allowed:
    """A field of the method that the reader accepts to differ, and does, in these rows."""

    field: Field
    rows: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Two runs. `system`: in what their machines and software differ; `unmatched`: rows that are
    not in both, or have no result in one, in sentences; `tests`: over how many the p values are
    adjusted; `same_cells`: whether all rows are the same cells, method and system alike, so that
    what differs is what the machine did."""

    one: str
    other: str
    devices: tuple[tuple[str, ...], tuple[str, ...]]
    manifest_roots: tuple[str, str]
    measured_on: tuple[tuple[str, ...], tuple[str, ...]]
    rows: tuple[RowChanges, ...]
    refused: tuple[Refused, ...]
    allowed: tuple[Allowed, ...]
    system: tuple[Field, ...]
    unmatched: tuple[str, ...]
    tests: int
    rounds: tuple[int | None, int | None]
    same_cells: bool
    asked: tuple[str, ...] = ()
    """All fields that were allowed to differ, whether or not they do."""
    lost: tuple[str, ...] = ()
    """Those of `unmatched` that have a result in `one` and none in `other`."""

    @property
    def is_answered(self) -> bool:
        """Whether no row had to be refused."""
        return not self.refused
