"""A long run in windows of time: what the device and the machine were like in each."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")


class SoakWindow(_Data):
    """One window. `start_s` counts from where the requests' own `start_s` does; `requests` ended in
    it. What could not be read is None.

    `memory_bytes`: the process's own memory (USS) at the window's end on a CPU, less what the
    requests' own rows take by then (in records from before that it was not), the device memory
    that it holds on a GPU. `temperature_c`: the highest reading. `clock_hz`: the mean of the
    readings, of the SM clock on a GPU, of the cores on a CPU. `power_w`: the mean. Of a GPU's
    `throttle_reasons` (NVML's names, in lower case) all are listed that were seen; `throttled`
    says whether one of them is a slowdown from heat or a power brake, as a board that
    works at its power limit always shows ``sw-power-cap``. `other_work_share`: share of the usable
    cores' time that other processes took; `other_gpu_share`: the mean share of NVML's sampling
    periods in which kernels of other processes ran on the GPU. `disturbed`: by either. `repeats`:
    the number of the window that this one was measured again for.
    """

    start_s: float
    seconds: float = Field(gt=0)
    requests: int = 0
    memory_bytes: int | None = None
    temperature_c: float | None = None
    clock_hz: float | None = None
    power_w: float | None = None
    throttle_reasons: list[str] = Field(default_factory=list)
    throttled: bool = False
    other_work_share: float | None = None
    other_gpu_share: float | None = None
    disturbed: bool = False
    repeats: int | None = Field(default=None, ge=0)

    @property
    def is_flagged(self) -> bool:
        """Whether the window is measured again, and doesn't count where it was."""
        return self.disturbed or self.throttled


class Soak(_Data):
    """All windows of a soak in order of time, repeats at the end. `sources`: what was read, by
    field, in words."""

    window_seconds: float
    windows: list[SoakWindow] = Field(default_factory=list)
    sources: dict[str, str] = Field(default_factory=dict)

    def skipped(self) -> list[int]:
        """Windows that a repeat stands in for."""
        named = {w.repeats for w in self.windows if w.repeats is not None}
        return sorted(k for k in named if k < len(self.windows))


def windows_owed(windows: Sequence[SoakWindow], planned: int) -> int:
    """How many whole windows are still to be measured: the planned ones, and each flagged one of
    these once more. A repeat that is flagged too is not repeated again."""
    flagged = sum(w.is_flagged for w in windows[:planned])
    return max(planned + flagged - len(windows), 0)


def with_repeats(windows: Sequence[SoakWindow], planned: int) -> list[SoakWindow]:
    """The same windows, those after the planned ones marked as repeats of the flagged ones, in
    order."""
    flagged = [k for k, w in enumerate(windows[:planned]) if w.is_flagged]
    again = zip(windows[planned:], flagged, strict=False)
    marked = [w.model_copy(update={"repeats": k}) for w, k in again]
    return [*windows[:planned], *marked, *windows[planned + len(marked) :]]
