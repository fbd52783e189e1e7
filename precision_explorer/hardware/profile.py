"""`DeviceFacts`: what a device is, as far as formats, identity and reports need to know."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.hardware import cpu
from precision_explorer.hardware.nvml import load_nvml, visible_handles


class DeviceFacts(BaseModel):
    """Facts of one device and of the processor beside it. Sizes are bytes.

    `index` is NVML's number of a GPU, which is not CUDA's where ``CUDA_VISIBLE_DEVICES`` is set;
    `pci_bus_id` names the GPU whatever the numbering. `cpu_flags` are those that libraries may
    use: flags above an environment's cap (`capped`) are left out. `cores` are physical where
    known, within the affinity mask and cgroup quota; `memory_bytes` is bounded by the cgroup.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["cpu", "cuda"]
    device: str
    name: str
    index: int | None = None
    pci_bus_id: str | None = None
    compute_capability: tuple[int, int] | None = None
    cpu_model: str
    cpu_flags: tuple[str, ...] = ()
    cores: int
    memory_bytes: int
    device_memory_bytes: int | None = None
    driver: str | None = None
    capped: dict[str, str] = Field(default_factory=dict)
    beside: tuple[DeviceFacts, ...] = Field(default=(), exclude=True)
    """Further devices that a model may be spread over (`with_those_beside`) or, in a worker, is. No
    part of what a device is, and never stored."""

    @property
    def each(self) -> tuple[DeviceFacts, ...]:
        """This device, then those beside it, each by itself."""
        return (self.over(1), *self.beside)

    def over(self, devices: int) -> DeviceFacts:
        """The same device with so many in all that are used."""
        return self.model_copy(update={"beside": self.beside[: devices - 1]})


def _processor(cpuinfo: str | None, variables: Mapping[str, str]) -> dict[str, Any]:
    import psutil

    info = cpu.parse_cpuinfo(cpu.read_cpuinfo() if cpuinfo is None else cpuinfo)
    caps = cpu.environment_caps(variables)
    total = int(psutil.virtual_memory().total)
    limit = cpu.memory_limit()
    return {
        "cpu_model": info.model,
        "cpu_flags": cpu.cap_flags(info.flags, caps),
        "cores": cpu.count_cores(cpu.schedulable(), info.core_of, cpu.cpu_quota()),
        "memory_bytes": total if limit is None else min(total, limit),
        "capped": caps,
    }


def _optional(nvml: Any, name: str, *arguments: Any) -> Any | None:
    """NVML's answer, or None where the device (a MIG slice, say) does not give it."""
    try:
        return getattr(nvml, name)(*arguments)
    except nvml.NVMLError:
        return None


def _gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    memory = _optional(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _optional(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    pci = _optional(nvml, "nvmlDeviceGetPciInfo", handle)
    return {
        "name": nvml.nvmlDeviceGetName(handle),
        "index": _optional(nvml, "nvmlDeviceGetIndex", handle),
        "pci_bus_id": None if pci is None else pci.busId,
        "compute_capability": None if capability is None else tuple(capability),
        "device_memory_bytes": None if memory is None else int(memory.total),
        "driver": _optional(nvml, "nvmlSystemGetDriverVersion"),
    }


def device_facts(
    device: str,
    *,
    cpuinfo: str | None = None,
    variables: Mapping[str, str] | None = None,
    nvml: Any | None = None,
) -> DeviceFacts:
    """Facts of `device` (as for `resolve_device`); UsageError as there.

    `cpuinfo` (the text of /proc/cpuinfo), `variables` (the environment) and `nvml` (the `pynvml`
    module) are for tests and recorded machines.
    """
    variables = os.environ if variables is None else variables
    handles = [] if device == "cpu" else _handles(nvml, variables)
    device = _resolve(device, len(handles))
    processor = _processor(cpuinfo, variables)
    if device == "cpu":
        return DeviceFacts(kind="cpu", device="cpu", name=processor["cpu_model"], **processor)
    nvml = load_nvml() if nvml is None else nvml
    gpu = _gpu(nvml, handles[int(device.removeprefix("cuda:"))])
    return DeviceFacts(kind="cuda", device=device, **gpu, **processor)


def with_those_beside(
    facts: DeviceFacts, *, variables: Mapping[str, str] | None = None, nvml: Any | None = None
) -> DeviceFacts:
    """`facts` with the other visible GPUs of its name, capability and memory. None are beside a
    slice of a GPU (MIG), nor is a slice beside another: a process sees one of them (NVIDIA MIG User
    Guide, "CUDA Device Enumeration")."""
    nvml = load_nvml() if nvml is None else nvml
    if facts.kind == "cpu" or nvml is None:
        return facts
    handles = visible_handles(nvml, os.environ if variables is None else variables)
    own = int(facts.device.removeprefix("cuda:"))
    found = []
    for number, handle in enumerate(handles):
        if _is_sliced(nvml, handle):
            if number == own:
                return facts
            continue
        with contextlib.suppress(nvml.NVMLError):  # One that is lost is not used.
            one = facts.model_copy(update={"device": f"cuda:{number}", **_gpu(nvml, handle)})
            if number != own and _alike(one, facts):
                found.append(one)
    return facts.model_copy(update={"beside": tuple(found)})


def _is_sliced(nvml: Any, handle: Any) -> bool:
    """Whether it is a slice of a GPU, or a GPU that is cut into slices."""
    mode = _optional(nvml, "nvmlDeviceGetMigMode", handle)
    is_slice = _optional(nvml, "nvmlDeviceIsMigDeviceHandle", handle)
    return bool(is_slice) or (mode is not None and bool(mode[0]))


def _alike(one: DeviceFacts, other: DeviceFacts) -> bool:
    names = ("name", "compute_capability", "device_memory_bytes")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _handles(nvml: Any | None, variables: Mapping[str, str]) -> list[Any]:
    nvml = load_nvml() if nvml is None else nvml
    return [] if nvml is None else visible_handles(nvml, variables)


def resolve_device(
    device: str, *, nvml: Any | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """``cpu`` or ``cuda:N`` for ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` (CUDA's numbering).

    ``auto`` is ``cuda:0`` where NVML reports a device that ``CUDA_VISIBLE_DEVICES`` leaves visible.
    UsageError for an unknown word, and for a GPU that is not there.
    """
    if device == "cpu":
        return "cpu"
    return _resolve(device, len(_handles(nvml, os.environ if variables is None else variables)))


def _resolve(device: str, gpus: int) -> str:
    if device == "cpu" or (device == "auto" and gpus == 0):
        return "cpu"
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", "cuda" if device == "auto" else device)
    if match is None:
        raise UsageError(unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0")))
    index = int(match.group(1) or 0)
    if gpus == 0:
        raise UsageError(
            f"no NVIDIA GPU is visible for device '{device}'; use cpu, or check nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )
    if index >= gpus:
        there = "cuda:0" if gpus == 1 else f"cuda:0 to cuda:{gpus - 1}"
        raise UsageError(f"device cuda:{index} is not there; use {there}")
    return f"cuda:{index}"
