"""Calibration sets: which texts are taken, and that none of them is test data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from precision_explorer.errors import TaskError
from precision_explorer.tasks import NoCalibration, load_calibration, load_card, prepare
from precision_explorer.tasks.calibration import overlaps

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
TEST = ["A fine day.", "No, it rains!", LONG, "We met under the old clock at noon today."]
FRESH = ["Something else.", "And more of it.", "A third text.", "The fourth."]
CARD: dict[str, Any] = {
    "name": "made",
    "version": 1,
    "kind": "language-modeling",
    "data": {"path": "test.jsonl"},
    "columns": {"id": "id", "text": "text"},
    "calibration": {"path": "calibration.jsonl"},
    "metrics": ["bits_per_byte"],
}
CHOICE = CARD | {
    "kind": "multiple-choice",
    "columns": {"id": "id", "text": "text", "label": "label"},
    "prompt": "Here is a review of a film; now say in a word whether its writer liked it: {text}",
    "choices": [" no", " yes"],
    "metrics": ["accuracy"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))


def write(path: Path, texts: list[str]) -> None:
    rows = [{"id": f"{path.stem[0]}{i}", "text": t, "label": 0} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def card(
    folder: Path, calibration: list[str], changes: dict[str, Any] | None = None, base: Any = CARD
) -> Any:
    write(folder / "test.jsonl", TEST)
    write(folder / "calibration.jsonl", calibration)
    (folder / "task.yaml").write_text(yaml.safe_dump(base | (changes or {})))
    return load_card(str(folder))


def refusal(action: Callable[[], Any], kind: type[TaskError] = TaskError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_of_one_seeded_order_are_taken(tmp_path):
    loaded = card(tmp_path, FRESH, {"calibration": {"path": "calibration.jsonl", "n": 3}})
    first, again = load_calibration(loaded, 0), load_calibration(loaded, 0)
    assert first == again
    assert first.n == len(first.texts) == 3
    assert [e["text"] for e in first.examples] == first.texts
    assert set(first.texts) < set(FRESH)
    orders = {tuple(load_calibration(loaded, seed).texts) for seed in range(20)}
    assert len(orders) > 5


def test_all_are_taken_where_there_are_fewer_than_n(tmp_path):
    found = load_calibration(card(tmp_path, FRESH), 0)
    assert sorted(found.texts) == sorted(FRESH)


def test_the_hash_is_that_of_what_the_model_sees(tmp_path):
    base = load_calibration(card(tmp_path, FRESH), 0).hash
    assert len(base) == 16
    assert load_calibration(card(tmp_path, [*FRESH[:3], "Other."]), 0).hash != base
    as_choice = load_calibration(card(tmp_path, FRESH, base=CHOICE), 0).hash
    assert as_choice != base
    changed = {"choices": [" bad", " good"]}
    assert load_calibration(card(tmp_path, FRESH, changed, CHOICE), 0).hash != as_choice
    renamed = {"licence": "another", "name": "renamed"}
    assert load_calibration(card(tmp_path, FRESH, renamed, CHOICE), 0).hash == as_choice


def test_the_calibration_set_changes_nothing_of_the_task(tmp_path):
    with_it = prepare(card(tmp_path, FRESH), 2, 0)
    without = dict(CARD)
    del without["calibration"]
    assert prepare(card(tmp_path, FRESH, base=without), 2, 0).identity == with_it.identity


@pytest.mark.parametrize(
    "text",
    [
        "A fine day.",
        "  a FINE   day ",
        "A fine -- day?!",
        LONG.upper(),
        f"before {LONG} after",  # contains a test text
        LONG.removeprefix("one "),  # 13 of its words
        "Said he: two three four five six seven eight, nine ten eleven twelve thirteen fourteen!",
        "two three four five six seven eight nine",  # eight words, whole inside a test text
        f"And so it came that we met under the old clock at noon today, {FRESH[0]}",
    ],
)
def test_a_text_that_is_test_data_is_refused(tmp_path, text):
    message = refusal(lambda: load_calibration(card(tmp_path, [*FRESH, text]), 0))
    assert "1 of the 5 calibration examples (id c4)" in message
    assert "test data of task made" in message
    assert "take them out" in message


@pytest.mark.parametrize(
    "text",
    [
        "A fine day it was.",  # a short text inside a longer one says nothing
        "fine day",
        LONG.removeprefix("one two ").removesuffix(" fourteen") + " other words follow here and on",
        "under the old clock at noon",
    ],
)
def test_what_shares_some_words_only_is_no_overlap(tmp_path, text):
    assert load_calibration(card(tmp_path, [*FRESH, text]), 0).n == 5


def test_all_test_data_count_and_the_first_ids_are_named(tmp_path):
    loaded = card(tmp_path, [*TEST, *FRESH])
    prepare(loaded, 1, 0)
    message = refusal(lambda: load_calibration(loaded, 0))
    assert "4 of the 8 calibration examples" in message
    named = message.split("(id ")[1].split(")")[0]
    assert named.endswith(", ...")
    assert set(named.removesuffix(", ...").split(", ")) < {"c0", "c1", "c2", "c3"}


def test_prompts_are_compared_by_what_is_filled_in(tmp_path):
    """All prompts share more than 13 words of the card's own."""
    assert load_calibration(card(tmp_path, FRESH, base=CHOICE), 0).n == 4
    message = refusal(lambda: load_calibration(card(tmp_path, ["a fine day"], base=CHOICE), 0))
    assert "1 of the 1" in message


def test_all_that_is_filled_into_a_prompt_counts(tmp_path):
    asks = {"columns": CHOICE["columns"] | {"ask": "ask"}, "prompt": "{text} {ask}"}
    loaded = card(tmp_path, ["Yes."], asks, CHOICE)
    for path, ask in (("test.jsonl", "Really?"), ("calibration.jsonl", "Why?")):
        row = {"id": path, "text": "Yes.", "label": 0, "ask": ask}
        (tmp_path / path).write_text(json.dumps(row))
    assert load_calibration(loaded, 0).texts == ["Yes.\nWhy?"]


def test_a_phrase_that_many_calibration_texts_share_is_no_overlap():
    texts = [f"{LONG} and then number {i}" for i in range(11)]
    assert overlaps(texts, [f"{LONG} but otherwise"]) == []
    assert overlaps(texts[:10], [f"{LONG} but otherwise"]) != []
    assert overlaps(texts, [texts[4]]) == [(4, 0)]


def test_texts_without_words_are_compared_as_they_are():
    assert overlaps([":-)"], [":-(", "!!"]) == []
    assert overlaps([":-)"], [" :-) "]) == [(0, 0)]


def test_a_card_without_a_set_says_what_to_add(tmp_path):
    without = dict(CARD)
    del without["calibration"]
    loaded = card(tmp_path, FRESH, base=without)
    message = refusal(lambda: load_calibration(loaded, 0), NoCalibration)
    assert "task made has no calibration set" in message
    assert "calibration: {path: FILE}" in message
    # A file given beside the card serves.
    assert load_calibration(loaded, 0, tmp_path / "calibration.jsonl").n == 4


def test_a_file_goes_before_the_card_s(tmp_path):
    loaded = card(tmp_path, FRESH, {"calibration": {"path": "calibration.jsonl", "n": 2}})
    write(tmp_path / "other.jsonl", ["x", "y", "z"])
    assert set(load_calibration(loaded, 0, tmp_path / "other.jsonl").texts) < {"x", "y", "z"}
    message = refusal(lambda: load_calibration(loaded, 0, tmp_path / "gone.jsonl"))
    assert "correct --calibration" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no data at", "correct calibration.path"]),
        ("", ["calibration.jsonl is empty"]),
        ("{no json", ["can't read", "calibration.jsonl"]),
        ('{"id": 1, "txt": "a"}\n', ["unknown column 'text'", "calibration.jsonl"]),
        ('{"id": 1, "text": ""}\n', ["calibration.jsonl, example 1", "'text' is empty"]),
    ],
)
def test_a_set_that_can_t_be_read_is_refused_in_one_line(tmp_path, content, words):
    loaded = card(tmp_path, FRESH)
    path = tmp_path / "calibration.jsonl"
    path.unlink()
    if content is not None:
        path.write_text(content)
    message = refusal(lambda: load_calibration(loaded, 0))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, ["calibration needs either path or hub"]),
        ({"path": "a", "number": 3}, ["unknown key 'number'", "n"]),
        ({"path": "a", "n": 0}, ["'calibration.n' is not valid"]),
        ({"path": "a", "n": True}, ["'calibration.n' is not valid"]),
        ("calibration.jsonl", ["'calibration' is not valid"]),
    ],
)
def test_a_wrong_key_is_refused_in_one_line(tmp_path, source, words):
    message = refusal(lambda: card(tmp_path, FRESH, {"calibration": source}))
    assert all(word in message for word in words), message


def test_a_hub_set_is_the_training_split(tmp_path):
    loaded = card(tmp_path, FRESH, {"calibration": {"hub": "org/set"}})
    assert loaded.card.calibration.default_split == "train"
    assert loaded.card.data.default_split == "test"
