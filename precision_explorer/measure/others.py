"""How much of the machine other processes used while something was measured."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

_STAT = Path("/proc/stat")
# Kernel documentation, "/proc/stat": user nice system idle iowait irq softirq steal, in ticks.
# Guest time is part of user time. A core that waits for I/O is free to compute.
_IDLE = (3, 4)
_FIELDS = 8


_HELPERS: set[int] = set()


def count_as_own(pids: Iterable[int]) -> None:
    """From now on what these processes do is no other's work: they serve with this one."""
    _HELPERS.update(pids)


class OtherWork:
    """`begin`, work, `end` -> share of the usable cores' time that others took, stolen time
    included.

    Usable cores: those of this process's affinity mask. None where the system does not tell (no
    /proc/stat). Seconds this process used, all threads, are its own, as are those of the processes
    `ours` and those of `count_as_own`; what its other children use counts as others'.
    """

    def __init__(self, stat: Path = _STAT, ours: Sequence[int] = ()) -> None:
        self._stat, self._ours = stat, (*ours, *_HELPERS)
        self._before: tuple[float, float, float] | None = None

    def _read(self) -> tuple[float, float, float] | None:
        """(seconds that the cores had, seconds they were busy, our own seconds)."""
        try:
            names = {f"cpu{core}" for core in os.sched_getaffinity(0)}
            lines = [line.split() for line in self._stat.read_text(encoding="ascii").splitlines()]
            cores = [[int(v) for v in p[1 : _FIELDS + 1]] for p in lines if p and p[0] in names]
            second = os.sysconf("SC_CLK_TCK")
            there = sum(map(sum, cores)) / second
            idle = sum(core[i] for core in cores for i in _IDLE) / second
        except (OSError, ValueError, IndexError, AttributeError):
            return None
        ours = time.process_time() + sum(map(_cpu_seconds, self._ours))
        return (there, there - idle, ours) if cores else None

    def begin(self) -> None:
        """Note the counters now."""
        self._before = self._read()

    def end(self) -> float | None:
        """Share in [0, 1] of the cores' time since `begin` that was neither idle nor ours."""
        after, before = self._read(), self._before
        if after is None or before is None:
            return None
        there, busy, ours = (b - a for a, b in zip(before, after, strict=True))
        # Ticks of 10 ms against a clock of nanoseconds: a short window may come out below 0.
        return min(max((busy - ours) / there, 0.0), 1.0) if there > 0 else None


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process, all threads; 0 of one that is gone."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0
