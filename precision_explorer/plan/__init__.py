"""From options to cells: a validated spec, resolved inputs, and a plan with reasons for skips."""

from precision_explorer.plan.expand import Plan, PlannedCell, expand
from precision_explorer.plan.spec import SweepSpec, load_spec

__all__ = ["Plan", "PlannedCell", "SweepSpec", "expand", "load_spec"]
