"""Workers that crash, hang, are killed, run out of memory or give NaN, and a killed parent. All of
it really happens, in real processes."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from precision_explorer.audit.verify import verify
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import read_record
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.runner.worker_log import MOST_BYTES, TAIL_BYTES
from precision_explorer.table import build
from tests.trouble import overflowing_model, small_demo, troubled_model


def nothing(event):
    pass


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_demo(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def sweep_to(small, quick_workload):
    """A function that runs a small sweep into a folder and returns ({format: record}, folder,
    tally)."""

    def run(out, on_event=nothing, **options):
        given = {
            "model": (str(small),),
            "task": ("sentiment",),
            "formats": ("fp32", "bf16"),
            "device": "cpu",
            "limit": 8,
            "workload": str(quick_workload),
            "out": str(out),
            "batch_size": (1, 2),
            "threads": 1,
        }
        prepared = prepare_sweep(make_spec(given | options), nothing)
        folder, tally = run_sweep(prepared, on_event)
        records = [folder.read_record(c.cell_id) for c in prepared.plan.cells]
        return {r.cell.format: r for r in records if r is not None}, folder, tally

    return run


@pytest.fixture
def sweep(tmp_path, sweep_to):
    """The same into a folder of the test's own."""
    return functools.partial(sweep_to, tmp_path / "run")


def troubled(tmp_path, trouble, half=None):
    folder = troubled_model(tmp_path / trouble, trouble, half)
    return {"model": (str(folder),), "trust_remote_code": True}


# (status, kind, signal, what the message says)
KINDS = {
    "segfault": ("failed", "WorkerCrashed", "SIGSEGV", "ended by SIGSEGV"),
    "exit-without-answer": ("failed", "WorkerCrashed", None, "exit code 0 and no answer"),
    "exit-in-load": ("failed", "WorkerCrashed", None, "exit code 0 and no answer"),
    "allocation": ("out_of_memory", "RuntimeError", None, "out of memory"),
    "cuda-out-of-memory": ("out_of_memory", "OutOfMemoryError", None, "CUDA out of memory"),
    "exception": ("failed", "KeyError", None, "no such thing"),
    "device-lost": ("failed", "DeviceLost", None, "unspecified launch failure"),
    "nan": (
        "invalid_numerics", "InvalidNumerics", None,
        "8 of 8 examples gave NaN or infinity, first in the output of "
        "bert.encoder.layer.0.output.LayerNorm;",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("trouble", "half"),
    [
        ("segfault", "exit-in-load"),
        ("exit-without-answer", "cuda-out-of-memory"),
        ("allocation", "nan"),
        ("exception", "device-lost"),
    ],
)
def test_trouble_in_two_formats_is_recorded_and_the_others_are_unharmed(
    tmp_path, sweep, trouble, half
):
    formats = ("fp32", "bf16", "fp16", "int8-weight-only")
    records, folder, tally = sweep(**troubled(tmp_path, trouble, half), formats=formats)
    assert records["fp32"].status == records["int8-weight-only"].status == "ok"
    assert tally.failed == 2
    rows = {row["format"]: row for row in build([folder.path]).rows}
    for name, what in (("bf16", trouble), ("fp16", half)):
        status, kind, signal_name, words = KINDS[what]
        bad = records[name]
        assert (bad.status, bad.error.kind, bad.error.signal) == (status, kind, signal_name)
        assert words in bad.error.message
        assert "\n" not in bad.error.message
        assert rows[name]["status"] == status
        assert rows[name]["reason"] == bad.error.message
        assert rows[name]["quality"] is None
    assert rows["int8-weight-only"]["quality"] is not None


def test_a_batch_that_memory_refuses_and_a_stepped_clock_cost_no_cell(tmp_path, sweep, monkeypatch):
    """In bf16 no batch of 3 fits, as CUDA would say it; in fp16 the clock of the worker, and of
    this process throughout, jumps by hours at each reading."""
    real, hours = time.time, [0, 5, -3, 1]

    def stepped():
        hours.append(hours.pop(0))
        return real() + 3600 * hours[0]

    monkeypatch.setattr(time, "time", stepped)
    made = troubled(tmp_path, "no-batch-of-3", "clock-stepped")
    records, folder, tally = sweep(**made, formats=("fp32", "bf16", "fp16"), batch_size=(1, 3))
    assert tally.failed == 0
    rates = records["bf16"].measurements.throughput
    assert rates.by_batch_size["3"].requests_per_s is None
    assert rates.by_batch_size["3"].note == "out of memory"
    assert rates.best_batch_size == 1
    assert records["fp32"].measurements.throughput.by_batch_size["3"].requests_per_s > 0
    record = records["fp16"]
    latency = record.measurements.latency
    rows = folder.read_samples(record.cell_id, "request")
    counted = [s for s, w in zip(rows["latency_s"], rows["window"], strict=True) if w == "measure"]
    assert len(counted) == latency.requests
    assert all(0 < seconds < 60 for seconds in counted)
    assert sum(counted) <= latency.window_s * 1.001
    assert 0 < latency.window_s < 60
    assert 0 < record.measurements.quality.seconds < 60
    assert all(0 < b < 60 for b in record.measurements.throughput.by_batch_size["3"].batch_s)
    assert 0 <= record.measurements.load.load_s < 60


def test_a_flood_of_output_is_cut_and_a_meter_that_goes_away_costs_its_figure(tmp_path, sweep):
    """450 MB, by C and by Python, on stdout and stderr."""
    made = troubled(tmp_path, "flood", "meter-gone")
    records, folder, tally = sweep(**made, formats=("fp32", "bf16", "fp16"))
    assert tally.failed == 0
    log = folder.log_path(records["bf16"].cell_id).read_bytes()
    assert MOST_BYTES < len(log) < MOST_BYTES + (1 << 20) + TAIL_BYTES
    note = re.search(rb"\n\[([\d,]+) bytes of output are left out here", log)
    assert int(note[1].replace(b",", b"")) > 440_000_000
    assert b"the last words" in log[-TAIL_BYTES:]
    record = records["fp16"]
    energy = record.measurements.energy
    assert (energy.source, energy.energy_j) == ("measured:rapl", None)
    assert "the meter failed while read (FileNotFoundError)" in energy.note
    assert "meter-failed" in {caution.id for caution in record.cautions}
    assert record.measurements.latency.requests >= 5
    row = next(r for r in build([folder.path]).rows if r["format"] == "fp16")
    assert row["energy_per_request_j"] is None
    assert row["latency_p50_s"] > 0


@pytest.fixture(scope="module")
def excepted(tmp_path_factory, sweep_to):
    """A sweep of which one format raised, with the folder that its model and results are in."""
    work = tmp_path_factory.mktemp("excepted")
    records, folder, _ = sweep_to(work / "run", **troubled(work, "exception"))
    return SimpleNamespace(records=records, folder=folder, work=work)


def test_the_log_of_a_failed_cell_is_in_its_record(excepted):
    records = excepted.records
    assert "Traceback" in records["bf16"].error.log_tail
    assert "no such thing" in records["bf16"].error.log_tail


def test_a_failed_record_names_no_folder_of_the_machine(excepted):
    text = excepted.folder.record_path(excepted.records["bf16"].cell_id).read_text()
    assert "Traceback" in text
    for place in (str(excepted.work), sys.prefix, str(Path.home()) + "/"):
        assert place not in text


def test_a_hang_past_the_cell_timeout_is_ended(tmp_path, sweep):
    hanging = troubled(tmp_path, "hang")
    # Its time is not bounded: on a busy machine it may take longer than what hangs is given.
    sweep(**hanging, formats=("fp32",))
    records, _, tally = sweep(**hanging, cell_timeout=8.0)
    assert (tally.reused, records["fp32"].status) == (1, "ok")
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


def test_a_certificate_that_stands_is_not_taken_again(sweep):
    """Of a parent that was killed between it and the record."""
    records, folder, _ = sweep(formats=("fp32",))
    cell_id = records["fp32"].cell_id
    part = folder.path / "parts" / cell_id / "certificate.json"
    folder.record_path(cell_id).unlink()
    before = (part.stat().st_mtime_ns, part.read_bytes())
    again, _, tally = sweep(formats=("fp32",))
    assert (tally.ran, tally.failed) == (1, 0)
    assert (part.stat().st_mtime_ns, part.read_bytes()) == before
    assert again["fp32"].applied == records["fp32"].applied


def test_parents_killed_at_random_moments_lose_nothing():
    """`scripts/kill_parents.py` says what it checks after each of them."""
    script = Path(__file__).parents[1] / "scripts" / "kill_parents.py"
    done = subprocess.run(
        [sys.executable, str(script), "--kills", "50"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("50 parents killed")


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
    records, _, _ = sweep(model=("demo",), memory_limit=1_000_000)
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


def command(model: Path, folder: Path, workload: Path) -> list[str]:
    options = "--formats fp32,bf16,fp16 --device cpu --limit 16 --batch-size 1 --threads 1"
    base = [sys.executable, "-m", "precision_explorer", "sweep", *options.split()]
    return [*base, "--model", str(model), "--workload", str(workload), "--out", str(folder)]


@pytest.fixture(scope="module")
def killed(tmp_path_factory, small, quick_workload) -> SimpleNamespace:
    """A sweep killed after two of its cells, and run again."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    given = command(small, folder, quick_workload)
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


def on_terminal(given: list[str]) -> tuple[subprocess.Popen, int]:
    """A command on a terminal of its own, which it is the leader of, and that terminal's other
    side."""
    ours, theirs = pty.openpty()

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    parent = subprocess.Popen(given, stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=lead)
    os.close(theirs)
    return parent, ours


def hang_up(parent: subprocess.Popen, terminal: int) -> str:
    """The terminal goes away, and its shell says so to the whole group too."""
    os.close(terminal)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGHUP)
    parent.wait(timeout=60)
    return ""


def terminate(parent: subprocess.Popen, terminal: int) -> str:
    """As service managers do: to every process at once, so that workers end of themselves."""
    os.killpg(parent.pid, signal.SIGTERM)
    said = read_all(terminal, parent)
    parent.wait(timeout=60)
    return said


def read_all(terminal: int, parent: subprocess.Popen) -> str:
    """What stands on the terminal until nobody writes to it any more."""
    said, deadline = b"", time.monotonic() + 60
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline and (more := os.read(terminal, 65536)):
            said += more
    return said.decode(errors="replace")


@pytest.mark.parametrize(("end", "code"), [(terminate, 143), (hang_up, 129)])
def test_a_sweep_on_a_terminal_that_is_ended_with_its_workers_has_no_failed_cell(
    tmp_path, small, quick_workload, end, code
):
    """Real workers: the ones that SIGHUP reaches with the parent leave it to that."""
    folder = tmp_path / "run"
    parent, terminal = on_terminal(command(small, folder, quick_workload))
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 400
    while not list((folder / "cells").glob("*.json")):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert children
    os.set_blocking(terminal, True)
    said = end(parent, terminal)
    assert parent.returncode == code
    assert not psutil.wait_procs(children, timeout=60)[1]
    assert "Traceback" not in said
    assert (folder / "tradeoffs.csv").is_file()
    assert (folder / "report.html").is_file()
    assert not verify(folder).faults
    records = [read_record(path) for path in (folder / "cells").glob("*.json")]
    assert {record.status for record in records} == {"ok"}
    assert len(records) < 3
    logs = "".join(path.read_text() for path in (folder / "logs").glob("*.log"))
    assert "KeyboardInterrupt" not in logs


def test_a_sweep_that_ran_runs_no_worker_again(killed, tmp_path):
    before = {
        p: p.read_bytes() for p in killed.folder.rglob("*") if p.is_file() and p.name != ".lock"
    }
    # What a worker, or the server that it comes from, would end of.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    given = ["env", f"PYTHONPATH={tmp_path}:{os.environ.get('PYTHONPATH', '')}", *killed.given]
    again = subprocess.run(given, capture_output=True, text=True, check=False)
    assert "0 measured, 3 already there" in again.stderr
    assert again.stdout == killed.again.stdout
    assert {p: p.read_bytes() for p in before} == before
