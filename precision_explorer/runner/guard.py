"""How a worker is bounded, and how what went wrong in it is named. No torch at import."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

from precision_explorer.errors import DoesNotFit, InvalidNumerics, PrecisionExplorerError
from precision_explorer.measure.throughput import is_out_of_memory


def die_with_parent() -> None:
    """Linux: be killed when the fork server ends, so that no worker outlives a killed sweep."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def redirect_output(path: str) -> None:
    """Append this process's stdout and stderr, C libraries' included, to the log file."""
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def limit_memory(limit_bytes: int | None) -> None:
    """Linux: let allocations beyond `limit_bytes` more than now fail in this process, with an
    error that can be recorded, before the kernel kills something of its own choice."""
    if limit_bytes is None:
        return
    import resource

    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf8").splitlines()
        now = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (now + limit_bytes, hard))


def error_answer(error: BaseException, phase: str) -> dict[str, Any]:
    """{status, kind, message, phase} of an exception, in one line with what to do."""
    gc.collect()
    text = (str(error).strip() or repr(error)).splitlines()[0][:500]
    kind = type(error).__name__
    if isinstance(error, InvalidNumerics):
        return _answer("invalid_numerics", kind, text, phase)
    if is_out_of_memory(error):
        advice = "use a smaller model or format, more memory, or raise --memory-limit"
        message = text if isinstance(error, DoesNotFit) else f"out of memory ({text}); {advice}"
        return _answer("out_of_memory", kind, message, phase)
    if isinstance(error, PrecisionExplorerError):
        return _answer("failed", kind, text, phase)
    return _answer("failed", kind, f"{kind}: {text}; see the cell's log for the traceback", phase)


def _answer(status: str, kind: str, message: str, phase: str) -> dict[str, Any]:
    return {"type": "error", "status": status, "kind": kind, "message": message, "phase": phase}


def signal_name(exit_code: int | None) -> str | None:
    """``SIGKILL`` for -9; None when the process was not ended by a signal."""
    if exit_code is None or exit_code >= 0:
        return None
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
