"""Metrics: against hand-made numbers, scikit-learn on resamples, and the two faces' agreement."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from precision_explorer.errors import InvalidNumerics, TaskError
from precision_explorer.tasks import (
    example_bytes,
    example_words,
    scores,
    sufficient,
    zero_one_column,
)

Rows = list[dict[str, Any]]
METRICS_OF = {
    "text-classification": ["accuracy", "macro_f1"],
    "multiple-choice": ["accuracy", "accuracy_norm"],
    "language-modeling": ["bits_per_byte", "word_perplexity", "token_perplexity"],
}


def columns_of(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def classification(pairs: list[tuple[str, str]]) -> Rows:
    return [
        {"id": str(i), "target": t, "prediction": p, "score": float(t == p), "loss": 0.5}
        for i, (t, p) in enumerate(pairs)
    ]


def random_rows(kind: str, n: int, seed: int) -> Rows:
    rng = random.Random(seed)
    if kind == "text-classification":
        return classification([(rng.choice("aabbc"), rng.choice("abbde")) for _ in range(n)])
    rows: Rows = []
    for i in range(n):
        row: dict[str, Any] = {"id": str(i), "loss": rng.uniform(1, 90)}
        if kind == "multiple-choice":
            target, prediction = rng.randrange(3), rng.randrange(3)
            row |= {"target": target, "prediction": prediction, "choice_logprobs": [-1.0, -2.0]}
            row |= {"score": float(target == prediction), "score_norm": float(rng.randrange(2))}
        else:
            row |= {"tokens": rng.randint(5, 90), "words": rng.randint(5, 60)}
            row |= {"bytes": rng.randint(20, 300)}
        rows.append(row)
    return rows


def test_accuracy_and_macro_f1_by_hand() -> None:
    # a: tp 2, predicted 3, true 3; b: tp 1, predicted 2, true 1; c: never predicted, true 1.
    rows = classification([("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("c", "a")])
    result = scores("text-classification", ["accuracy", "macro_f1"], rows)
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["macro_f1"] == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)


def test_language_modeling_by_hand() -> None:
    # lm-evaluation-harness weighs by length: sums before the quotient, not a mean of quotients.
    rows = [
        {"id": "0", "loss": 10.0, "tokens": 4, "words": 2, "bytes": 16},
        {"id": "1", "loss": 2.0, "tokens": 2, "words": 2, "bytes": 4},
    ]
    result = scores("language-modeling", METRICS_OF["language-modeling"], rows)
    assert result["bits_per_byte"] == pytest.approx(12 / 20 * math.log2(math.e))
    assert result["word_perplexity"] == pytest.approx(math.e**3)
    assert result["token_perplexity"] == pytest.approx(math.e**2)


def test_accuracy_norm_is_the_mean_of_its_scores() -> None:
    rows = random_rows("multiple-choice", 50, 1)
    expected = sum(row["score_norm"] for row in rows) / 50
    got = scores("multiple-choice", ["accuracy_norm", "accuracy"], rows)
    assert got["accuracy_norm"] == pytest.approx(expected)
    assert got["accuracy"] == pytest.approx(sum(row["score"] for row in rows) / 50)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", METRICS_OF)
def test_both_faces_agree(kind: str, seed: int) -> None:
    rows = random_rows(kind, 7 + 20 * seed, seed)
    measured = scores(kind, METRICS_OF[kind], rows)
    for metric in METRICS_OF[kind]:
        terms, finish = sufficient(metric, columns_of(rows))
        assert terms.shape[0] == len(rows)
        assert float(finish(terms.sum(axis=0))) == pytest.approx(measured[metric], rel=1e-12)


def test_macro_f1_of_resamples_is_scikit_learn_s() -> None:
    # Classes drop out of small resamples: then scikit-learn does not count them, and nor do we.
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(3)
    target, prediction = rng.choice(list("abcd"), 12), rng.choice(list("bcde"), 12)
    terms, finish = sufficient("macro_f1", {"target": target, "prediction": prediction})
    assert terms.shape == (12, 3 * 5)
    draws = rng.integers(0, 12, (200, 6))
    values = finish(terms[draws].sum(axis=1))
    assert values.shape == (200,)
    for draw, value in zip(draws, values, strict=True):
        expected = f1_score(target[draw], prediction[draw], average="macro", zero_division=0)
        assert value == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["accuracy", "bits_per_byte", "word_perplexity"])
def test_resamples_come_in_any_shape(metric: str) -> None:
    kind = next(kind for kind, metrics in METRICS_OF.items() if metric in metrics)
    rows = random_rows(kind, 30, 2)
    terms, finish = sufficient(metric, columns_of(rows))
    weights = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=(4, 3))
    values = finish(weights @ terms)
    assert values.shape == (4, 3)
    drawn = [row for row, times in zip(rows, weights[2, 1], strict=True) for _ in range(times)]
    assert values[2, 1] == pytest.approx(scores(kind, [metric], drawn)[metric])


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "token_perplexity"])
def test_sums_of_nothing_are_no_number(metric: str) -> None:
    kind = next(kind for kind, metrics in METRICS_OF.items() if metric in metrics)
    terms, finish = sufficient(metric, columns_of(random_rows(kind, 5, 0)))
    assert math.isnan(finish(np.zeros(terms.shape[1])))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("loss", math.nan), ("loss", math.inf), ("score", math.nan), ("score_norm", -math.inf),
        ("choice_logprobs", [-1.0, math.nan]),
    ],
)  # fmt: skip
def test_no_score_is_made_of_nan(column: str, value: Any) -> None:
    rows = random_rows("multiple-choice", 9, 0)
    rows[2][column] = rows[7][column] = value
    with pytest.raises(InvalidNumerics, match="in 2 of 9 examples"):
        scores("multiple-choice", ["accuracy"], rows)


def test_a_loss_too_large_for_a_perplexity_is_refused() -> None:
    rows = [{"id": "0", "loss": 9e5, "tokens": 3, "words": 2, "bytes": 9}]
    with pytest.raises(InvalidNumerics, match="word_perplexity"):
        scores("language-modeling", ["word_perplexity"], rows)
    assert scores("language-modeling", ["bits_per_byte"], rows)["bits_per_byte"] > 0


def test_a_missing_loss_is_no_nan() -> None:
    rows = classification([("a", "a"), ("b", "a")])
    for row in rows:
        row["loss"] = None
    assert scores("text-classification", ["accuracy"], rows) == {"accuracy": 0.5}


def test_wrong_use_is_told() -> None:
    rows = classification([("a", "a")])
    with pytest.raises(TaskError, match="no examples"):
        scores("text-classification", ["accuracy"], [])
    with pytest.raises(TaskError, match="unknown kind"):
        scores("classification", ["accuracy"], rows)
    with pytest.raises(TaskError, match="unknown metric of text-classification"):
        scores("text-classification", ["accuracy_norm"], rows)
    with pytest.raises(TaskError, match="unknown metric 'f1'"):
        sufficient("f1", columns_of(rows))
    with pytest.raises(TaskError, match="'words'"):
        sufficient("word_perplexity", {"loss": [1.0]})


@pytest.mark.parametrize(
    ("text", "words", "size"),
    [
        ("one two", 2, 7),
        ("one  \n\ttwo three", 3, 16),
        # Pieces, not words: white space at either end adds an empty one, as in the harness.
        (" one two\n", 4, 9),
        ("", 1, 0),
        ("naïve\u00a0€", 2, 11),
    ],
)
def test_words_and_bytes(text: str, words: int, size: int) -> None:
    assert example_words(text) == words
    assert example_bytes(text) == size


def test_zero_one_columns() -> None:
    assert zero_one_column("accuracy") == "score"
    assert zero_one_column("accuracy_norm") == "score_norm"
    assert zero_one_column("macro_f1") is None
    assert zero_one_column("bits_per_byte") is None
