"""NVML's readings of a GPU's power now, and over what time each is an average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INSTANT = "NVML_FI_DEV_POWER_INSTANT"
USAGE = "nvmlDeviceGetPowerUsage"
# NVML API Reference, nvmlDeviceGetPowerUsage: "On Ampere (except GA100) or newer GPUs, the API
# returns power averaged over 1 sec interval. On GA100 and older architectures, instantaneous power
# is returned." GA100 is compute capability 8.0.
_GA100 = (8, 0)
_USAGE_AVERAGED_S = 1.0


@dataclass(frozen=True)
class PowerReading:
    """One of NVML's readings. `name`: the call or field; `averaged_s`: seconds over which it is an
    average, 0 where it is instantaneous; `watts`: reads it, NVMLError where that fails."""

    name: str
    averaged_s: float
    watts: Callable[[], float]


def power_readings(nvml: Any, handle: Any) -> list[PowerReading]:
    """Those that the GPU, its driver and the binding have, the best to integrate first: the
    instantaneous field (drivers from 530 on), then `nvmlDeviceGetPowerUsage`."""

    def instant() -> float:
        value = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        # The call succeeds if any of its fields did: each tells of itself.
        if value.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(value.nvmlReturn)
        return float(value.value.uiVal) / 1000

    def usage() -> float:
        return float(nvml.nvmlDeviceGetPowerUsage(handle)) / 1000

    known = [
        PowerReading(INSTANT, 0.0, instant),
        PowerReading(USAGE, _usage_averaged_s(nvml, handle), usage),
    ]
    return [reading for reading in known if _answers(nvml, reading)]


def _usage_averaged_s(nvml: Any, handle: Any) -> float:
    try:
        capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
    except nvml.NVMLError:
        return _USAGE_AVERAGED_S
    return _USAGE_AVERAGED_S if capability > _GA100 else 0.0


def _answers(nvml: Any, reading: PowerReading) -> bool:
    try:
        # A GPU that draws nothing does not answer: NVML leaves what it does not know at 0.
        return reading.watts() > 0
    except (nvml.NVMLError, AttributeError):  # An older binding lacks the field.
        return False
