"""Cores that one place has for itself, on a machine where others measure too. No torch here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from precision_explorer.hardware import cpu

_NODES = Path("/sys/devices/system/node")


class Cores:
    """A number of whole cores, taken until `release` or the end of the process, however that comes.

    What is taken stands in locked files that all places of this user on this machine look at,
    whoever started them; other users' work is not seen.
    """

    def __init__(self, cpus: list[int], locks: list[IO[str]]) -> None:
        self.cpus, self._locks = cpus, locks

    def bind(self) -> None:
        """Let this thread, and what it starts from now on, run on these processors alone."""
        os.sched_setaffinity(0, self.cpus)

    def release(self) -> None:
        """Give them back."""
        locks, self._locks = self._locks, []
        for lock in locks:
            lock.close()


def take_cores(
    count: int,
    near: Sequence[int] = (),
    *,
    usable: set[int] | None = None,
    core_of: Mapping[int, tuple[str, str]] | None = None,
    numa: Sequence[Sequence[int]] | None = None,
    folder: Path | None = None,
) -> Cores | None:
    """`count` free cores with all of their hyper-threads, of one NUMA node where one has as many,
    those of the processors `near` (a GPU's) before others; None where fewer are free.

    `usable`, `core_of`, `numa` (processors by node) and `folder` (of the locks) are the machine's
    unless given.
    """
    usable = cpu.schedulable() if usable is None else usable
    known = cpu.parse_cpuinfo(cpu.read_cpuinfo()).core_of if core_of is None else core_of
    cores: dict[object, list[int]] = {}
    for number in sorted(usable):
        cores.setdefault(known.get(number, number), []).append(number)
    nodes = [set(one) for one in (numa_nodes() if numa is None else numa)]
    folder = _folder() if folder is None else folder
    with _alone(folder):
        found = ((one, _locked(folder, one[0])) for one in cores.values())
        free = [(one, lock) for one, lock in found if lock is not None]
        chosen = _chosen([one for one, _ in free], count, set(near), nodes)
        kept = []
        for one, lock in free:
            if one in chosen:
                kept.append(lock)
            else:
                lock.close()
    return Cores(sorted(n for one in chosen for n in one), kept) if chosen else None


def _chosen(
    free: list[list[int]], count: int, near: set[int], nodes: list[set[int]]
) -> list[list[int]]:
    """The first `count`: of the first NUMA node with enough of them near the device, then of any
    node, then of the whole machine; none where there are too few."""
    if count < 1 or len(free) < count:
        return []
    for wanted in ([n & near for n in nodes] if near else []) + [near] + nodes:
        inside = [one for one in free if wanted.issuperset(one)]
        if len(inside) >= count:
            return inside[:count]
    return free[:count]


def numa_nodes(root: Path = _NODES) -> list[list[int]]:
    """The processors of each NUMA node; empty where the kernel does not tell."""
    found = []
    for path in sorted(root.glob("node[0-9]*/cpulist")):
        try:
            found.append(cpu_list(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def near_device(pci_bus_id: str | None) -> list[int]:
    """The processors beside a PCI device, as the kernel's ``local_cpulist`` has them; empty where
    it does not tell."""
    if pci_bus_id is None:
        return []
    # NVML writes the domain with eight digits, the kernel with four.
    name = pci_bus_id.lower()[-12:]
    try:
        return cpu_list(Path(f"/sys/bus/pci/devices/{name}/local_cpulist").read_text())
    except (OSError, ValueError):
        return []


def cpu_list(text: str) -> list[int]:
    """``0-3,8`` as numbers (Linux kernel, "cpusets", list format)."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _folder() -> Path:
    """Of this user alone, whose processes only may hold its locks."""
    path = Path(tempfile.gettempdir()) / f"precision-explorer-cores-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One place chooses at a time, as it holds all free cores while it does."""
    lock = _locked(folder, "all", wait=True)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def _locked(folder: Path, core: int | str, wait: bool = False) -> IO[str] | None:
    """The lock of a core, by its first processor; None where another has it or it can't be had."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        lock = os.fdopen(os.open(folder / str(core), flags, 0o600), "r+")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        lock.close()
        return None
    return lock
