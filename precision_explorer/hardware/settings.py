"""How the system is set that a device works in: power limit, clocks, container. Limits only, which
stay what they are while nobody changes them; what clocks do under load is for `readings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from precision_explorer.hardware.nvml import load_nvml
from precision_explorer.hardware.profile import DeviceFacts
from precision_explorer.hardware.sensors import RAPL_ROOT
from precision_explorer.records import DeviceSettings

_CPU = Path("sys/devices/system/cpu")
# Files and variables that the engines put into their containers, and the paths of their control
# groups (version 1; of version 2 nothing is seen from within).
_FILES = {".dockerenv": "docker", "run/.containerenv": "podman"}
_VARIABLES = {
    "KUBERNETES_SERVICE_HOST": "kubernetes",
    "APPTAINER_CONTAINER": "apptainer",
    "SINGULARITY_CONTAINER": "apptainer",
}
_GROUPS = {"kubepods": "kubernetes", "docker": "docker", "libpod": "podman", "lxc": "lxc"}


def container(root: Path = Path("/"), variables: Mapping[str, str] | None = None) -> str | None:
    """The engine whose container this process runs in: ``docker``, ``podman``, ``kubernetes``,
    ``apptainer`` or ``lxc``; None where nothing tells of one. No names of images or hosts."""
    variables = os.environ if variables is None else variables
    for name, engine in _VARIABLES.items():
        if name in variables:
            return engine
    for file, engine in _FILES.items():
        if (root / file).exists():
            return engine
    groups = _text(root / "proc/1/cgroup") or ""
    return next((engine for word, engine in _GROUPS.items() if word in groups), None)


def device_settings(
    facts: DeviceFacts, *, nvml: Any | None = None, root: Path = Path("/")
) -> DeviceSettings:
    """Limits of power and clocks of a device, each None where it is not told. `nvml` (the `pynvml`
    module) and `root` (of the file system) are for tests and recorded machines."""
    if facts.kind == "cpu":
        return _processor(root)
    nvml = load_nvml() if nvml is None else nvml
    return DeviceSettings() if nvml is None or facts.index is None else _gpu(nvml, facts.index)


def _gpu(nvml: Any, index: int) -> DeviceSettings:
    def asked(name: str, *arguments: Any) -> Any | None:
        try:
            return getattr(nvml, name)(*arguments)
        # AttributeError: a release of the library that has no such call.
        except (nvml.NVMLError, AttributeError):
            return None

    handle = asked("nvmlDeviceGetHandleByIndex", index)
    if handle is None:
        return DeviceSettings()
    sm, memory = getattr(nvml, "NVML_CLOCK_SM", 1), getattr(nvml, "NVML_CLOCK_MEM", 2)
    ecc = asked("nvmlDeviceGetEccMode", handle)
    return DeviceSettings(
        power_limit_w=_scaled(asked("nvmlDeviceGetEnforcedPowerLimit", handle), 1e-3),
        default_power_limit_w=_scaled(
            asked("nvmlDeviceGetPowerManagementDefaultLimit", handle), 1e-3
        ),
        clock_limit_hz=_scaled(asked("nvmlDeviceGetMaxClockInfo", handle, sm), 1e6),
        application_clock_hz=_scaled(asked("nvmlDeviceGetApplicationsClock", handle, sm), 1e6),
        memory_clock_limit_hz=_scaled(asked("nvmlDeviceGetMaxClockInfo", handle, memory), 1e6),
        # [current, pending].
        ecc=None if ecc is None else bool(ecc[0]),
    )


def _processor(root: Path) -> DeviceSettings:
    frequency = root / _CPU / "cpu0/cpufreq"
    rapl = root / RAPL_ROOT.relative_to("/") / "intel-rapl:0"
    return DeviceSettings(
        power_limit_w=_scaled(_number(rapl / "constraint_0_power_limit_uw"), 1e-6),
        clock_limit_hz=_scaled(_number(frequency / "scaling_max_freq"), 1e3),
        governor=_text(frequency / "scaling_governor"),
        boost=_boost(root / _CPU),
    )


def _boost(cpu: Path) -> bool | None:
    """Whether clocks above the base are allowed; the two drivers tell it the other way round."""
    off, on = _number(cpu / "intel_pstate/no_turbo"), _number(cpu / "cpufreq/boost")
    if off is not None:
        return not off
    return None if on is None else bool(on)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf8").strip() or None
    except (OSError, ValueError):
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    return float(text) if text is not None and text.isdecimal() else None
