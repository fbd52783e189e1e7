"""Task cards: what is accepted, what is refused and in which words, and how a card is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from precision_explorer import paths
from precision_explorer.errors import TaskError
from precision_explorer.tasks import bundled_cards, card_hash, cards, load_card

CLASSIFICATION: dict[str, Any] = {
    "name": "mine",
    "version": 1,
    "kind": "text-classification",
    "data": {"path": "test.jsonl"},
    "columns": {"text": "text", "label": "label"},
    "max_length": 64,
    "metrics": ["accuracy", "macro_f1"],
    "licence": "MIT",
    "source": "made up",
}
CHOICE = CLASSIFICATION | {
    "kind": "multiple-choice",
    "prompt": "Review: {text}\nSentiment:",
    "choices": [" negative", " positive"],
    "metrics": ["accuracy", "accuracy_norm"],
}
LANGUAGE = CLASSIFICATION | {
    "kind": "language-modeling",
    "columns": {"text": "text"},
    "metrics": ["bits_per_byte", "word_perplexity", "token_perplexity"],
}


def write(folder: Path, document: dict[str, Any] | str) -> Path:
    path = folder / "task.yaml"
    text = document if isinstance(document, str) else yaml.safe_dump(document)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, document: dict[str, Any] | str) -> str:
    path = write(folder, document)
    with pytest.raises(TaskError) as caught:
        load_card(str(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_the_contract_s_example_is_accepted(tmp_path: Path) -> None:
    write(
        tmp_path,
        """
name: sentiment
version: 1
kind: text-classification        # or multiple-choice
data: {path: test.jsonl}
columns: {text: text, label: label}
prompt: "Review: {text}\\nSentiment:"
choices: [" negative", " positive"]
max_length: 1024
metrics: [accuracy, macro_f1]
higher_is_better: true
licence: MIT
source: somewhere
""",
    )
    loaded = load_card(str(tmp_path))
    card = loaded.card
    assert (card.name, card.version, card.kind, card.max_length) == (
        "sentiment", 1, "text-classification", 1024,
    )  # fmt: skip
    assert card.metrics == ["accuracy", "macro_f1"]
    assert card.metric == "accuracy"
    assert card.choices == [" negative", " positive"]
    assert loaded.path == tmp_path / "task.yaml"
    assert loaded.data_path() == tmp_path / "test.jsonl"


@pytest.mark.parametrize("document", [CLASSIFICATION, CHOICE, LANGUAGE])
def test_each_kind_is_accepted(tmp_path: Path, document: dict[str, Any]) -> None:
    card = load_card(str(write(tmp_path, document))).card
    assert card.kind == document["kind"]
    assert card.metrics == document["metrics"]


def test_an_absolute_data_path_stays(tmp_path: Path) -> None:
    document = CLASSIFICATION | {"data": {"path": "/somewhere/else.csv"}}
    assert load_card(str(write(tmp_path, document))).data_path() == Path("/somewhere/else.csv")


def test_a_hub_source(tmp_path: Path) -> None:
    hub = {"hub": "owner/name", "revision": None, "split": "validation", "config": "small"}
    loaded = load_card(str(write(tmp_path, CLASSIFICATION | {"data": hub})))
    assert loaded.card.data.hub == "owner/name"
    assert loaded.data_path() is None


def without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in document.items() if k != key}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            CLASSIFICATION | {"kind": "text-clasification"},
            ["unknown kind", "did you mean text-classification"],
        ),
        (CLASSIFICATION | {"metric": ["accuracy"]}, ["unknown key 'metric'", "metrics"]),
        # A misspelt key is named as such, not as the missing one.
        (without(CLASSIFICATION, "metrics") | {"metrisc": []}, ["unknown key 'metrisc'"]),
        (CLASSIFICATION | {"data": {"pth": "a.csv"}}, ["unknown key 'pth'", "path"]),
        (CLASSIFICATION | {"data": {}}, ["path or hub"]),
        (CLASSIFICATION | {"data": {"path": "a", "hub": "b/c"}}, ["path or hub"]),
        (CLASSIFICATION | {"data": {"path": "a.csv", "split": "test"}}, ["hub data set"]),
        (CLASSIFICATION | {"data": {"hub": "../x"}}, ["data.hub"]),
        (without(CLASSIFICATION, "version"), ["'version' is missing"]),
        (CLASSIFICATION | {"version": 0}, ["'version'", "greater than or equal to 1"]),
        (CLASSIFICATION | {"version": True}, ["'version'"]),
        (CLASSIFICATION | {"name": "=cmd()"}, ["'name'"]),
        (CLASSIFICATION | {"name": "a/b"}, ["'name'"]),
        (CLASSIFICATION | {"max_length": 0}, ["'max_length'"]),
        (CLASSIFICATION | {"metrics": []}, ["'metrics'"]),
        (CLASSIFICATION | {"metrics": ["acuracy"]}, ["unknown metric", "mean accuracy?"]),
        (CHOICE | {"metrics": ["acc"]}, ["mean accuracy or accuracy_norm?"]),
        (LANGUAGE | {"metrics": ["acuracy"]}, ["known: bits_per_byte, word_perplexity"]),
        (LANGUAGE | {"kind": "lm", "metrics": ["acuracy"]}, ["unknown kind 'lm'"]),
        (CLASSIFICATION | {"metrics": ["accuracy"] * 2}, ["twice"]),
        (CLASSIFICATION | {"metrics": ["bits_per_byte"]}, ["does not fit", "macro_f1"]),
        (CHOICE | {"metrics": ["macro_f1"]}, ["does not fit", "accuracy_norm"]),
        (LANGUAGE | {"metrics": ["accuracy"]}, ["does not fit", "bits_per_byte"]),
        (CLASSIFICATION | {"higher_is_better": False}, ["higher_is_better", "true"]),
        (LANGUAGE | {"higher_is_better": True}, ["higher_is_better", "false"]),
        (CLASSIFICATION | {"columns": {"text": "t"}}, ["columns.label"]),
        (CLASSIFICATION | {"columns": {"label": "t"}}, ["columns.text"]),
        (LANGUAGE | {"columns": {"id": "t"}}, ["columns.text"]),
        (
            CLASSIFICATION | {"columns": {"text": "t", "label": "l", "grup": "g"}},
            ["unknown role", "group"],
        ),
        (CHOICE | {"columns": {"text": "t"}}, ["columns.label"]),
        (without(CHOICE, "prompt"), ["needs a prompt"]),
        (without(CHOICE, "choices"), ["choices or columns.choices"]),
        (CHOICE | {"columns": {"text": "t", "label": "l", "choices": "c"}}, ["give one"]),
        (CHOICE | {"choices": ["a"]}, ["at least two"]),
        (CHOICE | {"choices": ["a", "a"]}, ["different"]),
        (CHOICE | {"choices": ["a", ""]}, ["choices.1"]),
        (CHOICE | {"prompt": "{txt}"}, ["unknown prompt field 'txt'", "text"]),
        (CHOICE | {"prompt": "no field"}, ["no {field}"]),
        (CHOICE | {"prompt": "{text} {label}"}, ["can't show '{label}'"]),
        (CHOICE | {"prompt": "{text} {lab}", "columns": {"text": "t", "label": "lab"}}, ["{lab}"]),
        (CHOICE | {"prompt": "{text.__class__}"}, ["no plain name"]),
        (CHOICE | {"prompt": "{text!r}"}, ["no plain name"]),
        (CHOICE | {"prompt": "{text:>9}"}, ["no plain name"]),
        (CHOICE | {"prompt": "{text"}, ["prompt"]),
        ("just words", ["no mapping"]),
        ("", ["no mapping"]),
        ("name: [", ["no valid YAML", "line"]),
        ("name: 2024-99-99", ["no valid YAML"]),
        ("[" * 100_000, ["no valid YAML"]),
        ("name: !!python/object/apply:os.getcwd []", ["no valid YAML"]),
        ("# " + "x" * 1_000_000, ["larger than 1 MB"]),
    ],
)
def test_a_wrong_card_is_refused_in_one_line(
    tmp_path: Path, document: dict[str, Any] | str, words: list[str]
) -> None:
    message = refusal(tmp_path, document)
    for word in words:
        assert word in message


def test_aliases_cannot_make_an_endless_message(tmp_path: Path) -> None:
    steps = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    steps += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    document = "\n".join(steps) + "\nchoices: *a29\n"
    assert len(refusal(tmp_path, document)) < 1000


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(TaskError, match="no valid YAML"):
        load_card(str(path))


def test_a_prompt_may_use_further_columns(tmp_path: Path) -> None:
    columns = {"passage": "ctx", "question": "question", "label": "answer"}
    document = CHOICE | {"columns": columns, "prompt": "{passage} {question}"}
    card = load_card(str(write(tmp_path, document))).card
    assert card.used_columns() == ["answer", "ctx", "question"]
    # A name beside the roles that the prompt does not use is a slip of the pen.
    assert "passage" in refusal(tmp_path, document | {"prompt": "{question}"})


def test_a_prompt_may_use_the_data_s_own_names(tmp_path: Path) -> None:
    document = CHOICE | {"columns": {"text": "sentence", "label": "y"}, "prompt": "{sentence}:"}
    assert load_card(str(write(tmp_path, document))).card.prompt == "{sentence}:"


def test_unknown_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "bundled_cards", lambda: {"sentiment": tmp_path / "task.yaml"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="unknown task 'sentimet'; did you mean sentiment"):
        load_card("sentimet")
    for path in ("./nowhere", str(tmp_path), "x.yaml", ""):
        with pytest.raises(TaskError, match="no task card at"):
            load_card(path)


def test_a_bundled_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "here" / "mine").mkdir(parents=True)
    inside = write(tmp_path / "in", CLASSIFICATION)
    outside = write(tmp_path / "here" / "mine", CLASSIFICATION | {"version": 2})
    monkeypatch.setattr(cards, "bundled_cards", lambda: {"mine": inside})
    monkeypatch.chdir(tmp_path / "here")
    assert load_card("mine").path == inside
    assert load_card("./mine").path == outside
    assert load_card("./mine").card.version == 2


def test_bundled_cards_are_found_in_the_package_or_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "precision_explorer" / "tasks"
    beside, inside = tmp_path / "tasks", room / "bundled"
    for folder in (beside / "b", beside / "a", beside / "no-card", inside / "c"):
        folder.mkdir(parents=True)
        if folder.name != "no-card":
            write(folder, CLASSIFICATION)
    monkeypatch.setattr(paths, "__file__", str(room.parent / "paths.py"))
    assert bundled_cards() == {"c": inside / "c" / "task.yaml"}
    (inside / "c" / "task.yaml").unlink()
    (inside / "c").rmdir()
    inside.rmdir()
    expected = {name: beside / name / "task.yaml" for name in ("a", "b")}
    assert bundled_cards() == expected
    assert list(bundled_cards()) == ["a", "b"]


def test_the_hash_follows_what_changes_results(tmp_path: Path) -> None:
    def hashed(document: dict[str, Any]) -> str:
        return card_hash(load_card(str(write(tmp_path, document))).card)

    base = hashed(CHOICE)
    assert len(base) == 16
    for same in (
        {"licence": "other"}, {"source": "other"}, {"data": {"path": "moved.jsonl"}},
        {"higher_is_better": True}, {"calibration": {"path": "calibration.jsonl", "n": 8}},
    ):  # fmt: skip
        assert hashed(CHOICE | same) == base
    for other in (
        {"prompt": "{text}"}, {"choices": ["a", "b"]}, {"max_length": 65}, {"version": 2},
        {"metrics": ["accuracy_norm"]}, {"columns": {"text": "text", "label": "other"}},
    ):  # fmt: skip
        assert hashed(CHOICE | other) != base
    # Where prompt and choices do not count, they don't make a new identity either.
    assert hashed(CLASSIFICATION | {"prompt": "{text}"}) == hashed(CLASSIFICATION)


def test_importing_the_room_loads_no_heavy_library() -> None:
    code = (
        "import sys, precision_explorer.tasks; "
        "heavy = {'torch', 'datasets', 'pandas', 'sklearn', 'pyarrow', 'scipy'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
