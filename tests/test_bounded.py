"""Documents of strangers: read within bounds, and refused in one line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from precision_explorer import bounded
from precision_explorer.bounded import (
    BadDocument,
    NoPlainFile,
    TooLarge,
    json_document,
    json_file,
    read_bounded,
    yaml_document,
)
from precision_explorer.economics import load_prices, load_sheet
from precision_explorer.errors import PrecisionExplorerError, StoreError
from precision_explorer.formats.recipe import read_recipe
from precision_explorer.models import resolve
from precision_explorer.plan.spec import load_spec
from precision_explorer.records import read_record
from precision_explorer.store.folder import read_run
from precision_explorer.tasks import load_card
from precision_explorer.workload import load_workload

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
"""Ten levels of tenfold aliases: 10 billion values in half a kilobyte."""
MERGES = "a: &a {k0: 1, k1: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
"""The same by merge keys, which PyYAML copies as it reads them."""
READERS = {
    "a spec": lambda path: load_spec(path, {}),
    "a card": lambda path: load_card(str(path)),
    "a workload": load_workload,
    "a price file": load_prices,
    "a price sheet": load_sheet,
    "a recipe": read_recipe,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "more than 100,000 keys and values"),
        (MERGES, "more than 100,000 keys and values"),
        ("a: &a [*a]", "an alias stands within"),
        ("[" * 200 + "]" * 200, "deeper than 100 levels"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice, line 3"),
        # In base 60 (YAML 1.1): a megabyte of it would take minutes.
        ("a: " + "1:" * 200 + "1", "a number of 401 characters"),
        ("a: !!timestamp x", "is not what its tag says"),
        ("a: !!bool x", "is not what its tag says"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("# " + "x" * 1_000_000, "larger than 1 MB"),
    ],
)
def test_every_reader_of_yaml_is_bounded(tmp_path, reader, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(PrecisionExplorerError) as caught:
        READERS[reader](path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


def test_aliases_that_stand_for_little_are_read():
    found = yaml_document("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n'1': 0o7\nd: 1:30")
    assert found == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}, "1": "0o7", "d": 90}


def test_no_other_module_reads_yaml_by_itself():
    package = Path(bounded.__file__).parent
    # lm-evaluation-harness's own files are composed only, in a process of their own.
    allowed = {"bounded.py", "harness_library.py"}
    for path in package.rglob("*.py"):
        if path.name not in allowed:
            text = path.read_text(encoding="utf8")
            assert "yaml.load" not in text, path
            assert "safe_load" not in text, path
            assert "yaml.compose" not in text, path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 150 + "]" * 150, "deeper than 100 levels"),
        ("[" * 100_000, "deeper than 100 levels"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": {"b": NaN}}', "NaN"),
        ("[-Infinity]", "-Infinity"),
        ("[1e999]", "1e999"),
        ("9" * 61, "a number of 61 digits"),
        ("{", "no JSON"),
        (b"\xff\xfe\xfd", "no JSON"),
        ("", "no JSON"),
    ],
)
def test_json_is_bounded(text, words):
    with pytest.raises(BadDocument) as caught:
        json_document(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_doubled_key_among_many_is_found_in_no_more_time_than_reading_takes():
    text = ", ".join(f'"{number}": 0' for number in range(100_000))
    began = time.process_time()
    with pytest.raises(BadDocument, match="the key '99999' twice"):
        json_document(f'{{{text}, "99999": 1}}')
    # In the square of the keys it takes minutes.
    assert time.process_time() - began < 5


def test_what_other_programs_write_may_hold_infinity_but_no_more_depth():
    assert json_document('{"limit": [0.0, Infinity], "a": 1, "a": 2}', strict=False) == {
        "limit": [0.0, float("inf")],
        "a": 2,
    }
    for text in ("[" * 150 + "]" * 150, "9" * 61):
        with pytest.raises(BadDocument):
            json_document(text, strict=False)


@pytest.mark.parametrize("text", ['["\\ud800"]', b'["\xed\xa0\x80"]', '"\xff"'.encode("utf-16")])
def test_half_characters_and_other_encodings_are_no_json(text):
    with pytest.raises(BadDocument):
        json_document(text)
    assert json_document('["\\ud83d\\ude00"]') == ["\U0001f600"]


def test_half_characters_are_no_yaml():
    with pytest.raises(BadDocument, match="half of a character"):
        yaml_document('a: "\\ud800"')


def test_an_error_is_one_line_in_which_nothing_acts():
    error = PrecisionExplorerError("no card 'a\nb\x1b[31m\u202ec\u2028d'; correct it")
    assert str(error) == "no card 'a b?[31m?c d'; correct it"


def test_a_file_is_read_no_further_than_its_limit(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"[1, 2, 3]")
    assert read_bounded(path, 9) == b"[1, 2, 3]"
    with pytest.raises(TooLarge):
        read_bounded(path, 8)
    # A file without an end, as a link in a stranger's folder may lead to.
    with pytest.raises(NoPlainFile):
        read_bounded(Path("/dev/zero"), 1000)
    # And one whose reader waits for ever.
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NoPlainFile):
        json_file(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 1000)
    with pytest.raises(TooLarge):
        json_file(path, 3)


@pytest.mark.parametrize("content", ["[" * 5000, '{"schema_version": ' + "9" * 5000 + "}", "NaN"])
def test_records_and_runs_are_read_so(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(StoreError):
        read_record(tmp_path / "sweep.json")
    with pytest.raises(StoreError):
        read_run(tmp_path)


def test_a_model_s_config_is_read_so(tmp_path):
    header = b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (tmp_path / "config.json").write_text('{"limit": Infinity}')
    assert resolve(str(tmp_path)).elements == 1
    (tmp_path / "config.json").write_text("[" * 5000)
    with pytest.raises(PrecisionExplorerError, match="no JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    deep = b"[" * 5000
    weights.write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(PrecisionExplorerError, match="no whole safetensors"):
        resolve(str(tmp_path))
