"""Quality metrics, twice: `scores` where the model ran, `sufficient` where the records are read.

Both are the same figures. The second takes each metric apart into per-example terms whose sums
make it, so that resampling the examples (a bootstrap) costs one matrix product and no scikit-learn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import InvalidNumerics, TaskError, unknown_name
from precision_explorer.tasks.correlation import spearman, spearman_terms
from precision_explorer.tasks.harness_metrics import (
    harness_terms,
    has_terms,
    is_harness_metric,
    zero_one,
)
from precision_explorer.tasks.kinds import KINDS
from precision_explorer.tasks.text_metrics import COUNTS, FINISHES, ROUGE

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]
Columns = Mapping[str, Sequence[Any]]
Finish = Callable[["np.ndarray"], "np.ndarray"]
Terms = Callable[[str, Columns], tuple["np.ndarray", Finish]]

_SPACE = re.compile(r"\s+")
# What must be a finite number in an example's row, where it is there.
_NUMBERS = ("loss", "score", "score_norm", "span_score", "cosine")
_ZERO_ONE = {"accuracy": "score", "accuracy_norm": "score_norm", "exact_match": "score"}


def example_bytes(text: str) -> int:
    """Bytes of `text` in UTF-8 (lm-evaluation-harness, wikitext's ``process_results``)."""
    return len(text.encode("utf-8"))


def example_words(text: str) -> int:
    """Words of `text`: the pieces between runs of white space, as lm-evaluation-harness counts them
    (wikitext's ``process_results``: ``re.split`` on ``\\s+`` without stripping, so that white space
    at either end adds an empty piece)."""
    return len(_SPACE.split(text))


def zero_one_column(metric: str, *columns: Columns) -> str | None:
    """The row column that holds each example's 0 or 1 for `metric`; None if it has none. A metric
    of lm-evaluation-harness has one if its values are 0 or 1 in all of `columns`."""
    if is_harness_metric(metric):
        fits = bool(columns) and all(zero_one(metric, rows) for rows in columns)
        return metric.partition(":")[2] if fits else None
    return _ZERO_ONE.get(metric)


def scores(kind: str, metrics: Iterable[str], rows: Sequence[Row]) -> dict[str, float]:
    """Each of `metrics` over `rows`, one dict per example (see below), as one number per metric.

    Columns: text-classification ``target``, ``prediction`` (label names), ``score`` (1.0 or 0.0),
    ``loss``; multiple-choice ``target``, ``prediction`` (indices), ``score``, ``score_norm``,
    ``loss``, ``choice_logprobs``; language-modeling ``loss`` (nats, summed over the example's
    tokens), ``tokens``, ``words``, ``bytes``; token-classification ``right``, ``predicted``,
    ``true`` (entities); extractive-qa ``score``, ``token_f1``; similarity ``target``, ``cosine``;
    retrieval ``ndcg_at_10``, ``recall_at_10``; image-classification as text-classification; kinds
    with answers: `text_metrics.answer_columns`.

    accuracy and macro_f1 by scikit-learn (macro: the plain mean over the classes that are a target
    or a prediction of some row; a class with neither hit nor miss counts 0). accuracy_norm is the
    mean of ``score_norm``. With S the summed loss over all rows, as lm-evaluation-harness's
    ``weighted_perplexity`` and ``bits_per_byte``: word_perplexity = exp(S / words),
    token_perplexity = exp(S / tokens), bits_per_byte = S / (bytes x ln 2).

    InvalidNumerics if any row holds NaN or infinity, or a result is infinite; TaskError if there
    are no rows or a metric does not fit the kind.
    """
    if kind not in KINDS:
        raise TaskError(unknown_name("kind", kind, KINDS))
    if not rows:
        raise TaskError("there are no examples to score; raise the limit or check the data")
    _check_finite(rows)
    result: dict[str, float] = {}
    for metric in _told_by(rows, metrics):
        if metric not in KINDS[kind].metrics and not is_harness_metric(metric):
            raise TaskError(unknown_name(f"metric of {kind}", metric, KINDS[kind].metrics))
        result[metric] = _score(metric, rows)
        if not math.isfinite(result[metric]):
            raise InvalidNumerics(
                f"{metric} is too large for a number; the loss is so high that the model is broken"
            )
    return result


def _told_by(rows: Sequence[Row], metrics: Iterable[str]) -> list[str]:
    """`metrics` less those of lm-evaluation-harness that the rows don't tell; the first stays."""
    names = list(metrics)
    known = dict.fromkeys(name for row in rows for name in row)
    columns: Columns = dict.fromkeys(known, ())
    rest = [m for m in names[1:] if not is_harness_metric(m) or has_terms(m, columns)]
    return [*names[:1], *rest]


def sufficient(metric: str, columns: Mapping[str, Sequence[Any]]) -> tuple[np.ndarray, Finish]:
    """Terms of shape (n, k), one row per example, and what makes the metric of their sums.

    ``finish`` maps sums (..., k), of all rows or of any resample of them, to values (...), NaN for
    sums of nothing. The terms are

    - accuracy: (score, 1); accuracy_norm: (score_norm, 1); the metric is their quotient;
    - bits_per_byte, word_perplexity, token_perplexity: (loss, bytes | words | tokens);
    - macro_f1: for each of the C classes in `columns` one column each of hits, predictions and
      targets, k = 3C. F1 = 2 hits / (predictions + targets); the mean is taken over the classes
      that occur in the resample, as scikit-learn would on the same resample;
    - entity_f1, entity_precision, entity_recall: (right, predicted, true, 1); F1 = 2 right /
      (predicted + true), and 0 where there are no entities, as seqeval has it;
    - exact_match: (score, 1); token_f1, rouge1, rouge2, rougeL, ndcg_at_10, recall_at_10: (their
      own column, 1);
    - spearman: see `correlation.spearman_terms`;
    - bleu, chrf: sacrebleu's counts of n-grams and lengths (see `text_metrics`), so that a resample
      scores as sacrebleu would score these examples as a corpus.

    TaskError names an unknown metric or a column that is not there.
    """
    if is_harness_metric(metric):
        return harness_terms(metric, columns)
    if metric not in TERMS:
        raise TaskError(unknown_name("metric", metric, TERMS))
    return TERMS[metric](metric, columns)


def sufficient_of_two(
    metric: str, first: Mapping[str, Sequence[Any]], second: Mapping[str, Sequence[Any]]
) -> tuple[np.ndarray, np.ndarray, Finish]:
    """Terms of `first`, terms of `second` and one ``finish`` for both, as `sufficient` gives them;
    both hold as many rows.

    Made of the joined rows, in the columns that both have, and cut apart again: macro F1's terms
    depend on the classes that occur. Only ranks are each one's own.
    """
    joined = {name: [*first[name], *second[name]] for name in first if name in second}
    if metric == "spearman":
        terms, finish = _spearman_terms(metric, joined, parts=2)
    else:
        terms, finish = sufficient(metric, joined)
    n = len(terms) // 2
    return terms[:n], terms[n:], finish


def unparsed(rows: Sequence[Row]) -> int | None:
    """In how many rows the card's extraction rule found no answer; None where there is no rule."""
    found = [row["unparsed"] for row in rows if row.get("unparsed") is not None]
    return sum(found) if found else None


def mean_of(column: str) -> Terms:
    """Terms of the plain mean of `column` over the examples."""

    def terms(metric: str, columns: Columns) -> tuple[np.ndarray, Finish]:
        import numpy as np

        top = np.asarray(_column(columns, column, metric), dtype=float)
        return np.stack([top, np.ones_like(top)], axis=-1), _quotient(lambda mean: mean)

    return terms


def ratio_of(top: str, below: str, then: Callable[[np.ndarray], np.ndarray]) -> Terms:
    """Terms of ``then(sum of top / sum of below)``."""

    def terms(metric: str, columns: Columns) -> tuple[np.ndarray, Finish]:
        import numpy as np

        both = [np.asarray(_column(columns, name, metric), dtype=float) for name in (top, below)]
        return np.stack(both, axis=-1), _quotient(then)

    return terms


def counts_of(column: str, finish: Finish) -> Terms:
    """Terms that stand in `column`, a list of counts per example, and what makes the metric of
    their sums."""

    def terms(metric: str, columns: Columns) -> tuple[np.ndarray, Finish]:
        import numpy as np

        return np.array([list(row) for row in _column(columns, column, metric)], float), finish

    return terms


def _quotient(then: Callable[[np.ndarray], np.ndarray]) -> Finish:
    def finish(sums: np.ndarray) -> np.ndarray:
        import numpy as np

        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return then(np.asarray(sums)[..., 0] / np.asarray(sums)[..., 1])

    return finish


def entities_of(*below: str) -> Terms:
    """Terms of the share of right entities in the mean of the sums of the columns `below`."""

    def terms(metric: str, columns: Columns) -> tuple[np.ndarray, Finish]:
        import numpy as np

        names = ("right", *below)
        counts = [np.asarray(_column(columns, name, metric), dtype=float) for name in names]
        return np.stack([*counts, np.ones_like(counts[0])], axis=-1), finish

    def finish(sums: np.ndarray) -> np.ndarray:
        import numpy as np

        sums = np.asarray(sums, dtype=float)
        right, wanted, rows = sums[..., 0], sums[..., 1:-1].mean(-1), sums[..., -1]
        share = np.divide(right, wanted, out=np.zeros_like(right), where=wanted > 0)
        return np.where(rows > 0, share, np.nan)

    return terms


def _spearman_terms(metric: str, columns: Columns, parts: int = 1) -> tuple[np.ndarray, Finish]:
    first, second = (_column(columns, name, metric) for name in ("cosine", "target"))
    return spearman_terms(first, second, parts)


def _exp(mean: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.exp(mean)


def _f1_terms(metric: str, columns: Columns) -> tuple[np.ndarray, Finish]:
    import numpy as np

    target, prediction = (_column(columns, name, metric) for name in ("target", "prediction"))
    codes: dict[Any, int] = {}
    for label in (*target, *prediction):
        codes.setdefault(label, len(codes))
    one = np.eye(len(codes))
    true = one[[codes[label] for label in target]]
    predicted = one[[codes[label] for label in prediction]]
    terms = np.concatenate([true * predicted, predicted, true], axis=1)

    def finish(sums: np.ndarray) -> np.ndarray:
        hits, predictions, targets = np.split(np.asarray(sums, dtype=float), 3, axis=-1)
        seen = predictions + targets
        f1 = np.divide(2 * hits, seen, out=np.zeros_like(seen), where=seen > 0)
        with np.errstate(invalid="ignore"):
            return f1.sum(axis=-1) / (seen > 0).sum(axis=-1)

    return terms, finish


def _score(metric: str, rows: Sequence[Row]) -> float:
    if metric in ("accuracy", "macro_f1"):
        from sklearn.metrics import accuracy_score, f1_score

        target = [row["target"] for row in rows]
        prediction = [row["prediction"] for row in rows]
        if metric == "accuracy":
            return float(accuracy_score(target, prediction))
        return float(f1_score(target, prediction, average="macro", zero_division=0))
    columns: Columns = {name: [row.get(name) for row in rows] for name in rows[0]}
    if metric == "spearman":
        value = spearman(columns["cosine"], columns["target"])
        if math.isnan(value):
            raise InvalidNumerics(
                "the model gives every pair of texts the same similarity, so they have no order; "
                "use a wider format, or more examples"
            )
        return value
    terms, finish = sufficient(metric, columns)
    return float(finish(terms.sum(0)))


def _check_finite(rows: Sequence[Row]) -> None:
    bad = sum(not _finite(row) for row in rows)
    if bad:
        raise InvalidNumerics(
            f"the model's output holds NaN or infinity in {bad} of {len(rows)} examples; "
            "use a format with more range, such as bf16 or fp32"
        )


def _finite(row: Row) -> bool:
    numbers = [row.get(name) for name in _NUMBERS] + list(row.get("choice_logprobs") or [])
    return all(math.isfinite(number) for number in numbers if number is not None)


def _column(columns: Mapping[str, Sequence[Any]], name: str, metric: str) -> Sequence[Any]:
    if name not in columns:
        raise TaskError(f"{metric} needs the column '{name}' in the samples; run the sweep again")
    return columns[name]


TERMS: dict[str, Terms] = {
    "accuracy": mean_of("score"),
    "accuracy_norm": mean_of("score_norm"),
    "macro_f1": _f1_terms,
    "bits_per_byte": ratio_of("loss", "bytes", lambda mean: mean / math.log(2)),
    "word_perplexity": ratio_of("loss", "words", _exp),
    "token_perplexity": ratio_of("loss", "tokens", _exp),
    "exact_match": mean_of("score"),
    **{name: mean_of(name) for name in ("token_f1", "ndcg_at_10", "recall_at_10")},
    "entity_f1": entities_of("predicted", "true"),
    "entity_precision": entities_of("predicted"),
    "entity_recall": entities_of("true"),
    "spearman": _spearman_terms,
    **{name: mean_of(name) for name in ROUGE},
    **{name: counts_of(column, FINISHES[name]) for name, column in COUNTS.items()},
}
"""What makes each metric: (its name, the rows' columns) -> terms and finish, as `sufficient`."""
