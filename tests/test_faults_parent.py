"""Parents that are interrupted, ended and killed in every phase, two on one folder, full disks and
damaged files. Processes, signals, locks and files are real; workers replay kept answers."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from precision_explorer.audit.verify import verify
from precision_explorer.errors import StoreError
from precision_explorer.records import read_record, unsealed
from precision_explorer.runner import local
from precision_explorer.runner.sweep import run_sweep
from precision_explorer.store import RunFolder, lock
from tests.command import run as command
from tests.replayed import Parent, Plan, is_gone, script, start, wait_for

FP32, INT8 = "fp32", "int8-weight-only"
ONCE = ("quality", "block", "certificate", "profile", "noise")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> SimpleNamespace:
    """A sweep that was run for good, with its workers' answers and a folder of it in which the
    reference is measured and the other format has begun."""
    work = tmp_path_factory.mktemp("kept")
    kill_parents = script()
    prepared = kill_parents.prepare(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "WorkerHandle", kill_parents.Keeping)
        run_sweep(prepared, kill_parents.quiet)
    answers = kill_parents.Keeping.kept
    found = SimpleNamespace(prepared=prepared, answers=answers, script=kill_parents)
    found.whole = work / "whole"
    found.cells = {c.cell.format: c.cell_id for c in prepared.plan.cells}
    plan = Plan(found.answers, work / "log", work / "reached", at=(INT8, "certificate"))
    parent = start(prepared, work / "half", plan)
    wait_for(plan.reached, parent)
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    found.half = work / "half"
    assert [p.stem for p in (found.half / "cells").glob("*.json")] == [found.cells[FP32]]
    return found


@pytest.fixture
def case(kept, tmp_path) -> SimpleNamespace:
    """`begin(format, op)` starts a sweep on a folder with one cell done, and returns its parent and
    the process number of the worker that has come there; `again()` runs it to its end."""
    folder, log = tmp_path / "run", tmp_path / "log"

    def begin(at: tuple[str, str], before: Any = None) -> tuple[Parent, int]:
        shutil.copytree(kept.half, folder)
        if at[0] == INT8 and at[1] not in ("certificate", "profile"):
            shutil.rmtree(folder / "parts" / kept.cells[INT8])
        plan = Plan(kept.answers, log, tmp_path / "reached", at=at)
        parent = start(kept.prepared, folder, plan, before)
        return parent, int(wait_for(plan.reached, parent))

    def again() -> Parent:
        parent = start(kept.prepared, folder, Plan(kept.answers, log, tmp_path / "none"))
        assert parent.wait() == 0, parent.err.read_text()
        return parent

    return SimpleNamespace(folder=folder, log=log, begin=begin, again=again)


def slack() -> float:
    """By how much a busy machine may stretch a time: as many times as it has more to do than
    cores."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def asked(log: Path) -> Counter[tuple[str, str]]:
    lines = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    return Counter((name, op.rstrip("-")) for name, op in lines if op.startswith(ONCE))


# -- signals ----------------------------------------------------------------------------------

PHASES = [
    ((INT8, "load"), signal.SIGINT),
    ((INT8, "quality"), signal.SIGINT),
    ((INT8, "block-0"), signal.SIGINT),
    ((INT8, "block-1"), signal.SIGTERM),
    ((INT8, "certificate"), signal.SIGINT),
    ((INT8, "profile"), signal.SIGINT),
    ((INT8, "profile"), signal.SIGTERM),
    ((FP32, "noise"), signal.SIGINT),
    ((INT8, "quality"), signal.SIGHUP),
]


@pytest.mark.parametrize(("at", "number"), PHASES, ids=lambda v: getattr(v, "name", None) or v[1])
def test_a_sweep_that_is_asked_to_end_does_so_within_5_s_in_every_phase(kept, case, at, number):
    """The worker ignores SIGTERM, and is ended all the same."""
    parent, worker = case.begin(at)
    before = (case.folder / "cells" / f"{kept.cells[FP32]}.json").read_bytes()
    begun = time.monotonic()
    parent.signal(number)
    code = parent.wait()
    took = time.monotonic() - begun
    out, err = parent.out.read_text(), parent.err.read_text()
    assert code == 128 + number, err
    assert took < 5 * slack()
    assert is_gone(worker)
    assert "Traceback" not in err
    assert "run the same command again to resume" in err
    assert FP32 in out
    assert (case.folder / "tradeoffs.csv").is_file()
    assert (case.folder / "cells" / f"{kept.cells[FP32]}.json").read_bytes() == before
    done = asked(case.log)
    case.again()
    # What was under way is asked for again, and nothing else.
    assert {k for k, n in asked(case.log).items() if n > 1} <= {at}
    assert set(done) <= set(asked(case.log))
    assert kept.script.same_end(kept.whole, case.folder)


def test_a_second_ctrl_c_ends_a_sweep_at_once(kept, case, tmp_path):
    """While it is still showing what there is."""
    showing = tmp_path / "showing"

    def slow() -> None:
        from precision_explorer.report import terminal

        def show(*given: Any) -> None:
            showing.touch()
            time.sleep(3600)

        terminal.print_table = show

    parent, worker = case.begin((INT8, "quality"), slow)
    parent.signal(signal.SIGINT)
    wait_for(showing, parent)
    begun = time.monotonic()
    parent.signal(signal.SIGINT)
    assert parent.wait() == 130
    assert time.monotonic() - begun < 1 * slack()
    assert is_gone(worker)
    assert "ended at once" in parent.err.read_text()
    case.again()
    assert kept.script.same_end(kept.whole, case.folder)


def test_a_sweep_killed_after_its_table_leaves_an_older_manifest_that_the_next_run_mends(
    kept, case, tmp_path
):
    """It may take longer to hash a large run than who asked it to end waits."""
    hashing = tmp_path / "hashing"

    def slow() -> None:
        def write(folder: RunFolder) -> str:
            hashing.touch()
            time.sleep(3600)
            return ""

        RunFolder.write_manifest = write

    parent, _ = case.begin((INT8, "quality"), slow)
    parent.signal(signal.SIGINT)
    wait_for(hashing, parent)
    assert FP32 in parent.out.read_text()
    assert "run the same command again to resume" in parent.err.read_text()
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert read_record(case.folder / "cells" / f"{kept.cells[FP32]}.json").status == "ok"
    case.again()
    assert kept.script.same_end(kept.whole, case.folder)
    assert not verify(case.folder).faults


def test_a_second_sighup_is_no_impatience(kept, case, tmp_path):
    """A shell sends one to its jobs, and the system another when that shell has ended."""
    showing = tmp_path / "showing"

    def slow() -> None:
        from precision_explorer.report import terminal

        real = terminal.print_table

        def show(*given: Any) -> None:
            showing.touch()
            time.sleep(1)
            real(*given)

        terminal.print_table = show

    parent, _ = case.begin((INT8, "quality"), slow)
    parent.signal(signal.SIGHUP)
    wait_for(showing, parent)
    parent.signal(signal.SIGHUP)
    assert parent.wait() == 129, parent.err.read_text()
    assert FP32 in parent.out.read_text()
    assert (case.folder / "tradeoffs.csv").is_file()


def test_ctrl_c_while_the_report_is_made_shows_the_table(kept, tmp_path):
    writing = tmp_path / "writing"

    def slow() -> None:
        from precision_explorer import report

        real = report.write_all

        def write(*given: Any) -> Any:
            if not writing.exists():
                writing.touch()
                # A signal just before one long sleep would be seen after it.
                for _ in range(1000):
                    time.sleep(0.1)
            return real(*given)

        report.write_all = write

    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none")
    parent = start(kept.prepared, tmp_path / "run", plan, slow)
    wait_for(writing, parent)
    parent.signal(signal.SIGINT)
    assert parent.wait() == 130, parent.err.read_text()
    assert INT8 in parent.out.read_text()
    assert (tmp_path / "run" / "report.html").is_file()
    assert "Traceback" not in parent.err.read_text()


def test_a_signal_that_was_ignored_stays_so(kept, tmp_path):
    """As nohup asks for it."""

    def nohup() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def hang_up() -> None:
        os.killpg(os.getpgrp(), signal.SIGHUP)

    # `start` sets the default; what is called first in the new process sets it back.
    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none", at=(INT8, "quality"))
    plan.there = hang_up
    parent = start(kept.prepared, tmp_path / "run", plan, nohup)
    assert parent.wait() == 0, parent.err.read_text()


DEAF = """
import signal, sys, time
from precision_explorer.runner import jobs, worker
from precision_explorer.runner.manager import WorkerHandle
import multiprocessing

def deaf(request, progress):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    progress("deaf", 0, 1)
    time.sleep(3600)

jobs.load_job = lambda name: deaf
handle = WorkerHandle(multiprocessing.get_context("fork"), lambda event: sys.exit(3)
                      if event.name == "progress" else print(event.data.get("pid"), flush=True))
handle.ask({"op": "job", "job": "deaf", "device": None, "log": sys.argv[1]}, time.monotonic() + 60)
"""


def test_a_program_that_ends_does_not_wait_for_a_worker_that_ignores_sigterm(tmp_path):
    """multiprocessing itself would ask it by SIGTERM, and wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", DEAF, str(tmp_path / "log")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert is_gone(int(done.stdout))


# -- killed -----------------------------------------------------------------------------------


def test_a_cell_whose_sweep_was_killed_in_its_profile_gets_it_from_the_next(kept, case):
    parent, _ = case.begin((INT8, "profile"))
    os.kill(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    path = case.folder / "cells" / f"{kept.cells[INT8]}.json"
    before = read_record(path)
    assert before.status == "ok"
    assert before.measurements.profile is None
    again = case.again()
    assert "0 measured, 2 already there" in again.err.read_text()
    record = read_record(path)
    assert record.measurements.profile is not None
    assert record.started_at == before.started_at
    assert asked(case.log)[INT8, "profile"] == 2
    case.again()
    assert asked(case.log)[INT8, "profile"] == 2


def test_a_profile_that_failed_is_not_tried_at_each_run(kept, tmp_path):
    def refuse() -> None:
        raise SystemExit(1)

    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none", at=(FP32, "profile"))
    plan.there = refuse
    for _ in range(2):
        assert start(kept.prepared, tmp_path / "run", plan).wait() == 0
    assert asked(tmp_path / "log")[FP32, "profile"] == 1


# -- two on one folder ------------------------------------------------------------------------


def test_a_second_sweep_on_a_folder_is_refused_and_told_who_has_it(kept, case):
    first, _ = case.begin((INT8, "quality"))
    plan = Plan(kept.answers, case.log, case.log.with_name("none"))
    (case.folder.parent / "second").mkdir()
    link = case.folder.parent / "second" / "run"
    link.symlink_to(case.folder)
    second = start(kept.prepared, link, plan)
    assert second.wait() == 1
    err = second.err.read_text()
    assert f"process {first.pid} on {os.uname().nodename} since 20" in err
    assert err.count("\n") == 1
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    # The lock of a process that was killed is none.
    case.again()
    assert kept.script.same_end(kept.whole, case.folder)
    assert {k for k, n in asked(case.log).items() if n > 1} <= {(INT8, "quality")}


# Takes a folder's lock, and is killed while its child, which has the lock too, lives for a while.
_KILLED_BEFORE_ITS_CHILD = """
import os, signal, sys, time
from pathlib import Path
from precision_explorer.store.lock import take_lock
lock = take_lock(Path(sys.argv[1]))
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize("reaped", [True, False])
@pytest.mark.parametrize(("child_s", "waits_s", "taken"), [(1, 30, True), (5, 0.2, False)])
def test_children_of_a_killed_sweep_are_waited_for(
    tmp_path, monkeypatch, child_s, waits_s, taken, reaped
):
    monkeypatch.setattr(lock, "_ORPHANS_S", waits_s)
    made = [sys.executable, "-c", _KILLED_BEFORE_ITS_CHILD, str(tmp_path), str(child_s)]
    with subprocess.Popen(made) as parent:
        # Not reaped it stays among the processes, as where nobody asks after it.
        asked = os.WEXITED | (0 if reaped else os.WNOWAIT)
        assert os.waitid(os.P_PID, parent.pid, asked).si_status == signal.SIGKILL
        assert lock.is_locked(tmp_path)
        if taken:
            lock.take_lock(tmp_path).close()
        else:
            with pytest.raises(lock.Held, match=f"process {parent.pid} "):
                lock.take_lock(tmp_path)


def test_of_sweeps_that_begin_together_one_runs_and_no_cell_is_run_twice(kept, tmp_path):
    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none", pause_s=0.03)
    parents = []
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        link = tmp_path / str(number) / "run"
        (tmp_path / "shared").mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "shared")
        parents.append(start(kept.prepared, link, plan))
    codes = sorted(parent.wait() for parent in parents)
    assert codes == [0, 1, 1, 1], [p.err.read_text() for p in parents]
    assert max(asked(tmp_path / "log").values()) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00" * 99, b"1\n2\n3", b"x" * 1_000_000], ids=len
)
def test_a_lock_may_hold_anything(tmp_path, content):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    (tmp_path / ".lock").write_bytes(content)
    first.open()
    (tmp_path / ".lock").write_bytes(content)
    with pytest.raises(StoreError) as caught:
        second.open()
    assert "in use by another sweep" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    first.close()
    second.open()
    second.close()
    assert (tmp_path / ".lock").read_bytes() == b""


# -- the disk ---------------------------------------------------------------------------------


def test_a_file_size_limit_is_one_line_and_loses_nothing(kept, tmp_path):
    """A real refusal of the system (RLIMIT_FSIZE), in the middle of a sweep."""
    folder = tmp_path / "run"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, resource.RLIM_INFINITY))

    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none")
    parent = start(kept.prepared, folder, plan, limit)
    assert parent.wait() == 1
    errors = [x for x in parent.err.read_text().splitlines() if x.startswith("error:")]
    assert len(errors) == 1
    assert "File too large" in errors[0]
    assert "free some space, then run the same command again" in errors[0]
    assert "Traceback" not in parent.err.read_text()
    assert not list(folder.rglob("*.tmp*"))
    again = start(kept.prepared, folder, plan)
    assert again.wait() == 0, again.err.read_text()
    assert kept.script.same_end(kept.whole, folder)


def test_a_full_disk_of_its_own_is_one_line_and_loses_nothing(kept, tmp_path):
    """A small file system in memory, where this process may mount one."""
    place, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    place.mkdir()

    def in_child() -> int:
        if libc.unshare(0x00020000) and libc.unshare(0x10020000):  # CLONE_NEWNS, _NEWUSER
            return 77
        libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        where = str(place).encode()
        if libc.mount(b"tmpfs", where, b"tmpfs", 0, b"size=112k"):
            return 77
        plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none")
        first = start(kept.prepared, place / "run", plan)
        code = first.wait()
        (tmp_path / "first").write_text(first.err.read_text())
        if libc.mount(b"tmpfs", where, b"tmpfs", 0x20, b"size=32m"):  # MS_REMOUNT
            return 78
        second = start(kept.prepared, place / "run", plan)
        if second.wait() != 0 or not kept.script.same_end(kept.whole, place / "run"):
            return 79
        return code

    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = in_child()
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 77:
        pytest.skip("this process may mount no file system")
    assert code == 1
    errors = [x for x in (tmp_path / "first").read_text().splitlines() if x.startswith("error:")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "free some space" in errors[0]


def replace_cells(folder: Path) -> None:
    """The folder of records is gone, and a file is in its place."""
    (folder / "cells").rename(folder / "taken")
    (folder / "cells").write_text("")


def freeze(folder: Path) -> None:
    """No file can be made any more, by anybody."""
    for path in (folder / "cells", folder / "samples", folder / "parts"):
        subprocess.run(["chattr", "-R", "+i", str(path)], check=True, capture_output=True)


def thaw(folder: Path) -> None:
    subprocess.run(["chattr", "-R", "-i", str(folder)], check=True, capture_output=True)


@pytest.mark.parametrize("how", ["replaced", "read-only"])
def test_a_folder_that_can_t_be_written_any_more_is_one_line(kept, tmp_path, how):
    folder = tmp_path / "run"
    if how == "read-only":
        folder.mkdir()
        try:
            freeze_one = ["chattr", "+i", str(folder)]
            subprocess.run(freeze_one, check=True, capture_output=True)
            thaw(folder)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("this file system, or this user, can make no folder immutable")
    plan = Plan(kept.answers, tmp_path / "log", tmp_path / "none", at=(FP32, "certificate"))
    plan.there = lambda: (replace_cells if how == "replaced" else freeze)(folder)
    parent = start(kept.prepared, folder, plan)
    try:
        assert parent.wait() == 1, parent.err.read_text()
    finally:
        if how == "read-only":
            thaw(folder)
    errors = [x for x in parent.err.read_text().splitlines() if x.startswith("error:")]
    assert len(errors) == 1
    assert "check the path, its rights and the space left" in errors[0]
    assert "Traceback" not in parent.err.read_text()
    if how == "replaced":
        (folder / "cells").unlink()
        (folder / "taken").rename(folder / "cells")
    plan.at = None
    again = start(kept.prepared, folder, plan)
    assert again.wait() == 0, again.err.read_text()
    assert max(n for k, n in asked(tmp_path / "log").items() if k != (FP32, "certificate")) == 1
    assert kept.script.same_end(kept.whole, folder)


# -- damage -----------------------------------------------------------------------------------


def test_a_record_with_any_byte_changed_or_missing_is_none(kept, tmp_path):
    path = kept.whole / "cells" / f"{kept.cells[FP32]}.json"
    content, other = path.read_bytes(), tmp_path / path.name
    assert unsealed(content)["cell_id"] == kept.cells[FP32]
    readable = []
    for place in range(len(content)):
        for bad in (content[:place], _flipped(content, place)):
            try:
                unsealed(bad)
            except (ValueError, RecursionError):
                continue
            readable.append(place)
    assert readable == []
    other.write_bytes(_flipped(content, content.index(b'"seconds"') + 12))
    with pytest.raises(StoreError, match="no readable cell record"):
        read_record(other)


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("suffix", ["json", "arrow"])
def test_a_part_with_any_byte_changed_or_missing_is_none(kept, tmp_path, suffix):
    cell_id = kept.cells[INT8]
    shutil.copytree(kept.whole / "parts" / cell_id, tmp_path / "parts" / cell_id)
    path = tmp_path / "parts" / cell_id / f"quality.{suffix}"
    content, folder = path.read_bytes(), RunFolder(tmp_path)
    assert folder.read_part(cell_id, "quality") is not None
    for place in range(len(content)):
        path.write_bytes(_flipped(content, place))
        assert folder.read_part(cell_id, "quality") is None, place
    for length in range(0, len(content), 1 if suffix == "json" else 9):
        path.write_bytes(content[:length])
        assert folder.read_part(cell_id, "quality") is None, length
    path.write_bytes(content)
    assert folder.read_part(cell_id, "quality") is not None


def damaged(kept: Any, folder: Path, name: str, content: bytes, monkeypatch: Any) -> Any:
    """A run's folder with one file damaged, and what the sweep then does of it."""
    shutil.copytree(kept.whole, folder)
    (folder / name).write_bytes(content)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    monkeypatch.setattr(local, "WorkerHandle", kept.script.Replaying)
    monkeypatch.setattr(local, "start_context", lambda **given: None)
    kept.script.Replaying.log = folder.parent / "log"
    kept.script.Replaying.log.write_text("")
    events: list[Any] = []
    run_sweep(kept.script.into(kept.prepared, folder), events.append)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    changed = {p.relative_to(folder).as_posix() for p in before if after.get(p) != before[p]}
    notes = [event.data["text"] for event in events if event.name == "note"]
    return SimpleNamespace(
        changed=changed - {"manifest.json"}, notes=notes, asked=asked(kept.script.Replaying.log)
    )


FRACTIONS = [0.0, 0.3, 0.7, 0.999]


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize(
    "kind",
    ["record", "samples", "quality.json", "quality.arrow", "block-1.json", "noise.json"],
)
def test_a_damaged_file_is_set_aside_and_made_again_and_the_others_are_unharmed(
    kept, tmp_path, monkeypatch, kind, fraction
):
    # Of the same name, which stands in its plan.
    cell_id = kept.cells[FP32 if kind == "noise.json" else INT8]
    folder = tmp_path / kept.whole.name
    name = {"record": f"cells/{cell_id}.json", "samples": f"samples/{cell_id}.parquet"}.get(
        kind, f"parts/{cell_id}/{kind}"
    )
    good = (kept.whole / name).read_bytes()
    bad = _flipped(good, int(fraction * len(good)))
    found = damaged(kept, folder, name, bad, monkeypatch)
    assert (folder / f"{name}.damaged").read_bytes() == bad
    said = name.replace(".arrow", ".json")
    assert [note for note in found.notes if note.startswith(f"{said} is not as it was written")]
    if kind in ("record", "samples"):
        # From its parts: nothing is measured again.
        assert not found.asked
        assert kept.script.same_end(kept.whole, folder)
    else:
        # What the record of a measured cell stands on is in its samples too.
        assert not found.asked
        assert not (folder / name).exists()
    # Of other cells nothing is changed; what the sweep expected of itself may be.
    assert {name for name in found.changed if cell_id not in name} <= {"estimate.json"}
    # The folder itself is named after this test.
    said_of_it = command("verify", folder)
    assert "damaged" not in (said_of_it.stdout + said_of_it.stderr).replace(str(tmp_path), "")


@pytest.mark.parametrize("name", ["quality.json", "quality.arrow", "block-0.json", "block-1.arrow"])
def test_a_damaged_part_of_a_cell_that_is_under_way_is_measured_again(kept, case, name):
    shutil.copytree(kept.half, case.folder)
    path = case.folder / "parts" / kept.cells[INT8] / name
    path.write_bytes(_flipped(path.read_bytes(), path.stat().st_size // 2))
    case.again()
    again = {key for key in asked(case.log) if key[0] == INT8}
    part = name.partition(".")[0]
    # Rounds without a quality pass are those of another process's cell, and not taken over.
    rest = {(INT8, "block-0"), (INT8, "block-1")} if part == "quality" else set()
    assert again == {(INT8, part), *rest, (INT8, "certificate"), (INT8, "profile")}
    assert kept.script.same_end(kept.whole, case.folder)
    assert path.with_name(f"{name}.damaged").is_file()


def test_report_says_which_answers_have_no_record(kept, tmp_path):
    folder = shutil.copytree(kept.half, tmp_path / "run")
    done = command("report", folder)
    assert done.returncode == 0
    (line,) = [x for x in done.stderr.splitlines() if "without a record" in x]
    assert f"{INT8} (sentiment)" in line
    assert f"{FP32} (" not in line
    assert f"run the sweep again with --out {folder}" in line
    assert "without a record" not in command("report", kept.whole, "--out", tmp_path).stderr


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    run_folder = RunFolder(tmp_path)
    run_folder.open()
    run_folder.close()
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / "cells" / f"a.json.tmp{gone.pid}"
    own = tmp_path / f"report.html.tmp{os.getpid()}"
    for path in (left, own):
        path.write_text("{")
    run_folder.open()
    run_folder.close()
    assert not left.exists()
    assert own.exists()
