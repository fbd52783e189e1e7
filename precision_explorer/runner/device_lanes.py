"""Places of this machine: one lane for each GPU, or for each number of cores. No torch here."""

from __future__ import annotations

import os

from precision_explorer.errors import UsageError
from precision_explorer.hardware import device_facts
from precision_explorer.hardware.nvml import load_nvml, visible_handles
from precision_explorer.plan import SweepSpec
from precision_explorer.runner import places
from precision_explorer.runner.environment import VISIBLE
from precision_explorer.runner.places import LaneProcess, Slot


class DeviceLanes:
    """One lane for each visible GPU, which sees no other one; on a CPU one for each `spec.cores` of
    the usable cores. `gpus`: UUIDs, this machine's unless given (for tests)."""

    executor = "local"
    shares_machine = True

    def __init__(self, spec: SweepSpec, gpus: list[str] | None = None) -> None:
        self._gpus = ([] if spec.device == "cpu" else _uuids()) if gpus is None else gpus
        usable = device_facts("cpu").cores
        if not self._gpus and spec.device not in ("cpu", "auto", places.ALL):
            raise UsageError(f"no NVIDIA GPU is visible for device '{spec.device}'; use cpu")
        # The cores are divided between the devices, unless a number was declared.
        self.cores: int | None = spec.cores or max(usable // max(len(self._gpus), 1), 1)
        if self.cores > usable:
            raise UsageError(f"--cores {self.cores}: {usable} are usable here; give as many")
        self._count = len(self._gpus) or usable // self.cores
        self._spec = spec

    def slots(self) -> list[Slot]:
        """As `Source.slots`."""
        names = [f"device-{k + 1}" for k in range(self._count)]
        return [Slot(str(k), "here", name) for k, name in enumerate(names)]

    def open(self, slot: Slot) -> LaneProcess:
        """As `Source.open`."""
        seen = {VISIBLE: self._gpus[int(slot.key)]} if self._gpus else {}
        return LaneProcess(places.LANE, dict(seen))

    def close(self) -> None:
        """Nothing but lanes was started."""


def _uuids() -> list[str]:
    """Of the visible GPUs, by which CUDA knows them whatever the numbering."""
    nvml = load_nvml()
    if nvml is None:
        return []
    found = [nvml.nvmlDeviceGetUUID(h) for h in visible_handles(nvml, os.environ)]
    return [one.decode() if isinstance(one, bytes) else one for one in found]
