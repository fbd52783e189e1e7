"""The noise floor, and when a difference is one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseFloor:
    """What the reference differs from itself when only batches and order are changed.

    `delta` in the metric's unit; `flips` None where examples are not right or wrong.
    """

    flips: int | None
    delta: float

    def exceeded_by(self, flips: int | None, delta: float) -> bool:
        """Whether a format's difference is larger, and its flips (where there are any) are more."""
        more = flips is None or self.flips is None or flips > self.flips
        return abs(delta) > abs(self.delta) and more


def is_different(
    p_value: float, flips: int | None, delta: float, noise: NoiseFloor | None, level: float = 0.05
) -> bool:
    """Whether a format may be called different: beyond chance at `level`, and beyond the noise
    floor where one was measured. `p_value`: after whatever correction applies."""
    return p_value <= level and (noise is None or noise.exceeded_by(flips, delta))
