"""A long timed part watched window by window. Runs in a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from precision_explorer.hardware import DeviceFacts
from precision_explorer.hardware.readings import open_readings
from precision_explorer.measure import SoakMonitor
from precision_explorer.records.soak import Soak, windows_owed
from precision_explorer.workload import Workload


class Watch:
    """Makes the monitor of a measured time of `measured_s` seconds as soon as its clock's zero is
    known; does nothing where the time is too short for windows, or `facts` are None.

    `planned`: the windows to measure. `after_s`: when they begin, since the zero. `repeats`:
    whether what is flagged can be measured again; otherwise nothing after the planned windows is
    one. `make`: the monitor, in place of `SoakMonitor` of the device.
    """

    def __init__(
        self,
        facts: DeviceFacts | None,
        rules: Workload,
        measured_s: float,
        *,
        after_s: float = 0.0,
        repeats: bool = True,
        make: Callable[..., SoakMonitor] | None = None,
    ) -> None:
        self.planned = rules.soak_windows(measured_s) if facts is not None else 0
        self._options = {"after_s": after_s, "most": None if repeats else self.planned}
        self._window_s = rules.window_s
        self._monitor: SoakMonitor | None = None
        if facts is not None and self.planned and make is None:
            # Opened before the window, in which the time that it takes would delay a request.
            make = partial(SoakMonitor, facts, readings=open_readings(facts))
        self._make = make

    def at(
        self, origin_s: float, kept_bytes: Callable[[], int] | None = None
    ) -> AbstractContextManager[Any]:
        """A context in which the device is read; `origin_s`: the clock's value at the zero;
        `kept_bytes`: what the rows of the requests take by now."""
        if not self.planned or self._make is None:
            return nullcontext()
        self._monitor = self._make(
            window_seconds=self._window_s,
            origin_s=origin_s,
            kept_bytes=kept_bytes,
            **self._options,
        )
        return self._monitor

    def owed(self) -> int:
        """How many windows are still to be measured, repeats among them."""
        return windows_owed(self._monitor.windows(), self.planned) if self._monitor else 0

    def soak(self, ends_s: Sequence[float]) -> Soak | None:
        """The record, of requests that ended at these seconds since the zero; None where nothing
        was watched."""
        return self._monitor.soak(ends_s, self.planned) if self._monitor else None
