"""Stand-ins for clocks, meters and GPUs, so that everything is tested without a device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any


class FakeClock:
    """A clock that moves only when told. `sleep` has `time.sleep`'s signature."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self.now += seconds


class ReplaySensor:
    """A counter that gives back a recorded log of (seconds, joules), a step at a time as counters
    do: the last value logged at or before the clock's time."""

    def __init__(
        self,
        log: Sequence[tuple[float, float]],
        clock: Callable[[], float],
        source: str = "measured:nvml",
        min_window_s: float = 5.0,
    ) -> None:
        self._times = [t for t, _ in log]
        self._joules = [j for _, j in log]
        self._clock = clock
        self.source, self.min_window_s = source, min_window_s
        self.boundary = "GPU, recorded"

    def supported(self) -> bool:
        """Whether anything was recorded."""
        return bool(self._times)

    def energy_j(self) -> float:
        """Joules at the clock's time; the first value before the log begins."""
        return self._joules[max(bisect_right(self._times, self._clock()) - 1, 0)]


@dataclass
class FakeGpu:
    """What `FakeNvml` answers for one GPU; `energy_mj` None: it has no counter."""

    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    uuid: str = "GPU-00000000"
    bus_id: str = "00000000:01:00.0"
    memory: int = 150_000_000_000
    energy_mj: int | None = 1_000
    processes: dict[int, int | None] = field(default_factory=dict)
    celsius: int | None = 45
    sm_mhz: int = 1_500
    power_mw: int = 300_000
    event_reasons: int = 0
    """NVML's bits."""
    sm_percent: dict[int, int] = field(default_factory=dict)
    """By process."""


@dataclass
class _Fields:
    # NVML's own names.
    total: int = 0
    busId: str = ""
    pid: int = 0
    timeStamp: int = 0
    smUtil: int = 0
    usedGpuMemory: int | None = None


class FakeNvml:
    """The part of `pynvml` that this package calls, over `gpus`; a handle is a FakeGpu."""

    class NVMLError(Exception):
        """As in pynvml."""

    def __init__(self, gpus: Sequence[FakeGpu]) -> None:
        self.gpus = list(gpus)

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetCount": lambda: len(self.gpus),
            "nvmlDeviceGetHandleByIndex": lambda i: self.gpus[i],
            "nvmlDeviceGetHandleByPciBusId": lambda b: self._find("bus_id", b),
            "nvmlDeviceGetHandleByUUID": lambda u: self._find("uuid", u),
            "nvmlDeviceGetIndex": self.gpus.index,
            "nvmlDeviceGetName": lambda g: g.name,
            "nvmlDeviceGetUUID": lambda g: g.uuid,
            "nvmlDeviceGetCudaComputeCapability": lambda g: g.capability,
            "nvmlDeviceGetMemoryInfo": lambda g: _Fields(total=g.memory),
            "nvmlDeviceGetPciInfo": lambda g: _Fields(busId=g.bus_id),
            "nvmlSystemGetDriverVersion": lambda: "580.0",
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetComputeRunningProcesses": lambda g: [
                _Fields(pid=p, usedGpuMemory=b) for p, b in g.processes.items()
            ],
            "nvmlDeviceGetTemperature": lambda g, kind: self._there(g.celsius),
            "nvmlDeviceGetClockInfo": lambda g, kind: g.sm_mhz,
            "nvmlDeviceGetPowerUsage": lambda g: g.power_mw,
            "nvmlDeviceGetCurrentClocksEventReasons": lambda g: g.event_reasons,
            "nvmlDeviceGetProcessUtilization": lambda g, since_us: [
                _Fields(pid=p, timeStamp=since_us + 1, smUtil=u) for p, u in g.sm_percent.items()
            ],
        }
        if name not in answers:
            raise AttributeError(name)
        return answers[name]

    def _find(self, attribute: str, value: str) -> FakeGpu:
        for gpu in self.gpus:
            if getattr(gpu, attribute) == value:
                return gpu
        raise self.NVMLError(value)

    def _there(self, value: int | None) -> int:
        if value is None:
            raise self.NVMLError("not supported")
        return value

    def _energy(self, gpu: FakeGpu) -> int:
        if gpu.energy_mj is None:
            raise self.NVMLError("not supported")
        return gpu.energy_mj
