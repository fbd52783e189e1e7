"""The worker: one process per (model, format, runtime, device), a session that answers requests.

Requests are dicts with ``op``: ``probe``, ``job``, ``load``, ``quality``, ``park``, ``block``,
``certificate``, ``profile``, ``noise``, ``keep``, ``compare``, ``audit``, ``neighbour``, ``work``,
``rest``, ``close``. Each is answered by one ``answer`` or ``error`` header; ``progress`` headers
may come before it. An error ends the session: the manager starts another for the cells that are
left. A neighbour works while nothing is asked of it, from ``work`` to ``rest``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from precision_explorer.runner.guard import (
    HELD,
    die_with_parent,
    error_answer,
    keep_out_secrets_and_kernels,
    redirect_output,
)
from precision_explorer.runner.protocol import reply


def main(connection: Connection, output: Connection, keep: Iterable[str] = ()) -> None:
    """Serve requests until ``close`` or until the manager is gone, with `output` for what is
    printed. `keep`: variables that stay though they may hold secrets."""
    redirect_output(output)
    # Nobody is left to tell where the manager was killed.
    with contextlib.suppress(ConnectionError):
        _serve(connection, keep)


def _serve(connection: Connection, keep: Iterable[str]) -> None:
    die_with_parent()
    keep_out_secrets_and_kernels(keep)
    # Ctrl-C, and the end of a terminal, reach the whole process group; the manager decides what
    # becomes of the worker.
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # Held back since the manager began to start it.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    session = neighbour = None
    reply(connection, {"type": "hello", "cuda_touched": _cuda_touched()})
    while True:
        if neighbour is not None:
            neighbour.meanwhile(connection.poll)
        try:
            request = connection.recv()
        except (EOFError, OSError):
            return
        operation = request["op"]
        if operation == "close":
            getattr(session, "close", lambda: None)()
            return
        began = time.monotonic()
        try:
            if operation == "probe":
                answer, arrow = _probe(request), b""
            elif operation == "job":
                answer, arrow = _job(request, _progress(connection))
            elif operation == "load":
                session = _session(request, _progress(connection), connection)
                answer, arrow = session.load_answer, b""
            elif operation == "neighbour":
                from precision_explorer.runner.neighbour import Neighbour

                neighbour = Neighbour(request)
                answer, arrow = neighbour.answer, b""
            else:
                asked = neighbour or session
                assert asked is not None, "load comes first"
                answer, arrow = getattr(asked, operation)(request)
        except BaseException as error:
            traceback.print_exc()
            sys.stderr.flush()
            reply(connection, error_answer(error, operation))
            return
        header = {"type": "answer", "op": operation, "answer": answer}
        reply(connection, header | {"seconds": time.monotonic() - began}, arrow)


def _session(request: dict[str, Any], progress: Any, connection: Connection) -> Any:
    """What answers further requests: a model that is loaded, or a server that is asked."""
    if request["runtime"] == "endpoint":
        from precision_explorer.runner.endpoint_session import EndpointSession

        return EndpointSession(request, progress)
    from precision_explorer.runner.session import Session

    def give_up(error: BaseException) -> NoReturn:
        reply(connection, error_answer(error, "split"))
        os._exit(1)

    return Session(request, progress, give_up)


def _progress(connection: Connection) -> Any:
    """A callable (phase, done, total) that sends at most five headers a second."""
    last = 0.0

    def report(phase: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done in (0, total) or now - last > 0.2:
            last = now
            reply(connection, {"type": "progress", "phase": phase, "done": done, "total": total})

    return report


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """Dry runs of the formats; see `formats.dryrun`."""
    import torch

    from precision_explorer.formats.compiling import configure
    from precision_explorer.formats.dryrun import dry_run
    from precision_explorer.formats.runtimes import RUNTIMES
    from precision_explorer.measure import set_aside_imports

    set_aside_imports()
    torch.set_num_threads(request["threads"])
    device = request["device"]
    if device.startswith("cuda") and not torch.cuda.is_available():
        text = "the installed torch has no CUDA; install a CUDA build of torch, or use --device cpu"
        return {"device_error": text}
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    runtime = RUNTIMES[request.get("runtime", "eager")]
    if runtime.compiles:
        configure(request["compile_cache"], device.partition(":")[0])
    return {"formats": dry_run(device, request["formats"], runtime)}


def _job(request: dict[str, Any], progress: Any) -> tuple[dict[str, Any], bytes]:
    """Run a named job; see `runner.jobs`."""
    from precision_explorer.measure import set_aside_imports
    from precision_explorer.runner.jobs import load_job

    if request["device"] is not None:
        import torch

        torch.set_num_threads(request["threads"])
        if request["device"] != "cpu":
            torch.cuda.set_device(request["device"])
    job = load_job(request["job"])
    set_aside_imports()
    answer, arrow = job(request, progress)
    return answer, arrow


def _cuda_touched() -> bool:
    """Whether the server that this process was just forked from had asked CUDA for anything (it
    must not). torch calls CUDA initialised no more after a fork, so that alone does not tell; the
    mark that it keeps for its own refusal does, which already counting the devices leaves."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return bool(torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork())
