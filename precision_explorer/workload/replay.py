"""Replay of a trace: requests that arrive as they were recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from precision_explorer.errors import UsageError
from precision_explorer.paths import expand_user
from precision_explorer.workload.process import ArrivalProcess
from precision_explorer.workload.trace import TraceData, read_trace


class TraceArrivals(ArrivalProcess):
    """Replay of a file (`trace.read_trace`): the same times in every round.

    `scale` is how many times faster than it was recorded (1 by default); in its place the rate or
    load may be given. Only what lies between `from_s` and `to_s` seconds after the first request is
    replayed, as recorded. The file's lengths are used unless `use_lengths` is off. What identifies
    the trace is `sha256` of the file, which is filled in; its path is no part of a workload's
    rules."""

    kind: Literal["trace"] = "trace"
    path: str | None = Field(default=None, exclude=True)
    sha256: str
    scale: float | None = Field(default=None, gt=0)
    from_s: float = Field(default=0.0, ge=0)
    to_s: float | None = Field(default=None, gt=0)
    use_lengths: bool = True

    @classmethod
    def speeds(cls) -> tuple[str, ...]:
        """`scale` too."""
        return ("rate_per_s", "load", "scale")

    @model_validator(mode="before")
    @classmethod
    def _identified(cls, values: Any, info: ValidationInfo) -> Any:
        """The path as seen from the workload file's folder, the file's hash, and the speed."""
        if not isinstance(values, dict):
            return values
        if all(values.get(name) is None for name in cls.speeds()):
            values = values | {"scale": 1.0}
        given = values.get("path")
        if given is None:
            if "sha256" not in values:
                raise ValueError("give the path of a CSV or parquet file")
            return values
        path = (info.context or {}).get("folder", Path()) / expand_user(str(given))
        data = read_trace(path, values.get("use_lengths", True) is not False)
        if values.get("sha256", data.sha256) != data.sha256:
            raise UsageError(f"{path} is not the trace that was planned; its content has changed")
        return values | {"path": str(path), "sha256": data.sha256}

    @model_validator(mode="after")
    def _some_requests(self) -> TraceArrivals:
        if self.to_s is not None and self.to_s <= self.from_s:
            raise ValueError(
                f"to_s {self.to_s:g} is not after from_s {self.from_s:g}; correct them"
            )
        if self.path is not None:
            times = self._cut(self._data())[0]
            if times.size < 2 or times[-1] <= 0:
                raise UsageError(
                    f"{self.path}: fewer than two requests lie between from_s and to_s; widen the "
                    "cut"
                )
        return self

    def rate(self, capacity_per_s: float | None = None) -> float:
        """Mean requests per second of the replay; of a `scale`, the recorded rate times it."""
        return self._recorded_rate() * self.scale if self.scale else super().rate(capacity_per_s)

    def span_s(self, rate_per_s: float) -> float:
        """Seconds that the replay takes at this mean rate."""
        return self._cut(self._data())[0].size / rate_per_s

    def lengths(self, n: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Tokens in and out of the first `n` requests, (n,) int64 each; None with `use_lengths`
        off."""
        data = self._data()
        if data.input_tokens is None or data.output_tokens is None:
            return None
        rows = self._cut(data)[1][:n]
        return data.input_tokens[rows], data.output_tokens[rows]

    def _data(self) -> TraceData:
        if self.path is None:
            raise UsageError("the trace's file is not at hand; give its path")
        return read_trace(Path(self.path), self.use_lengths)

    def _cut(self, data: TraceData) -> tuple[np.ndarray, np.ndarray]:
        """Recorded times from `from_s` on, (n,) seconds, and their rows."""
        end = math.inf if self.to_s is None else self.to_s
        rows = np.flatnonzero((data.times_s >= self.from_s) & (data.times_s <= end))
        return data.times_s[rows] - self.from_s, rows

    def _recorded_rate(self) -> float:
        data = self._data()
        last = float(data.times_s[-1])
        end = last if self.to_s is None else min(self.to_s, last)
        return self._cut(data)[0].size / (end - self.from_s)

    def _within(self, rng: np.random.Generator, rate: float, duration_s: float) -> np.ndarray:
        times = self._cut(self._data())[0] * (self._recorded_rate() / rate)
        # The last request ends the window, also where its time is rounded up.
        return np.minimum(times[times <= duration_s * (1 + 1e-12)], duration_s)

    def _first(self, rng: np.random.Generator, rate: float, n: int) -> np.ndarray:
        times = self._within(rng, rate, math.inf)
        if times.size < n:
            raise UsageError(f"the trace holds {times.size:,} requests, not {n:,}; ask for fewer")
        return times[:n]
