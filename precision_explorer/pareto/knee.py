"""A hint at where a front bends: the row that gives up least in its worst objective."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from precision_explorer.pareto.dominance import costs_of


def knee(values: np.ndarray, maximise: Sequence[bool]) -> int | None:
    """The row of a front (rows, objectives) nearest to the ideal point, which has the best of each
    objective, where each is scaled from 0, its best on the front, to 1, its worst: the least
    largest shortfall (Chebyshev's distance; Zeleny 1973, compromise programming).

    It depends on which rows stand on the front, so it is a hint, no recommendation. None below
    three different rows, and where two are as near.
    """
    costs = costs_of(values, maximise)
    if len(np.unique(costs, axis=0)) < 3 or not np.isfinite(costs).all():
        return None
    span = np.ptp(costs, axis=0)
    scaled = (costs - costs.min(axis=0)) / np.where(span > 0, span, 1.0)
    short = scaled.max(axis=1)
    best = np.flatnonzero(short == short.min())
    return int(best[0]) if len(best) == 1 and short[best[0]] < 1 else None
