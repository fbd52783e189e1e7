"""The diagnosis in sentences that a newcomer understands; each follows from its numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.diagnose.roofline import LARGEST_BATCH, Expected
from precision_explorer.records import Roof
from precision_explorer.units import share, significant

if TYPE_CHECKING:
    from precision_explorer.diagnose.diagnosis import CellWhy

# A share of a pass's time from which on it is named as a cause.
NOTABLE = 0.15
# Speed-ups nearer to 1 than this are called no difference.
_LEVEL = 0.05
_NO_ARITHMETIC = ("emulated",)
_OF_BOUND = {
    "compute": "the arithmetic units",
    "memory": "memory",
    "launch": "starting one operator after the other",
}


def _times(value: float) -> str:
    return f"{significant(value)} x"


def _cause(cell: CellWhy, base: CellWhy) -> str:
    """The strongest reasons why `cell` takes the time that it does, beside `base`."""
    causes = []
    if cell.execution in _NO_ARITHMETIC:
        causes.append(f"this device has no {cell.arithmetic} arithmetic, so slow software makes it")
    elif cell.arithmetic == base.arithmetic:
        causes.append(f"the arithmetic stays {cell.arithmetic}")
    if cell.quantizing_share is not None and cell.quantizing_share >= NOTABLE:
        what = "widening weights" if cell.arithmetic == base.arithmetic else "(de)quantizing"
        causes.append(f"{share(cell.quantizing_share, 0)} of the time goes to {what}")
    if cell.outside_share is not None and cell.outside_share >= NOTABLE:
        text = f"{share(cell.outside_share, 0)} of the time passes between operators"
        causes.append(text)
    bound = cell.expected.bound
    if not causes and bound is not None:
        causes.append(f"its limit is {_OF_BOUND[bound]}")
    return " and ".join(causes)


def sentence(cell: CellWhy, base: CellWhy | None, lighter: bool) -> str:
    """What became of the format in one sentence. `lighter`: its weights take less storage than the
    reference's."""
    if cell.observed_s is None:
        return f"{cell.label} was not timed in {cell.phase}."
    if base is None or cell.is_reference:
        return _alone(cell)
    speed = cell.observed_speedup
    if speed is None:
        return f"{cell.label} can't be compared in {cell.phase}: the reference was not timed."
    if abs(speed - 1) < _LEVEL:
        how = f"is about as fast as {base.format}"
    elif speed > 1:
        how = f"is {_times(speed)} as fast as {base.format}"
    else:
        how = f"takes {_times(1 / speed)} as long as {base.format}"
    foretold = cell.expected_speedup
    limits = "" if foretold is None else f" (the device's limits allow {_times(foretold)})"
    cause = _cause(cell, base)
    text = f"{cell.label} {how} in {cell.phase}{limits}"
    if cause:
        text += f": {cause}"
    if speed < 1 + _LEVEL and lighter:
        text += "; it saves memory, not time"
    return f"{text}."


def _alone(cell: CellWhy) -> str:
    bound = cell.expected.bound
    if bound is None or cell.share_of_roof is None:
        return f"{cell.label} has no roof in {cell.phase}: one of its limits was not measured."
    return (
        f"{cell.label} in {cell.phase} reaches {share(cell.share_of_roof, 0)} of its limit here, "
        f"which is {_OF_BOUND[bound]}."
    )


def never(cell: CellWhy, base: CellWhy, largest: Expected, roof: Roof) -> str:
    """Why the roofs promise no gain at any batch size."""
    if largest.bound == "compute":
        if cell.arithmetic == base.arithmetic:
            return f"its products are made in {cell.arithmetic}, as the reference's are"
        own, other = roof.peak(cell.arithmetic), roof.peak(base.arithmetic)
        if own and other and own.flops_per_s and other.flops_per_s:
            ratio = own.flops_per_s / other.flops_per_s
            return f"{cell.arithmetic} products reach {_times(ratio)} {base.arithmetic}'s rate here"
    if largest.bound == "memory":
        return "it moves no fewer bytes than the reference"
    return f"its limits are no lower than the reference's up to batch {LARGEST_BATCH}"


def reason(promised: CellWhy, other: CellWhy) -> str:
    """Why `promised`, which the roofs put before `other`, came out behind it: the first that the
    numbers show, or that none can be named."""
    if promised.above_roof or other.above_roof:
        name = promised if promised.above_roof else other
        return f"{name.label} was faster than its measured limit, so that limit is too low"
    if promised.execution in _NO_ARITHMETIC:
        return f"slow software makes {promised.label}'s arithmetic"
    extra = [
        (
            promised.quantizing_share,
            other.quantizing_share,
            "goes to (de)quantizing",
        ),
        (promised.outside_share, other.outside_share, "passes between operators"),
    ]
    for own, others, text in extra:
        if own is not None and own >= NOTABLE and own > (others or 0.0):
            return f"{share(own, 0)} of {promised.label}'s time {text}"
    own, others = promised.share_of_roof, other.share_of_roof
    if own is not None and others is not None and own < others:
        return (
            f"{promised.label}'s kernels reach {share(own, 0)} of its limit, {other.label}'s "
            f"{share(others, 0)}"
        )
    return "no reason that the profile shows"
