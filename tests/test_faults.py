"""Workers that crash, hang, are killed, run out of memory or give NaN, and a killed parent. All of
it really happens, in real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from precision_explorer.plan.spec import make_spec
from precision_explorer.records import read_record
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.table import build
from tests.trouble import overflowing_model, troubled_model


def nothing(event):
    pass


@pytest.fixture
def sweep(tmp_path, quick_workload):
    """A function that runs a small sweep and returns ({format: record}, folder, tally)."""

    def run(on_event=nothing, **options):
        given = {
            "task": ("sentiment",),
            "formats": ("fp32", "bf16"),
            "device": "cpu",
            "limit": 8,
            "workload": str(quick_workload),
            "out": str(tmp_path / "run"),
            "batch_size": (1, 2),
            "threads": 1,
        }
        prepared = prepare_sweep(make_spec(given | options), nothing)
        folder, tally = run_sweep(prepared, on_event)
        records = [folder.read_record(c.cell_id) for c in prepared.plan.cells]
        return {r.cell.format: r for r in records if r is not None}, folder, tally

    return run


def troubled(tmp_path, trouble):
    folder = troubled_model(tmp_path / trouble, trouble)
    return {"model": (str(folder),), "trust_remote_code": True}


@pytest.mark.parametrize(
    ("trouble", "status", "kind", "signal_name"),
    [
        ("segfault", "failed", "WorkerCrashed", "SIGSEGV"),
        ("exit-without-answer", "failed", "WorkerCrashed", None),
        ("allocation", "out_of_memory", "RuntimeError", None),
        ("exception", "failed", "KeyError", None),
    ],
)
def test_trouble_in_one_format_is_recorded_and_the_others_are_unharmed(
    tmp_path, sweep, trouble, status, kind, signal_name
):
    records, folder, tally = sweep(**troubled(tmp_path, trouble), formats=("fp32", "bf16", "fp16"))
    assert records["fp32"].status == records["fp16"].status == "ok"
    bad = records["bf16"]
    assert (bad.status, bad.error.kind, bad.error.signal) == (status, kind, signal_name)
    assert "\n" not in bad.error.message
    assert tally.failed == 1
    rows = {row["format"]: row for row in build([folder.path]).rows}
    assert rows["bf16"]["status"] == status
    assert rows["bf16"]["reason"] == bad.error.message
    assert rows["bf16"]["quality"] is None
    assert rows["fp16"]["quality"] is not None


def test_the_log_of_a_failed_cell_is_in_its_record(tmp_path, sweep):
    records, _, _ = sweep(**troubled(tmp_path, "exception"))
    assert "Traceback" in records["bf16"].error.log_tail
    assert "no such thing" in records["bf16"].error.log_tail


def test_a_failed_record_names_no_folder_of_the_machine(tmp_path, sweep):
    records, folder, _ = sweep(**troubled(tmp_path, "exception"))
    text = folder.record_path(records["bf16"].cell_id).read_text()
    assert "Traceback" in text
    for place in (str(tmp_path), sys.prefix, str(Path.home()) + "/"):
        assert place not in text


def test_a_worker_that_floods_its_output_still_answers(tmp_path, sweep):
    records, folder, _ = sweep(**troubled(tmp_path, "flood"))
    assert records["bf16"].status == "ok"
    assert folder.log_path(records["bf16"].cell_id).stat().st_size > 5_000_000


def test_a_hang_past_the_cell_timeout_is_ended(tmp_path, sweep):
    records, _, _ = sweep(**troubled(tmp_path, "hang"), cell_timeout=15.0)
    assert records["fp32"].status == "ok"
    assert records["bf16"].status == "timeout"
    assert "--cell-timeout" in records["bf16"].error.message


def test_a_worker_killed_from_outside_is_recorded_with_the_signal_and_tried_again(sweep):
    pids, seen = [], []

    def kill_in_quality(event):
        if event.name == "worker":
            pids.append(event.data["pid"])
        if event.name == "start":
            seen.append(event.data["format"])
        if event.name == "progress" and event.data["phase"] == "quality" and seen[-1] == "bf16":
            os.kill(pids[-1], signal.SIGKILL)

    records, folder, tally = sweep(on_event=kill_in_quality)
    assert records["fp32"].status == "ok"
    assert records["bf16"].status == "failed"
    assert records["bf16"].error.signal == "SIGKILL"
    assert tally.failed == 1
    before = folder.record_path(records["fp32"].cell_id).read_bytes()
    records, folder, tally = sweep()
    assert (tally.ran, tally.reused, tally.failed) == (1, 1, 0)
    assert records["bf16"].status == "ok"
    (attempt,) = records["bf16"].attempts
    assert attempt.status == "failed"
    assert attempt.error.signal == "SIGKILL"
    assert folder.record_path(records["fp32"].cell_id).read_bytes() == before


def test_what_was_measured_before_a_failure_is_kept(tmp_path, sweep):
    """The quality pass answers, then the worker is killed in its second round: the answers stay,
    set aside, the other format's rounds go on, and the next try measures all of the cell in one
    process."""
    pids, rounds = [], []

    def kill_in_the_second_round(event):
        if event.name == "worker":
            pids.append(event.data["pid"])
        if event.name == "round":
            rounds.append((event.data["format"], event.data["round"]))
        if event.name == "round" and rounds[-1] == ("bf16", 1):
            os.kill(pids[-1], signal.SIGKILL)

    records, folder, tally = sweep(on_event=kill_in_the_second_round)
    bad = records["bf16"]
    assert bad.status == "failed"
    assert (tally.ran, tally.failed) == (1, 1)
    assert [number for name, number in rounds if name == "fp32"] == [0, 1, 2]
    assert [number for name, number in rounds if name == "bf16"] == [0, 1]
    assert len(records["fp32"].measurements.latency.rounds) == 3
    assert bad.measurements.quality.scores["accuracy"] > 0
    assert [r.round for r in bad.measurements.latency.rounds] == [0]
    kept = list((folder.path / "parts" / bad.cell_id).rglob("quality.json"))
    assert len(kept) == 1
    manifest = json.loads((folder.path / "manifest.json").read_text())["files"]
    assert kept[0].relative_to(folder.path).as_posix() in manifest
    records, folder, _ = sweep()
    assert records["bf16"].status == "ok"
    assert "resumed" not in {caution.id for caution in records["bf16"].cautions}
    assert kept[0].exists()


def test_nan_is_invalid_numerics_and_never_a_score(tmp_path, sweep):
    model = overflowing_model(tmp_path / "overflowing")
    records, folder, _ = sweep(model=(str(model),), formats=("fp32", "bf16", "fp16"))
    assert records["fp32"].status == records["bf16"].status == "ok"
    assert records["fp16"].status == "invalid_numerics"
    assert records["fp16"].measurements.quality is None
    row = next(r for r in build([folder.path]).rows if r["format"] == "fp16")
    assert row["quality"] is None
    assert row["pareto"] is None


def test_a_model_too_large_for_the_memory_limit_is_not_loaded(sweep):
    records, _, _ = sweep(memory_limit=1_000_000)
    for record in records.values():
        assert record.status == "out_of_memory"
        assert "free" in record.error.message
        assert "smaller model" in record.error.message


def test_two_tasks_share_a_loaded_model_and_one_failure_spares_the_other(tmp_path, sweep):
    """One session serves both tasks of a format; when it dies in the first task, the second is
    run by a new one."""
    card = tmp_path / "other"
    card.mkdir()
    (card / "task.yaml").write_text(
        "name: other\nversion: 1\nkind: text-classification\ndata: {path: test.jsonl}\n"
        "columns: {text: text, label: label}\nmetrics: [accuracy]\n"
    )
    lines = [{"text": f"a {w} film", "label": "positive"} for w in ("good", "fine", "great")]
    (card / "test.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    pids, starts = [], []

    def kill_the_first(event):
        if event.name == "worker":
            pids.append(event.data["pid"])
        if event.name == "start":
            starts.append((event.data["task"], event.data["format"]))
        if event.name == "progress" and event.data["phase"] == "quality" and len(starts) == 1:
            os.kill(pids[-1], signal.SIGKILL)

    _, folder, tally = sweep(
        on_event=kill_the_first, task=("sentiment", str(card)), formats=("fp32",)
    )
    assert (tally.ran, tally.failed) == (1, 1)
    assert len(pids) == 2
    statuses = {row["task"]: row["status"] for row in build([folder.path]).rows}
    assert statuses == {"sentiment": "failed", "other": "ok"}
    # Both now run in one session: the failed one anew, the other is there.
    _, _, tally = sweep(task=("sentiment", str(card)), formats=("fp32",))
    assert (tally.ran, tally.reused) == (1, 1)


def command(folder: Path, workload: Path) -> list[str]:
    options = "--formats fp32,bf16,fp16 --device cpu --limit 16 --batch-size 1 --threads 1"
    base = [sys.executable, "-m", "precision_explorer", "sweep", *options.split()]
    return [*base, "--workload", str(workload), "--out", str(folder)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, quick_workload) -> SimpleNamespace:
    """A sweep killed after two of its cells, and run again."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    given = command(folder, quick_workload)
    parent = subprocess.Popen(given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(list((folder / "cells").glob("*.json"))) < 2:
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    parent.kill()
    parent.wait()
    finished = {p: p.read_bytes() for p in (folder / "cells").glob("*.json")}
    assert all(read_record(p).status == "ok" for p in finished)
    _, alive = psutil.wait_procs(children, timeout=60)
    again = subprocess.run(given, capture_output=True, text=True, check=False)
    return SimpleNamespace(
        folder=folder, given=given, children=children, alive=alive, finished=finished, again=again
    )


def test_a_killed_parent_loses_no_finished_cell_and_leaves_no_process(killed):
    assert killed.children
    assert not killed.alive
    finished, again = killed.finished, killed.again
    assert again.returncode == 0, again.stderr
    assert f"{3 - len(finished)} measured, {len(finished)} already there" in again.stderr
    for path, content in finished.items():
        # Comparisons between cells are added once all are measured; nothing else changes.
        before, after = (json.loads(text) for text in (content, path.read_bytes()))
        for name in ("load", "quality", "latency", "throughput", "memory", "energy"):
            assert after["measurements"][name] == before["measurements"][name]
        assert after["started_at"] == before["started_at"]
        assert after["attempts"] == before["attempts"]
    records = [read_record(p) for p in (killed.folder / "cells").glob("*.json")]
    assert [record.status for record in records] == ["ok"] * 3


def test_an_interrupted_sweep_ends_and_says_so(tmp_path, quick_workload):
    folder = tmp_path / "run"
    parent = subprocess.Popen(
        command(folder, quick_workload),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 400
    while not list((folder / "cells").glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGINT)  # As a terminal does: to all of the group.
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "Traceback" not in err
    assert (folder / "tradeoffs.csv").is_file()
    assert len(list((folder / "cells").glob("*.json"))) < 3


def test_a_sweep_that_ran_runs_no_worker_again_and_soon_ends(killed):
    before = {
        p: p.read_bytes() for p in killed.folder.rglob("*") if p.is_file() and p.name != ".lock"
    }
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    again = subprocess.run(killed.given, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - spent.ru_utime - spent.ru_stime
    assert "0 measured, 3 already there" in again.stderr
    assert again.stdout == killed.again.stdout
    assert {p: p.read_bytes() for p in before} == before
    # Time on the processor, which a busy machine stretches by half: about 3 s, and importing torch
    # and transformers alone would add 4.
    assert seconds < 6
