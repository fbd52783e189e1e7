"""Pareto dominance (Pareto 1906; as in Deb 2001, section 2.4) on tables of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Pairs of rows compared at a time, one byte each.
_BLOCK = 4_000_000
# Rows of a front settled at a time.
_AT_ONCE = 128


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
    costs = _costs([list(first), list(second)], maximise)
    return bool((costs[0] <= costs[1]).all() and (costs[0] < costs[1]).any())


def front(values: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """(rows,) bool: which rows of `values` (rows, objectives) no other row dominates.

    Equal rows are on the front together. A row with a missing value (None or NaN) is no candidate:
    never on the front, and it dominates no other.
    """
    costs = _costs(values, maximise)
    on_front: np.ndarray = np.zeros(len(costs), dtype=bool)
    candidates = np.flatnonzero(~np.isnan(costs).any(axis=1))
    if candidates.size == 0:
        return on_front
    # In lexicographic order a dominator comes before those it dominates, and `unique` sorts so.
    unique, inverse = np.unique(costs[candidates], axis=0, return_inverse=True)
    best: np.ndarray = np.zeros(len(unique), dtype=bool)
    left = np.arange(len(unique))
    while left.size:
        block, left = left[:_AT_ONCE], left[_AT_ONCE:]
        leaders = block[_block_front(unique[block][None])[0]]
        best[leaders] = True
        left = left[~_beaten(unique[left], unique[leaders])]
    on_front[candidates] = best[inverse.ravel()]
    return on_front


def front_probability(draws: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """(rows,): in which share of `draws` (draws, rows, objectives) each row is on the front.

    Missing values as in `front`, draw by draw. Raises ValueError without a draw.
    """
    table = np.asarray(draws, dtype=float)
    if table.ndim != 3 or not len(table):
        raise ValueError(f"draws of shape {table.shape} are not (draws, rows, objectives)")
    count, rows, _ = table.shape
    if rows * rows > _BLOCK:
        return np.mean([front(draw, maximise) for draw in table], axis=0)
    costs = _costs(table.reshape(count * rows, -1), maximise).reshape(table.shape)
    block = max(1, _BLOCK // max(1, rows * rows))
    total = np.zeros(rows)
    for start in range(0, count, block):
        total += _block_front(costs[start : start + block]).sum(axis=0)
    return total / count


def _beaten(costs: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """(rows,) bool: rows of `costs` that a different row in `leaders` is nowhere worse than."""
    no_worse: np.ndarray = np.ones((len(leaders), len(costs)), dtype=bool)
    for ours, theirs in zip(leaders.T, costs.T, strict=True):
        no_worse &= ours[:, None] <= theirs[None, :]
    return np.any(no_worse, axis=0)


def _block_front(costs: np.ndarray) -> np.ndarray:
    """(draws, rows) bool from (draws, rows, objectives), comparing all pairs of rows at once."""
    draws, rows, objectives = costs.shape
    no_worse = np.ones((draws, rows, rows), dtype=bool)  # [d, i, j]: i no worse than j
    better = np.zeros_like(no_worse)
    for k in range(objectives):
        column = costs[:, :, k]
        no_worse &= column[:, :, None] <= column[:, None, :]
        better |= column[:, :, None] < column[:, None, :]
    dominated = (no_worse & better).any(axis=1)
    return ~dominated & ~np.isnan(costs).any(axis=2)


def _costs(values: np.ndarray | list[list[float | None]], maximise: Sequence[bool]) -> np.ndarray:
    """(rows, objectives) where less is better, None as NaN."""
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or table.shape[1] != len(maximise):
        raise ValueError(
            f"values of shape {table.shape} don't fit {len(maximise)} objectives; "
            "give one column for each"
        )
    return np.where(np.asarray(maximise, dtype=bool), -table, table)
