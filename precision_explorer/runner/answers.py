"""A cell's stored answers in the form that a metric of the `evaluate` library asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import TaskError

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Answers:
    """Predictions and references of the same examples; `codes`: the whole number of each label
    name, for metrics that take numbers."""

    predictions: list[Any]
    references: list[Any]
    codes: dict[str, int]

    def fitting(self, features: Any) -> tuple[list[Any], list[Any]]:
        """(predictions, references) as `features`, a module's ``Features`` or a list of those that
        it takes, declare them. TaskError where they don't fit any."""
        problem = ""
        for one in features if isinstance(features, list) else [features]:
            others = sorted(set(one) - {"predictions", "references"})
            if others or len(one) < 2:
                problem = f"it takes {', '.join(others or one)}, not predictions and references"
                continue
            try:
                return (
                    [self._fit(v, one["predictions"]) for v in self.predictions],
                    [self._fit(v, one["references"]) for v in self.references],
                )
            except (TypeError, ValueError) as error:
                problem = str(error)
        raise TaskError(f"the metric does not fit the stored answers: {problem}")

    def _fit(self, value: Any, feature: Any) -> Any:
        """`value` in the type of one feature; a single value stands for a list of one."""
        dtype = getattr(feature, "dtype", None)
        if not isinstance(dtype, str) or dtype in ("list", "dict"):
            inner = feature[0] if isinstance(feature, list) else feature.feature
            return [self._fit(v, inner) for v in (value if isinstance(value, list) else [value])]
        if isinstance(value, list):
            if len(value) != 1:
                raise ValueError(f"an example has {len(value)} values, and it takes one {dtype}")
            value = value[0]
        if dtype == "string":
            return str(value)
        number = self.codes.get(value, value) if isinstance(value, str) else value
        whole = dtype.startswith(("int", "uint", "bool"))
        if whole and float(number) != int(number):
            raise ValueError(f"{value!r} is no whole number")
        return int(number) if whole else float(number)


def answers_of(kind: str, columns: Columns) -> Answers:
    """The answers of a cell's example rows. TaskError for a kind that has none, such as
    language-modeling, or where some are missing."""
    predictions = list(columns.get("prediction") or [])
    references = list(columns.get("references") or columns.get("target") or [])
    if "unparsed" in columns:
        # An output that holds no answer is an empty one.
        predictions = ["" if p is None else p for p in predictions]
    if not predictions or len(predictions) != len(references) or None in predictions + references:
        raise TaskError(
            f"a metric of evaluate compares predictions with references, and {kind} stores no such "
            "pair for each example"
        )
    return Answers(predictions, references, label_codes(columns))


def has_pairs(columns: Columns) -> bool:
    """Whether the rows of a cell hold predictions and references at all."""
    both = columns.get("prediction"), columns.get("references") or columns.get("target")
    return all(values and any(v is not None for v in values) for values in both)


def label_codes(columns: Columns) -> dict[str, int]:
    """{label name: whole number}, empty where answers are no names.

    The model's label ids where each row holds its log-probabilities, which are in their order: the
    prediction is the largest, and the loss is that of the target. Else numbers from 0, the
    targets' in alphabetical order first, so that they are the same for every format.
    """
    targets, predictions = columns["target"], columns["prediction"]
    names = [v for v in (*targets, *predictions) if isinstance(v, str)]
    if len(names) < len(targets) + len(predictions):
        return {}
    ids: dict[str, int] = {}
    rows = columns.get("logprobs") or [None] * len(targets)
    losses = columns.get("loss") or [None] * len(targets)
    for target, prediction, row, loss in zip(targets, predictions, rows, losses, strict=True):
        if row is None or loss is None:
            continue
        for name, value in ((prediction, max(row)), (target, -loss)):
            if row.count(value) == 1:
                ids.setdefault(name, row.index(value))
    if set(names) <= set(ids) and len(set(ids.values())) == len(ids):
        return ids
    rest = sorted(set(names) - set(targets))
    return {name: code for code, name in enumerate([*sorted(set(targets)), *rest])}
