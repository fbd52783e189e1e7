"""A GPU's utilisation as NVML (and so nvidia-smi) reports it, sampled beside a measurement."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from precision_explorer.hardware.nvml import load_nvml

# NVML's own sampling period is between 1/6 s and 1 s (NVML API Reference, nvmlUtilization_t).
_PERIOD_S = 0.1


class Utilisation:
    """``with Utilisation(bus_id) as seen: ...; seen.share`` is the largest share reported inside.

    NVML's figure is the share of its last period in which one or more kernels ran, however badly
    they used the device. None without a GPU, and where it does not tell.
    """

    def __init__(self, pci_bus_id: str | None, nvml: Any | None = None) -> None:
        self.share: float | None = None
        self._handle: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if pci_bus_id is None:
            return
        self._nvml: Any = load_nvml() if nvml is None else nvml
        if self._nvml is None:
            return
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        except self._nvml.NVMLError:
            return

    def _sample(self) -> None:
        try:
            percent = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu
        except self._nvml.NVMLError:
            return
        self.share = max(self.share or 0.0, percent / 100)

    def _watch(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._sample()

    def __enter__(self) -> Utilisation:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._stop.set()
            self._thread.join()
            self._sample()
