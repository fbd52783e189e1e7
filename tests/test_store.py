"""The results folder: whole files, one sweep at a time, damage, parts, samples, manifest."""

from __future__ import annotations

import ast
import contextlib
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

import precision_explorer
from precision_explorer.audit.verify import verify
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.records import NewerSchema
from precision_explorer.records.seal import sealed
from precision_explorer.runner import sweep
from precision_explorer.store import RunFolder, folder, read_run, unrecorded
from precision_explorer.store import manifest as manifest_module
from precision_explorer.store.atomic import write_bytes, write_json
from precision_explorer.store.manifest import read_manifest
from precision_explorer.store.shape import planned_ids
from precision_explorer.table import build
from tests.test_records import make_cell, make_record

SWEEP: dict[str, Any] = {
    "schema_version": 1,
    "run": "r",
    "reader": {"reference": "fp32", "quality_budget": 0.01, "price_per_hour": None, "slo": None},
    "plan": {"cells": []},
    "models": [],
    "tasks": [],
    "environment": {
        "python": "3",
        "platform": "Linux",
        "device_name": "CPU",
        "device": {},
        "cpu_model": None,
        "cores": 2,
        "memory_bytes": 1,
        "threads": 2,
        "libraries": {},
    },
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
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    second.close()
    second.close()
    # A folder that is passed on names no machine.
    assert (tmp_path / ".lock").read_text() == ""


def test_a_folder_that_can_not_be_written_is_wrong_use(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError) as caught:
            RunFolder(path).open()
        assert str(path) in str(caught.value)
        assert "--out" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_lock_that_is_a_link_or_no_file_is_refused_and_changes_nothing(tmp_path):
    kept = tmp_path / "thesis.txt"
    kept.write_text("all of it")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(kept)
    with pytest.raises(StoreError, match="link") as caught:
        RunFolder(run).open()
    assert "--out" in str(caught.value)
    assert kept.read_text() == "all of it"
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    with pytest.raises(StoreError, match="link or a device"):
        RunFolder(run).open()


@pytest.mark.parametrize("name", ["parts", "cells", "samples", "logs", "scores", "logs/a.log"])
def test_a_run_with_a_link_in_it_is_not_written_to(tmp_path, name):
    (tmp_path / "other").mkdir()
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "other")
    opened = RunFolder(tmp_path / "run")
    with pytest.raises(StoreError, match="link"):
        opened.open()
    place.unlink()
    # Its lock was given back.
    opened.open()
    opened.close()
    assert not list((tmp_path / "other").iterdir())


def test_a_file_is_not_written_through_a_link_under_its_temporary_name(tmp_path):
    kept = tmp_path / "thesis.txt"
    kept.write_text("all of it")
    (tmp_path / f"a.json.tmp{os.getpid()}").symlink_to(kept)
    write_json(tmp_path / "a.json", {"a": 1})
    assert kept.read_text() == "all of it"
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert not (tmp_path / "a.json").is_symlink()


def test_opening_removes_half_files_of_this_program_s_and_no_others(tmp_path):
    ours = [
        "cells/a.json.tmp1",
        f"parts/c/block-0.arrow.tmp{os.getpid()}",
        "sweep.json.tmp999999999",
    ]
    others = ["notes.tmp12", "notes.md.tmp999999999", "mine/a.json.tmp999999999", "cells/a.tmp5"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    run = RunFolder(tmp_path)
    run.open()
    run.close()
    assert [name for name in ours + others if (tmp_path / name).exists()] == others


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

    real = folder.write_bytes
    monkeypatch.setattr(
        folder, "write_bytes", lambda p, c: (fail if p.suffix == ".json" else real)(p, c)
    )
    with pytest.raises(OSError, match="space"):
        run.write_part("c", "quality", {"x": 1}, b"rows")
    assert run.read_part("c", "quality") is None


def test_a_damaged_part_is_no_part(run):
    run.write_part("c", "quality", {"x": 1}, b"")
    (run.path / "parts" / "c" / "quality.json").write_text("{")
    assert run.read_part("c", "quality") is None


def test_rows_that_are_not_the_answer_s_are_no_part(run):
    """As of a process that was killed between the two files of a part that it wrote again."""
    run.write_part("c", "quality", {"x": 1}, b"rows")
    told: list[str] = []
    run.on_damaged = told.append
    path = run.part_path("c", "quality")
    path.write_bytes(b"other rows")
    assert RunFolder(run.path).read_part("c", "quality") is None
    assert path.exists()
    assert run.read_part("c", "quality") is None
    assert not run.has_part("c", "quality")
    assert path.with_name("quality.arrow.damaged").read_bytes() == b"other rows"
    assert told == ["parts/c/quality.json"]
    for number in (2, 3):
        run.write_part("c", "quality", {"x": 1}, b"rows")
        path.unlink()
        assert run.read_part("c", "quality") is None
        assert path.with_name(f"quality.json.damaged-{number}").is_file()


def test_rows_of_an_earlier_try_are_not_joined_to_a_new_answer(run):
    rows = arrow([{"id": "a"}])
    run.write_part("c", "quality", {"a": 1}, rows)
    run.write_part("c", "quality", {"why": "none"}, b"")
    assert not run.part_path("c", "quality").exists()
    # As an earlier release left them.
    run.part_path("c", "quality").write_bytes(rows)
    assert run.read_part("c", "quality") == ({"why": "none"}, b"")
    # A part from before there were seals has rows without a hash of them.
    (run.path / "parts" / "c" / "old.json").write_text('{"a": 1}')
    run.part_path("c", "old").write_bytes(rows)
    assert run.read_part("c", "old") == ({"a": 1}, rows)


def test_parts_are_checked_without_reading_them_whole(run, monkeypatch):
    rows = arrow([{"id": "a"}])
    for name in ("good", "changed", "gone"):
        run.write_part("c", name, {"a": 1}, rows)
    run.part_path("c", "changed").write_bytes(rows[:-1] + b"x")
    run.part_path("c", "gone").unlink()
    monkeypatch.setattr(folder, "MAX_ROWS_BYTES", 0)
    run.check_parts("c")
    left = sorted(p.name for p in (run.path / "parts" / "c").iterdir())
    assert left == [
        "changed.arrow.damaged", "changed.json.damaged", "gone.json.damaged", "good.arrow",
        "good.json",
    ]  # fmt: skip


def test_parts_of_failed_tries_are_kept_apart(run):
    for attempt in (1, 2):
        run.write_part("c", "quality", {"attempt": attempt}, b"rows")
        run.set_aside_parts("c")
        assert run.read_part("c", "quality") is None
        kept = run.path / "parts" / "c" / f"attempt-{attempt}"
        assert json.loads((kept / "quality.json").read_text())["attempt"] == attempt
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


def test_new_samples_of_a_measured_cell_belong_to_its_record_at_every_moment(run, monkeypatch):
    """A sweep that is killed between the two files leaves either: both are read, another is not."""
    record = make_record()
    name = record.cell_id
    run.write_samples(name, {"example": arrow([{"id": "a"}])})
    run.write_record(record.model_copy(update={"samples_sha256": run.samples_hash(name)}))

    def killed(path, content):
        if path == run.samples_path(name):
            raise KeyboardInterrupt
        write_bytes(path, content)

    def read():
        return run.read_samples(name, "example", run.read_record(name).known_samples)["id"]

    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write_samples(name, {"example": arrow([{"id": "b"}])})
    assert read() == ["a"]
    run.write_samples(name, {"example": arrow([{"id": "b"}])})
    assert read() == ["b"]
    # The caller's record never came, and what comes next is something else.
    with monkeypatch.context() as patch:
        patch.setattr(folder, "write_bytes", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write_samples(name, {"example": arrow([{"id": "c"}])})
    assert read() == ["b"]
    old = run.samples_path(name).read_bytes()
    run.samples_path(name).write_bytes(old[:-40] + b"x" + old[-39:])
    with pytest.raises(StoreError, match="damaged"):
        read()


@pytest.mark.parametrize(("content", "word"), [(None, "missing"), (b"PAR1 not", "damaged")])
def test_samples_that_can_not_be_read_are_a_store_error(run, content, word):
    if content is not None:
        run.samples_path("c").write_bytes(content)
    with pytest.raises(StoreError, match=word) as caught:
        run.read_samples("c", "example")
    assert "\n" not in str(caught.value)
    assert "run the sweep again" in str(caught.value)


def test_samples_with_a_time_beyond_the_calendar_are_a_store_error(run):
    """Found by scripts/fuzz.py, in a column of which nothing is relied on."""
    times = pa.array([2**62], pa.timestamp("ms"))
    pq.write_table(pa.table({"row": ["example"], "target": times}), run.samples_path("c"))
    with pytest.raises(StoreError, match="damaged"):
        run.read_samples("c", "example")


def test_samples_with_a_changed_bit_are_not_those_of_their_record(run):
    """Some would be read with other values: parquet has no hash of its own."""
    rows = [{"id": f"e{k}", "score": k / 7, "latency_s": 0.1 + k} for k in range(40)]
    run.write_samples("c", {"example": arrow(rows)})
    path, known = run.samples_path("c"), (run.samples_hash("c"),)
    good = path.read_bytes()
    whole = run.read_samples("c", "example", known)
    other = 0
    for place in range(0, len(good), len(good) // 60):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        path.write_bytes(bytes(bad))
        with contextlib.suppress(StoreError):
            other += run.read_samples("c", "example") != whole
        with pytest.raises(StoreError, match="damaged"):
            run.read_samples("c", "example", known)
    assert other > 0
    path.write_bytes(good)
    # Old records have no hash.
    assert run.read_samples("c", "example", None) == run.read_samples("c", "example", known)


def test_whoever_reads_samples_gives_the_hash_that_their_record_has():
    package = Path(precision_explorer.__file__).parent
    texts = {path: path.read_text(encoding="utf8") for path in package.rglob("*.py")}
    calls = [
        (name, node)
        for name, text in texts.items()
        if ".read_samples(" in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".read_samples")
    ]
    assert len(calls) > 15
    assert [name for name, call in calls if len(call.args) != 3] == []


def test_samples_that_stand_for_more_than_any_run_has_are_damaged(run, monkeypatch):
    table = pa.table({"row": ["example"] * 200_000, "id": ["x"] * 200_000})
    pq.write_table(table, run.samples_path("c"), compression="zstd")
    assert run.samples_path("c").stat().st_size < 20_000
    assert len(run.read_samples("c", "example")["id"]) == 200_000
    folder._table_of.cache_clear()
    monkeypatch.setattr(folder, "MAX_VALUES", 399_999)
    with pytest.raises(StoreError, match="damaged"):
        run.read_samples("c", "example")
    monkeypatch.setattr(folder, "MAX_SAMPLES_BYTES", 100)
    with pytest.raises(StoreError, match="damaged"):
        run.read_samples("c", "example")


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("example", {"id": 3}), ("example", {"score": 1.0}), ("example", {"id": "a", "score": "1"}),
        ("request", {"id": "a", "window": "measure"}), ("position", {"id": "a", "kl": 0.1}),
        ("request", {"id": "a", "window": 1, "latency_s": 0.1}),
    ],
)  # fmt: skip
def test_samples_without_the_columns_of_their_kind_are_damaged(run, kind, row):
    run.write_samples("c", {kind: arrow([row])})
    with pytest.raises(StoreError, match="damaged"):
        run.read_samples("c", kind)


def test_scores_that_are_no_share_are_damaged_samples(tmp_path):
    from tests.test_table import make_run, ok

    rows = [{"id": f"e{k}", "score": 2.0, "group": None} for k in range(5)]
    run = make_run(tmp_path / "run", [ok("fp32", rows)])
    with pytest.raises(StoreError, match="are damaged: they give no accuracy"):
        build([run])


@pytest.mark.parametrize("kind", ["link to a device", "pipe"])
def test_what_has_no_end_is_not_read_in_a_stranger_s_run(tmp_path, kind):
    run = RunFolder(tmp_path / "run")
    run.open()
    run.close()
    record = make_record()
    cell_id = record.cell_id
    (run.path / "parts" / cell_id).mkdir()
    (run.path / "scores").mkdir()
    answer = sealed({"a": 1, "rows_sha256": "0" * 64})
    (run.path / "parts" / cell_id / "rows.json").write_bytes(answer)
    names = [
        "sweep.json", "roof.json", "manifest.json", f"cells/{cell_id}.json",
        f"samples/{cell_id}.parquet", f"scores/{cell_id}.json", f"parts/{cell_id}/quality.json",
        f"parts/{cell_id}/rows.arrow",
    ]  # fmt: skip
    for name in names:
        if kind == "pipe":
            os.mkfifo(run.path / name)
        else:
            (run.path / name).symlink_to("/dev/zero")
    assert run.read_record(cell_id) is None
    assert run.read_roof() is None
    assert run.read_part(cell_id, "quality") is None
    assert run.read_part(cell_id, "rows") is None
    assert run.manifest_root() == ""
    assert read_manifest(run.path) is None
    for read in (
        lambda: run.read_samples(cell_id, "example"),
        lambda: run.read_scores(cell_id),
        lambda: read_run(run.path),
        lambda: verify(run.path),
        run.open,
    ):
        with pytest.raises(StoreError) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_scores_and_manifests_are_read_within_bounds(run, monkeypatch):
    run.write_sweep(SWEEP)
    run.write_manifest()
    for name in ("manifest.json", "scores/c.json"):
        path = run.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"[" + b" " * 10_000 + b"]")
    for place in (folder, manifest_module, sys.modules[verify.__module__]):
        monkeypatch.setattr(place, "MAX_JSON_BYTES", 10_000)
    with pytest.raises(StoreError, match="larger than"):
        run.read_scores("c")
    assert read_manifest(run.path) is None
    (fault,) = verify(run.path).faults
    assert "larger than" in str(fault)


# -- reads that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ESTALE])
def test_a_file_that_can_t_be_read_now_is_neither_damaged_nor_absent(run, monkeypatch, number):
    """Taken for that, a good record would be set aside, and a good part measured over."""
    record = make_record()
    cell_id = record.cell_id
    run.write_record(record)
    run.write_part(cell_id, "quality", {"a": 1}, arrow([{"id": "a"}]))
    run.write_samples(cell_id, {"example": arrow([{"id": "a"}])})
    run.write_sweep(SWEEP)
    run.write_manifest()
    before = sorted(p for p in run.path.rglob("*") if p.is_file())
    told: list[str] = []
    run.on_damaged = told.append
    reads = [
        lambda: run.read_record(cell_id),
        lambda: run.has_part(cell_id, "quality"),
        lambda: run.read_part(cell_id, "quality"),
        lambda: run.check_parts(cell_id),
        lambda: run.read_samples(cell_id, "example"),
        lambda: run.samples_hash(cell_id),
        lambda: read_run(run.path),
        run.manifest_root,
        run.read_roof,
    ]
    with monkeypatch.context() as patch:

        def fail(*arguments, **named):
            raise OSError(number, os.strerror(number))

        patch.setattr(os, "open", fail)
        patch.setattr(io, "open", fail)
        for read in reads:
            with pytest.raises(OSError, match=os.strerror(number)):
                read()
    assert sorted(p for p in run.path.rglob("*") if p.is_file()) == before
    assert told == []
    assert run.read_record(cell_id) == record
    # Only the rows: their part's answer is whole.
    real = os.open

    def rows_fail(path, *arguments, **named):
        if str(path).endswith(".arrow"):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, "open", rows_fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        run.read_part(cell_id, "quality")


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


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("run", 3), ("tasks", [{}]), ("models", [{}]), ("models", [{"name": "m", "revision": "r"}]),
        ("environment", {"libraries": 3}),
        ("environment", SWEEP["environment"] | {"device": {"cpu_flags": ["avx2", 3]}}),
        ("methods", {"a": 3}), ("groups", [{"name": "g"}]),
        ("plan", []), ("plan", {"cells": [{"cell_id": "a" * 16, "task": "t"}]}),
        ("reader", {}), ("reader", SWEEP["reader"] | {"price": "cheap"}),
        ("reader", SWEEP["reader"] | {"quality_budget": "1%"}), ("batch_tokens", {"a": "b"}),
    ],
)  # fmt: skip
def test_a_sweep_of_another_shape_is_damaged_and_says_where(tmp_path, place, value):
    """Each of these was a traceback of `report`."""
    (tmp_path / "sweep.json").write_text(json.dumps(SWEEP | {place: value}))
    for read in (read_run, unrecorded):
        with pytest.raises(StoreError, match=rf"damaged \({place}") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_every_run_that_is_stored_has_the_shape():
    root = Path(__file__).parents[1]
    found = [*(root / "results").rglob("sweep.json"), *(root / "tests").rglob("sweep.json")]
    assert len(found) > 10
    for path in found:
        assert read_run(path.parent)[1] == json.loads(path.read_text(encoding="utf8"))


def test_methods_that_no_sweep_writes_are_no_traceback(tmp_path):
    from tests.test_table import make_run, ok

    run = make_run(tmp_path / "run", [ok("fp32", [{"id": "a", "score": 1.0, "group": None}])])
    document = json.loads((run / "sweep.json").read_text())
    for method in document["methods"].values():
        method["workload"] = {"scenario": "server"}
    (run / "sweep.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match="methods"):
        build([run])


@pytest.mark.parametrize(
    "before", [[], 3, {"plan": [], "batch_tokens": []}, {"plan": {"cells": [3, {}]}}]
)
def test_a_sweep_goes_over_a_damaged_plan(tmp_path, before):
    run = RunFolder(tmp_path)
    (tmp_path / "sweep.json").write_text(json.dumps(before))
    said: list[Any] = []
    sweep._note_replaced(run.read_sweep_or_none(), SWEEP, said.append)
    assert said == []
    assert sweep._stored_budgets(run) == {}
    assert planned_ids(run.read_sweep_or_none()) == []


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
