"""Energy meters: NVML's counter, RAPL, and an estimate from CPU time where there is neither.

A meter answers whether it works here; what can't be measured is ``unavailable``, never 0.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from precision_explorer.hardware.nvml import load_nvml
from precision_explorer.hardware.power import PowerReading, power_readings
from precision_explorer.hardware.profile import DeviceFacts
from precision_explorer.hardware.zeus_meters import zeus_sensor

RAPL_ROOT = Path("/sys/class/powercap")
# NVML's counter is renewed every 20 to 100 ms: 5 s are at least 50 updates, an error of at most
# 2 % (Yang, Adamek, Armour, "Part-time power measurements", arXiv 2312.02741, 2023).
COUNTER_WINDOW_S = 5.0

WATTS_PER_CORE = 5.3
"""Thermal design power over cores, the median of four server processors' data sheets: EPYC 9654
(360 W, 96 cores: 3.8), EPYC 7763 (280 W, 64: 4.4), Xeon Platinum 8480+ (350 W, 56: 6.3), Xeon
Platinum 8380 (270 W, 40: 6.8)."""


class EnergySensor(Protocol):
    """A counter of joules. `boundary` says in words what the joules cover."""

    source: str
    boundary: str
    min_window_s: float

    def supported(self) -> bool:
        """Whether `energy_j` works here and now."""

    def energy_j(self) -> float:
        """Joules since an arbitrary start; never falls."""


@runtime_checkable
class PowerMeter(EnergySensor, Protocol):
    """A counter beside which the device tells its power, so that one can be held against the
    other; None where this device has no such reading."""

    @property
    def power(self) -> PowerReading | None:
        """The best to integrate."""


class UnavailableSensor:
    """No meter; `boundary` holds the reason."""

    source = "unavailable"
    min_window_s = 0.0

    def __init__(self, reason: str = "no energy meter on this device") -> None:
        self.boundary = reason

    def supported(self) -> bool:
        """Never."""
        return False

    def energy_j(self) -> float:
        """Always RuntimeError: ask `supported` first."""
        raise RuntimeError(self.boundary)


class NvmlSensor:
    """`nvmlDeviceGetTotalEnergyConsumption` (millijoules since the driver was loaded; Volta and
    newer) of the GPU at a PCI bus id: NVML's indices are not CUDA's. `power` is the best of its
    readings of power."""

    source = "measured:nvml"
    boundary = "GPU: the whole board, other processes' work on it included"
    min_window_s = COUNTER_WINDOW_S

    def __init__(self, pci_bus_id: str | None, nvml: Any | None = None) -> None:
        self._nvml = load_nvml() if nvml is None else nvml
        self._handle: Any | None = None
        if self._nvml is not None and pci_bus_id is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(pci_bus_id)
        self.powers = [] if self._handle is None else power_readings(self._nvml, self._handle)

    @property
    def power(self) -> PowerReading | None:
        """The reading that is integrated beside the counter."""
        return self.powers[0] if self.powers else None

    def supported(self) -> bool:
        """Whether the GPU has the counter (a MIG slice and those before Volta have none)."""
        if self._nvml is None or self._handle is None:
            return False
        try:
            self.energy_j()
        except self._nvml.NVMLError:
            return False
        return True

    def energy_j(self) -> float:
        """Joules since the driver was loaded."""
        if self._nvml is None or self._handle is None:
            raise RuntimeError("NVML knows no such GPU")
        return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000


class SummedSensor:
    """The joules of several devices of one kind, over which a model is spread: all of them draw
    power while one works. Supported where each one is; its power is not read beside it."""

    def __init__(self, sensors: Sequence[EnergySensor]) -> None:
        self._sensors = list(sensors)
        self.source = self._sensors[0].source
        self.min_window_s = max(sensor.min_window_s for sensor in self._sensors)
        self.boundary = f"sum of {len(self._sensors)} devices, each: {self._sensors[0].boundary}"

    def supported(self) -> bool:
        """Whether every one of them is, by the same kind of counter."""
        alike = {sensor.source for sensor in self._sensors} == {self.source}
        return alike and all(sensor.supported() for sensor in self._sensors)

    def energy_j(self) -> float:
        """Joules of all of them."""
        return sum(sensor.energy_j() for sensor in self._sensors)


class _RaplDomain:
    """One package's counter, made monotonic over its wrap-around."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last = self._raw()
        self._total = 0

    def _raw(self) -> int:
        return int(self._file.read_text(encoding="ascii"))

    def read_uj(self) -> int:
        """Microjoules since the first reading; right if read at least once per wrap (20 minutes
        at 200 W for the usual 262 kJ)."""
        raw = self._raw()
        step = raw - self._last
        # The counter goes 0 .. range, then 0 again: range + 1 values.
        self._total += step if step >= 0 else step + self._range + 1
        self._last = raw
        return self._total


class RaplSensor:
    """RAPL package domains by the powercap tree (kernel documentation, "Power Capping Framework").

    Packages only: their sub-domains (core, uncore) are part of them, ``psys`` holds them, and the
    ``intel-rapl-mmio`` tree shows the same packages again. AMD's counters have the same names.
    """

    source = "measured:rapl"
    boundary = "CPU packages: all cores, other processes' work included; no memory or board"
    min_window_s = COUNTER_WINDOW_S

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        self._domains: list[_RaplDomain] = []
        try:
            folders = [f for f in sorted(root.glob("intel-rapl:*")) if f.name.count(":") == 1]
            packages = [f for f in folders if _domain_name(f).startswith("package")]
            self._domains = [_RaplDomain(folder) for folder in packages]
        except (OSError, ValueError):
            self._domains = []  # Root alone may read it on most systems: no half of the packages.

    def supported(self) -> bool:
        """Whether every package's counter could be read."""
        return bool(self._domains)

    def energy_j(self) -> float:
        """Joules of all packages since the sensor was opened."""
        if not self._domains:
            raise RuntimeError("no RAPL counter is readable")
        return sum(domain.read_uj() for domain in self._domains) / 1e6


def _domain_name(folder: Path) -> str:
    return (folder / "name").read_text(encoding="ascii").strip()


class CpuTimeSensor:
    """An estimate: this process's CPU seconds (user and system, all threads) x `watts_per_core`."""

    source = "estimated:cpu-time"
    min_window_s = 0.0

    def __init__(
        self,
        watts_per_core: float = WATTS_PER_CORE,
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._watts, self._cpu_seconds = watts_per_core, cpu_seconds
        self.boundary = (
            f"this process's CPU seconds x {watts_per_core:g} W per core (median TDP per core of "
            "four server CPUs); no idle power, memory or board"
        )

    def supported(self) -> bool:
        """Always."""
        return True

    def energy_j(self) -> float:
        """Estimated joules since the process began."""
        return self._cpu_seconds() * self._watts


def open_sensor(
    facts: DeviceFacts, *, rapl_root: Path = RAPL_ROOT, nvml: Any | None = None
) -> EnergySensor:
    """The best meter of the device: NVML for a GPU, RAPL for a CPU, else what Zeus has for it; else
    none, or for a CPU the estimate. Of a GPU with others beside it the sum over all of them."""
    if facts.kind == "cuda" and facts.beside:
        whole = SummedSensor([open_sensor(one, nvml=nvml) for one in facts.each])
        if whole.supported():
            return whole
        return UnavailableSensor(
            f"not all of the {len(facts.each)} devices that the model is spread over have an "
            "energy counter"
        )
    own = NvmlSensor(facts.pci_bus_id, nvml) if facts.kind == "cuda" else RaplSensor(rapl_root)
    if own.supported():
        return own
    other = zeus_sensor(facts)
    if other is not None:
        return other
    if facts.kind == "cpu":
        return CpuTimeSensor()
    return UnavailableSensor(
        f"{facts.name} has no energy counter of NVML; for AMD and Jetson install "
        "'precision-explorer[zeus]'"
    )


def process_bytes(facts: DeviceFacts, nvml: Any | None = None) -> int | None:
    """Device memory of this process on a GPU and those beside it, as `nvml_process_bytes`; None
    where one of them does not tell."""
    found = [nvml_process_bytes(one.index, os.getpid(), nvml) for one in facts.each]
    known = [one for one in found if one is not None]
    return sum(known) if len(known) == len(found) else None


def nvml_process_bytes(index: int | None, pid: int, nvml: Any | None = None) -> int | None:
    """Device memory of process `pid` on NVML's GPU `index`, in bytes, as NVML sees it now (CUDA
    context and libraries included); None where it doesn't tell, as in most containers, whose
    process numbers are not the host's."""
    nvml = load_nvml() if nvml is None else nvml
    if nvml is None or index is None:
        return None
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return None
    used = [p.usedGpuMemory for p in processes if p.pid == pid and p.usedGpuMemory is not None]
    return int(sum(used)) if used else None
