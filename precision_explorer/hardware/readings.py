"""What a device tells of itself while it works: temperature, clock, power, why it slows down.

What a device does not tell is None. Reading a processor took 0.2 ms of one core on a machine under
load, so once a second is no disturbance.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from precision_explorer.hardware.nvml import load_nvml
from precision_explorer.hardware.profile import DeviceFacts
from precision_explorer.hardware.sensors import EnergySensor, open_sensor

CPU_ROOT = Path("/sys/devices/system/cpu")
# NVML API Reference, "Clock Event Reasons" (nvmlClocksEventReasons): bit and name.
_REASONS = {
    0x01: "gpu-idle",
    0x02: "applications-clocks-setting",
    0x04: "sw-power-cap",
    0x08: "hw-slowdown",
    0x10: "sync-boost",
    0x20: "sw-thermal-slowdown",
    0x40: "hw-thermal-slowdown",
    0x80: "hw-power-brake-slowdown",
    0x100: "display-clock-setting",
}
THROTTLES = frozenset(
    {"hw-slowdown", "sw-thermal-slowdown", "hw-thermal-slowdown", "hw-power-brake-slowdown",
     "cpu-thermal-throttle"}
)  # fmt: skip
"""The reasons that tell of trouble: heat, or a brake by the power supply. Idling, a set clock and
the board's own power limit are no trouble; measuring again would find them again."""
# Those that say nothing of a busy device.
_ORDINARY = {"gpu-idle", "applications-clocks-setting", "display-clock-setting"}


@dataclass(frozen=True)
class Reading:
    """One look at the device. `other_share`: of NVML's sampling periods since the last look, the
    share in which kernels of other processes ran."""

    temperature_c: float | None = None
    clock_hz: float | None = None
    power_w: float | None = None
    throttle_reasons: frozenset[str] = frozenset()
    other_share: float | None = None


class Readings(Protocol):
    """Something that can be looked at again and again; `sources` says where each value is from."""

    sources: dict[str, str]

    def read(self) -> Reading:
        """The device now; power is since the last call where a counter of joules gives it."""


class NvmlReadings:
    """The GPU at a PCI bus id by NVML."""

    def __init__(self, pci_bus_id: str | None, nvml: Any | None = None) -> None:
        self._nvml: Any = load_nvml() if nvml is None else nvml
        self._handle: Any = None
        if self._nvml is not None and pci_bus_id is not None:
            self._handle = self._ask("nvmlDeviceGetHandleByPciBusId", pci_bus_id)
        self._seen_us = 0
        found = {} if self._handle is None else self._present()
        self.sources = {field: f"nvml: {words}" for field, words in found.items()}

    def _ask(self, name: str, *arguments: Any) -> Any:
        """NVML's answer; None where this device, driver or binding has none."""
        try:
            return getattr(self._nvml, name)(*arguments)
        except (self._nvml.NVMLError, AttributeError):
            return None

    def _present(self) -> dict[str, str]:
        now = self.read()
        found = {
            "temperature_c": "GPU temperature" if now.temperature_c is not None else "",
            "clock_hz": "SM clock" if now.clock_hz is not None else "",
            "power_w": "board power" if now.power_w is not None else "",
            "throttle_reasons": "clock event reasons" if self._bits() is not None else "",
        }
        return {field: words for field, words in found.items() if words}

    def _bits(self) -> int | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._handle)
        if bits is None:  # The name before driver 535.
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", self._handle)
        return bits

    def read(self) -> Reading:
        """Temperature, SM clock, power and reasons now; others' kernels since the last call."""
        if self._handle is None:
            return Reading()
        bits = self._bits() or 0
        reasons = {name for bit, name in _REASONS.items() if bits & bit} - _ORDINARY
        celsius = self._ask("nvmlDeviceGetTemperature", self._handle, 0)  # NVML_TEMPERATURE_GPU
        megahertz = self._ask("nvmlDeviceGetClockInfo", self._handle, 1)  # NVML_CLOCK_SM
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", self._handle)
        return Reading(
            temperature_c=None if celsius is None else float(celsius),
            clock_hz=None if megahertz is None else megahertz * 1e6,
            power_w=None if milliwatts is None else milliwatts / 1000,
            throttle_reasons=frozenset(reasons),
            other_share=self._others(),
        )

    def _others(self) -> float | None:
        """The busiest process counts as this one: a container's process numbers are not NVML's.
        A process that only holds memory, as a worker that waits for its turn, is no disturbance."""
        samples = self._ask("nvmlDeviceGetProcessUtilization", self._handle, self._seen_us)
        if not samples:
            return None
        self._seen_us = max(sample.timeStamp for sample in samples)
        busy: dict[int, list[int]] = defaultdict(list)
        for sample in samples:
            busy[sample.pid].append(sample.smUtil)
        means = sorted(fmean(values) for values in busy.values())
        return sum(means[:-1]) / 100


class CpuReadings:
    """The processor by psutil and sysfs. `sensor`: where power comes from; an estimate from CPU
    time is none."""

    def __init__(
        self,
        sensor: EnergySensor | None = None,
        root: Path = CPU_ROOT,
        clock: Callable[[], float] = time.perf_counter,
        psutil: Any | None = None,
    ) -> None:
        if psutil is None:
            psutil = import_module("psutil")
        measured = sensor is not None and sensor.source.startswith("measured")
        self._psutil: Any = psutil
        self._clock = clock
        self._sensor = sensor if measured else None
        # Kernel documentation, ABI/testing/sysfs-devices-system-cpu: counts since boot.
        self._files = sorted(root.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        self._throttles = self._count()
        self._last = (clock(), self._joules())
        self.sources = self._present()

    def _present(self) -> dict[str, str]:
        found = {}
        if self._temperature() is not None:
            found["temperature_c"] = "psutil: the hottest processor sensor"
        if self._hertz() is not None:
            found["clock_hz"] = "psutil: mean frequency of the cores"
        if self._sensor is not None:
            found["power_w"] = self._sensor.source
        if self._files:
            found["throttle_reasons"] = "the kernel's counts of thermal throttling"
        return found

    def _temperature(self) -> float | None:
        # Names are the kernel's hwmon drivers; others are drives, boards and batteries.
        known = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
        try:
            found = self._psutil.sensors_temperatures()
        except (AttributeError, OSError):  # Not on every system.
            return None
        values = [t.current for name in known for t in found.get(name, ()) if t.current]
        return max(values, default=None)

    def _hertz(self) -> float | None:
        try:
            found = self._psutil.cpu_freq()
        except (AttributeError, OSError, NotImplementedError):
            return None
        return found.current * 1e6 if found is not None and found.current else None

    def _count(self) -> int:
        total = 0
        for file in self._files:
            try:
                total += int(file.read_text(encoding="ascii"))
            except (OSError, ValueError):
                continue
        return total

    def _joules(self) -> float | None:
        if self._sensor is None:
            return None
        try:
            return self._sensor.energy_j()
        except Exception:  # A meter that is gone costs its own reading, not the work beside it.
            return None

    def read(self) -> Reading:
        """Temperature and frequency now, power and throttling since the last call."""
        now, throttles = (self._clock(), self._joules()), self._count()
        (then, before), counted = self._last, self._throttles
        self._last, self._throttles = now, throttles
        watts = None
        if before is not None and now[1] is not None and now[0] > then:
            watts = (now[1] - before) / (now[0] - then)
        reasons = frozenset({"cpu-thermal-throttle"} if throttles > counted else ())
        return Reading(self._temperature(), self._hertz(), watts, reasons)


class WorstReadings:
    """Several devices looked at together: the hottest one's temperature, the slowest one's clock,
    the power of all, every reason to slow down, and the largest share of others' kernels."""

    def __init__(self, each: Sequence[Readings]) -> None:
        self._each = list(each)
        words = f"the worst of {len(self._each)} devices"
        summed = f"the sum of {len(self._each)} devices"
        shared = set.intersection(*(set(one.sources) for one in self._each))
        self.sources = {
            name: f"{self._each[0].sources[name]}, {summed if name == 'power_w' else words}"
            for name in self._each[0].sources
            if name in shared
        }

    def read(self) -> Reading:
        """All of them now. Power is None unless each tells its own."""
        seen = [one.read() for one in self._each]
        watts = [r.power_w for r in seen if r.power_w is not None]
        return Reading(
            temperature_c=max((r.temperature_c for r in seen if r.temperature_c), default=None),
            clock_hz=min((r.clock_hz for r in seen if r.clock_hz), default=None),
            power_w=sum(watts) if len(watts) == len(seen) else None,
            throttle_reasons=frozenset[str]().union(*(r.throttle_reasons for r in seen)),
            other_share=max(
                (r.other_share for r in seen if r.other_share is not None), default=None
            ),
        )


def open_readings(facts: DeviceFacts, nvml: Any | None = None) -> Readings:
    """The readings of a device, and of those beside it that are used too."""
    if facts.kind == "cuda" and facts.beside:
        return WorstReadings([open_readings(one, nvml) for one in facts.each])
    if facts.kind == "cuda":
        return NvmlReadings(facts.pci_bus_id, nvml)
    return CpuReadings(open_sensor(facts))
