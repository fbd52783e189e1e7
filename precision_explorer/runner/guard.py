"""How a worker is bounded, and how what went wrong in it is named. No torch at import."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from precision_explorer import scrub
from precision_explorer.errors import DoesNotFit, InvalidNumerics, PrecisionExplorerError
from precision_explorer.measure.throughput import is_out_of_memory

HELD = {signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}
"""Signals that reach a whole process group, of which the manager decides what becomes of a worker:
held back while it is started, and ignored from then on."""
HUB_KERNELS = "USE_HUB_KERNELS"
"""transformers' own switch for layers and functions that the hub has compiled code for
(transformers 5.24, integrations/hub_kernels.py)."""


def keep_out_secrets_and_kernels(keep: Iterable[str] = ()) -> None:
    """What the manager took care of before it started this process, again: it may have been forked
    from a server that something else had started before. The switch of transformers leaves the
    kernels that a model's config names for its attention, and those of quantized checkpoints: so,
    where it is off, the package that loads all of them counts as not installed. `keep`: as in
    `scrub.scrubbed`."""
    scrub.scrub_own(keep)
    if os.environ.setdefault(HUB_KERNELS, "NO").upper() not in ("1", "ON", "YES", "TRUE"):
        sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]


# CUDA's errors after which nothing works any more in a process (CUDA Runtime API, "cudaError"), by
# torch's words for them.
_DEVICE_LOST = (
    "unspecified launch failure",
    "device-side assert",
    "an illegal memory access",
    "an illegal instruction",
    "misaligned address",
    "hardware stack error",
    "the launch timed out",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "device is lost",
    "gpu is lost",
    "no cuda-capable device is detected",
    "unknown error",
    "cudnn_status_execution_failed",
    "cublas_status_execution_failed",
)


def die_with_parent() -> None:
    """Linux: be killed when the fork server ends, so that no worker outlives a killed sweep."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def redirect_output(pipe: Connection) -> None:
    """Write this process's stdout and stderr, C libraries' included, to the manager's pipe."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(pipe.fileno(), 1)
    os.dup2(pipe.fileno(), 2)
    pipe.close()


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
    # The bytes of a path that are no UTF-8 stand in it as halves of characters, which no reader of
    # JSON need take.
    text = text.encode("utf8", "replace").decode()
    kind = type(error).__name__
    if isinstance(error, InvalidNumerics):
        return _answer("invalid_numerics", kind, text, phase)
    if is_out_of_memory(error):
        advice = "use a smaller model or format, more memory, or raise --memory-limit"
        message = text if isinstance(error, DoesNotFit) else f"out of memory ({text}); {advice}"
        return _answer("out_of_memory", kind, message, phase)
    if isinstance(error, PrecisionExplorerError):
        return _answer("failed", kind, text, phase)
    if is_device_lost(error):
        message = (
            f"the device failed ({text}), and with it this process; others get one of their own: "
            "run the sweep again, and where it fails again look at dmesg for Xid errors, and at "
            "the model for indices out of range"
        )
        return _answer("failed", "DeviceLost", message, phase)
    return _answer("failed", kind, f"{kind}: {text}; see the cell's log for the traceback", phase)


def is_device_lost(error: BaseException) -> bool:
    """Whether `error` is one of CUDA's after which the process can use the device no more; torch's
    class is a RuntimeError."""
    text = str(error).lower()
    cuda = "cuda" in text or "cudnn" in text or "cublas" in text
    return isinstance(error, RuntimeError) and cuda and any(w in text for w in _DEVICE_LOST)


def _answer(status: str, kind: str, message: str, phase: str) -> dict[str, Any]:
    return {"type": "error", "status": status, "kind": kind, "message": message, "phase": phase}


def signal_name(exit_code: int | None) -> str | None:
    """``SIGKILL`` for -9; None when the process was not ended by a signal."""
    if exit_code is None or exit_code >= 0:
        return None
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"
