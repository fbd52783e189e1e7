"""The diagnosis in sentences that a newcomer understands; each follows from its numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.diagnose.roofline import ABOVE_ROOF, LARGEST_BATCH, SAME, Expected
from precision_explorer.records import Roof
from precision_explorer.units import share, significant

if TYPE_CHECKING:
    from precision_explorer.diagnose.diagnosis import CellWhy

# A share of a pass's time from which on it is named as a cause.
NOTABLE = 0.15
# Speed-ups nearer to 1 than this are called no difference.
LEVEL = 0.05
# A gain is explained where the limits promise so many times more than came of it.
_MUCH = 1.25
_NO_ARITHMETIC = ("emulated",)
_OF_BOUND = {
    "compute": "the arithmetic units",
    "memory": "memory",
    "launch": "starting one operator after the other",
}


def _joined(causes: list[str]) -> str:
    return ", ".join(causes[:-1]) + (" and " if causes[1:] else "") + causes[-1]


def _times(value: float) -> str:
    return f"{significant(value)} x"


def _excess(cell: CellWhy, base: CellWhy, name: str) -> float | None:
    """The part of `cell`'s time by which its time in ``name`` exceeds `base`'s; None if unknown."""
    own, other = getattr(cell, f"{name}_share"), getattr(base, f"{name}_share")
    if own is None or not cell.observed_s:
        return None
    return own - (other or 0.0) * (base.observed_s or 0.0) / cell.observed_s


def _slowed(cell: CellWhy, base: CellWhy) -> list[str]:
    """Why `cell` is no faster than `base`, as far as the profile shows."""
    causes = []
    if cell.execution in _NO_ARITHMETIC:
        causes.append(_emulated(cell))
    elif cell.arithmetic == base.arithmetic and not _promised(cell, 1.0):
        causes.append(f"the arithmetic stays {cell.arithmetic}")
    causes += _spent(cell, base)
    return causes or _nearness(cell, base)


def _emulated(cell: CellWhy) -> str:
    text = f"this device has no {cell.declared} arithmetic"
    if cell.declared == cell.arithmetic:
        return f"{text}, so slow software makes it"
    return f"{text}, so its products are made in {cell.arithmetic}"


def _promised(cell: CellWhy, speed: float) -> bool:
    """Whether the limits promise a good deal more than `speed`."""
    return cell.expected_speedup is not None and cell.expected_speedup > speed * (1 + LEVEL)


def _spent(cell: CellWhy, base: CellWhy) -> list[str]:
    """On what `cell` spends time that `base` does not, or that no format shortens."""
    causes = []
    if (_excess(cell, base, "quantizing") or 0.0) >= NOTABLE:
        what = "widening weights" if cell.arithmetic == base.arithmetic else "(de)quantizing"
        causes.append(f"{share(cell.quantizing_share, 0)} of the time goes to {what}")
    text = f"{share(cell.outside_share, 0)} of the time passes between operators"
    if (_excess(cell, base, "outside") or 0.0) >= NOTABLE:
        causes.append(text)
    elif (cell.outside_share or 0.0) >= NOTABLE and _promised(cell, cell.observed_speedup or 1.0):
        causes.append(f"{text}, which no format shortens")
    own, other = ((c.matmul_share or 0.0) * (c.observed_s or 0.0) for c in (cell, base))
    if (_excess(cell, base, "matmul") or 0.0) >= NOTABLE and other > 0:
        causes.append(f"its products take {_times(own / other)} as long as {base.format}'s")
    return causes


def _gained(cell: CellWhy, base: CellWhy) -> list[str]:
    """Why `cell` is faster than `base`: what the limits foretold, or that they don't tell."""
    if not _promised(cell, 1.0) or base.expected.bound is None:
        return _nearness(cell, base)
    # All its limits are lower than the highest of the reference's: that one was lifted.
    lifted = {
        "compute": f"{cell.arithmetic} products can be made faster here than {base.arithmetic} ones"
        if cell.arithmetic != base.arithmetic
        else "its products ask for less",
        "memory": "it moves fewer bytes",
        "launch": "it starts fewer operators",
    }
    more = (cell.observed_speedup or 0.0) > (cell.expected_speedup or 0.0) * _MUCH
    return [lifted[base.expected.bound], *(_nearness(cell, base) if more else [])]


def _nearness(cell: CellWhy, base: CellWhy) -> list[str]:
    """How near both come to their limits, which is all that is left to say."""
    if cell.share_of_roof is None or base.share_of_roof is None:
        return []
    own, other = share(cell.share_of_roof, 0), share(base.share_of_roof, 0)
    return [f"it reaches {own} of its limit, {base.format} {other}"]


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
    if abs(speed - 1) < LEVEL:
        how = f"is about as fast as {base.format}"
    elif speed > 1:
        how = f"is {_times(speed)} as fast as {base.format}"
    else:
        how = f"takes {_times(1 / speed)} as long as {base.format}"
    foretold = cell.expected_speedup
    limits = ""
    if foretold is not None:
        # A promise to be slower in the same words as a promise to be faster would be misread.
        told = f"{_times(foretold)} as fast" if foretold >= 1 else f"{_times(1 / foretold)} as long"
        limits = f" (the device's limits promise {told})"
    text = f"{cell.label} {how} in {cell.phase}{limits}"
    if speed >= 1 + LEVEL:
        causes = _gained(cell, base)
        hindered = _spent(cell, base) if _promised(cell, speed * _MUCH) else []
        but = f", but {_joined(hindered)}" if hindered else ""
    else:
        causes, but = _slowed(cell, base), ""
    if causes:
        text += f": {_joined(causes)}{but}"
    if speed < 1 + LEVEL and lighter:
        text += "; it saves weight memory, not time"
    return f"{text}."


def _alone(cell: CellWhy) -> str:
    nearest = cell.expected.bound
    if nearest is None or cell.share_of_roof is None:
        return f"{cell.label} has no roof in {cell.phase}: one of its limits was not measured."
    reached, limit = share(cell.share_of_roof, 0), _OF_BOUND[nearest]
    if cell.bound is not None:
        return (
            f"{cell.label} in {cell.phase} is bound by {limit}: it reaches {reached} of that limit."
        )
    text = (
        f"{cell.label} in {cell.phase} is bound by none of the device's limits: it reaches "
        f"{reached} of the nearest, {limit}"
    )
    if (cell.outside_share or 0.0) >= NOTABLE:
        text += f", and {share(cell.outside_share, 0)} of its time passes between operators"
    return f"{text}."


def never(cell: CellWhy, base: CellWhy, largest: Expected, roof: Roof) -> str:
    """Why the roofs promise no gain at any batch size."""
    if largest.bound == "compute":
        if cell.arithmetic == base.arithmetic:
            return f"its products are made in {cell.arithmetic}, as the reference's are"
        own, other = roof.peak(cell.arithmetic), roof.peak(base.arithmetic)
        ratio = 2.0
        if own and other and own.flops_per_s and other.flops_per_s:
            ratio = own.flops_per_s / other.flops_per_s
        if ratio <= 1 + SAME:
            return f"{cell.arithmetic} products reach {_times(ratio)} {base.arithmetic}'s rate here"
    if largest.bound == "memory":
        return "it moves no fewer bytes than the reference"
    return f"its limits are no lower than the reference's up to batch {LARGEST_BATCH}"


def reason(promised: CellWhy, other: CellWhy) -> str:
    """Why `promised`, which the roofs put before `other`, came out behind it: the first that the
    numbers show, or that none can be named."""
    if (other.share_of_roof or 0.0) > ABOVE_ROOF:
        return f"{other.label} was faster than its measured limit, so that limit is wrong"
    took, others = promised.observed_s or 0.0, other.observed_s or 0.0
    for part, text in (
        ("quantizing", "goes to (de)quantizing"),
        ("outside", "passes between operators"),
    ):
        extra = _excess(promised, other, part) or 0.0
        # Without what it spends there beyond the other, would it have come first?
        if extra >= NOTABLE and took * (1 - extra) <= others:
            spent = getattr(promised, f"{part}_share")
            return f"{share(spent, 0)} of {promised.label}'s time {text}"
    own, theirs = promised.share_of_roof, other.share_of_roof
    if own is not None and theirs is not None and own < theirs:
        return (
            f"{promised.label}'s kernels reach {share(own, 0)} of its limit, {other.label}'s "
            f"{share(theirs, 0)}"
        )
    return "no reason that the profile shows"
