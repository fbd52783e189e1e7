"""The roofline model (Williams, Waterman, Patterson, "Roofline: an insightful visual performance
model for multicore architectures", CACM 52(4), 2009) with a third roof, the time to start
operators: a pass takes at least as long as its arithmetic, its memory traffic or its starts."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from precision_explorer.records import PhaseProfile, Roof, Timing

# Roofs are medians of repeats and differ by some per cent between runs; what is faster than its
# roof by more than this was measured wrong, or its roof was.
ABOVE_ROOF = 1.05
# A limit that accounts for less of a pass's time is not what bounds it.
NEAR = 0.5
# Times that differ by less are no gain to speak of.
SAME = 0.01
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Expected:
    """Seconds that each roof alone asks of a pass; None where that roof was not measured."""

    compute_s: float | None
    memory_s: float | None
    launch_s: float | None

    @property
    def seconds(self) -> float | None:
        """The longest of the three; None unless all of them are known."""
        known = [self.compute_s, self.memory_s, self.launch_s]
        return None if None in known else max(s for s in known if s is not None)

    @property
    def bound(self) -> str | None:
        """Which roof that is: ``compute``, ``memory`` or ``launch``."""
        if self.seconds is None:
            return None
        parts = {"compute": self.compute_s, "memory": self.memory_s, "launch": self.launch_s}
        return max(parts, key=lambda name: parts[name] or 0.0)


def _compute_s(phase: PhaseProfile, roof: Roof, batch: int) -> float | None:
    """Operations over the peak of their number type, summed: types share the arithmetic units."""
    total = 0.0
    for number_type, flops in phase.work.flops_by_type.items():
        peak = roof.peak(number_type)
        if peak is None or peak.flops_per_s is None:
            return None
        total += batch * flops / peak.flops_per_s
    return total


def _bandwidth(roof: Roof, working_set: int) -> float | None:
    """Bytes per second over `working_set`: the cache's roof where the last-level cache holds it."""
    fits = roof.last_level_cache_bytes is not None and working_set <= roof.last_level_cache_bytes
    if fits and roof.cache is not None:
        return max(roof.cache.bytes_per_s, roof.read.bytes_per_s if roof.read else 0.0)
    return None if roof.read is None else roof.read.bytes_per_s


def pass_bytes(phase: PhaseProfile, batch: int) -> int:
    """Bytes that a pass moves: weights once, widened copies, each request's own."""
    work = phase.work
    return work.fixed_bytes + work.widened_bytes + batch * work.request_bytes


def pass_flops(phase: PhaseProfile, batch: int) -> int:
    """Operations of a pass's matrix products, all number types."""
    return batch * sum(phase.work.flops_by_type.values())


def _memory_s(phase: PhaseProfile, roof: Roof, batch: int) -> float | None:
    work = phase.work
    moved = work.fixed_bytes + batch * work.request_bytes
    stream = _bandwidth(roof, moved)
    widened = _bandwidth(roof, work.largest_widened_bytes)
    if stream is None or widened is None:
        return None
    return moved / stream + work.widened_bytes / widened


def _launch_s(phase: PhaseProfile, roof: Roof) -> float | None:
    if phase.operators is None or phase.matmuls is None:
        return None
    others = phase.operators - phase.matmuls
    return phase.matmuls * roof.launch.matmul_s + others * roof.launch.operator_s


def expected(phase: PhaseProfile, roof: Roof, batch: int = 1) -> Expected:
    """What the roofs ask of a pass of `batch` requests. Work of a request is the same at every
    batch size; weights are read and operators started once per pass."""
    return Expected(
        _compute_s(phase, roof, batch), _memory_s(phase, roof, batch), _launch_s(phase, roof)
    )


def observed(timing: Timing | None) -> float | None:
    """Median of a timing's repeats in seconds; None where it was not timed."""
    return median(timing.seconds) if timing is not None and timing.seconds else None


def share_of_roof(phase: PhaseProfile, roof: Roof, batch: int = 1) -> float | None:
    """Expected over observed seconds: 1 is a pass as fast as its roof allows."""
    took, least = observed(phase.timings.get(str(batch))), expected(phase, roof, batch).seconds
    return None if took is None or least is None or took <= 0 else least / took


def is_above_roof(phase: PhaseProfile, roof: Roof) -> bool:
    """Whether the pass was faster than its roof allows at any batch size that was timed."""
    shares = [share_of_roof(phase, roof, int(batch)) for batch in phase.timings]
    return any(share is not None and share > ABOVE_ROOF for share in shares)


def winning_batches(
    phase: PhaseProfile, reference: PhaseProfile, roof: Roof
) -> tuple[int, int] | None:
    """(smallest, largest) of the batch sizes 1, 2, 4, ... `LARGEST_BATCH` from the first at which
    the roofs allow `phase` to be faster than `reference` to the last of that unbroken run; None
    where there is none, or a roof is unknown."""
    wins: list[int] = []
    batch = 1
    while batch <= LARGEST_BATCH:
        own, other = (expected(p, roof, batch).seconds for p in (phase, reference))
        if own is None or other is None:
            return None
        if own < other * (1 - SAME):
            wins.append(batch)
        elif wins:
            break
        batch *= 2
    return (wins[0], wins[-1]) if wins else None
