"""Records: round trips, the schema's version, damage, and the two hashes of a cell's identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from precision_explorer.errors import StoreError
from precision_explorer.records import (
    METRICS,
    SCHEMA_VERSION,
    STATUSES,
    Cell,
    CellRecord,
    NewerSchema,
    canonical_hash,
    metric_info,
    read_record,
    upgrade,
)
from precision_explorer.store import RunFolder
from precision_explorer.store.atomic import write_json

CELL: dict[str, Any] = {
    "model": {"name": "demo", "revision": "files:0123456789abcdef", "cautions": ["was-4bit"]},
    "task": {
        "name": "sentiment",
        "version": 1,
        "kind": "text-classification",
        "card_hash": "c" * 16,
        "data_hash": "d" * 16,
        "item_ids_hash": "e" * 16,
        "n": 40,
        "order_hash": "a" * 16,
    },
    "format": "fp32",
    "recipe": {"kernel": "torch", "library": "torch", "compute_dtype": "float32"},
    "runtime": "eager",
    "device": "cpu",
    "device_name": "Some CPU",
    "device_flags": ["avx2", "avx512_vnni"],
    "threads": 2,
    "workload": {
        "name": "single-stream",
        "min_requests": 30,
        "min_seconds": 3.0,
        "budget_seconds": 60.0,
    },
    "batch_plan": {"rule": "longest first", "max_tokens": 1024, "max_items": 16},
    "batch_sizes": [1, 8],
    "rules": {"version": 1, "latency": "text to answer"},
    "seed": 0,
    "trust_remote_code": False,
    "libraries": {"torch": "2.13.0", "transformers": "5.24.0"},
    "variables": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "protocol": {
        "prompt": {"max_length": 512, "template": "Review: {text}"},
        "decoding": {"by": "greedy", "max_new_tokens": 16},
        "quality_metric": "accuracy",
        "energy": "joules of the latency window",
    },
    "devices": None,
    "split": "tensors",
    "until_decided": {"quality_budget": 0.01, "reference": "fp32"},
}


def make_cell(**changes: Any) -> Cell:
    """A cell with some fields changed."""
    return Cell.model_validate(CELL | changes)


def make_record(status: str = "ok", cell: Cell | None = None, **fields: Any) -> CellRecord:
    """A record of `cell` that has nothing but its identity and what is given."""
    cell = cell or make_cell()
    given = {"started_at": "2026-01-02T03:04:05Z"} | fields
    return CellRecord(
        cell_id=cell.cell_id, status=status, cell=cell, method_id=cell.method_id, **given
    )


FULL: dict[str, Any] = {
    "applied": {
        "format": "fp32",
        "execution": "native",
        "reason": "float32 arithmetic",
        "library": "torch",
        "kernel": "torch",
        "compute_dtype": "float32",
        "linear_elements": 100,
        "converted_elements": 98,
        "converted_share": 0.98,
        "weight_bytes": 400,
        "elements_by_dtype": {"float32": 100},
        "bytes_by_dtype": {"float32": 400},
        "left_behind": [{"name": "head", "elements": 2, "reason": "too small"}],
    },
    "measurements": {
        "load": {"import_s": 0.5, "load_s": 1.0, "apply_s": 0.25},
        "quality": {
            "metric": "accuracy",
            "scores": {"accuracy": 0.1 + 0.2},
            "seconds": 1.5,
            "examples": 40,
            "tokens": 1000,
            "batches": 3,
            "batch_plan_hash": "f" * 16,
        },
        "energy": {"source": "unavailable", "note": "no counter"},
    },
    "cautions": [{"id": "short", "message": "A sentence — with a dash."}],
    "error": {"kind": "KeyError", "message": "what", "phase": "quality", "log_tail": "…\nlast"},
    "attempts": [{"status": "timeout", "started_at": "2026-01-01T00:00:00Z"}],
}


def stored(folder: Path, document: Any) -> Path:
    """`document` as the file of a record."""
    path = folder / "cell.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_a_record_is_read_as_it_was_written(tmp_path):
    written = make_record(**FULL)
    write_json(tmp_path / "a.json", written.model_dump(mode="json"))
    read = read_record(tmp_path / "a.json")
    assert read == written
    assert read.measurements.quality.scores["accuracy"] == 0.1 + 0.2
    assert read.measurements.latency is None
    assert read.cell.cell_id == written.cell_id


def test_the_schema_version_is_the_first_key(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.write_record(make_record(**FULL))
    folder.close()
    text = folder.record_path(make_cell().cell_id).read_text(encoding="utf8")
    assert next(iter(json.loads(text))) == "schema_version"
    assert text.startswith('{\n "schema_version": 1,')


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_of_the_contract_is_kept(tmp_path, status):
    path = stored(tmp_path, make_record(status).model_dump(mode="json"))
    assert read_record(path).status == status


def test_the_statuses_are_the_contract_s():
    assert STATUSES == (
        "ok", "failed", "timeout", "out_of_memory", "invalid_numerics", "skipped",
    )  # fmt: skip


def test_a_field_that_a_later_minor_release_added_is_passed_over(tmp_path):
    document = make_record(**FULL).model_dump(mode="json")
    document["measurements"]["quality"]["invented_later"] = 3
    assert read_record(stored(tmp_path, document)) == make_record(**FULL)


def test_a_newer_schema_is_refused_in_one_line_that_says_what_to_do(tmp_path):
    document = make_record().model_dump(mode="json") | {"schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(NewerSchema) as caught:
        read_record(stored(tmp_path, document))
    message = str(caught.value)
    assert "\n" not in message
    assert "upgrade precision-explorer" in message
    assert "remove" not in message
    assert isinstance(caught.value, StoreError)


def test_an_older_schema_is_upgraded_step_by_step(tmp_path, monkeypatch):
    def first(document):
        return document | {"skip_reason": document.pop("why")}

    def second(document):
        return document | {"skip_reason": document["skip_reason"] + "!"}

    monkeypatch.setattr(upgrade, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(upgrade, "_STEPS", {1: first, 2: second})
    document = make_record("skipped").model_dump(mode="json") | {"why": "no such unit"}
    assert read_record(stored(tmp_path, document)).skip_reason == "no such unit!"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"schema_version": 1}',
        '{"schema_version": 0}',
        '{"schema_version": "one"}',
        "[" * 100_000,
        "\x00\x01",
    ],
)
def test_a_damaged_record_is_a_store_error_in_one_line(tmp_path, text):
    with pytest.raises(StoreError) as caught:
        read_record(stored(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "run the sweep again" in str(caught.value)
    assert not isinstance(caught.value, NewerSchema)


def test_a_record_that_is_no_text_is_a_store_error_and_one_that_is_not_there_is_none(tmp_path):
    path = tmp_path / "cell.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(StoreError):
        read_record(path)
    # What can't be read says nothing of what it holds: nobody may set it aside as damaged.
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "none.json")


def test_an_unknown_status_is_refused(tmp_path):
    document = make_record().model_dump(mode="json") | {"status": "fine"}
    with pytest.raises(StoreError):
        read_record(stored(tmp_path, document))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_never_written(tmp_path, value):
    folder = RunFolder(tmp_path)
    folder.open()
    fields = FULL | {"measurements": {"energy": {"source": "unavailable", "energy_j": value}}}
    with pytest.raises(ValueError, match="JSON"):
        folder.write_record(make_record(**fields))
    folder.close()
    assert not list((tmp_path / "cells").iterdir())


# -- identity ---------------------------------------------------------------------------------


def changed(value: Any) -> Any:
    """Another value of the same kind; of what is not there, a number."""
    if value is None:
        return 2
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, changed(value[-1])]
    raise AssertionError(value)


def leaves(document: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all values in nested mappings."""
    found: list[tuple[str, ...]] = []
    for key, value in document.items():
        found += leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]
    return found


def with_change(path: tuple[str, ...]) -> Cell:
    document = json.loads(json.dumps(CELL))
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = changed(inner[path[-1]])
    return Cell.model_validate(document)


IDENTITY = leaves(CELL)
OUTSIDE_THE_METHOD = {
    ("model", "name"),
    ("variables", "ONEDNN_MAX_CPU_ISA"),
    ("model", "cautions"),
    ("task", "item_ids_hash"),
    ("task", "n"),
    ("format",),
    ("recipe", "kernel"),
    ("recipe", "library"),
    ("recipe", "compute_dtype"),
    ("runtime",),
    ("device",),
    ("device_name",),
    ("device_flags",),
    ("threads",),
    ("batch_sizes",),
    ("trust_remote_code",),
    ("libraries", "torch"),
    ("libraries", "transformers"),
    ("devices",),
    ("split",),
    ("until_decided", "quality_budget"),
    ("until_decided", "reference"),
}


def test_the_example_has_every_field_of_a_cell():
    assert set(make_cell().model_dump()) == set(CELL)
    for name in ("model", "task"):
        assert set(make_cell().model_dump()[name]) == set(CELL[name])


@pytest.mark.parametrize("path", IDENTITY, ids=".".join)
def test_any_change_of_identity_is_another_cell_but_of_the_folder_s_name(path):
    same = with_change(path).cell_id == make_cell().cell_id
    assert same == (path == ("model", "name"))


@pytest.mark.parametrize("field", ["recipe", "workload", "batch_plan", "rules", "libraries"])
def test_an_added_key_is_another_cell(field):
    assert make_cell(**{field: CELL[field] | {"new": "1"}}).cell_id != make_cell().cell_id


@pytest.mark.parametrize("path", IDENTITY, ids=".".join)
def test_the_method_is_what_two_results_must_share(path):
    same = with_change(path).method_id == make_cell().method_id
    assert same == (path in OUTSIDE_THE_METHOD)


def test_the_hashes_do_not_depend_on_the_order_of_keys():
    document = {key: CELL[key] for key in reversed(CELL)}
    document["recipe"] = dict(reversed(CELL["recipe"].items()))
    assert Cell.model_validate(document).cell_id == make_cell().cell_id


def test_the_hashes_are_short_hex():
    cell = make_cell()
    assert len(cell.cell_id) == 16
    assert len(cell.method_id) == 12
    assert int(cell.cell_id + cell.method_id, 16)


@pytest.mark.parametrize("seed", ["1", "4711"])
def test_the_hashes_are_the_same_in_a_fresh_process(seed):
    code = (
        "import sys, json; from precision_explorer.records import Cell; "
        "c = Cell.model_validate(json.load(sys.stdin)); print(c.cell_id, c.method_id)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(CELL),
        env=os.environ | {"PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [make_cell().cell_id, make_cell().method_id]


def test_a_hash_is_of_the_content():
    assert canonical_hash({"a": 1, "b": [1, 2]}) == canonical_hash({"b": [1, 2], "a": 1})
    assert canonical_hash([1, 2]) != canonical_hash([2, 1])
    assert canonical_hash("é") != canonical_hash("e")
    # SHA-256 of the two bytes {} as known from elsewhere.
    assert canonical_hash({}, 8) == "44136fa3"


# -- metrics ----------------------------------------------------------------------------------


def test_the_registry_knows_unit_and_direction():
    assert metric_info("accuracy").higher_is_better
    assert metric_info("accuracy").is_share
    assert not metric_info("bits_per_byte").higher_is_better
    assert not metric_info("word_perplexity").is_share
    assert metric_info("bleurt") is None
    assert all(name == info.name and info.unit and info.source for name, info in METRICS.items())


def test_only_shares_of_right_answers_are_zero_one():
    known = {"accuracy", "accuracy_norm", "exact_match"}
    assert {n for n, info in METRICS.items() if info.zero_one} == known
