"""Counters of joules of AMD GPUs, Apple's chips and NVIDIA's Jetson boards, by the library Zeus
(the extra ``zeus``).

Read by fakes of its interface only: none of these devices was at hand.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from precision_explorer.hardware.profile import DeviceFacts

SOURCE = "measured:zeus"
# Zeus 0.16 reads a Jetson's power rails ten times a second, AMD's counters are renewed more often:
# 5 s are 50 updates, as for NVML's.
_WINDOW_S = 5.0
_APPLE = "CPU clusters of the chip, other processes' work included; no GPU, memory or board"
_RAILS = {
    "total_energy_mj": "board: its input rail, other processes' work included",
    "gpu_energy_mj": "GPU rail of the board; no CPU or memory",
}
_AMD = "GPU: the whole board, other processes' work on it included"


class ZeusSensor:
    """A counter of Zeus: `read_mj` gives millijoules since an arbitrary start."""

    source = SOURCE
    min_window_s = _WINDOW_S

    def __init__(self, read_mj: Callable[[], float], boundary: str) -> None:
        self._read_mj, self.boundary = read_mj, boundary

    def supported(self) -> bool:
        """Whether the counter answers."""
        try:
            self.energy_j()
        except Exception:  # Each device of Zeus has a tree of errors of its own.
            return False
        return True

    def energy_j(self) -> float:
        """Joules since an arbitrary start."""
        return self._read_mj() / 1000


def zeus_sensor(facts: DeviceFacts) -> ZeusSensor | None:
    """The meter that Zeus has for the device; None where it is not installed or knows none."""
    try:
        device = import_module("zeus.device")
    except ImportError:
        return None
    for make in (_soc, _amd):
        # Zeus tells by errors of its own that a device is not there.
        with contextlib.suppress(Exception):
            sensor = make(device, facts)
            if sensor is not None and sensor.supported():
                return sensor
    return None


def _soc(device: Any, facts: DeviceFacts) -> ZeusSensor | None:
    """Of an Apple chip for its CPU, of a Jetson for its GPU."""
    with _may_have_children():
        chip = device.get_soc()
    now = chip.get_total_energy_consumption()
    if facts.kind == "cpu":
        return _field(chip, "cpu_total_mj", _APPLE, now)
    found = (_field(chip, name, words, now) for name, words in _RAILS.items())
    return next(filter(None, found), None)


def _field(chip: Any, name: str, boundary: str, now: Any) -> ZeusSensor | None:
    if getattr(now, name, None) is None:
        return None
    return ZeusSensor(lambda: getattr(chip.get_total_energy_consumption(), name), boundary)


def _amd(device: Any, facts: DeviceFacts) -> ZeusSensor | None:
    """Of the GPU with torch's number, which is HIP's."""
    if facts.kind == "cpu":
        return None
    gpus, index = device.get_gpus(), int(facts.device.removeprefix("cuda:"))
    if not gpus.supports_get_total_energy_consumption(index):
        return None
    return ZeusSensor(lambda: gpus.get_total_energy_consumption(index), _AMD)


@contextlib.contextmanager
def _may_have_children() -> Iterator[None]:
    """Zeus polls a Jetson's rails in a process of its own, which multiprocessing forbids to a
    daemon, as workers are. Zeus ends it at exit, and it dies with the queue's other end."""
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon
