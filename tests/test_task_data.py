"""Examples from a card's data: reading, checking, order, identity, the cache, and the labels."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from precision_explorer import paths
from precision_explorer.errors import TaskError
from precision_explorer.tasks import PreparedTask, check_labels, load_card, prepare

ROWS = [{"text": f"sentence {i}", "label": i % 2, "key": f"k{i:02d}"} for i in range(20)]
CARD: dict[str, Any] = {
    "name": "mine",
    "version": 3,
    "kind": "text-classification",
    "columns": {"text": "text", "label": "label", "id": "key"},
    "max_length": 64,
    "metrics": ["accuracy"],
}
CHOICE = CARD | {
    "kind": "multiple-choice",
    "prompt": "Q: {text}\nA:",
    "choices": [" no", " yes"],
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(folder))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            separator = "," if path.suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, list(rows[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")


def write_card(folder: Path, card: dict[str, Any], data: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump(card | {"data": data}), encoding="utf-8")
    return str(path)


def make(
    folder: Path,
    rows: list[dict[str, Any]],
    card: dict[str, Any] = CARD,
    name: str = "test.jsonl",
    limit: int | None = None,
    seed: int = 0,
) -> PreparedTask:
    path = write_card(folder, card, {"path": name})
    write_rows(folder / name, rows)
    return prepare(load_card(path), limit, seed)


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(TaskError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "t.csv", "t.tsv", "t.parquet", "t[1]*.csv"])
def test_every_format_gives_the_same_examples(tmp_path: Path, name: str) -> None:
    task = make(tmp_path, ROWS, name=name)
    got = {example["id"]: example for example in task.examples}
    assert len(task.examples) == len(got) == 20
    for row in ROWS:
        example = got[row["key"]]
        assert example["text"] == row["text"]
        assert int(example["label"]) == row["label"]
        assert example["group"] is None
    again = make(tmp_path, ROWS, name=name)
    assert again == task


def test_text_survives_as_it_is(tmp_path: Path) -> None:
    # Words that data libraries take for missing values, and what CSV must quote.
    texts = ["NA", "null", "None", "nan", 'a, "b"', "two\nlines", "naïve €", "007"]
    rows = [{"text": text, "label": "x"} for text in texts]
    card = CARD | {"columns": {"text": "text", "label": "label"}}
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        examples = make(tmp_path, rows, card, name).examples
        assert [e["text"] for e in sorted(examples, key=lambda e: int(e["id"]))] == texts


def test_ids_keep_their_zeros_in_a_csv_file(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "key": key} for key in ("7", "007")]
    assert {e["id"] for e in make(tmp_path, rows, name="t.csv").examples} == {"7", "007"}


def test_groups_are_text(tmp_path: Path) -> None:
    columns = {"text": "text", "label": "label", "group": "doc"}
    rows = [{"text": "a", "label": 0, "doc": 5}, {"text": "b", "label": 1, "doc": 5}]
    assert [e["group"] for e in make(tmp_path, rows, CARD | {"columns": columns}).examples] == [
        "5", "5",
    ]  # fmt: skip


def test_a_group_column_that_is_missing_is_refused(tmp_path: Path) -> None:
    columns = {"text": "text", "label": "label", "group": "doc"}
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    text = refusal(lambda: make(tmp_path, rows, CARD | {"columns": columns}))
    assert "unknown column 'doc'" in text
    assert "columns there: text, label" in text
    rows = [row | {"doc": doc} for row, doc in zip(rows, ("d", None), strict=True)]
    text = refusal(lambda: make(tmp_path / "b", rows, CARD | {"columns": columns}))
    assert "'doc' is empty" in text


def test_language_modeling_needs_text_only(tmp_path: Path) -> None:
    card = CARD | {
        "kind": "language-modeling",
        "columns": {"text": "text"},
        "metrics": ["bits_per_byte"],
    }
    example = make(tmp_path, ROWS[:1], card).examples[0]
    assert example == {"id": "0", "text": "sentence 0", "group": None}


def test_multiple_choice_prompts_are_filled_in(tmp_path: Path) -> None:
    rows = [{"text": "is {it} 100%?", "label": "1", "key": "a"}]
    task = make(tmp_path, rows, CHOICE | {"prompt": "{{Q}}: {text}\nA:"})
    assert task.examples == [
        {
            "id": "a",
            "group": None,
            "prompt": "{Q}: is {it} 100%?\nA:",
            "choices": [" no", " yes"],
            "label": 1,
        }
    ]


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "t.csv"])
def test_each_example_may_bring_its_choices_and_context(tmp_path: Path, name: str) -> None:
    options = [["x", "y", "z"], ["u", "v"]]
    rows: list[dict[str, Any]] = [
        {"passage": "", "q": "one", "options": options[0], "label": 2},
        {"passage": "P", "q": "two", "options": options[1], "label": 0},
    ]
    if name.endswith("csv"):
        rows = [row | {"options": json.dumps(row["options"])} for row in rows]
    card = {key: value for key, value in CHOICE.items() if key != "choices"} | {
        "columns": {"text": "q", "passage": "passage", "choices": "options", "label": "label"},
        "prompt": "{passage}|{q}",
    }
    examples = sorted(make(tmp_path, rows, card, name).examples, key=lambda e: e["id"])
    assert [e["prompt"] for e in examples] == ["|one", "P|two"]
    assert [e["choices"] for e in examples] == options
    assert [e["label"] for e in examples] == [2, 0]


# Order and identity


def test_limit_takes_the_first_of_one_seeded_order(tmp_path: Path) -> None:
    import numpy as np

    full = make(tmp_path, ROWS, seed=5)
    order = np.random.default_rng(5).permutation(20)
    assert [e["id"] for e in full.examples] == [ROWS[i]["key"] for i in order]
    assert make(tmp_path, ROWS, seed=5, limit=6).examples == full.examples[:6]
    assert make(tmp_path, ROWS, seed=5, limit=99).examples == full.examples
    assert make(tmp_path, ROWS, seed=6).examples != full.examples
    assert "limit of 0" in refusal(lambda: make(tmp_path, ROWS, limit=0))


def test_the_identity_pins_card_data_and_examples(tmp_path: Path) -> None:
    task = make(tmp_path, ROWS, limit=6)
    identity = task.identity
    assert (identity.name, identity.version, identity.kind, identity.n) == (
        "mine", 3, "text-classification", 6,
    )  # fmt: skip
    content = (tmp_path / "test.jsonl").read_bytes()
    assert identity.data_hash == hashlib.sha256(content).hexdigest()[:16]
    ids = json.dumps([e["id"] for e in task.examples], separators=(",", ":"))
    assert identity.item_ids_hash == hashlib.sha256(ids.encode()).hexdigest()[:16]
    assert make(tmp_path / "moved", ROWS, limit=6).identity == identity
    assert make(tmp_path, ROWS, limit=7).identity.item_ids_hash != identity.item_ids_hash
    assert make(tmp_path, ROWS[:19], limit=6).identity.data_hash != identity.data_hash
    other = make(tmp_path, ROWS, CARD | {"max_length": 65}, limit=6).identity
    assert other.card_hash != identity.card_hash


# What is refused


def changed(index: int, **values: Any) -> list[dict[str, Any]]:
    return [row | values if i == index else row for i, row in enumerate(ROWS[:4])]


@pytest.mark.parametrize(
    ("rows", "card", "words"),
    [
        (changed(2, text=None), CARD, ["example 3", "'text' is empty"]),
        (changed(2, text=" \n"), CARD, ["example 3", "'text' is empty"]),
        (changed(1, label=None), CARD, ["example 2", "'label' is empty"]),
        (changed(1, key=None), CARD, ["example 2", "'key' is empty"]),
        (changed(3, key="k01"), CARD, ["examples 2 and 4", "same id 'k01'"]),
        ([{"text": 5, "label": 0, "key": "a"}], CARD, ["no text but int"]),
        ([{"text": "a", "label": 0.5, "key": "a"}], CARD, ["0.5 is no label"]),
        ([{"text": "a", "label": True, "key": "a"}], CARD, ["True is no label"]),
        (changed(2, label=2), CHOICE, ["example 3", "2 is no index", "0 to 1"]),
        (changed(2, label=-1), CHOICE, ["-1 is no index"]),
        ([{"text": "a", "label": "yes", "key": "a"}], CHOICE, ["'yes' is no index"]),
        ([{"text": "a", "label": True, "key": "a"}], CHOICE, ["True is no index"]),
        (ROWS, CARD | {"columns": {"text": "txt", "label": "label"}},
         ["unknown column 'txt'", "did you mean text", "key"]),
    ],
)  # fmt: skip
def test_wrong_data_is_refused_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], card: dict[str, Any], words: list[str]
) -> None:
    # Also a fault in an example that the limit leaves out.
    message = refusal(lambda: make(tmp_path, rows, card, limit=1))
    assert message.startswith(str(tmp_path / "test.jsonl"))
    for word in words:
        assert word in message


@pytest.mark.parametrize("options", [["x"], ["x", "x"], ["x", ""], "x"])
def test_wrong_choices_of_an_example_are_refused(tmp_path: Path, options: Any) -> None:
    card = {key: value for key, value in CHOICE.items() if key != "choices"}
    card["columns"] = {"text": "text", "label": "label", "choices": "options"}
    rows = [{"text": "a", "label": 0, "options": options}]
    assert "at least two different texts" in refusal(lambda: make(tmp_path, rows, card))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", None, "no data at"),
        ("t.jsonl", b"", "is empty"),
        ("t.csv", b"text,label,key\n", "holds no examples"),
        ("t.jsonl", b'{"text": "a"\nfoo\n', "can't read"),
        ("t.parquet", b"PAR1 and more", "can't read"),
        ("t.csv", b"text,label,key\n\xff\xfe,1,2\n", "can't read"),
        ("t.xlsx", b"PK", "give the data as .jsonl"),
    ],
)
def test_unreadable_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, words: str, capfd: Any
) -> None:
    card = load_card(write_card(tmp_path, CARD, {"path": name}))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(lambda: prepare(card, None, 0))
    assert words in message
    assert str(tmp_path / name) in message
    # The libraries' own words stay off the screen.
    assert capfd.readouterr() == ("", "")


# The cache

_PREPARE = """
import sys
from precision_explorer.tasks import load_card, prepare
task = prepare(load_card(sys.argv[1]), None, 0)
heavy = sorted({"datasets", "pandas", "torch", "pyarrow", "transformers"} & set(sys.modules))
print(task.identity.item_ids_hash, ",".join(heavy))
"""


def test_a_second_run_opens_no_data_library(tmp_path: Path) -> None:
    path = write_card(tmp_path, CARD, {"path": "t.jsonl"})
    write_rows(tmp_path / "t.jsonl", ROWS)
    # A folder of the user's own for the library's cache must not be written for a local file.
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf")}
    lines = [
        subprocess.run(
            [sys.executable, "-c", _PREPARE, path],
            check=True, capture_output=True, text=True, env=environment,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert lines[0][0] == lines[1][0]
    assert "datasets" in lines[0][1]
    assert "torch" not in lines[0][1]
    assert len(lines[1]) == 1
    assert not (tmp_path / "hf" / "datasets" / "json").exists()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the calls of the library."""
    import datasets

    calls: list[str] = []
    load = datasets.load_dataset

    def counted(reader: str, **options: Any) -> Any:
        calls.append(reader)
        return load(reader, **options)

    monkeypatch.setattr(datasets, "load_dataset", counted)
    return calls


def test_a_changed_file_or_column_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = reads(monkeypatch)
    rows = [row | {"other": row["text"].upper()} for row in ROWS]
    make(tmp_path, rows)
    make(tmp_path, rows, seed=9, limit=2)
    assert calls == ["json"]
    other = CARD | {"columns": {"text": "other", "label": "label", "id": "key"}}
    assert make(tmp_path, rows, other).examples[0]["text"].startswith("SENTENCE")
    assert calls == ["json"] * 2
    make(tmp_path, rows[:9])
    assert calls == ["json"] * 3


def test_a_damaged_cache_file_is_made_again(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = reads(monkeypatch)
    task = make(tmp_path, ROWS)
    [stored] = [path for path in (own_cache / "tasks").iterdir() if path.is_file()]
    whole = stored.read_bytes()
    for damage in (b"", whole[:-30], whole.replace(b"sentence 3", b"sentence 4"), b"\xff\n\xff"):
        stored.write_bytes(damage)
        assert make(tmp_path, ROWS) == task
        assert stored.read_bytes() == whole
    assert calls == ["json"] * 5


@pytest.mark.parametrize("folder", ["/dev/null/cache", "~no-such-user/cache"])
def test_a_cache_that_cannot_be_written_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", folder)
    assert make(tmp_path, ROWS, limit=3).identity.n == 3


def test_the_library_s_settings_are_restored(tmp_path: Path) -> None:
    import datasets

    before = (
        datasets.utils.logging.get_verbosity(),
        datasets.are_progress_bars_disabled(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )
    make(tmp_path, ROWS)
    assert before == (
        datasets.utils.logging.get_verbosity(),
        datasets.are_progress_bars_disabled(),
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
    )


def test_a_local_file_is_read_without_a_call_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.load

    def no_session() -> Any:
        raise AssertionError("the hub was called for a local file")

    called: list[bool] = []
    monkeypatch.setattr(datasets.load, "get_session", lambda: called.append(True) or no_session())
    make(tmp_path, ROWS)
    assert called == []


# The hub: nothing here reaches it


class Hub:
    """Stands for the hub: its answer for the commit, and a local folder in place of the data."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        self.commit: str | Exception = COMMIT
        self.folder = folder
        self.loads: list[dict[str, Any]] = []
        self._load = datasets.load_dataset
        folder.mkdir(parents=True)
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", self._info)
        monkeypatch.setattr(datasets, "load_dataset", self._load_dataset)

    def _info(self, *names: Any, **options: Any) -> Any:
        if isinstance(self.commit, Exception):
            raise self.commit
        return SimpleNamespace(sha=self.commit)

    def _load_dataset(self, reader: str, **options: Any) -> Any:
        self.loads.append({"hub": reader, **options})
        options.pop("revision")
        return self._load(str(self.folder), **options)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def hub_task(folder: Path, **data: Any) -> PreparedTask:
    path = write_card(folder, CARD, {"hub": "owner/set", **data})
    return prepare(load_card(path), None, 0)


def test_a_hub_data_set_is_pinned_to_its_commit(tmp_path: Path, hub: Hub, own_cache: Path) -> None:
    write_rows(hub.folder / "test.jsonl", ROWS)
    task = hub_task(tmp_path / "a")
    assert task.identity.n == 20
    [load] = hub.loads
    assert (load["hub"], load["revision"], load["split"]) == ("owner/set", COMMIT, "test")
    assert load["cache_dir"] == str(own_cache / "datasets")
    # The same commit by its own name is the same data, from the cache; another is not.
    assert hub_task(tmp_path / "b", revision=COMMIT).identity == task.identity
    assert len(hub.loads) == 1
    hub.commit = COMMIT[::-1]
    assert hub_task(tmp_path / "a").identity.data_hash != task.identity.data_hash
    assert len(hub.loads) == 2


def test_offline_the_last_known_commit_counts(tmp_path: Path, hub: Hub) -> None:
    write_rows(hub.folder / "test.jsonl", ROWS)
    task = hub_task(tmp_path)
    hub.commit = ConnectionError("offline mode is enabled")
    assert hub_task(tmp_path) == task


def test_the_user_s_own_cache_folder_is_kept(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(hub.folder / "test.jsonl", ROWS)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "own"))
    assert load_cache_dir(hub, tmp_path) is None


def load_cache_dir(hub: Hub, folder: Path) -> Any:
    options: list[Any] = []
    load = hub._load

    def kept(reader: str, **given: Any) -> Any:
        options.append(given["cache_dir"])
        return load(reader, **given | {"cache_dir": str(folder / "passing")})

    hub._load = kept
    hub_task(folder)
    return options[0]


def test_an_unreachable_hub_is_said_in_one_line(tmp_path: Path, hub: Hub) -> None:
    # The HTTP libraries' errors are none of Python's own kinds.
    foreign = type("ConnectError", (Exception,), {"__module__": "httpx._exceptions"})
    write_rows(hub.folder / "test.jsonl", ROWS)
    for error in (ConnectionError("x\ny"), foreign("no name"), TimeoutError()):
        hub.commit = error
        for revision in (None, COMMIT):
            message = refusal(lambda revision=revision: hub_task(tmp_path, revision=revision))
            assert "can't reach the hub for data set owner/set" in message
    assert hub.loads == []


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_offline_mode_is_said_in_one_line(tmp_path: Path, revision: str | None) -> None:
    path = write_card(tmp_path, CARD, {"hub": "owner/set", "revision": revision})
    code = (
        "import sys; from precision_explorer.errors import TaskError\n"
        "from precision_explorer.tasks import load_card, prepare\n"
        "try: prepare(load_card(sys.argv[1]), None, 0)\n"
        "except TaskError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True, text=True, check=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )  # fmt: skip
    [line] = done.stdout.splitlines()
    assert "can't reach the hub for data set owner/set; " in line
    assert done.stderr == ""


def test_a_data_set_that_is_not_there_or_closed(tmp_path: Path, hub: Hub) -> None:
    from huggingface_hub import errors

    for kind, words in (
        (errors.RepositoryNotFoundError, "no data set owner/set for you on the hub"),
        (errors.GatedRepoError, "no data set owner/set for you on the hub"),
        (errors.RevisionNotFoundError, "no such revision"),
    ):
        hub.commit = kind.__new__(kind)
        hub.commit.args = ("404 Client Error\nlong text",)
        hub.commit.response = SimpleNamespace(status_code=404)  # type: ignore[attr-defined]
        assert words in refusal(lambda: hub_task(tmp_path))


def test_a_script_is_not_run(tmp_path: Path, hub: Hub) -> None:
    (hub.folder / "hub.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    assert "is a script, which is not run" in refusal(lambda: hub_task(tmp_path / "card"))
    assert not (tmp_path / "ran").exists()


def test_a_wrong_split_is_said_in_one_line(tmp_path: Path, hub: Hub) -> None:
    write_rows(hub.folder / "test.jsonl", ROWS)
    message = refusal(lambda: hub_task(tmp_path, split="tst"))
    assert "tst" in message
    assert "test" in message.replace("tst", "")


def test_a_folder_never_stands_in_for_the_hub(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "set").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "a file named owner/set lies here" in refusal(lambda: hub_task(tmp_path / "card"))


# Labels


def labels(tmp_path: Path, values: list[Any], id2label: dict[int, str]) -> dict[str, int]:
    rows = [{"text": "a", "label": value, "key": str(i)} for i, value in enumerate(values)]
    task = make(tmp_path, rows)
    return check_labels(task.card, task.examples, id2label)


def test_labels_are_ids_or_names_of_the_model(tmp_path: Path) -> None:
    model = {0: "NEGATIVE", 1: "POSITIVE", 2: "positive"}
    assert labels(tmp_path, [0, 2, 0], model) == {"0": 0, "2": 2}
    assert labels(tmp_path, ["1", "0"], model) == {"1": 1, "0": 0}
    assert labels(tmp_path, ["negative", "positive"], model) == {"negative": 0, "positive": 2}
    # A model whose names are digits, in agreement with its ids.
    assert labels(tmp_path, [0, 1], {0: "0", 1: "1"}) == {"0": 0, "1": 1}


def test_labels_that_the_model_lacks_are_named(tmp_path: Path) -> None:
    model = {0: "neg", 1: "pos"}
    message = refusal(lambda: labels(tmp_path, ["neg", "neutral", "mixed"], model))
    assert "'mixed', 'neutral'" in message
    assert "0: neg, 1: pos" in message
    assert "'2'" in refusal(lambda: labels(tmp_path, [0, 2], model))


def test_labels_of_two_meanings_are_refused(tmp_path: Path) -> None:
    stars = {0: "1", 1: "2", 2: "3"}
    assert "id of one" in refusal(lambda: labels(tmp_path, [1], stars))
    assert "2 of the model's labels" in refusal(
        lambda: labels(tmp_path, ["Pos"], {0: "POS", 1: "pos"})
    )


# Folders


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PRECISION_EXPLORER_CACHE", "PRECISION_EXPLORER_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_dir() == tmp_path / ".cache/precision-explorer"
    assert paths.data_dir() == tmp_path / ".local/share/precision-explorer"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert paths.cache_dir() == tmp_path / ".cache/precision-explorer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/cache")
    monkeypatch.setenv("XDG_DATA_HOME", "/x/data")
    assert paths.cache_dir() == Path("/x/cache/precision-explorer")
    assert paths.data_dir() == Path("/x/data/precision-explorer")
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", "~/c")
    monkeypatch.setenv("PRECISION_EXPLORER_DATA", "/d")
    assert paths.cache_dir() == tmp_path / "c"
    assert paths.data_dir() == Path("/d")
