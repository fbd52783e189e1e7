"""What speaks against a cell's joules: another figure of the same energy, or an idle device that
was not the same before and after. No torch here."""

from __future__ import annotations

from typing import Any

from precision_explorer.measure.energy import FAILED_METER
from precision_explorer.records import Caution
from precision_explorer.records.record import Energy
from precision_explorer.units import joules, share, signed, watts

LARGEST_DIFFERENCE = 0.05
"""Between the counter and the integral of the power. A declared choice, above what reading them
adds (2 % of a window of 50 renewals at either end). The NVML API Reference says of
nvmlDeviceGetPowerUsage that it is right to 5 %, of Fermi and Kepler only."""
LARGEST_IDLE_CHANGE = 0.1
"""Between the idle device before the work and after it. A declared choice: what is above idle
moves by half of it times the idle share of the power."""


def energy_cautions(energy: dict[str, Any] | None) -> list[Caution]:
    """Of a record's ``energy``."""
    if not energy:
        return []
    found = Energy.model_validate(energy)
    made = (_failed(found), _cross_check(found), _idle(found))
    return [caution for caution in made if caution is not None]


def _failed(energy: Energy) -> Caution | None:
    if energy.energy_j is not None or not (energy.note or "").startswith(FAILED_METER):
        return None
    text = (
        f"{energy.note}: energy and what is made of it are left empty, all else stands; run the "
        "cell again (remove its record) once the meter answers"
    )
    return Caution(id="meter-failed", message=text)


def _cross_check(energy: Energy) -> Caution | None:
    apart = energy.cross_check
    if apart is None or abs(apart) <= LARGEST_DIFFERENCE:
        return None
    text = (
        f"the counter says {joules(energy.energy_j)} of the same windows of which the power "
        f"({energy.power_reading}, {energy.power_samples:,} readings) adds up to "
        f"{joules(energy.integrated_j)}, {signed(apart, share(apart))}: at least one of them is "
        "wrong by more than the other allows, so don't rank formats by energy that is closer than "
        "that; update the driver, or hold both against a meter at the wall"
    )
    return Caution(id="energy-cross-check", message=text)


def _idle(energy: Energy) -> Caution | None:
    change = energy.idle_change
    if change is None or abs(change) <= LARGEST_IDLE_CHANGE:
        return None
    text = (
        f"the idle device drew {watts(energy.idle_power_before_w)} before the work and "
        f"{watts(energy.idle_power_after_w)} after it, {signed(change, share(change))} (its clocks "
        "stay up, it is warmer, or others use it): figures above idle rest on the mean of the two; "
        "compare formats by the gross ones, which idle power does not enter"
    )
    return Caution(id="idle-power-changed", message=text)
