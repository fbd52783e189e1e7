"""Stand-ins for clocks, meters and GPUs, so that everything is tested without a device."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp
from typing import Any


class FakeClock:
    """A clock that moves only when told. `sleep` has `time.sleep`'s signature, `ticker` that of
    `measure.power.in_a_thread`: what is due while the clock moves on is called at its time."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self._due: dict[int, tuple[float, float, Callable[[], None]]] = {}
        self._made = 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        end = self.now + seconds
        while self._due:
            key, (at, every_s, action) = min(self._due.items(), key=lambda item: item[1][0])
            if at > end:
                break
            self.now, self._due[key] = at, (at + every_s, every_s, action)
            action()
        self.now = end

    def ticker(self, action: Callable[[], None], every_s: float) -> Callable[[], None]:
        """Call `action` every `every_s` from now on; returns what ends that."""
        key = self._made = self._made + 1
        self._due[key] = (self.now + every_s, every_s, action)

        def stop() -> None:
            self._due.pop(key, None)

        return stop


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


class FakeChip:
    """A chip that cools towards `ambient_c` by Newton's law, with a time constant of `tau_s`:
    called, it gives its temperature at the clock's time."""

    def __init__(
        self, clock: Callable[[], float], hot_c: float, ambient_c: float = 30.0, tau_s: float = 10.0
    ) -> None:
        self._clock, self._begin = clock, clock()
        self._hot_c, self._ambient_c, self._tau_s = hot_c, ambient_c, tau_s

    def __call__(self) -> float:
        passed = self._clock() - self._begin
        return self._ambient_c + (self._hot_c - self._ambient_c) * exp(-passed / self._tau_s)


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
    free: int | None = None
    """None: it does not tell."""
    celsius: int | None = 45
    sm_mhz: int = 1_500
    power_mw: int = 300_000
    instant_mw: int | None = None
    """None: the driver has no such field."""
    event_reasons: int = 0
    """NVML's bits."""
    sm_percent: dict[int, int] = field(default_factory=dict)
    """By process."""
    power_limit_mw: int | None = 700_000
    max_mhz: tuple[int, int] = (1_980, 3_201)
    """Of the SMs and of the memory."""
    application_mhz: int | None = None
    """None, as on newer drivers: there is no such clock."""
    ecc: bool | None = True
    is_cut: bool = False
    """Into slices (MIG)."""
    is_slice: bool = False


@dataclass
class _Fields:
    # NVML's own names.
    total: int = 0
    free: int | None = None
    busId: str = ""
    pid: int = 0
    timeStamp: int = 0
    smUtil: int = 0
    usedGpuMemory: int | None = None
    nvmlReturn: int = 0
    value: Any = None
    uiVal: int = 0


class FakeNvml:
    """The part of `pynvml` that this package calls, over `gpus`; a handle is a FakeGpu."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_SUCCESS = 0
    NVML_FI_DEV_POWER_INSTANT = 186

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
            "nvmlDeviceGetMemoryInfo": lambda g: _Fields(total=g.memory, free=g.free),
            "nvmlDeviceGetPciInfo": lambda g: _Fields(busId=g.bus_id),
            "nvmlSystemGetDriverVersion": lambda: "580.0",
            "nvmlDeviceGetTotalEnergyConsumption": self._energy,
            "nvmlDeviceGetMigMode": lambda g: [int(g.is_cut), int(g.is_cut)],
            "nvmlDeviceIsMigDeviceHandle": lambda g: int(g.is_slice),
            "nvmlDeviceGetComputeRunningProcesses": lambda g: [
                _Fields(pid=p, usedGpuMemory=b) for p, b in g.processes.items()
            ],
            "nvmlDeviceGetTemperature": lambda g, kind: self._there(g.celsius),
            "nvmlDeviceGetClockInfo": lambda g, kind: g.sm_mhz,
            "nvmlDeviceGetEnforcedPowerLimit": lambda g: self._there(g.power_limit_mw),
            "nvmlDeviceGetPowerManagementDefaultLimit": lambda g: 700_000,
            "nvmlDeviceGetMaxClockInfo": lambda g, kind: g.max_mhz[kind - 1],
            "nvmlDeviceGetApplicationsClock": lambda g, kind: self._there(g.application_mhz),
            "nvmlDeviceGetEccMode": lambda g: [self._there(g.ecc), True],
            "nvmlDeviceGetPowerUsage": lambda g: g.power_mw,
            "nvmlDeviceGetFieldValues": self._fields,
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

    def _fields(self, gpu: FakeGpu, ids: Sequence[int]) -> list[_Fields]:
        # As NVML does: the call succeeds, each field says for itself whether it is known.
        told = [gpu.instant_mw if i == self.NVML_FI_DEV_POWER_INSTANT else None for i in ids]
        return [
            _Fields(nvmlReturn=3 if mw is None else 0, value=_Fields(uiVal=mw or 0)) for mw in told
        ]

    def _energy(self, gpu: FakeGpu) -> int:
        if gpu.energy_mj is None:
            raise self.NVMLError("not supported")
        return gpu.energy_mj


@dataclass(frozen=True)
class GpuMoment:
    """What a GPU's sensors told at one time, as recorded: millijoules, milliwatts; None where a
    reading failed."""

    at_s: float
    energy_mj: int | None
    instant_mw: int | None = None
    usage_mw: int | None = None


class ReplayNvml(FakeNvml):
    """One GPU whose sensors give back a recorded log: the last moment at or before the clock's
    time, as sensors hold a value until they renew it."""

    def __init__(self, log: Sequence[GpuMoment], clock: Callable[[], float], gpu: FakeGpu) -> None:
        super().__init__([gpu])
        self._log, self._clock = list(log), clock
        self._times = [moment.at_s for moment in log]

    def __getattr__(self, name: str) -> Any:
        gpu = self.gpus[0]
        moment = self._log[max(bisect_right(self._times, self._clock()) - 1, 0)]
        gpu.energy_mj, gpu.instant_mw = moment.energy_mj, moment.instant_mw
        if name == "nvmlDeviceGetPowerUsage":
            return lambda g: self._there(moment.usage_mw)
        return super().__getattr__(name)
