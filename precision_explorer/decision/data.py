"""A decision as data; how it reads is `report`'s affair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from precision_explorer.table.limits import Check, Limits

Status = Literal["recommended", "cannot-tell", "none", "unverified"]


@dataclass(frozen=True)
class Question:
    """What a format must hold, and the one figure (of `table.figures`) in which the best is
    asked for."""

    objective: str
    limits: Limits


@dataclass(frozen=True)
class Option:
    """One format. `state`: whether it holds all limits (``barred``: it may not compete, for
    `reason`). `value`: of the objective; `best_probability`: the share of the paired draws in which
    it is the best of those that qualify, None where nothing was resampled or it alone qualifies;
    `qualifies_probability`: the product of its checks', None where one is not known.
    `figures`: name to value in SI units, None where not measured."""

    name: str
    format: str
    runtime: str
    execution: str | None
    state: str
    reason: str | None
    value: float | None
    best_probability: float | None
    qualifies_probability: float | None
    checks: tuple[Check, ...]
    figures: dict[str, float | None]
    verdicts: tuple[str | None, ...]
    cautions: tuple[str, ...]
    device: str = ""
    """On which it was measured, and to which its figures and price belong."""


@dataclass(frozen=True)
class Change:
    """From `value` on (of a lower one: below it), `factor` times what it is, the answer is
    `choice`; None where no format is named then, for the reason `why`."""

    value: float
    factor: float
    choice: str | None
    why: str | None = None


@dataclass(frozen=True)
class Sensitivity:
    """One input, moved alone. `value`: what it is now; `least`, `most`: between which values it was
    moved. `lower`, `higher`: the nearest change of the choice in that direction, None where there
    is none. `unit`: ``usd``, ``share``, ``seconds``, ``bytes``, ``years``, ``watts`` or empty.
    `note`: why it can't change the choice at all, or why it was not moved."""

    input: str
    unit: str
    value: float
    least: float
    most: float
    lower: Change | None
    higher: Change | None
    note: str | None = None
    device: str | None = None
    """Whose price it is, where several devices stand together."""


@dataclass(frozen=True)
class Decision:
    """The answer for one model and task, or for all of its tasks together: a format, and where
    machines measured alike also the device, of those that `device` lists.

    ``recommended``: `chosen` is the best in the objective of those that hold all limits; `ties`
    names the others that can't be told from it, and `contender` is the best of those that would be
    better and by their figures hold the limits, but are not shown to. ``cannot-tell`` and ``none``
    have no `chosen`; `nearest` is the format that comes nearest, `missing` what would tell,
    `reason` why the question has no answer here at all. ``unverified``: no row may compete.
    `doubt`: why no `best_probability` is known; None where it is, or needs none. `words`: the
    objective's figure in words.
    `options`: all formats with a result, those that qualify first, the best first. `changes`: what
    would change the answer; `uncovered`: what the evidence does not cover; both in sentences.
    """

    title: str
    model: str
    device: str
    tasks: tuple[str, ...]
    objective: str
    limits: tuple[str, ...]
    status: Status
    chosen: Option | None
    ties: tuple[str, ...]
    contender: Option | None
    nearest: Option | None
    missing: str | None
    reason: str | None
    doubt: str | None
    words: str
    options: tuple[Option, ...]
    changes: tuple[str, ...]
    uncovered: tuple[str, ...]
    sensitivity: tuple[Sensitivity, ...] = ()
    """Which input, moved alone by how much, would change `chosen`; empty without one, and where it
    was not asked for."""

    @property
    def qualifying(self) -> tuple[Option, ...]:
        """Those that hold all limits."""
        return tuple(option for option in self.options if option.state == "yes")
