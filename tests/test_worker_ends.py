"""Workers that answer in part, read nothing, get signals, lose their fork server, or fail by what
can't be written down: real processes, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# A job that does as `sys.argv` says, in a real worker; prints what the manager makes of it.
PROGRAM = """
import contextlib, json, multiprocessing, os, signal, sys, time
from multiprocessing import forkserver
from precision_explorer.runner import jobs, protocol, worker
from precision_explorer.runner.manager import WorkerError, WorkerGone, WorkerHandle

how = sys.argv[1]

def half(connection, header, arrow=b""):
    # The length of a message of which the rest never comes.
    if header["type"] == "answer":
        os.write(connection.fileno(), (1000).to_bytes(4, "big") + b"{")
        time.sleep(3600)
    return protocol.reply(connection, header, arrow)

def unread(connection, header, arrow=b""):
    protocol.reply(connection, header, arrow)
    time.sleep(3600)

def job(request, progress):
    if how == "surrogate":
        raise ValueError(os.fsdecode(b"/data/caf\\xe9: no such file"))
    return {"alive": True}, b""

if __name__ == "__main__":
    jobs.load_job = lambda name: job
    worker.reply = {"half": half, "unread": unread}.get(how, worker.reply)
    context = multiprocessing.get_context("forkserver" if how == "server" else "fork")
    handle = WorkerHandle(context, lambda event: None)
    if how == "signals":
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(handle.process.pid, number)
    if how == "server":
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    request = {"op": "job", "job": "any", "device": None, "log": sys.argv[2]}
    request |= {"much": "x" * 5_000_000} if how == "unread" else {}
    began = time.monotonic()
    try:
        found = {"answer": handle.ask(request, began + (1 if how in ("half", "unread") else 60))[0]}
    except (WorkerError, WorkerGone) as error:
        found = error.answer
    found["took"] = time.monotonic() - began
    found["alive"] = handle.process.is_alive()
    print(json.dumps(found))
"""


def told(tmp_path, how: str) -> dict:
    """What comes of a request to a worker that behaves as `how` says."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), how, str(tmp_path / "log")],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("how", ["half", "unread"])
def test_a_worker_that_answers_in_part_or_reads_nothing_is_ended_at_the_time_limit(tmp_path, how):
    found = told(tmp_path, how)
    assert (found["status"], found["kind"]) == ("timeout", "Timeout")
    assert "--cell-timeout" in found["message"]
    assert not found["alive"]
    assert found["took"] < 10


def test_a_worker_leaves_what_reaches_its_whole_group_to_the_manager(tmp_path):
    found = told(tmp_path, "signals")
    assert found["answer"] == {"alive": True}


def test_a_worker_whose_fork_server_was_ended_says_so_after_the_settling_time(tmp_path):
    found = told(tmp_path, "server")
    assert (found["status"], found["kind"]) == ("failed", "WorkerCrashed")
    assert "its fork server was ended" in found["message"]
    # A manager that was asked to end as well gets its own signal meanwhile.
    assert found["took"] > 0.3


def test_an_error_whose_text_can_t_be_written_is_told_all_the_same(tmp_path):
    found = told(tmp_path, "surrogate")
    assert (found["status"], found["kind"]) == ("failed", "ValueError")
    assert "/data/caf?: no such file" in found["message"]
