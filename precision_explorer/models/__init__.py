"""Models: references that pin what was run (no torch), and loading and adapters (torch)."""

from precision_explorer.models.reference import (
    FETCHABLE,
    ModelRef,
    check_head,
    check_inputs,
    has_head,
    resolve,
)
from precision_explorer.models.shapes import refuse_synthetic

__all__ = [
    "FETCHABLE",
    "ModelRef",
    "check_head",
    "check_inputs",
    "has_head",
    "refuse_synthetic",
    "resolve",
]
