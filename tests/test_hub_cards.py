"""The cards of well-known hub data sets, on local parquet files with the data sets' columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from precision_explorer.tasks import bundled_cards, hub_cards, load_card
from tests.test_task_data import make

GLUE = {"sentence": "a fine film", "label": 1, "idx": 7}
ARC = {
    "id": "q1",
    "question": "Which is warm?",
    "choices": {"text": ["ice", "snow", "fire"], "label": ["1", "2", "3"]},
    "answerKey": "3",
}
# A row of each data set, and what an example of it must say.
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sst2": (GLUE, {"id": "7", "text": "a fine film", "label": "positive"}),
    "sst2-choice": (
        GLUE,
        {
            "prompt": "a fine film\nQuestion: Is this sentence positive or negative?\nAnswer: ",
            "choices": ["negative", "positive"],
            "label": 1,
        },
    ),
    "squad": (
        {
            "id": "5",
            "title": "Rome",
            "context": "Rome is old.",
            "question": "What is old?",
            "answers": {"text": ["Rome", "Rome"], "answer_start": [0, 0]},
        },
        {"group": "Rome", "references": ["Rome", "Rome"], "context": "Rome is old."},
    ),
    "hellaswag": (
        {
            "ind": 24,
            "activity_label": "Roof shingle removal",
            "ctx_a": "A man is sitting on a roof.",
            "ctx_b": "he",
            "ctx": "A man is sitting on a roof. he",
            "endings": ["sleeps.", "works.", "sings.", "flies."],
            "label": "1",
        },
        {
            "prompt": "Roof shingle removal: A man is sitting on a roof. he ",
            "choices": ["sleeps.", "works.", "sings.", "flies."],
            "label": 1,
        },
    ),
    "arc-easy": (ARC, {"prompt": "Question: Which is warm?\nAnswer: ", "label": 2}),
    "arc-challenge": (ARC, {"choices": ["ice", "snow", "fire"], "label": 2}),
    "piqa": (
        {"goal": "Dry a shirt", "sol1": "Use the sun.", "sol2": "Use water.", "label": 0},
        {
            "prompt": "Question: Dry a shirt\nAnswer: ",
            "choices": ["Use the sun.", "Use water."],
            "label": 0,
        },
    ),
    "winogrande": (
        {
            "sentence": "Eve fed Ann, _ was ill.",
            "option1": "Eve",
            "option2": "Ann",
            "answer": "2",
        },
        {"choices": ["Eve", "Ann"], "label": 1},
    ),
    "mmlu": (
        {"question": "1 + 1?", "subject": "algebra", "choices": ["1", "2", "3", "4"], "answer": 1},
        {
            "prompt": "1 + 1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: ",
            "choices": ["A", "B", "C", "D"],
            "label": 1,
        },
    ),
    "conll2003": (
        {
            "id": "0",
            "tokens": ["EU", "rejects", "call"],
            "pos_tags": [22, 42, 21],
            "chunk_tags": [11, 21, 11],
            "ner_tags": [3, 0, 0],
        },
        {"text": ["EU", "rejects", "call"], "label": ["B-ORG", "O", "O"]},
    ),
    "stsb": (
        {"sentence1": "A girl runs.", "sentence2": "A child runs.", "score": 0.8},
        {"text": "A girl runs.", "pair": "A child runs.", "label": 0.8},
    ),
    "cnn-dailymail": (
        {"article": "It rained in Rome.", "highlights": "Rain in Rome.", "id": "0"},
        {"prompt": "It rained in Rome.", "references": ["Rain in Rome."]},
    ),
    "wmt16-de-en": (
        {"translation": {"de": "Guten Tag", "en": "Good day"}},
        {"prompt": "Guten Tag", "references": ["Good day"]},
    ),
    "wikitext-2": ({"page": " = Rome = \n Old . \n"}, {"text": " = Rome = \n Old . \n"}),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))


def test_every_hub_card_is_tried_and_none_is_called_as_a_bundled_one() -> None:
    assert set(hub_cards()) == set(ROWS)
    assert not set(hub_cards()) & set(bundled_cards())


@pytest.mark.parametrize("name", ROWS)
def test_a_hub_card_reads_rows_of_its_data_set(name: str, tmp_path: Path) -> None:
    loaded = load_card(name)
    assert loaded.card.name == name
    assert loaded.card.data.hub is not None
    row, wanted = ROWS[name]
    second = row | {k: f"{v}2" for k, v in row.items() if k in ("id", "page")}
    if "idx" in row:
        second["idx"] = row["idx"] + 1
    if "ind" in row:
        second["ind"] = row["ind"] + 1
    if "score" in row:
        second["score"] = 0.1
    card = yaml.safe_load(loaded.path.read_text(encoding="utf8"))
    del card["data"]
    examples = make(tmp_path, [row, second], card, "test.parquet").examples
    first = next(e for e in examples if e["id"] in ("0", str(row.get("id")), "7", "24"))
    assert {key: first[key] for key in wanted} == wanted
