"""NVML behind a few functions: is it there, which of its devices does CUDA see, in what order, and
what is one's free memory and temperature."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from precision_explorer.errors import UsageError


def load_nvml() -> Any | None:
    """The initialised `pynvml` module; None where there is no NVIDIA driver.

    NVML creates no CUDA context, so asking it is harmless before a fork.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def gpu_present() -> bool:
    """Whether there is an NVIDIA GPU, asked of NVML, which makes no CUDA context; it is closed
    again (openings are counted), so that workers open it for themselves."""
    nvml = load_nvml()
    if nvml is None:
        return False
    try:
        return bool(nvml.nvmlDeviceGetCount() > 0)
    except nvml.NVMLError:
        return False
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def visible_handles(nvml: Any, variables: Mapping[str, str] | None = None) -> list[Any]:
    """NVML handles of the devices that CUDA enumerates, in CUDA's order: [k] is ``cuda:k``.

    NVML ignores ``CUDA_VISIBLE_DEVICES`` and numbers by PCI bus; CUDA obeys it and by default puts
    the fastest device first (CUDA C++ Programming Guide, "CUDA Environment Variables"). The orders
    agree where all devices are of one kind or ``CUDA_DEVICE_ORDER=PCI_BUS_ID``; UsageError where
    they may not, since the energy of another device would be read.
    """
    variables = os.environ if variables is None else variables
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    entries = None if chosen is None else [entry.strip() for entry in chosen.split(",")]
    numbered = entries is None or any(entry.isdigit() for entry in entries)
    by_bus = variables.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if numbered and not by_bus and len({nvml.nvmlDeviceGetName(h) for h in handles}) > 1:
        raise UsageError(
            "GPUs of several kinds are numbered differently by CUDA and NVML; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    if entries is None:
        return handles
    visible = []
    for entry in entries:
        handle = _find(nvml, handles, entry)
        if handle is None:
            break  # CUDA, too, hides whatever follows an invalid entry.
        visible.append(handle)
    return visible


def _find(nvml: Any, handles: list[Any], entry: str) -> Any | None:
    if entry.isdigit():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):
        try:
            return nvml.nvmlDeviceGetHandleByUUID(entry)
        except nvml.NVMLError:
            return None
    if not entry.startswith("GPU-"):
        return None
    # CUDA takes any prefix of a UUID that names one device only.
    found = [h for h in handles if nvml.nvmlDeviceGetUUID(h).startswith(entry)]
    return found[0] if len(found) == 1 else None


def _ask(pci_bus_id: str | None, nvml: Any | None, ask: Callable[[Any, Any], Any]) -> Any | None:
    """NVML's answer about the GPU at a PCI bus id; None where it gives none."""
    nvml = load_nvml() if nvml is None else nvml
    if nvml is None or pci_bus_id is None:
        return None
    try:
        return ask(nvml, nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id))
    except nvml.NVMLError:
        return None


def free_device_bytes(pci_bus_id: str | None, nvml: Any | None = None) -> int | None:
    """Bytes of the GPU's memory that no process holds now; None where NVML doesn't tell."""
    found = _ask(pci_bus_id, nvml, lambda n, handle: n.nvmlDeviceGetMemoryInfo(handle).free)
    return None if found is None else int(found)


def temperature_c(pci_bus_id: str | None, nvml: Any | None = None) -> float | None:
    """The GPU's core temperature in degrees Celsius; None where NVML doesn't tell."""
    found = _ask(
        pci_bus_id,
        nvml,
        lambda n, handle: n.nvmlDeviceGetTemperature(handle, n.NVML_TEMPERATURE_GPU),
    )
    return None if found is None else float(found)
