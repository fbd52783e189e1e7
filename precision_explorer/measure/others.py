"""How much of the machine other processes used while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

_STAT = Path("/proc/stat")
# Kernel documentation, "/proc/stat": user nice system idle iowait irq softirq steal, in ticks.
# Guest time is part of user time. A core that waits for I/O is free to compute.
_IDLE = (3, 4)
_FIELDS = 8


class OtherWork:
    """`begin`, work, `end` -> share of all cores' time that others took, stolen time included.

    None where the system does not tell (no /proc/stat). Seconds this process used, all threads, are
    its own; what its children use counts as others'.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._before: tuple[float, float, float] | None = None

    def _read(self) -> tuple[float, float, float] | None:
        """(seconds that all cores had, seconds they were busy, seconds of this process)."""
        try:
            line = self._stat.read_text(encoding="ascii").splitlines()[0]
            ticks = [int(value) for value in line.split()[1 : _FIELDS + 1]]
            second = os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError, AttributeError):
            return None
        if len(ticks) <= max(_IDLE):
            return None
        idle = sum(ticks[i] for i in _IDLE)
        return sum(ticks) / second, (sum(ticks) - idle) / second, time.process_time()

    def begin(self) -> None:
        """Note the counters now."""
        self._before = self._read()

    def end(self) -> float | None:
        """Share in [0, 1] of all cores' time since `begin` that was neither idle nor ours."""
        after, before = self._read(), self._before
        if after is None or before is None:
            return None
        there, busy, ours = (b - a for a, b in zip(before, after, strict=True))
        # Ticks of 10 ms against a clock of nanoseconds: a short window may come out below 0.
        return min(max((busy - ours) / there, 0.0), 1.0) if there > 0 else None
