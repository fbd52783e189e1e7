"""Metrics of lm-evaluation-harness: how each example's value is stored, and what makes the metric
of the stored values, without the library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import TaskError
from precision_explorer.records.metrics import LM_EVAL

if TYPE_CHECKING:
    import numpy as np

# How a column is called whose rows are [top, below] pairs: the metric is the quotient of their
# sums, or its exponential.
_RATIO, _EXP_RATIO = " (ratio)", " (exp ratio)"


def is_harness_metric(metric: str) -> bool:
    """Whether `metric` is named after lm-evaluation-harness (``lm-eval:acc``)."""
    return metric.startswith(LM_EVAL)


def metric_name(metric: str, filter_name: str) -> str:
    """The name of the harness's `metric` under one of its filters, as in its own results
    (``exact_match,strict-match``); the filter ``none`` is left out."""
    return f"{LM_EVAL}{metric}" + ("" if filter_name == "none" else f",{filter_name}")


def stored(metric: str, aggregation: str, value: Any) -> tuple[str, Any] | None:
    """(column, one example's value in it) for the harness's value of `metric`; None where its
    `aggregation` is no mean, so that it can't be made of sums over examples.

    Of lm_eval/api/metrics.py: mean; nanmean; perplexity = exp(-mean); weighted_perplexity =
    exp(-sum of the first / sum of the second); bits_per_byte, the same quotient in bits;
    brier_score, the mean of each example's summed squares; f1 (of class 1) = 2 hits / (true +
    predicted).
    """
    column = metric.removeprefix(LM_EVAL)
    if aggregation == "mean":
        return column, float(value)
    if aggregation == "nanmean":
        return column + _RATIO, [0.0, 0.0] if math.isnan(value) else [float(value), 1.0]
    if aggregation == "perplexity":
        return column + _EXP_RATIO, [-float(value), 1.0]
    if aggregation == "weighted_perplexity":
        return column + _EXP_RATIO, [-float(value[0]), float(value[1])]
    if aggregation == "bits_per_byte":
        return column + _RATIO, [-float(value[0]) / math.log(2), float(value[1])]
    if aggregation == "brier_score":
        gold, shares = value
        return column, float(sum((p - (k == gold)) ** 2 for k, p in enumerate(shares)))
    if aggregation == "f1":
        true, said = (float(v == 1) for v in value)
        return column + _RATIO, [2.0 * true * said, true + said]
    return None


def zero_one(metric: str, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether every example's value is 0 or 1: a task may score shares under any name."""
    values = columns.get(metric.removeprefix(LM_EVAL))
    return values is not None and all(v in (0.0, 1.0) for v in values)


def has_terms(metric: str, columns: Mapping[str, Sequence[Any]]) -> bool:
    """Whether the rows hold what `metric` can be made of."""
    name = metric.removeprefix(LM_EVAL)
    return any(name + form in columns for form in ("", _RATIO, _EXP_RATIO))


def harness_terms(metric: str, columns: Mapping[str, Sequence[Any]]) -> tuple[np.ndarray, Any]:
    """Terms (n, 2) and finish of a metric of the harness, as `metrics.sufficient`. Examples that
    the task gave no value count in neither term. TaskError where it is no mean of its examples."""
    import numpy as np

    name = metric.removeprefix(LM_EVAL)
    exponential = name + _EXP_RATIO in columns
    pairs = columns.get(name + _RATIO) or columns.get(name + _EXP_RATIO)
    if pairs is None and name in columns:
        pairs = [None if v is None else (v, 1.0) for v in columns[name]]
    if pairs is None:
        raise TaskError(
            f"{metric} is no mean of its examples' scores: it has a value, computed where the "
            "model ran, and neither interval nor difference"
        )
    terms = np.array([(0.0, 0.0) if pair is None else tuple(pair) for pair in pairs], dtype=float)

    def finish(sums: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            quotient = np.asarray(sums)[..., 0] / np.asarray(sums)[..., 1]
            return np.exp(quotient) if exponential else quotient

    return terms, finish
