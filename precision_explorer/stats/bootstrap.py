"""The nonparametric bootstrap (Efron 1979) on sufficient statistics.

A metric is given as per-example statistics (n, k) and a function `finish` that turns their sums
(..., k) into the metric (...): accuracy is ``[right, 1]`` with ``sums[..., 0] / sums[..., 1]``,
a perplexity ``[nll, tokens]``. One resample then costs one weighted sum, whatever the metric.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Finish = Callable[[np.ndarray], np.ndarray]
Groups = Sequence[object] | np.ndarray | None

# Draws are made in blocks of about this many counts, 16 MB at 8 bytes each.
_BLOCK = 2_000_000
# Weight by which an example is moved to see what it does to a metric that is no sum: the error of
# central differences goes with its square, and rounding stays far below that.
_STEP = 0.01


def _blocks(n: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Multinomial counts (block, n), uint16, that together make `draws` rows."""
    if n < 1 or draws < 1:
        raise ValueError(f"cannot resample {n} examples {draws} times; both must be at least 1")
    generator = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        drawn = generator.integers(0, n, (size, n))
        drawn += np.arange(size)[:, None] * n
        counts: np.ndarray = np.bincount(drawn.ravel(), minlength=size * n)
        # A count of 65,536 or more needs n > 65,535 and has a chance far below 1e-100,000.
        yield counts.reshape(size, n).astype(np.uint16)


def resample_counts(n: int, draws: int, seed: int) -> np.ndarray:
    """(draws, n) uint16: how often each of `n` examples is in each resample; rows sum to `n`.

    The same `n`, `draws` and `seed` give the same counts, so that two formats are drawn as pairs.
    """
    counts: np.ndarray = np.empty((draws, n), dtype=np.uint16)
    start = 0
    for block in _blocks(n, draws, seed):
        counts[start : start + len(block)] = block
        start += len(block)
    return counts


def draws_of(statistics: np.ndarray, finish: Finish, counts: np.ndarray) -> np.ndarray:
    """(draws,) values of the metric under each row of `counts` (draws, n).

    `statistics`: (n, k). Raises ValueError when the two don't have the same n.
    """
    statistics = _as_matrix(statistics)
    if counts.shape[1] != len(statistics):
        raise ValueError(
            f"counts are for {counts.shape[1]} examples, statistics for {len(statistics)}; "
            "draw them for the same examples"
        )
    rows = max(1, _BLOCK // counts.shape[1])
    starts = range(0, len(counts), rows)
    sums = [counts[s : s + rows].astype(float) @ statistics for s in starts]
    return np.asarray(finish(np.concatenate(sums)), dtype=float)


def interval(
    statistics: np.ndarray,
    finish: Finish,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval (Efron 1981) of the metric; (low, high) in the metric's unit.

    `groups`: (n,) labels; examples with one label are resampled together (cluster bootstrap,
    Davison & Hinkley 1997 section 3.8; Miller 2024, arXiv 2411.00640). Raises ValueError when a
    resample's metric is not finite.
    """
    (values,) = _values([statistics], finish, draws, seed, groups)
    return _percentiles(values, confidence)


def paired_interval(
    reference: np.ndarray,
    other: np.ndarray,
    finish: Finish,
    *,
    relative: bool = False,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of other minus reference, both on the same resampled examples.

    `reference`, `other`: (n, k) statistics of the same examples in the same order. `relative`
    divides each resample's difference by the size of the reference's metric in that resample.
    """
    first, second = _values([reference, other], finish, draws, seed, groups)
    deltas = second - first
    return _percentiles(deltas / np.abs(first) if relative else deltas, confidence)


def paired_p_value(
    reference: np.ndarray,
    other: np.ndarray,
    finish: Finish,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Groups = None,
) -> float:
    """Two-sided p value of "no difference", by turning the percentile interval round.

    p = min(1, 2 x min(1 + #{d <= 0}, 1 + #{d >= 0}) / (draws + 1)) over the resampled differences
    d: twice the smaller tail (Efron & Tibshirani 1993, section 15.4), with one added so that it is
    never 0 (Davison & Hinkley 1997, section 4.2). Its least value is 2 / (draws + 1).
    """
    first, second = _values([reference, other], finish, draws, seed, groups)
    return draws_p_value(second - first)


def draws_p_value(deltas: np.ndarray) -> float:
    """The p value of `paired_p_value` from the (draws,) resampled differences themselves."""
    tail = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
    return min(1.0, 2 * (1 + tail) / (len(deltas) + 1))


def draws_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval (Efron 1981) of (draws,) resampled values; ValueError where one is not
    finite."""
    return _percentiles(np.asarray(values, dtype=float), confidence)


def group_sums(statistics: np.ndarray, groups: Groups) -> np.ndarray:
    """(groups, k): statistics summed by label, labels in sorted order; unchanged without labels."""
    statistics = _as_matrix(statistics)
    if groups is None:
        return statistics
    labels = np.asarray(groups)
    if len(labels) != len(statistics):
        raise ValueError(
            f"{len(labels)} group labels for {len(statistics)} examples; give one for each"
        )
    _, index = np.unique(labels, return_inverse=True)
    columns = [np.bincount(index, weights=column) for column in statistics.T]
    return np.stack(columns, axis=1)


def _as_matrix(statistics: np.ndarray) -> np.ndarray:
    matrix = np.asarray(statistics, dtype=float)
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"statistics of shape {matrix.shape} are not (examples, k); reshape them")
    return matrix


def _values(
    tables: list[np.ndarray], finish: Finish, draws: int, seed: int, groups: Groups
) -> list[np.ndarray]:
    """The metric's draws of each table, all under the same resamples."""
    units = [group_sums(table, groups) for table in tables]
    if len({len(unit) for unit in units}) > 1:
        raise ValueError("the two sets of statistics differ in length; pair the same examples")
    sums: list[list[np.ndarray]] = [[] for _ in units]
    for block in _blocks(len(units[0]), draws, seed):
        weights: np.ndarray = block.astype(float)
        for held, unit in zip(sums, units, strict=True):
            held.append(weights @ unit)
    return [np.asarray(finish(np.concatenate(held)), dtype=float) for held in sums]


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1; use 0.95")
    if not np.isfinite(values).all():
        raise ValueError("a resample's metric is not finite; check the examples' statistics")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def influence(terms: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(n,) values whose mean is `of` the sums of `terms` (n, k), and whose spread is that by which
    it moves from sample to sample: the infinitesimal jackknife (Jaeckel 1972; Efron & Tibshirani
    1993, chapter 21), its derivative by central differences. All NaN where it is not finite."""
    total = terms.sum(0)
    up, down = of(total + _STEP * terms), of(total - _STEP * terms)
    values = len(terms) * (up - down) / (2 * _STEP) + of(total)
    return values if np.isfinite(values).all() else np.full(len(terms), np.nan)
