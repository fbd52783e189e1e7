"""Sweeps in processes of their own whose workers are real processes that replay kept answers, so
that parents are stopped, and folders shared, in milliseconds a cell. The command line, its signals,
pipes, locks and files are the real ones."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from precision_explorer.cli import main
from precision_explorer.runner import local, sweep, worker
from precision_explorer.runner.guard import die_with_parent, redirect_output
from precision_explorer.runner.protocol import reply

Answers = dict[tuple[str, str], tuple[dict[str, Any], bytes]]
_LONGEST_S = 60


def script() -> Any:
    """`scripts/kill_parents.py`, which keeps answers and replays them."""
    path = Path(__file__).parents[1] / "scripts" / "kill_parents.py"
    found = importlib.util.spec_from_file_location("kill_parents", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["kill_parents"] = module
    found.loader.exec_module(module)
    return module


@dataclass
class Plan:
    """What workers do: wait `pause_s` before each answer, write each request to `log`, and at
    `(format, op)` do as `there` says, by default wait for ever and end by nothing but SIGKILL; the
    file `reached` then holds the worker's process number."""

    answers: Answers
    log: Path
    reached: Path
    pause_s: float = 0.0
    at: tuple[str, str] | None = None
    there: Callable[[], None] | None = None


_plan: list[Plan] = []


def _replay(connection: Any, output: Any) -> None:
    """In place of `runner.worker.main`."""
    redirect_output(output)
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    plan, name = _plan[0], ""
    reply(connection, {"type": "hello", "cuda_touched": False})
    while True:
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        if request["op"] == "close":
            return
        name = request.get("format", name)
        op = f"{request['op']}-{request.get('round', '')}".rstrip("-")
        with plan.log.open("a") as file:
            file.write(json.dumps([name, op]) + "\n")
        reply(connection, {"type": "progress", "phase": op, "done": 0, "total": 1})
        if plan.at == (name, op):
            if plan.there is None:
                _wait_deaf(plan)
            else:
                plan.there()
        time.sleep(plan.pause_s)
        answer, arrow = plan.answers[name, f"{request['op']}-{request.get('round', '')}"]
        header = {"type": "answer", "op": request["op"], "answer": answer, "seconds": 0.0}
        reply(connection, header, arrow)


def _wait_deaf(plan: Plan) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    half = plan.reached.with_suffix(".half")
    half.write_text(str(os.getpid()))
    half.replace(plan.reached)
    time.sleep(3600)


@dataclass
class Parent:
    """A sweep that was started: its process, and where its output goes."""

    pid: int
    out: Path
    err: Path

    def signal(self, number: int) -> None:
        """To all of its group, as terminals and service managers do."""
        os.killpg(self.pid, number)

    def wait(self) -> int:
        """Its exit code, below 0 for a signal."""
        deadline = time.monotonic() + _LONGEST_S
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still there: {self.err.read_text()}")
            time.sleep(0.005)


def start(
    prepared: Any, folder: Path, plan: Plan, before: Callable[[], None] | None = None
) -> Parent:
    """``precision-explorer sweep`` of what is `prepared`, into `folder`; `before` is called in its
    process first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    out, err = folder.parent / f"{folder.name}.out", folder.parent / f"{folder.name}.err"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Parent(pid, out, err)
    code = 70
    try:
        os.setsid()
        for path, number in ((out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        code = run(prepared, folder, plan, before)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(prepared: Any, folder: Path, plan: Plan, before: Callable[[], None] | None = None) -> int:
    """The same in this process, which is changed for good."""
    _plan[:] = [plan]
    spec = prepared.spec.model_copy(update={"out": str(folder)})
    ready = sweep.replace(prepared, spec=spec)  # type: ignore[attr-defined]
    sweep.prepare_sweep = lambda *given: ready  # type: ignore[assignment]
    local.start_context = lambda **given: multiprocessing.get_context("fork")  # type: ignore
    worker.main = _replay
    if before is not None:
        before()
    try:
        main(["sweep", "--limit", "6"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def wait_for(path: Path, parent: Parent) -> str:
    """What `path` holds once it is there."""
    deadline = time.monotonic() + _LONGEST_S
    while not path.exists():
        assert time.monotonic() < deadline, parent.err.read_text()
        assert os.waitpid(parent.pid, os.WNOHANG)[0] == 0, parent.err.read_text()
        time.sleep(0.005)
    return path.read_text()


def is_gone(pid: int) -> bool:
    """Whether a process has ended, within a moment; a zombie has."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False
