"""Pareto dominance (Pareto 1906; as in Deb 2001, section 2.4) on tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Objective:
    """A column to compare by; `maximise` False means that less is better."""

    name: str
    maximise: bool


def dominates(
    first: Sequence[float | None], second: Sequence[float | None], maximise: Sequence[bool]
) -> bool:
    """Whether `first` is as good as `second` in every objective and better in one.

    False as soon as a value of either is missing (None or NaN).
    """
    costs = costs_of([list(first), list(second)], maximise)
    return bool((costs[0] <= costs[1]).all() and (costs[0] < costs[1]).any())


def costs_of(values: np.ndarray | list[list[float | None]], maximise: Sequence[bool]) -> np.ndarray:
    """(rows, objectives) where less is better, None as NaN."""
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or table.shape[1] != len(maximise):
        raise ValueError(
            f"values of shape {table.shape} don't fit {len(maximise)} objectives; "
            "give one column for each"
        )
    return np.where(np.asarray(maximise, dtype=bool), -table, table)
