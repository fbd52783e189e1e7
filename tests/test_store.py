"""The results folder: whole files, one sweep at a time, damage, parts, samples, manifest."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import NewerSchema
from precision_explorer.store import RunFolder, folder, read_run
from precision_explorer.store.atomic import write_bytes, write_json
from tests.test_records import make_cell, make_record

SWEEP: dict[str, Any] = {
    "schema_version": 1,
    "run": "r",
    "reader": {},
    "plan": {"cells": []},
    "models": [],
    "tasks": [],
    "environment": {},
    "methods": {},
}


def arrow(rows: list[dict[str, Any]]) -> bytes:
    """Rows as a worker sends them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


@pytest.fixture
def run(tmp_path):
    """An open run's folder."""
    opened = RunFolder(tmp_path / "run")
    opened.open()
    yield opened
    opened.close()


# -- whole files ------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, failing, error
):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(*arguments):
        raise error

    target = os if failing == "fsync" else Path
    monkeypatch.setattr(target, failing, fail)
    with pytest.raises(type(error)):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_disk_under_a_name_that_is_no_record_s_before_it_is_moved(
    tmp_path, monkeypatch
):
    seen = []
    real = os.fsync

    def look(handle):
        seen.extend(p.name for p in tmp_path.iterdir())
        real(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_bytes(tmp_path / "a.json", b"{}")
    (name,) = seen
    assert not name.endswith((".json", ".arrow", ".parquet"))
    assert (tmp_path / "a.json").read_bytes() == b"{}"


def test_a_document_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


# -- opening ----------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from precision_explorer.store import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.open()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has the run's folder open."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_sweep_is_refused_and_the_lock_ends_with_its_holder(tmp_path, holder):
    second = RunFolder(tmp_path / "run")
    with pytest.raises(StoreError) as caught:
        second.open()
    assert f"process {holder.pid}" in str(caught.value)
    assert "--out" in str(caught.value)
    assert "\n" not in str(caught.value)
    holder.kill()
    holder.wait()
    second.open()
    second.close()


def test_the_lock_ends_with_closing(tmp_path):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.open()
    with pytest.raises(StoreError):
        second.open()
    first.close()
    second.open()
    assert (tmp_path / ".lock").read_text() == str(os.getpid())
    second.close()
    second.close()


def test_a_folder_that_can_not_be_written_is_wrong_use(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError) as caught:
            RunFolder(path).open()
        assert str(path) in str(caught.value)
        assert "--out" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_run_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunFolder(tmp_path / "mine").name == "mine"
    assert RunFolder(Path()).name == tmp_path.name


# -- records ----------------------------------------------------------------------------------


def test_a_record_is_found_by_its_cell(run):
    record = make_record()
    assert run.read_record(record.cell_id) is None
    run.write_record(record)
    assert run.read_record(record.cell_id) == record
    assert run.record_path(record.cell_id) == run.path / "cells" / f"{record.cell_id}.json"


def test_a_damaged_record_is_set_aside_so_that_the_cell_is_run_again(run):
    record = make_record()
    path = run.record_path(record.cell_id)
    path.write_text('{"schema_version": 1')
    assert run.read_record(record.cell_id) is None
    assert not path.exists()
    assert path.with_name(f"{path.name}.damaged").read_text() == '{"schema_version": 1'
    run.write_record(record)
    assert run.read_record(record.cell_id) == record


def test_a_reader_changes_nothing_where_a_record_is_damaged(run):
    path = run.record_path("a" * 16)
    path.write_text("{")
    assert RunFolder(run.path).read_record("a" * 16) is None
    assert path.read_text() == "{"


def test_a_newer_release_s_record_is_neither_set_aside_nor_run_over(run):
    record = make_record()
    document = record.model_dump(mode="json") | {"schema_version": 99}
    path = run.record_path(record.cell_id)
    path.write_text(json.dumps(document))
    with pytest.raises(NewerSchema, match="upgrade"):
        run.read_record(record.cell_id)
    assert json.loads(path.read_text()) == document


# -- parts ------------------------------------------------------------------------------------


def test_parts_come_back_as_they_were_written(run):
    rows = arrow([{"id": "a"}])
    run.write_part("c", "quality", {"x": 1.5, "y": None}, rows)
    run.write_part("c", "load", {"z": "é"}, b"")
    again = RunFolder(run.path)
    assert again.read_part("c", "quality") == ({"x": 1.5, "y": None}, rows)
    assert again.read_part("c", "load") == ({"z": "é"}, b"")
    assert again.read_part("c", "block-0") is None
    assert again.read_part("d", "load") is None


def test_a_part_whose_writing_was_cut_off_is_no_part(run, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(folder, "write_json", fail)
    with pytest.raises(OSError, match="space"):
        run.write_part("c", "quality", {"x": 1}, b"rows")
    assert run.read_part("c", "quality") is None


def test_a_damaged_part_is_no_part(run):
    run.write_part("c", "quality", {"x": 1}, b"")
    (run.path / "parts" / "c" / "quality.json").write_text("{")
    assert run.read_part("c", "quality") is None


def test_parts_of_failed_tries_are_kept_apart(run):
    for attempt in (1, 2):
        run.write_part("c", "quality", {"attempt": attempt}, b"rows")
        run.set_aside_parts("c")
        assert run.read_part("c", "quality") is None
        kept = run.path / "parts" / "c" / f"attempt-{attempt}"
        assert json.loads((kept / "quality.json").read_text()) == {"attempt": attempt}
        assert (kept / "quality.arrow").read_bytes() == b"rows"
    run.set_aside_parts("c")
    run.set_aside_parts("never-run")
    assert not (run.path / "parts" / "c" / "attempt-3").exists()
    assert not (run.path / "parts" / "never-run").exists()


# -- samples ----------------------------------------------------------------------------------


def test_samples_hold_one_row_per_example_and_per_request(run):
    examples = [{"id": "a", "score": 1.0, "group": None}, {"id": "b", "score": 0.0, "group": None}]
    requests = [{"id": "b", "latency_s": 0.25, "window": "measure"}]
    run.write_samples("c", {"example": arrow(examples), "request": arrow(requests)})
    table = pq.read_table(run.path / "samples" / "c.parquet")
    assert table.num_rows == 3
    assert table["row"].to_pylist() == ["example", "example", "request"]
    found = run.read_samples("c", "example")
    assert (found["id"], found["score"]) == (["a", "b"], [1.0, 0.0])
    found = run.read_samples("c", "request")
    assert (found["id"], found["latency_s"], found["score"]) == (["b"], [0.25], [None])


def test_samples_are_written_whole(run, monkeypatch):
    run.write_samples("c", {"example": arrow([{"id": "a"}])})

    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="space"):
        run.write_samples("c", {"example": arrow([{"id": "b"}])})
    assert run.read_samples("c", "example")["id"] == ["a"]


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), (b"PAR1 not", "damaged")])
def test_samples_that_can_not_be_read_are_a_store_error(run, content, word):
    if content is not None:
        run.samples_path("c").write_bytes(content)
    with pytest.raises(StoreError, match=word) as caught:
        run.read_samples("c", "example")
    assert "\n" not in str(caught.value)
    assert "run the sweep again" in str(caught.value)


# -- the run ----------------------------------------------------------------------------------


def test_an_unchanged_sweep_is_not_written_again(run):
    run.write_sweep(SWEEP)
    path = run.path / "sweep.json"
    os.utime(path, ns=(1, 1))
    run.write_sweep(SWEEP)
    assert path.stat().st_mtime_ns == 1
    run.write_sweep(SWEEP | {"run": "other"})
    assert json.loads(path.read_text())["run"] == "other"


def test_a_run_is_read_by_its_sweep(run):
    run.write_sweep(SWEEP)
    found, sweep = read_run(run.path)
    assert (found.path, sweep) == (run.path, SWEEP)


def test_what_is_no_run_is_a_store_error(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match="no results folder"):
            read_run(path)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"schema_version": 1, "run": "r"}'])
def test_a_sweep_without_its_parts_is_damaged(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(StoreError, match="damaged"):
        read_run(tmp_path)


def test_a_newer_release_s_run_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(NewerSchema, match="upgrade"):
        read_run(tmp_path)


HASHED = [
    "sweep.json",
    "cells/{cell}.json",
    "samples/{cell}.parquet",
    "parts/{cell}/quality.json",
    "parts/{cell}/quality.arrow",
    "parts/{cell}/attempt-1/load.json",
]


@pytest.fixture
def filled(run):
    """A run with one of every file, and its manifest's root."""
    cell_id = make_cell().cell_id
    run.write_sweep(SWEEP)
    run.write_record(make_record())
    run.write_part(cell_id, "load", {"x": 0}, b"")
    run.set_aside_parts(cell_id)
    run.write_part(cell_id, "quality", {"x": 1}, arrow([{"id": "a"}]))
    run.write_samples(cell_id, {"example": arrow([{"id": "a"}])})
    run.log_path(cell_id).write_text("a line\n")
    (run.path / "tradeoffs.csv").write_text("model\n")
    return run, run.write_manifest()


def test_the_manifest_names_every_file_and_its_hash(filled):
    run, root = filled
    manifest = json.loads((run.path / "manifest.json").read_text())
    cell_id = make_cell().cell_id
    assert sorted(manifest["files"]) == sorted(name.format(cell=cell_id) for name in HASHED)
    for name, digest in manifest["files"].items():
        assert digest == hashlib.sha256((run.path / name).read_bytes()).hexdigest()
    assert manifest["root"] == root == run.manifest_root()
    assert len(root) == 16


@pytest.mark.parametrize("name", HASHED)
def test_the_root_changes_with_any_byte_of_any_file(filled, name):
    run, root = filled
    path = run.path / name.format(cell=make_cell().cell_id)
    content = path.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        other = bytearray(content)
        other[place] ^= 1
        path.write_bytes(other)
        assert run.write_manifest() != root
    path.write_bytes(content)
    assert run.write_manifest() == root


def test_the_root_changes_when_a_file_goes_or_comes(filled):
    run, root = filled
    path = run.record_path(make_cell().cell_id)
    other = path.rename(path.with_name("0123456789abcdef.json"))
    assert run.write_manifest() != root
    other.rename(path)
    run.write_part("d", "load", {}, b"")
    assert run.write_manifest() != root


def test_logs_tables_and_the_place_of_the_folder_do_not_count(filled, tmp_path):
    run, root = filled
    run.log_path(make_cell().cell_id).write_text("another line\n")
    (run.path / "tradeoffs.csv").write_text("changed\n")
    (run.path / "cells" / "x.json.damaged").write_text("{")
    assert run.write_manifest() == root
    run.close()
    moved = RunFolder(run.path.rename(tmp_path / "elsewhere"))
    assert moved.write_manifest() == root


def test_a_run_without_a_manifest_has_no_root(tmp_path):
    assert RunFolder(tmp_path).manifest_root() == ""
    (tmp_path / "manifest.json").write_text("{}")
    assert RunFolder(tmp_path).manifest_root() == ""
