"""Axes of a chart: from values to pixels, with ticks at round values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A position along an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """`low` to `high` drawn from `start` to `end`; values beyond stand at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of `value`."""
        value = min(max(value, self.low), self.high)
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return round(self.start + (self.end - self.start) * (value - low) / (high - low), 1)

    def is_beyond(self, value: float) -> bool:
        """Whether `value` stands at the edge only."""
        return not self.low <= value <= self.high

    def ticks(self, show: Callable[[float], str]) -> list[Tick]:
        """Round values with their text."""
        values = _log_steps(self.low, self.high) if self.log else _steps(self.low, self.high)
        return [Tick(self.at(v), show(v) if v else "0") for v in values]

    def digits(self) -> int:
        """Digits after the point that tell the ticks apart when shown in percent."""
        return max(0, -math.floor(math.log10(100 * _step(self.high - self.low))))


def _steps(low: float, high: float) -> list[float]:
    """Round values between `low` and `high`, about five."""
    step = _step(high - low)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step) + 1)]


def _step(span: float) -> float:
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 7)


def _log_steps(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = len(powers) > 4
    values = [m * 10.0**p for p in powers for m in ((1,) if wide else (1, 2, 5))]
    return [v for v in values if low <= v <= high]
