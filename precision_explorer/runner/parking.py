"""Whether another model fits in memory beside those whose workers wait. No torch here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from precision_explorer.hardware import DeviceFacts, free_device_bytes
from precision_explorer.models.splitting import Split

SHARE = 0.75
"""Share of the available memory that loaded models may take together: the rest is for what a cell
needs beyond what was seen of it (larger batches, a library's copies) and for everything else."""


def own_bytes(pid: int) -> int:
    """Memory of process `pid`, and of those that it has started, that no other shares (USS), in
    bytes; 0 where it can't be read."""
    import psutil

    known = 0
    with contextlib.suppress(psutil.Error, OSError, AttributeError):
        own = psutil.Process(pid)
        for process in (own, *own.children(recursive=True)):
            # One that has ended meanwhile holds nothing.
            with contextlib.suppress(psutil.NoSuchProcess):
                known += int(process.memory_full_info().uss)
    return known


def _available() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


class Parking:
    """The memory for the workers of one model, as it was before the first of them.

    `available`: bytes of host memory that are free, which the device's facts bound by the cgroup;
    `own`: bytes of a worker; `free`: bytes free on a CUDA device, None where nothing tells.
    """

    def __init__(
        self,
        facts: DeviceFacts,
        *,
        available: Callable[[], int] = _available,
        own: Callable[[int], int] = own_bytes,
        free: Callable[[str | None], int | None] = free_device_bytes,
    ) -> None:
        self._facts, self._own, self._free = facts, own, free
        self._budget = SHARE * min(available(), facts.memory_bytes)

    def fits(self, need_bytes: int, pids: Iterable[int], split: Split | None = None) -> bool:
        """Whether a worker that needs `need_bytes` may be loaded beside those of `pids`.

        On a CPU: their own memory and the need stay within `SHARE` of what was available. On a CUDA
        device the need must stay within `SHARE` of what is free there now as well; where that can't
        be read, nothing is parked. `split`: of a model that is spread over several devices; then
        that holds of each of them, for the part that the fullest takes."""
        if sum(map(self._own, pids)) + need_bytes > self._budget:
            return False
        if self._facts.kind == "cpu":
            return True
        used = self._facts.over(1 if split is None else split.devices)
        need = need_bytes if split is None else need_bytes * split.largest_share
        free = [self._free(one.pci_bus_id) for one in used.each]
        return all(there is not None and need <= SHARE * there for there in free)
