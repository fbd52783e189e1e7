"""The bundled tasks and demo model are what their descriptions say. Nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TASKS = ROOT / "tasks"
DEMO = ROOT / "precision_explorer" / "models" / "demo"
SIZES = {"sentiment": 2063, "sentiment-choice": 1285, "news-perplexity": 498}
CALIBRATION = {"sentiment": 128, "sentiment-choice": 128, "news-perplexity": 64}
ENCODERS = {"news-retrieval": 496, "news-similarity": 600, "digits": 568}
DIGITS = ROOT / "precision_explorer" / "models" / "demo-digits"
KEYS = {
    "name", "version", "kind", "data", "columns", "prompt", "choices", "max_length", "metrics",
    "higher_is_better", "licence", "source", "calibration",
}  # fmt: skip


def _card(name: str) -> dict[str, Any]:
    return yaml.safe_load((TASKS / name / "task.yaml").read_text(encoding="utf-8"))


def _rows(name: str, file_name: str = "test.jsonl") -> list[dict[str, Any]]:
    with (TASKS / name / file_name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    """scripts/make_task_data.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location(
        "make_task_data", ROOT / "scripts" / "make_task_data.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name; it imports its neighbour.
    sys.modules["make_task_data"] = module
    sys.path.insert(0, str(ROOT / "scripts"))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "scripts"))
    del sys.modules["make_task_data"]


@pytest.mark.parametrize("name", SIZES)
def test_cards_and_rows(name: str, maker: ModuleType) -> None:
    card, rows = _card(name), _rows(name)
    assert card["name"] == name
    assert set(card) <= KEYS
    assert (TASKS / name / "task.yaml").read_text(encoding="utf-8") == maker.CARDS[name]
    assert len(rows) == SIZES[name]
    assert len({row["id"] for row in rows}) == len(rows)
    assert all(set(card["columns"].values()) <= set(row) for row in rows)
    assert all(row["text"].strip() for row in rows)


@pytest.mark.parametrize("name", SIZES)
def test_the_package_takes_the_cards(name: str) -> None:
    from precision_explorer.tasks import load_card, prepare

    assert prepare(load_card(str(TASKS / name)), limit=5, seed=0).identity.n == 5


@pytest.mark.parametrize("name", SIZES)
def test_calibration_texts_are_of_the_training_side(name: str, maker: ModuleType) -> None:
    from precision_explorer.tasks import load_calibration, load_card

    rows = _rows(name, "calibration.jsonl")
    assert len(rows) == CALIBRATION[name] == _card(name)["calibration"]["n"]
    # Which refuses a text that is test data as well.
    calibration = load_calibration(load_card(str(TASKS / name)), seed=0)
    assert sorted(calibration.texts) == sorted(row["text"] for row in rows)
    for row in rows:
        source, number = row["id"].split("-", 1)
        assert maker.part_of(source, number, row["text"]) == "train"
    if name == "sentiment-choice":
        assert {row["source"] for row in rows} == {"movie"}


@pytest.mark.parametrize("name", ["sentiment", "sentiment-choice"])
def test_sentiment_rows_follow_the_stated_rule(name: str, maker: ModuleType) -> None:
    rows = _rows(name)
    legal = (0, 1) if name == "sentiment-choice" else maker.LABELS
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == set(legal)
    assert min(counts.values()) > 0.4 * len(rows)
    for row in rows:
        assert row["label"] == legal[row["rating"] > 0]
        assert abs(row["rating"]) >= maker.CLEAR_RATING
        source, number = row["id"].split("-", 1)
        assert source == row["source"]
        assert maker.part_of(source, number, row["text"]) == "test"
    assert len({maker.text_key(row["text"]) for row in rows}) == len(rows)


def test_choice_is_the_movie_part_of_sentiment() -> None:
    movies = [row for row in _rows("sentiment") if row["source"] == "movie"]
    choice = _rows("sentiment-choice")
    assert [row["text"] for row in choice] == [row["text"] for row in movies]
    names = [text.strip() for text in _card("sentiment-choice")["choices"]]
    assert [names[row["label"]] for row in choice] == [row["label"] for row in movies]


def test_the_split_keeps_what_belongs_together(maker: ModuleType) -> None:
    texts = [f"text number {i}" for i in range(4000)]
    share = sum(maker.part_of("movie", "1", text) == "test" for text in texts) / len(texts)
    assert share == pytest.approx(maker.HELD_OUT_PERCENT / 100, abs=0.02)
    for text in texts[:100]:
        loud = f"  {text.upper()}!!"
        assert maker.part_of("movie", "1", text) == maker.part_of("tweet", "2", loud)
    for review in range(50):
        parts = {maker.part_of("product", f"{review}_{i}", texts[i]) for i in range(20)}
        assert len(parts) == 1


def test_training_never_holds_a_test_text(maker: ModuleType) -> None:
    texts = [f"text number {i % 150}" for i in range(300)]
    rows = [
        maker.Rated("product" if i % 2 else "tweet", f"{i}_1", 2.0, text)
        for i, text in enumerate(texts + texts[1:])
    ]
    held_out = {maker.text_key(row.text) for row in maker.test_rows(rows)}
    trained = {maker.text_key(row.text) for row in maker.training_rows(rows)}
    assert held_out
    assert trained
    assert not held_out & trained


def test_demo_weights_are_small_and_float32() -> None:
    path = DEMO / "model.safetensors"
    assert path.stat().st_size <= 25_000_000
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    tensors = {name: info for name, info in header.items() if name != "__metadata__"}
    assert {info["dtype"] for info in tensors.values()} == {"F32"}
    # Float8 and int8 kernels leave layers of other sizes as they are.
    linear = [i["shape"] for n, i in tensors.items() if n.endswith("dense.weight")]
    assert linear
    assert all(size % 16 == 0 for shape in linear for size in shape)


def test_demo_readme_states_what_is_there() -> None:
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    assert f"{(DEMO / 'model.safetensors').stat().st_size:,} bytes" in readme
    assert f"n = {SIZES['sentiment']:,}" in readme
    assert "Apache License" in (DEMO / "LICENSE").read_text(encoding="utf-8")
    assert "Hutto" in (TASKS / "LICENSE-data.txt").read_text(encoding="utf-8")


def test_demo_model_loads_and_classifies() -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(DEMO, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO, local_files_only=True)
    assert tokenizer.is_fast
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert len(tokenizer) == model.config.vocab_size
    rows = _rows("sentiment")[:300]
    batch = tokenizer([r["text"] for r in rows], truncation=True, padding=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(**batch).logits.argmax(-1).tolist()
    right = [model.config.id2label[i] == row["label"] for i, row in zip(found, rows, strict=True)]
    assert sum(right) / len(rows) >= 0.78
    unknown = (batch["input_ids"] == tokenizer.unk_token_id).sum() / batch["attention_mask"].sum()
    assert unknown < 0.001
    plain = tokenizer("A naive, unwatchable film.", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(plain).replace(" ", "") == "anaive,unwatchablefilm."


# -- tasks for encoders and vision models --------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_cards_and_rows(name: str, maker: ModuleType) -> None:
    from precision_explorer.tasks import load_calibration, load_card, prepare

    loaded = load_card(str(TASKS / name))
    assert (TASKS / name / "task.yaml").read_text(encoding="utf-8") == maker.CARDS[name]
    task = prepare(loaded, None, 0)
    assert task.identity.n == ENCODERS[name]
    # Which refuses a text or an image that is test data as well.
    calibration = load_calibration(loaded, seed=0)
    assert calibration.n == 64
    assert len(set(calibration.texts)) > 60


def articles(maker: ModuleType) -> dict[int, str]:
    return {int(row["id"].split("-")[1]): row["text"] for row in _rows("news-perplexity")}


def test_queries_are_taken_out_of_their_articles(maker: ModuleType) -> None:
    whole = articles(maker)
    corpus = {row["id"]: row["text"] for row in _rows("news-retrieval", "corpus.jsonl")}
    assert set(corpus) == {f"news-{number}" for number in whole}
    for row in _rows("news-retrieval"):
        rest, text = corpus[row["article"]], whole[int(row["article"].split("-")[1])]
        assert row["query"] in text
        assert row["query"] not in rest
        assert len(rest) + len(row["query"]) + 1 == len(text)


def test_pairs_are_graded_by_where_they_stand(maker: ModuleType) -> None:
    whole = articles(maker)
    rows = _rows("news-similarity")
    assert Counter(row["grade"] for row in rows) == {0: 200, 1: 200, 2: 200}
    for row in rows:
        text = whole[int(row["article"].split("-")[1])]
        assert row["first"] in text
        assert (row["second"] in text) == (row["grade"] > 0)
        neighbours = f"{row['first']} {row['second']}" in text
        assert neighbours == (row["grade"] == 2)


def test_encoder_data_are_made_again_from_the_articles(maker: ModuleType) -> None:
    """By the script's own rules, from articles whose sentences are known."""
    encoders = sys.modules["encoder_task_data"]
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    pairs = [(f"{a}_{i}", f"Article {a} sentence {i} " + " ".join(words)) for a in range(3)
             for i in range(9)]  # fmt: skip
    news = encoders.articles(pairs[::-1])
    assert news == encoders.articles(pairs)
    queries, corpus = encoders.retrieval_examples(news)
    assert [len(queries), len(corpus)] == [3, 3]
    for query, document in zip(queries, corpus, strict=True):
        assert query["query"] not in document["text"]
    graded = encoders.similarity_examples(news)
    assert Counter(row["grade"] for row in graded) == {0: 3, 1: 3, 2: 3}
    for row in graded:
        first, second = (
            [int(n) for n in row[k].split() if n.isdigit()] for k in ("first", "second")
        )
        same, distance = first[0] == second[0], second[1] - first[1]
        assert row["grade"] == (0 if not same else 2 if distance == 1 else 1)
        assert row["grade"] != 1 or abs(distance) >= encoders.FAR


def test_digits_are_those_of_scikit_learn_by_the_stated_rule(maker: ModuleType) -> None:
    encoders = sys.modules["encoder_task_data"]
    parts = encoders.digits()
    assert _rows("digits") == parts["test"]
    assert len(parts["test"]) + len(parts["train"]) == 1797
    train = {str(row["image"]) for row in parts["train"]}
    assert not train & {str(row["image"]) for row in parts["test"]}
    assert _rows("digits", "calibration.jsonl") == encoders.digits_calibration(parts["train"])
    assert {v for row in parts["test"] for line in row["image"] for v in line} <= set(range(256))


def test_the_vision_model_is_as_good_as_its_card_says() -> None:
    import re

    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from precision_explorer.models.image_classifier import decoded

    readme = (DIGITS / "README.md").read_text(encoding="utf-8")
    size = (DIGITS / "model.safetensors").stat().st_size
    assert f"{size:,} bytes" in readme
    assert size < 500_000
    stated = float(re.search(r"\*\*([0-9.]+)%\*\* accuracy", readme).group(1)) / 100  # type: ignore[union-attr]
    model = AutoModelForImageClassification.from_pretrained(DIGITS, local_files_only=True).eval()
    processor = AutoImageProcessor.from_pretrained(DIGITS, backend="pil", local_files_only=True)
    rows = _rows("digits")
    pixels = processor(images=[decoded(row, 3) for row in rows], return_tensors="pt")
    with torch.inference_mode():
        found = model(**pixels).logits.argmax(-1).tolist()
    right = sum(
        model.config.id2label[i] == str(r["digit"]) for i, r in zip(found, rows, strict=True)
    )
    assert right / len(rows) == pytest.approx(stated, abs=0.004)
    assert right / len(rows) >= 0.95
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inside = [m for m in linear if m is not model.classifier]
    assert all(m.in_features % 16 == m.out_features % 16 == 0 for m in inside)
