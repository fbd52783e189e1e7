"""Waiting until a device is as cool as it was: what was timed before must not heat what comes
next, since a hot chip draws more (leakage) and may lower its clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

TOLERANCE_C = 3.0
"""As near to the common temperature as is waited for: sensors have steps of 1 degree, and the tail
of cooling takes longest."""
LIMIT_S = 10.0
"""The longest wait before one block, so that a sweep does not last longer for waiting than for
measuring; what was reached is stored beside the block."""
_POLL_S = 0.25


@dataclass(frozen=True)
class Cooling:
    """How long was waited, and the temperature then; None where the device does not tell."""

    waited_s: float
    temperature_c: float | None


def cool_down(
    temperature: Callable[[], float | None],
    target_c: float | None,
    *,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Cooling:
    """Wait until `temperature()` is at most `TOLERANCE_C` above `target_c` (degrees Celsius), but
    no longer than `limit_s` seconds. Without a target or a reading nothing is waited for."""
    begun = clock()
    now = temperature()
    while now is not None and target_c is not None and now > target_c + TOLERANCE_C:
        left = limit_s - (clock() - begun)
        if left <= 0:
            break
        sleep(min(_POLL_S, left))
        now = temperature()
    return Cooling(clock() - begun, now)
