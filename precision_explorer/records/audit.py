"""Audits of a cell's own measurement: what was checked, what came of it, and by which figures."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Outcome = Literal["passed", "failed", "not-judged"]
CHECKS: tuple[str, ...] = ("answers", "repeated-sample", "other-seed", "roofline", "a-a")
"""The names of the checks, in the order in which they are told."""


class _Data(BaseModel):
    # A newer minor release may add fields.
    model_config = ConfigDict(extra="ignore")


class AuditCheck(_Data):
    """One check (docs/audits.md). `figures` in SI units, by names that hold the unit; `threshold`
    in words, `source` where it comes from. `reason`: why it failed or was not judged."""

    name: str
    outcome: Outcome
    reason: str | None = None
    threshold: str
    source: str
    figures: dict[str, float] = Field(default_factory=dict)


class Audit(_Data):
    """All checks of a cell, made after its timed rounds. `seconds`: what they took, None where they
    came to nothing."""

    checks: list[AuditCheck]
    seconds: float | None = None

    def named(self, outcome: Outcome) -> list[str]:
        """The names of the checks with this outcome."""
        return [check.name for check in self.checks if check.outcome == outcome]
