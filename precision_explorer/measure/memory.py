"""Peak memory of serving a model, over what the process held before the load. All in bytes.

On a CPU "own" is the unique set size (USS): pages that no other process maps, so that imports
shared with the fork server and shared libraries don't count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KERNEL = "uss: kernel high-water mark"
SAMPLED = "uss: sampled"
CUDA = "cuda: torch allocator's peak; process: nvml"
_PROC = Path("/proc/self")
# Where the kernel keeps no mark. A declared choice: a layer's copy that lives shorter is missed,
# and reading more often would take time from what is measured.
_SAMPLE_S = 0.02
# After a reset the mark is the resident size; the kernel's counters lag by some pages per CPU.
_SLACK_BYTES = 32 << 20


def trim() -> None:
    """Free garbage, and have glibc hand free heap pages back to the kernel, so that they don't
    pass for memory in use. Without glibc only the former."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _fields(path: Path) -> dict[str, int]:
    """{name: bytes} of the lines ``Name:   123 kB``."""
    found: dict[str, int] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[2] == "kB" and parts[1].isdigit():
            found[parts[0].rstrip(":")] = int(parts[1]) * 1024
    return found


def _own_and_shared(proc: Path) -> tuple[int, int]:
    """(USS, RSS - USS) by one walk of the page tables (kernel documentation, "/proc/PID/smaps")."""
    fields = _fields(proc / "smaps_rollup")
    own = fields["Private_Clean"] + fields["Private_Dirty"]
    return own, max(fields["Rss"] - own, 0)


def own_bytes(proc: Path = _PROC) -> int | None:
    """This process's own memory (USS) now; None where the system does not tell. The kernel walks
    the page tables for it, so not for every request."""
    try:
        return _own_and_shared(proc)[0]
    except (OSError, KeyError):
        return None


class PeakMemory:
    """`baseline` once before the load; then `begin`, work, `end` -> peak above the baseline.

    Linux keeps the peak of the resident size itself (VmHWM) and resets it on ``5`` written to
    /proc/self/clear_refs (kernel documentation, "The /proc Filesystem"), so no sampling disturbs
    the timing and no short peak is missed. The peak of own memory is that mark less the pages
    shared at the end. Where this can't be had, a thread samples. `method` says which.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self.method = SAMPLED
        self.baseline_bytes = 0
        self._sampler: _Sampler | None = None

    def baseline(self) -> None:
        """Note own memory now, before anything is loaded."""
        trim()
        self.method = KERNEL if self._reset_mark() else SAMPLED
        self.baseline_bytes = self._own()

    def _reset_mark(self) -> bool:
        """Set the kernel's mark to the present; False where that can't be done."""
        try:
            (self._proc / "clear_refs").write_text("5", encoding="ascii")
            status = _fields(self._proc / "status")
            _own_and_shared(self._proc)
            return status["VmHWM"] - status["VmRSS"] < _SLACK_BYTES
        except (OSError, KeyError):
            return False

    def _own(self) -> int:
        if self.method == KERNEL:
            return _own_and_shared(self._proc)[0]
        return _sampled_uss()

    def begin(self) -> None:
        """Start watching for a peak; a window left open by an error is dropped."""
        self._stop_sampler()
        if self.method == KERNEL:
            self._reset_mark()
        else:
            self._sampler = _Sampler(_sampled_uss)

    def _stop_sampler(self) -> int:
        sampler, self._sampler = self._sampler, None
        return 0 if sampler is None else sampler.stop()

    def end(self) -> int:
        """Bytes of the peak since `begin` above the baseline (0 if below)."""
        if self.method == KERNEL:
            mark = _fields(self._proc / "status")["VmHWM"]
            own, shared = _own_and_shared(self._proc)
            peak = max(mark - shared, own)
        else:
            peak = self._stop_sampler()
        return max(peak - self.baseline_bytes, 0)

    def trim(self) -> None:
        """As the function `trim`."""
        trim()

    def extras(self) -> dict[str, int | None]:
        """None on a CPU; see `CudaPeakMemory`."""
        return {}


def _sampled_uss() -> int:
    import psutil

    return int(psutil.Process().memory_full_info().uss)


class _Sampler:
    """The highest of `read()`, taken every `_SAMPLE_S` by a thread until stopped."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._peak = read()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self._peak = max(self._peak, self._read())

    def stop(self) -> int:
        """The peak, the present included."""
        self._done.set()
        self._thread.join()
        return max(self._peak, self._read())


class CudaPeakMemory:
    """The same for a CUDA device by torch's allocator: `end` is the peak of allocated bytes above
    those before the load. `extras` adds what the allocator had reserved, and the whole process by
    NVML (`process_bytes`; context and libraries included, read at the end: the allocator keeps
    what it reserved, so the end is the peak unless a batch that did not fit emptied its cache).
    Of several devices it is the sum of each one's peak, which need not have been at one time;
    `extras` then adds that of the fullest."""

    method = CUDA

    def __init__(
        self,
        device: str | Sequence[str],
        process_bytes: Callable[[], int | None],
        cuda: Any | None = None,
    ) -> None:
        if cuda is None:
            import torch

            cuda = torch.cuda
        self._cuda: Any = cuda
        self._devices = [device] if isinstance(device, str) else list(device)
        self._process_bytes = process_bytes
        self.baseline_bytes = 0
        self._before: dict[str, int] = {}
        self._reserved_before: dict[str, int] = {}
        self._extras: dict[str, int | None] = {}

    def baseline(self) -> None:
        """Note the device memory allocated now, before anything is loaded."""
        self.trim()
        self._before = {d: int(self._cuda.memory_allocated(d)) for d in self._devices}
        self._reserved_before = {d: int(self._cuda.memory_reserved(d)) for d in self._devices}
        self.baseline_bytes = sum(self._before.values())

    def begin(self) -> None:
        """Start watching for a peak."""
        for device in self._devices:
            self._cuda.synchronize(device)
            self._cuda.reset_peak_memory_stats(device)

    def end(self) -> int:
        """Bytes of the allocated peak since `begin` above the baseline (0 if below)."""
        reserved, allocated = 0, []
        for device in self._devices:
            self._cuda.synchronize(device)
            kept = int(self._cuda.max_memory_reserved(device)) - self._reserved_before[device]
            peak = int(self._cuda.max_memory_allocated(device)) - self._before[device]
            reserved += max(kept, 0)
            allocated.append(max(peak, 0))
        self._extras = {
            "reserved_peak_bytes": reserved,
            "process_peak_bytes": self._process_bytes(),
        }
        if len(self._devices) > 1:
            self._extras["largest_device_peak_bytes"] = max(allocated)
        return sum(allocated)

    def trim(self) -> None:
        """Free garbage on the host, and the allocator's unused blocks."""
        trim()
        self._cuda.empty_cache()

    def extras(self) -> dict[str, int | None]:
        """`reserved_peak_bytes` above the baseline, `process_peak_bytes` in all, of the last
        window."""
        return dict(self._extras)
