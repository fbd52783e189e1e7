"""Examples and metrics of the kinds that encoders and vision models answer."""

from __future__ import annotations

import base64
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from precision_explorer.errors import InvalidNumerics, TaskError
from precision_explorer.tasks import (
    PreparedTask,
    check_labels,
    label_ids,
    load_card,
    prepare,
    scores,
    sufficient,
)
from precision_explorer.tasks.cards import card_hash
from precision_explorer.tasks.correlation import EXACT_ROWS, spearman_terms
from precision_explorer.tasks.entities import entities, entity_counts
from precision_explorer.tasks.ranking import ndcg, recall
from precision_explorer.tasks.squad import exact_match, normalised, token_f1
from tests.test_task_data import make, refusal, write_card, write_rows

COMMON = {"name": "mine", "version": 1, "max_length": 64}
TOKENS = COMMON | {
    "kind": "token-classification",
    "columns": {"text": "tokens", "label": "tags"},
    "metrics": ["entity_f1"],
}
QA = COMMON | {
    "kind": "extractive-qa",
    "columns": {"text": "question", "context": "context", "reference": "answers.text"},
    "metrics": ["exact_match", "token_f1"],
}
SIMILARITY = COMMON | {
    "kind": "similarity",
    "columns": {"text": "a", "pair": "b", "label": "score"},
    "metrics": ["spearman"],
}
RETRIEVAL = COMMON | {
    "kind": "retrieval",
    "columns": {"text": "query", "label": "documents"},
    "corpus": {"path": "corpus.jsonl"},
    "metrics": ["ndcg_at_10", "recall_at_10"],
}
IMAGES = COMMON | {
    "kind": "image-classification",
    "columns": {"image": "image", "label": "label"},
    "metrics": ["accuracy"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))


# Entities


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], {("PER", 0, 1), ("LOC", 3, 3)}),
        (["B-PER", "B-PER"], {("PER", 0, 0), ("PER", 1, 1)}),
        # An I without a B begins an entity, and so does one of another type: conlleval's rule.
        (["I-PER", "I-LOC", "O", "I-LOC"], {("PER", 0, 0), ("LOC", 1, 1), ("LOC", 3, 3)}),
        (["S-PER", "B-LOC", "E-LOC", "E-LOC"], {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)}),
        (["O", "O"], set()),
        ([], set()),
    ],
)
def test_entities_of_tags(tags: list[str], found: set[Any]) -> None:
    assert entities(tags) == found


IOB = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG"]
IOBES = ["O", "O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "E-LOC", "S-LOC"]


def drawn_tags(seed: int, tags: list[str]) -> list[tuple[list[str], list[str]]]:
    """40 (target, prediction) pairs, seven tags in ten the same."""
    rng = random.Random(seed)
    target = [[rng.choice(tags) for _ in range(rng.randint(3, 12))] for _ in range(40)]
    found = [[t if rng.random() < 0.7 else rng.choice(tags) for t in s] for s in target]
    return list(zip(target, found, strict=True))


def tag_rows(pairs: list[tuple[list[str], list[str]]]) -> list[dict[str, Any]]:
    names = ("right", "predicted", "true")
    return [dict(zip(names, entity_counts(*pair), strict=True)) | {"loss": 1.0} for pair in pairs]


# seqeval 1.2.2: f1_score, precision_score and recall_score of `drawn_tags`.
SEQEVAL = [
    (IOB, 0, 0.6687116564417178, 0.6687116564417178, 0.6687116564417178),
    (IOB, 1, 0.6848484848484848, 0.6807228915662651, 0.6890243902439024),
    (IOB, 2, 0.6914285714285714, 0.6914285714285714, 0.6914285714285714),
    (IOBES, 0, 0.7481662591687042, 0.7427184466019418, 0.7536945812807881),
    (IOBES, 1, 0.771764705882353, 0.7772511848341233, 0.7663551401869159),
    (IOBES, 2, 0.7379912663755459, 0.7412280701754386, 0.7347826086956522),
]


@pytest.mark.parametrize(("tags", "seed", "f1", "precision", "recalled"), SEQEVAL)
def test_entity_scores_are_seqeval_s(
    tags: list[str], seed: int, f1: float, precision: float, recalled: float
) -> None:
    metrics = ["entity_f1", "entity_precision", "entity_recall"]
    found = scores("token-classification", metrics, tag_rows(drawn_tags(seed, tags)))
    assert list(found.values()) == pytest.approx([f1, precision, recalled], rel=1e-12)


def test_resamples_of_entity_f1_are_those_of_the_drawn_examples() -> None:
    rows = tag_rows(drawn_tags(1, IOB))
    terms, finish = sufficient("entity_f1", {name: [r[name] for r in rows] for name in rows[0]})
    counts = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, size=5)
    for weights, value in zip(counts, finish(counts @ terms), strict=True):
        drawn = [r for r, times in zip(rows, weights, strict=True) for _ in range(times)]
        assert value == pytest.approx(
            scores("token-classification", ["entity_f1"], drawn)["entity_f1"]
        )
    assert math.isnan(finish(np.zeros(terms.shape[1])))
    # Text without an entity on either side: 0, as seqeval has it.
    terms, finish = sufficient("entity_f1", {"right": [0], "predicted": [0], "true": [0]})
    assert finish(terms.sum(0)) == 0.0


def test_words_and_tags(tmp_path: Path) -> None:
    rows = [{"tokens": ["Anna", "sleeps"], "tags": ["B-PER", "O"]}]
    assert make(tmp_path, rows, TOKENS).examples[0] == {
        "id": "0", "group": None, "text": ["Anna", "sleeps"], "label": ["B-PER", "O"],
    }  # fmt: skip
    numbers = [{"tokens": ["Anna", "sleeps"], "tags": [1, 0]}]
    named = TOKENS | {"labels": ["O", "B-PER"]}
    assert make(tmp_path / "n", numbers, named).examples[0]["label"] == ["B-PER", "O"]
    assert "labels" in refusal(lambda: make(tmp_path / "o", numbers, TOKENS))
    short = [{"tokens": ["Anna", "sleeps"], "tags": ["O"]}]
    assert "2 words have 1 labels" in refusal(lambda: make(tmp_path / "s", short, TOKENS))
    beyond = [{"tokens": ["Anna"], "tags": [7]}]
    assert "none of the 2" in refusal(lambda: make(tmp_path / "b", beyond, named))


def test_a_model_must_know_the_types_but_not_every_tag(tmp_path: Path) -> None:
    rows = [{"tokens": ["Anna", "Lee"], "tags": ["B-PER", "I-PER"]}]
    task = make(tmp_path, rows, TOKENS)
    # One of IOB1, which marks a beginning only where two entities touch.
    assert label_ids(task.card, task.examples, {0: "O", 1: "I-PER"}) == {"I-PER": 1}
    message = refusal(lambda: label_ids(task.card, task.examples, {0: "O", 1: "I-LOC"}))
    assert "no entities of type PER" in message
    assert "LOC" in message


# Answers


@pytest.mark.parametrize(
    ("prediction", "references", "exact", "f1"),
    [
        ("The Cat", ["cat!"], 1.0, 1.0),
        ("cat dog", ["a dog", "horse"], 0.0, 2 / 3),
        ("red red fish", ["red fish"], 0.0, 0.8),
        ("horse", ["dog", "horse"], 1.0, 1.0),
        ("horse", ["dog"], 0.0, 0.0),
    ],
)
def test_answers_by_hand(prediction: str, references: list[str], exact: float, f1: float) -> None:
    assert exact_match(prediction, references) == exact
    assert token_f1(prediction, references) == pytest.approx(f1)


def test_answers_are_normalised_as_squad_does() -> None:
    assert normalised(" The  U.S.-led an anthem") == "usled anthem"
    assert normalised("theatre") == "theatre"


def test_questions_take_several_answers_out_of_a_struct(tmp_path: Path) -> None:
    rows = [
        {
            "question": "who?",
            "context": "Anna did.",
            "answers": {"text": ["Anna", "Anna did"], "answer_start": [0, 0]},
        }
    ]
    for name in ("t.parquet", "t.jsonl"):
        example = make(tmp_path, rows, QA, name).examples[0]
        assert example["references"] == ["Anna", "Anna did"]
        assert (example["text"], example["context"]) == ("who?", "Anna did.")
    rows[0]["answers"] = {"text": [], "answer_start": []}  # type: ignore[assignment]
    assert "not supported" in refusal(lambda: make(tmp_path / "e", rows, QA))


# Similarity


def test_spearman_is_scipy_s_also_on_resamples() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    target = rng.integers(0, 4, 30).astype(float)
    cosine = np.round(target / 8 + rng.normal(0, 0.3, 30), 1)
    rows = [
        {"target": t, "cosine": c, "prediction": c} for t, c in zip(target, cosine, strict=True)
    ]
    expected = spearmanr(cosine, target).statistic
    assert scores("similarity", ["spearman"], rows)["spearman"] == pytest.approx(expected)
    terms, finish = sufficient("spearman", {"target": target, "cosine": cosine})
    counts = rng.multinomial(30, [1 / 30] * 30, size=(6, 2))
    values = finish(counts @ terms)
    assert values.shape == (6, 2)
    for weights, value in zip(counts.reshape(-1, 30), values.ravel(), strict=True):
        drawn = np.repeat(np.arange(30), weights)
        assert value == pytest.approx(spearmanr(cosine[drawn], target[drawn]).statistic)
    assert math.isnan(finish(np.zeros(30)))
    assert finish(np.eye(30)[0]) == 0.0


def test_spearman_of_many_rows_keeps_their_ranks() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(5)
    n = EXACT_ROWS + 500
    target = rng.integers(0, 6, n).astype(float)
    cosine = target / 10 + rng.normal(0, 0.3, n)
    terms, finish = spearman_terms(cosine, target)
    assert terms.shape == (n, 6)
    assert finish(terms.sum(0)) == pytest.approx(spearmanr(cosine, target).statistic, abs=1e-9)
    drawn = rng.integers(0, n, n)
    value = finish(terms[drawn].sum(0))
    assert value == pytest.approx(spearmanr(cosine[drawn], target[drawn]).statistic, abs=2e-3)
    assert finish(terms[0] * 7) == 0.0


def test_the_difference_of_two_spearmans_is_that_of_their_values() -> None:
    """Of more rows than are ranked anew, each format's are ranked by themselves."""
    from scipy.stats import spearmanr

    from precision_explorer.table.quality import Quality, noise_floor

    rng = np.random.default_rng(6)
    n = EXACT_ROWS // 2 + 50
    target = rng.normal(0, 1, n)
    # The second's cosines lie elsewhere, and closer together.
    cosines = target + rng.normal(0, 0.5, n), 3 + 0.1 * target + rng.normal(0, 0.1, n)
    both = [
        Quality.of("spearman", {"id": list(range(n)), "target": target, "cosine": list(c)})
        for c in cosines
    ]
    values = [spearmanr(c, target).statistic for c in cosines]
    found = noise_floor(*both)
    assert found is not None
    assert found.delta == pytest.approx(values[1] - values[0], abs=1e-9)


def test_three_pairs_have_intervals_though_some_resamples_have_no_order() -> None:
    import warnings

    from precision_explorer.table.quality import Quality, own_columns, paired_columns

    columns: dict[str, Any] = {
        "id": ["0", "1", "2"],
        "target": [0.0, 1.0, 2.0],
        "group": [None] * 3,
    }
    first = Quality.of("spearman", columns | {"cosine": [0.1, 0.2, 0.3]})
    second = Quality.of("spearman", columns | {"cosine": [0.2, 0.1, 0.3]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own, paired = own_columns(first, 1.0, 0), paired_columns(first, second, 0.01, 0)
    assert own["quality_ci_low"] < own["quality_ci_high"] == 1.0
    assert paired["quality_delta"] == pytest.approx(-0.5)
    assert paired["verdict"] == "cannot-tell"


def test_equal_similarities_have_no_order() -> None:
    rows = [{"target": float(i), "cosine": 0.5, "prediction": 0.5} for i in range(5)]
    with pytest.raises(InvalidNumerics, match="the same similarity"):
        scores("similarity", ["spearman"], rows)


def test_pairs_have_numbers_that_differ(tmp_path: Path) -> None:
    rows = [{"a": "one", "b": "two", "score": "1.5"}, {"a": "one", "b": "one", "score": 5}]
    examples = make(tmp_path, rows, SIMILARITY, "t.csv").examples
    assert {e["id"]: e["label"] for e in examples} == {"0": 1.5, "1": 5.0}
    assert all(e["text"] == "one" for e in examples)
    bad = [{"a": "one", "b": "two", "score": "high"}]
    assert "no number" in refusal(lambda: make(tmp_path / "b", bad, SIMILARITY))
    same = [row | {"score": 3} for row in rows]
    assert "all labels are the same" in refusal(lambda: make(tmp_path / "s", same, SIMILARITY))


# Retrieval


def test_ranking_by_hand() -> None:
    relevant = {"a": 2.0, "b": 1.0}
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    found = ndcg(["x", "a", "b"], relevant)
    assert found == pytest.approx((2 / math.log2(3) + 1 / math.log2(4)) / ideal)
    assert ndcg(["a", "b"], relevant) == 1.0
    assert recall(["x", "a"], relevant) == 0.5
    # What stands behind the tenth place does not count.
    late = [*map(str, range(10)), "a", "b"]
    assert ndcg(late, relevant) == recall(late, relevant) == 0.0


def test_ndcg_is_scikit_learn_s() -> None:
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    for _ in range(20):
        grades, order = rng.integers(0, 4, 30).astype(float), rng.permutation(30)
        grades[0] = 1.0
        relevant = {str(i): g for i, g in enumerate(grades) if g > 0}
        place = np.empty(30)
        place[order] = -np.arange(30.0)
        expected = ndcg_score([grades], [place], k=10)
        assert ndcg([str(i) for i in order], relevant) == pytest.approx(expected)


def with_corpus(
    folder: Path,
    rows: list[dict[str, Any]],
    documents: list[dict[str, Any]],
    card: dict[str, Any] = RETRIEVAL,
) -> PreparedTask:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "corpus.jsonl", documents)
    return make(folder, rows, card)


DOCUMENTS = [{"id": "d1", "text": "one"}, {"id": "d2", "text": "two"}]


def test_queries_name_their_documents(tmp_path: Path) -> None:
    rows = [{"query": "first", "documents": "d1"}, {"query": "both", "documents": '["d1", "d2"]'}]
    task = with_corpus(tmp_path, rows, DOCUMENTS)
    relevant = {e["id"]: e["relevant"] for e in task.examples}
    assert relevant == {"0": {"d1": 1.0}, "1": {"d1": 1.0, "d2": 1.0}}
    assert task.corpus == DOCUMENTS
    graded = RETRIEVAL | {"columns": RETRIEVAL["columns"] | {"grade": "grades"}}
    rows = [{"query": "both", "documents": ["d1", "d2"], "grades": [3, 0]}]
    assert with_corpus(tmp_path / "g", rows, DOCUMENTS, graded).examples[0]["relevant"] == {
        "d1": 3.0
    }


def test_the_limit_leaves_the_corpus_whole_and_the_corpus_is_part_of_the_identity(tmp_path):
    rows = [{"query": f"q{i}", "documents": "d1"} for i in range(5)]
    (tmp_path / "a").mkdir()
    write_rows(tmp_path / "a" / "corpus.jsonl", DOCUMENTS)
    task = make(tmp_path / "a", rows, RETRIEVAL, limit=2)
    assert (len(task.examples), len(task.corpus)) == (2, 2)
    other = with_corpus(tmp_path / "b", rows, [*DOCUMENTS, {"id": "d3", "text": "three"}])
    whole = with_corpus(tmp_path / "c", rows, DOCUMENTS)
    assert other.identity.data_hash != whole.identity.data_hash == task.identity.data_hash


def test_a_bad_corpus_is_told(tmp_path: Path) -> None:
    rows = [{"query": "first", "documents": "d9"}]
    message = refusal(lambda: with_corpus(tmp_path / "a", rows, DOCUMENTS))
    assert "document d9 is not in the corpus" in message
    rows = [{"query": "first", "documents": "d1"}]
    twice = refusal(lambda: with_corpus(tmp_path / "b", rows, [DOCUMENTS[0], DOCUMENTS[0]]))
    assert "the same id" in twice
    empty = [{"id": "d1", "text": " "}]
    assert "has no text" in refusal(lambda: with_corpus(tmp_path / "c", rows, empty))
    without = {k: v for k, v in RETRIEVAL.items() if k != "corpus"}
    assert "needs a corpus" in refusal(lambda: with_corpus(tmp_path / "d", rows, [], without))


# Images


def png(value: int) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def test_images_are_pixels_files_or_bytes(tmp_path: Path) -> None:
    pixels = [[0, 255], [1, 2]]
    assert make(tmp_path, [{"image": pixels, "label": 1}], IMAGES).examples[0]["image"] == pixels
    (tmp_path / "one.png").write_bytes(png(1))
    files = [{"image": "one.png", "label": 1}]
    assert make(tmp_path, files, IMAGES).examples[0]["image"] == str(tmp_path / "one.png")
    stored = [{"image": {"bytes": png(3), "path": "x.png"}, "label": 1}]
    found = make(tmp_path, stored, IMAGES, "t.parquet").examples[0]["image"]
    assert base64.b64decode(found.partition(",")[2]) == png(3)


def test_a_changed_image_is_other_data(tmp_path: Path) -> None:
    rows = [{"image": "one.png", "label": 1}]
    (tmp_path / "one.png").write_bytes(png(1))
    before = make(tmp_path, rows, IMAGES).identity
    assert make(tmp_path, rows, IMAGES).identity == before
    (tmp_path / "one.png").write_bytes(png(2))
    assert make(tmp_path, rows, IMAGES).identity.data_hash != before.data_hash


@pytest.mark.parametrize(
    "image", [[[0, 1], [2]], [[0, 300]], [[0.5, 1]], [[[1, 2]]], [], 5, [[[1, 2, 3], 4]]]
)
def test_what_is_no_image_is_told(tmp_path: Path, image: Any) -> None:
    rows = [{"image": image, "label": 1}]
    (tmp_path / "task.yaml").parent.mkdir(exist_ok=True)
    path = write_card(tmp_path, IMAGES, {"path": "t.jsonl"})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert "image" in refusal(lambda: prepare(load_card(path), None, 0))


def test_a_missing_image_file_is_told(tmp_path: Path) -> None:
    rows = [{"image": "gone.png", "label": 1}]
    assert "no readable image" in refusal(lambda: make(tmp_path, rows, IMAGES))


# Labels by name, nested columns, and what must not change


def test_label_numbers_by_name_fit_models_of_another_order(tmp_path: Path) -> None:
    card = COMMON | {
        "kind": "text-classification",
        "columns": {"text": "text", "label": "label"},
        "labels": ["negative", "positive"],
        "metrics": ["accuracy"],
    }
    task = make(tmp_path, [{"text": "good", "label": 1}], card)
    assert task.examples[0]["label"] == "positive"
    other = {0: "POSITIVE", 1: "NEGATIVE"}
    assert check_labels(task.card, task.examples, other) == {"positive": 0}
    # A model that names none is taken to have the data's order.
    unnamed = {0: "LABEL_0", 1: "LABEL_1"}
    assert check_labels(task.card, task.examples, unnamed) == {"positive": 1}


ARC = COMMON | {
    "kind": "multiple-choice",
    "prompt": "Question: {text}\nAnswer: ",
    "columns": {
        "text": "question", "choices": "choices.text", "label": "key", "labels": "choices.label",
    },
    "metrics": ["accuracy"],
}  # fmt: skip


def test_a_label_may_be_the_name_of_a_choice(tmp_path: Path) -> None:
    choices = {"text": ["red", "blue", "green"], "label": ["A", "B", "C"]}
    rows = [{"question": "sky?", "choices": choices, "key": "B"}]
    example = make(tmp_path, rows, ARC, "t.parquet").examples[0]
    assert (example["label"], example["choices"]) == (1, ["red", "blue", "green"])
    lost = refusal(lambda: make(tmp_path / "l", [rows[0] | {"key": "E"}], ARC, "t.parquet"))
    assert "label 'E' is none of A, B, C" in lost
    fixed = ARC | {"columns": {k: v for k, v in ARC["columns"].items() if k != "labels"}}
    numbered = [{"question": "sky?", "choices": choices, "key": "2"}]
    named = make(tmp_path / "n", numbered, fixed | {"labels": ["1", "2", "3"]}, "t.parquet")
    assert named.examples[0]["label"] == 1


def test_paths_lead_into_structs_and_lists_of_them(tmp_path: Path) -> None:
    card = COMMON | {
        "kind": "language-modeling",
        "columns": {"text": "translation.de"},
        "metrics": ["bits_per_byte"],
    }
    rows: list[dict[str, Any]] = [{"translation": {"de": "ja", "en": "yes"}}]
    assert make(tmp_path, rows, card, "t.parquet").examples[0]["text"] == "ja"
    # A column of that very name goes first.
    rows = [{"translation.de": "nein", "translation": {"de": "ja"}}]
    assert make(tmp_path / "l", rows, card, "t.parquet").examples[0]["text"] == "nein"
    both = [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]
    structs = [{"question": "q", "choices": both, "key": "A"}]
    assert make(tmp_path / "s", structs, ARC, "t.parquet").examples[0]["choices"] == ["a", "b"]
    missing = card | {"columns": {"text": "translation.fr"}}
    rows = [{"translation": {"de": "ja", "en": "yes"}}]
    message = refusal(lambda: make(tmp_path / "m", rows, missing, "t.parquet"))
    assert "'fr'" in message
    assert "translation" in message
    flat = card | {"columns": {"text": "text.de"}}
    message = refusal(lambda: make(tmp_path / "f", [{"text": "ja"}], flat, "t.parquet"))
    assert "holds no struct" in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"corpus": {"path": "c.jsonl"}}, "corpus does not fit kind similarity"),
        ({"stride": 5}, "stride does not fit"),
        ({"labels": ["a", "b"]}, "labels does not fit"),
    ],
)
def test_keys_of_other_kinds_are_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    rows = [{"a": "one", "b": "two", "score": 1}]
    assert said in refusal(lambda: make(tmp_path, rows, SIMILARITY | more))


def test_a_stride_must_leave_something_new(tmp_path: Path) -> None:
    rows = [{"question": "q", "context": "c", "answers": {"text": ["c"]}}]
    assert "stride of 64" in refusal(lambda: make(tmp_path, rows, QA | {"stride": 64}, "t.parquet"))


def test_cards_of_earlier_kinds_keep_their_hash() -> None:
    """Else every stored cell of theirs would be measured again."""
    assert {name: card_hash(load_card(name).card) for name in EARLIER} == EARLIER


EARLIER = {
    "news-perplexity": "79e7806a53e3d68c",
    "sentiment": "d6cc85e74c1e6205",
    "sentiment-choice": "4d6edd297774156d",
}


@pytest.mark.parametrize("kind", ["token-classification", "similarity", "retrieval"])
def test_a_missing_column_of_the_samples_is_named(kind: str) -> None:
    metric = {"token-classification": "entity_f1", "similarity": "spearman"}.get(kind, "ndcg_at_10")
    with pytest.raises(TaskError, match="needs the column"):
        sufficient(metric, {"id": ["0"]})
