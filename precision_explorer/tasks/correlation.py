"""Spearman's rank correlation, of all rows and of resamples of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Finish = Callable[["np.ndarray"], "np.ndarray"]

# Rows up to which resamples are ranked anew: their terms are a square matrix of this side (128 MB).
EXACT_ROWS = 4000


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho: Pearson's correlation of the ranks, ties sharing their mean rank (scipy's
    `spearmanr`). NaN where all values of one side are the same."""
    import numpy as np
    from scipy.stats import rankdata

    return _pearson(rankdata(first), rankdata(second), np.ones(len(first)))


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    import numpy as np

    total = weights.sum()
    if total == 0:
        return float("nan")
    x, y = x - weights @ x / total, y - weights @ y / total
    spread = (weights @ (x * x)) * (weights @ (y * y))
    return float(weights @ (x * y) / np.sqrt(spread)) if spread > 0 else float("nan")


def spearman_terms(
    first: Sequence[float], second: Sequence[float], parts: int = 1
) -> tuple[np.ndarray, Finish]:
    """Terms (n, k) and finish, as `metrics.sufficient` gives them.

    Ranks are no sums over examples. Up to `EXACT_ROWS` rows the terms are the unit matrix, so that
    the sums say how often each row was drawn, and each resample is ranked anew: exact. Beyond,
    the ranks of all rows are kept and the terms are their moments. That leaves out that ranks move
    with the resample, so intervals are approximate. `parts`: how many lists of one length stand one
    after the other (the rows of two formats); each is ranked by itself.

    A resample with one value only on a side shows no association, and counts 0.
    """
    import numpy as np
    from scipy.stats import rankdata

    x, y = (np.asarray(side, dtype=float) for side in (first, second))
    if len(x) <= EXACT_ROWS:
        return np.eye(len(x)), _ranked_anew(x, y)
    x, y = (np.concatenate([rankdata(p) for p in np.split(side, parts)]) for side in (x, y))
    # Centred, which changes no correlation and keeps the sums small.
    x, y = (x - x.mean()) / len(x), (y - y.mean()) / len(y)
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1), _of_moments


def _ranked_anew(x: np.ndarray, y: np.ndarray) -> Finish:
    """Finish of the sums of a unit matrix: how often each row was drawn."""
    import numpy as np

    # Which of the distinct values, in order, each row has.
    places = [np.unique(side, return_inverse=True)[1] for side in (x, y)]

    def ranks(place: np.ndarray, counts: np.ndarray) -> np.ndarray:
        held = np.bincount(place, weights=counts)
        return (np.cumsum(held) - (held - 1) / 2)[place]

    def finish(sums: np.ndarray) -> np.ndarray:
        counts = np.asarray(sums, dtype=float)
        rows = counts.reshape(-1, counts.shape[-1])
        values = [_pearson(ranks(places[0], row), ranks(places[1], row), row) for row in rows]
        found = np.array(values).reshape(counts.shape[:-1])
        return np.where((counts.sum(-1) > 0) & np.isnan(found), 0.0, found)

    return finish


def _of_moments(sums: np.ndarray) -> np.ndarray:
    import numpy as np

    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (xx - x * x / n) * (yy - y * y / n)
        rho = (xy - x * y / n) / np.sqrt(spread)
    # Of centred ranks below 1/2: what rounding leaves of no spread at all is far smaller.
    return np.where((n > 0) & ~(spread > 1e-12), 0.0, rho)
