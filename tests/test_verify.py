"""`verify`: no byte of a run can change, and no file can come or go, without being found."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import shutil
from pathlib import Path

import pytest

from precision_explorer.audit import check_root, verify
from precision_explorer.audit.tables import is_rounding, same_figures
from precision_explorer.audit.verify import table_faults
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.report import made_tables, write_all
from precision_explorer.store import TABLES, RunFolder
from precision_explorer.store import manifest as manifests
from precision_explorer.store.manifest import (
    MANIFEST,
    file_faults,
    hashes,
    made_manifest,
    manifest_fault,
    parse_manifest,
)
from precision_explorer.table import build
from tests.command import run as call

RESULTS = Path(__file__).parents[1] / "results"
SMALL = RESULTS / "h200-decoder-compiled"
STORED = sorted(path.parent.name for path in RESULTS.glob("*/manifest.json"))
ALL_BELOW = 6_000
PLACES = 300


def finished(path: Path) -> Path:
    """A copy of a stored run at `path`, with a log, as this release leaves a run."""
    shutil.copytree(SMALL, path)
    (path / "logs").mkdir()
    (path / "logs" / "a.log").write_text("loaded\n")
    RunFolder(path).write_manifest()
    write_all(build([path]), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One that no test changes."""
    return finished(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(tmp_path, whole):
    """One to change."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def files_of(path: Path) -> list[str]:
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())


def places(content: bytes, seed: str) -> list[int]:
    """All of a small file, some of a larger one."""
    if len(content) <= ALL_BELOW:
        return list(range(len(content)))
    return [0, len(content) - 1, *random.Random(seed).sample(range(len(content)), PLACES)]


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def first_line(done) -> str:
    """What `verify` printed first of what does not hold."""
    assert done.returncode == 5, done
    head, first, *_ = done.stdout.splitlines()
    assert head.endswith("does not hold")
    return first.strip()


# -- what holds ---------------------------------------------------------------------------------


def test_a_run_as_it_was_made_holds_and_its_root_is_printed(whole):
    done = call("verify", whole)
    root = RunFolder(whole).manifest_root()
    assert done.returncode == 0
    assert "give it by --root" in done.stderr
    assert f"run: holds; {len(parse_manifest((whole / MANIFEST).read_bytes()).files)} files" in (
        done.stdout
    )
    full = verify(whole).root
    assert len(full) == 64
    assert full.startswith(root)
    assert full in done.stdout
    for given in (root, full, full[:20].upper()):
        done = call("verify", whole, "--root", given)
        assert (done.returncode, done.stderr) == (0, "")
    for name in TABLES:
        assert root in (whole / name).read_text()


@pytest.mark.parametrize("name", STORED)
def test_stored_runs_hold(name):
    """Their evidence every byte; their figures up to rounding, and their tables as they were
    written. Words may have changed since: their tables are made again now and then."""
    found = verify(RESULTS / name)
    assert found.files
    assert found.root
    assert all(fault.file in TABLES for fault in found.faults), found.faults
    if found.faults:
        made, stored = made_tables(build([RESULTS / name])), RESULTS / name / TABLES[0]
        assert same_figures(stored.read_bytes(), made[TABLES[0]])


def test_a_copy_elsewhere_under_another_name_holds(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "other")
    assert call("verify", tmp_path / "other").returncode == 0


def test_reports_and_a_sweep_s_lock_change_nothing(run):
    before = {name: (run / name).read_bytes() for name in files_of(run)}
    assert call("report", run).returncode == 0
    assert {name: (run / name).read_bytes() for name in files_of(run)} == before
    folder = RunFolder(run)
    assert not folder.is_open
    folder.open()
    try:
        done = call("verify", run)
        assert done.returncode == 0
        assert "a sweep is at work in this folder" in done.stdout
        assert RunFolder(run).is_open
    finally:
        folder.close()
    done = call("verify", run)
    assert done.returncode == 0
    assert "at work" not in done.stdout


def test_logs_may_be_left_out_but_not_changed(run):
    (run / "logs" / "a.log").write_text("loaded!\n")
    assert first_line(call("verify", run)).startswith("logs/a.log: ")
    (run / "logs" / "a.log").unlink()
    done = call("verify", run)
    assert done.returncode == 0
    assert "1 of 1 logs are not here" in done.stdout
    (run / "logs" / "b.log").write_text("")
    assert first_line(call("verify", run)).startswith("logs/b.log: is no file that the manifest")


def test_a_run_without_a_finished_cell_holds_without_tables(run):
    for name in TABLES:
        (run / name).unlink()
    shutil.rmtree(run / "cells")
    RunFolder(run).write_manifest()
    done = call("verify", run)
    assert done.returncode == 0
    assert "no tables yet" in done.stdout


# -- every byte ---------------------------------------------------------------------------------


def test_every_changed_byte_of_every_file_is_found(whole):
    manifest = parse_manifest((whole / MANIFEST).read_bytes())
    known = hashes(whole)
    tables = {name: (whole / name).read_bytes() for name in TABLES}
    assert set(files_of(whole)) == {*manifest.files, *manifest.logs, *TABLES, MANIFEST}
    assert table_faults(manifest, tables, tables, "run") == ([], [])
    for name in files_of(whole):
        content = (whole / name).read_bytes()
        dice = random.Random(name)
        for at in places(content, name):
            other = flipped(content, at, dice.randrange(8))
            if name == MANIFEST:
                assert manifest_fault(other) is not None, (name, at)
            elif name in TABLES:
                faults, _ = table_faults(manifest, tables | {name: other}, tables, "run")
                assert [fault.file for fault in faults] == [name], (name, at)
            else:
                digest = hashlib.sha256(other).hexdigest()
                (fault,) = file_faults(manifest, known | {name: digest})
                assert fault.file == name
                assert digest in fault.found


def test_every_changed_byte_of_an_older_manifest_is_found():
    content = (SMALL / MANIFEST).read_bytes()
    old = {k: v for k, v in json.loads(content).items() if k in ("version", "root", "files")}
    old["version"] = 1
    content = json.dumps(old, indent=1, ensure_ascii=False).encode() + b"\n"
    assert manifest_fault(content) is None
    dice = random.Random(1)
    for at in range(len(content)):
        assert manifest_fault(flipped(content, at, dice.randrange(8))) is not None, at


def test_the_command_finds_a_changed_byte_in_any_file(run):
    dice = random.Random(7)
    for name in files_of(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(flipped(content, dice.randrange(len(content)), dice.randrange(8)))
        assert first_line(call("verify", run)).startswith(f"{name}: "), name
        (run / name).write_bytes(content)
    assert call("verify", run).returncode == 0


# -- what is changed, and how it is told --------------------------------------------------------


def test_missing_truncated_and_unlisted_files_are_named(run):
    for name in files_of(run):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-1])
        assert first_line(call("verify", run)).startswith(f"{name}: ")
        (run / name).unlink()
        if not name.startswith("logs/"):
            line = first_line(call("verify", run))
            assert line.startswith(f"{name}: is missing"), line
        (run / name).write_bytes(content)
    for name in ("cells/more.json", "notes.txt", "parts/x/y.json", ".hidden", "cells/.lock"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
        assert first_line(call("verify", run)).startswith(f"{name}: is no file that the manifest")
        (run / name).unlink()
    assert call("verify", run).returncode == 0


def test_names_of_files_do_not_reach_the_terminal_as_they_are(run):
    (run / "cells" / "x\x1b[31m\nok: holds").write_text("")
    Path(os.fsdecode(bytes(run / "cells" / "y") + b"\xff")).write_text("")
    done = call("verify", run)
    assert first_line(done).startswith("cells/x[31m ok: holds: is no file")
    assert "\x1b" not in done.stdout
    assert len(done.stdout.splitlines()) == 3


def test_a_link_is_no_file_of_a_run(run, tmp_path):
    (record,) = (run / "cells").glob("*.json")
    shutil.move(record, tmp_path / "record.json")
    record.symlink_to(tmp_path / "record.json")
    assert first_line(call("verify", run)).startswith(f"cells/{record.name}: is no plain file")
    record.unlink()
    os.mkfifo(record)  # To read it would take forever.
    assert first_line(call("verify", run)).startswith(f"cells/{record.name}: is no plain file")
    record.unlink()
    shutil.move(tmp_path / "record.json", record)
    (run / "samples" / "more").symlink_to(tmp_path)
    assert first_line(call("verify", run)).startswith("samples/more: is no file")


def test_further_faults_are_named_after_the_first(run):
    for name in ("sweep.json", "roof.json"):
        (run / name).write_bytes((run / name).read_bytes() + b" ")
    done = call("verify", run)
    assert first_line(done).startswith("sweep.json: has the SHA-256")
    assert "put the file back" in first_line(done)
    assert "also roof.json" in done.stdout


@pytest.mark.parametrize(
    ("name", "column"), [("tradeoffs.csv", "latency_p50_s"), ("tradeoffs.md", None),
                         ("report.html", None)],
)  # fmt: skip
def test_a_changed_figure_in_a_table_is_found_and_shown(run, name, column):
    row = build([run]).rows[0]
    figure = repr(row["latency_p50_s"]) if column else "45.8 ms"
    text = (run / name).read_text()
    if not column:
        figure = next(f for f in (f"{n / 10:.1f} ms" for n in range(1, 10_000)) if f in text)
    other = figure.replace(figure[0], "9" if figure[0] != "9" else "8", 1)
    (run / name).write_text(text.replace(figure, other, 1))
    done = call("verify", run)
    line = first_line(done)
    assert line.startswith(f"{name}: ")
    assert ("numbers of tradeoffs.csv are those" in done.stdout) == (column is None)
    assert other in line
    assert figure in line
    assert f"precision-explorer report {run}" in line
    if column:
        assert f"row 1 ({row['task']}, {row['format']}), column {column}" in line


def test_fewer_columns_and_other_words_are_told_from_other_figures(run):
    path = run / "tradeoffs.csv"
    head, line = path.read_text().splitlines()
    names, cells = (next(csv.reader([text])) for text in (head, line))
    kept = [n for n, name in enumerate(names) if n < 40 or name == "manifest_root"]
    out = io.StringIO()
    for row in (names, cells):
        csv.writer(out, lineterminator="\n").writerow([row[n] for n in kept])
    path.write_text(out.getvalue())
    done = call("verify", run)
    assert "the header says 'manifest_root'" in first_line(done)
    assert "in every column that both have, the numbers of tradeoffs.csv are those" in done.stdout


def test_rows_that_come_or_go_and_columns_are_told(run):
    path = run / "tradeoffs.csv"
    lines = path.read_text().splitlines(keepends=True)
    for text, told in (
        ("".join([*lines, lines[-1]]), "has 2 rows, the records give 1"),
        (lines[0], "has 0 rows, the records give 1"),
        (lines[0].replace("quality_n", "n") + lines[1], "the header says 'n'"),
    ):
        path.write_text(text)
        line = first_line(call("verify", run))
        assert told in line or "does not show the manifest's root" in line


def test_tables_of_other_records_are_told_from_changed_ones(run):
    for name in ("sweep.json", *TABLES):
        assert (run / name).is_file()
    (run / "roof.json").unlink()
    RunFolder(run).write_manifest()
    done = call("verify", run)
    assert "it is the table of other records" in first_line(done)


def changed_record(run: Path, change) -> None:
    (path,) = (run / "cells").glob("*.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def test_a_record_under_another_s_label_is_found_even_with_a_manifest_of_its_own(run):
    def relabel(document):
        document["cell"]["format"] = "fp8-dynamic"

    changed_record(run, relabel)
    RunFolder(run).write_manifest()
    write_all(build([run]), run)
    line = first_line(call("verify", run))
    assert line.startswith("cells/")
    assert "what it describes is cell" in line


def test_a_manifest_rewritten_with_its_tables_is_found_by_a_root_from_elsewhere_alone(run):
    root = RunFolder(run).manifest_root()

    def faster(document):
        document["measurements"]["throughput"]["by_batch_size"]["1"]["requests_per_s"] *= 2

    changed_record(run, faster)
    assert first_line(call("verify", run)).startswith("cells/")
    RunFolder(run).write_manifest()
    assert first_line(call("verify", run)).startswith("tradeoffs.csv: ")
    write_all(build([run]), run)
    # What docs/verify.md says of itself: nothing in the folder tells.
    done = call("verify", run)
    assert done.returncode == 0
    assert "keep it elsewhere" in done.stderr
    line = first_line(call("verify", run, "--root", root))
    assert f"not the expected {root}" in line


def test_a_manifest_that_lists_files_elsewhere_is_none(run):
    (outside,) = [name for name in files_of(run) if name == "roof.json"]
    manifest = parse_manifest((run / MANIFEST).read_bytes())
    for name in (f"../{outside}", "/etc/passwd", "cells/../../x", "notes.txt", "cells//x"):
        files = manifest.files | {name: "0" * 64}
        (run / MANIFEST).write_bytes(made_manifest(files, {}).content())
        assert "which no run holds" in first_line(call("verify", run))


def test_a_name_that_no_file_can_have_is_none_of_a_run(run):
    manifest = parse_manifest((run / MANIFEST).read_bytes())
    document = json.loads(manifest.content())
    document["files"]["cells/\ud800.json"] = "0" * 64
    (run / MANIFEST).write_text(json.dumps(document))
    assert "no manifest that this program wrote" in first_line(call("verify", run))


@pytest.mark.parametrize(
    ("part", "value"),
    [("plan", None), ("environment", {}), ("methods", []), ("tasks", "x"), ("run", 5)],
)
def test_a_plan_that_no_sweep_writes_is_a_fault_and_no_crash(run, part, value):
    path = run / "sweep.json"
    document = json.loads(path.read_text())
    document[part] = value
    path.write_text(json.dumps(document))
    RunFolder(run).write_manifest()
    done = call("verify", run)
    assert done.returncode in (1, 5)
    assert "Traceback" not in done.stderr


def test_absurd_nesting_is_no_crash(run):
    (run / "sweep.json").write_text("[" * 100_000)
    RunFolder(run).write_manifest()
    done = call("verify", run)
    assert done.returncode in (1, 5)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["tradeoffs.csv", "report.html", MANIFEST])
def test_a_table_elsewhere_is_none_of_the_run(run, tmp_path, name):
    other = tmp_path / "elsewhere"
    (run / name).rename(other)
    (run / name).symlink_to(other)
    assert f"{name}: is no plain file" in first_line(call("verify", run))


# -- other releases and other machines ----------------------------------------------------------


def as_of(run: Path, tool: str) -> None:
    RunFolder(run).note_tables(tool, {"numpy": "1.26.4"})


def test_tables_of_another_release_are_no_sign_of_tampering_but_do_not_hold(run):
    path = run / "tradeoffs.md"
    path.write_text(path.read_text().replace("## Context", "## What was compared"))
    as_of(run, "0.0.9")
    line = first_line(call("verify", run))
    assert line.startswith("tradeoffs.md: is as precision-explorer 0.0.9 wrote it")
    assert "note on tables was not changed" in line
    path.write_text(path.read_text() + "x")
    done = call("verify", run)
    assert "note on tables was not changed" not in done.stdout
    assert "not as precision-explorer 0.0.9 wrote them: tradeoffs.md" in done.stdout


def test_figures_are_the_same_only_with_what_they_are_of_and_came_to():
    head = b"format,verdict,quality\n"
    assert same_figures(head + b"bf16,within,0.5\n", head + b"bf16,within,0.5\n")
    assert not same_figures(head + b"bf16,within,0.5\n", head + b"bf16,outside,0.5\n")
    assert not same_figures(head + b"bf16,within,0.5\n", head + b"fp16,within,0.5\n")
    assert not same_figures(head + b"bf16,within,0.5\n", head + b"bf16,within,\n")


def test_tables_of_another_release_that_are_the_same_hold(run):
    as_of(run, "0.0.9")
    assert call("verify", run).returncode == 0


def nudged(run: Path) -> bytes:
    """The CSV with the last digits of one figure changed, as rounding would."""
    figure = build([run]).rows[0]["latency_p50_s"]
    text = (run / "tradeoffs.csv").read_text()
    assert repr(figure) in text
    return text.replace(repr(figure), repr(figure * (1 + 1e-13)), 1).encode()


def test_last_digits_of_another_machine_hold_with_a_note_and_changed_ones_do_not(run):
    other = nudged(run)
    assert is_rounding(other, (run / "tradeoffs.csv").read_bytes())
    (run / "tradeoffs.csv").write_bytes(other)
    assert first_line(call("verify", run)).startswith("tradeoffs.csv: row 1")
    as_of(run, "0.1.0")
    done = call("verify", run)
    assert done.returncode == 0
    assert "differ in their last digits" in done.stdout
    assert "numpy 1.26.4" in done.stdout


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (b"a 1.0 b", b"a 1.0000000000001 b", True),
        (b"a 1.0 b", b"a 1.0001 b", False),
        (b"a 1.0 b", b"c 1.0 b", False),
        (b"0", b"1e-12", False),
        (b"1e-12", b"1.00000000000001e-12", True),
        (b"1 2", b"1", False),
        (b"123456789012", b"123456789013", False),
        (b"1234567890.125", b"1234567890.1250001", True),
        (b"bitsandbytes 0.50", b"bitsandbytes 0.5", False),
        (b"torch 2.10.0", b"torch 2.1.0", False),
        (b"v0.30000000000000004", b"v0.3", False),
    ],
)
def test_rounding_is_of_last_digits_alone(one, two, same):
    assert is_rounding(one, two) == same


def test_a_manifest_of_version_1_is_checked_and_says_what_it_does_not_know(run):
    manifest = parse_manifest((run / MANIFEST).read_bytes())
    old = manifest.model_copy(update={"version": 1})
    (run / MANIFEST).write_bytes(old.content())
    assert list(json.loads(old.content())) == ["version", "root", "files"]
    done = call("verify", run)
    assert done.returncode == 0
    assert "1 logs were not checked" in done.stdout
    path = run / "tradeoffs.md"
    path.write_text(path.read_text() + "x")
    done = call("verify", run)
    assert first_line(done).startswith("tradeoffs.md: ")
    assert "does not say which release wrote the tables" in done.stdout
    # Noting tables brings it up to date, and takes nothing measured for good.
    (run / "roof.json").write_bytes((run / "roof.json").read_bytes() + b" ")
    assert call("report", run).returncode == 0
    assert parse_manifest((run / MANIFEST).read_bytes()).version == 2
    assert first_line(call("verify", run)).startswith("roof.json: ")


def test_of_an_older_manifest_the_release_that_measured_is_told(tmp_path):
    path = tmp_path / "run"
    shutil.copytree(RESULTS / "demo-single-stream-cpu", path)
    manifest = parse_manifest((path / MANIFEST).read_bytes())
    old = manifest.model_copy(update={"version": 1, "tables": None})
    (path / MANIFEST).write_bytes(old.content())
    assert call("report", path, "--out", tmp_path / "other").returncode == 0
    (path / "tradeoffs.md").write_text((path / "tradeoffs.md").read_text() + "x")
    assert "the run was measured by precision-explorer 0.1.0" in call("verify", path).stdout


def test_a_newer_release_s_manifest_is_named_so(run):
    document = json.loads((run / MANIFEST).read_text()) | {
        "version": manifests.MANIFEST_VERSION + 1
    }
    (run / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
    assert "newer precision-explorer" in first_line(call("verify", run))


# -- wrong use ----------------------------------------------------------------------------------


def test_wrong_use_is_one_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, told in (
        ([tmp_path / "none"], "is not there"),
        ([tmp_path / "empty"], "is no results folder"),
        ([run, "--root", "abc"], "no root hash"),
        ([run, "--root", "z" * 16], "no root hash"),
        ([run, run, "--root", "0" * 16], "one run"),
        ([run, "--max-size", "big"], "max-size"),
    ):
        done = call("verify", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert told in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(UsageError):
        check_root("0" * 65)
    with pytest.raises(StoreError):
        verify(tmp_path / "empty")


def test_several_runs_are_each_told(whole, run):
    (run / "sweep.json").unlink()
    done = call("verify", whole, run)
    assert done.returncode == 5
    assert "run: holds" in done.stdout
    assert "sweep.json: is missing" in done.stdout


def test_a_reader_s_own_table_does_not_go_where_the_run_s_own_stands(run):
    done = call("report", run, "--price-per-hour", "2", "--out", run)
    assert done.returncode == 1
    assert "own tables" in done.stderr
    assert call("verify", run).returncode == 0
