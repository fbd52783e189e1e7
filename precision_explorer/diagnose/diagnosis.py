"""From the profiles of one run's cells and the device's roofs: what bounds each format, what the
roofs promised over the reference, what came of it, and where the promise was wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from precision_explorer.diagnose.executed import as_executed, executed_types
from precision_explorer.diagnose.roofline import (
    LARGEST_BATCH,
    NEAR,
    SAME,
    Expected,
    expected,
    observed,
    pass_bytes,
    pass_flops,
    share_of_roof,
    winning_batches,
)
from precision_explorer.diagnose.words import LEVEL, never, reason, sentence
from precision_explorer.records import CellRecord, PhaseProfile, Roof, Timing

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class CellWhy:
    """One format in one phase at batch 1; seconds, shares in [0, 1], None where not known.

    `declared`: the number type in which the format means products to be made, `arithmetic`: the one
    in which most of them were.

    Speed-ups are over the reference: the reference's seconds over the format's. `wins_from` and
    `wins_to` are the batch sizes between which the roofs promise a gain, `never` says why there
    are none. `utilisation` is NVML's figure and means little without `share_of_roof`. The fields
    `largest_batch...` are of the largest batch that was timed, where that is more than 1.
    """

    format: str
    runtime: str
    execution: str
    phase: str
    declared: str
    arithmetic: str
    observed_s: float | None
    observed_batch_8_s: float | None
    expected: Expected
    share_of_roof: float | None
    flops_per_s: float | None
    bytes_per_s: float | None
    quantizing_share: float | None
    matmul_share: float | None
    outside_share: float | None
    utilisation: float | None
    above_roof: bool
    is_reference: bool
    expected_speedup: float | None = None
    observed_speedup: float | None = None
    wins_from: int | None = None
    wins_to: int | None = None
    never: str | None = None
    sentence: str = ""
    largest_batch: int | None = None
    largest_batch_s: float | None = None
    largest_batch_share_of_roof: float | None = None
    largest_batch_flops_per_s: float | None = None
    largest_batch_bytes_per_s: float | None = None

    @property
    def bound(self) -> str | None:
        """The limit that it comes near enough to for being bound by it; None where it is far from
        all of them, or where one is not known."""
        near = self.share_of_roof is not None and self.share_of_roof >= NEAR
        return self.expected.bound if near else None

    @property
    def is_emulated(self) -> bool:
        """Whether slow software makes the format here: the device's limits say nothing of that, so
        they foretell nothing."""
        return self.execution == "emulated"

    @property
    def label(self) -> str:
        """The format, with its runtime where that is not the usual one."""
        return self.format if self.runtime == "eager" else f"{self.format} ({self.runtime})"


@dataclass(frozen=True)
class WrongPair:
    """The roofs put `promised` before `other`, and it came out behind; `reason` in words."""

    promised: str
    other: str
    reason: str


@dataclass(frozen=True)
class Ranking:
    """Formats from fast to slow, by the roofs alone and as observed. `tau` is Kendall's tau-b over
    both (1: the same order, -1: reversed); None with fewer than two, or where one has all equal."""

    phase: str
    promised: tuple[str, ...]
    observed: tuple[str, ...]
    tau: float | None
    wrong: tuple[WrongPair, ...]


@dataclass(frozen=True)
class Why:
    """The diagnosis of the cells of one (model, task, device, method) of one run."""

    model: str
    model_revision: str
    task: str
    task_version: int
    device: str
    method_id: str
    manifest_root: str
    reference: str
    cells: tuple[CellWhy, ...]
    rankings: tuple[Ranking, ...]
    without_profile: tuple[str, ...]
    """Formats that were measured but hold no profile."""
    no_roof: tuple[str, ...]
    """Number types whose roof could not be measured, each with why."""
    busy: tuple[str, ...]
    """Formats beside which other processes were at work: their times say little."""


@dataclass(frozen=True)
class _Subject:
    """A record's phase on its way to a `CellWhy`."""

    record: CellRecord
    phase: PhaseProfile
    why: CellWhy


def explain(
    records: Sequence[CellRecord], roof: Roof, reference: str, manifest_root: str = ""
) -> Why | None:
    """The diagnosis of `records`, all of one (model, task, device, method); None where none of
    them is ok. What has no profile is named; without the reference no speed-ups are given."""
    ok = [r for r in records if r.status == "ok"]
    if not ok:
        return None
    cells: list[CellWhy] = []
    rankings = []
    types: set[str] = set()
    for name in PHASES:
        subjects = [s for r in ok if (s := _subject(r, name, roof, reference)) is not None]
        judged = [_judged(s, subjects, roof) for s in subjects]
        cells += judged
        types |= {kind for s in subjects for kind in s.phase.work.flops_by_type}
        if len(judged) > 1:
            rankings.append(rank(name, judged))
    cell = ok[0].cell
    return Why(
        model=cell.model.name,
        model_revision=cell.model.revision,
        task=cell.task.name,
        task_version=cell.task.version,
        device=cell.device_name,
        method_id=ok[0].method_id,
        manifest_root=manifest_root,
        reference=reference,
        cells=tuple(cells),
        rankings=tuple(rankings),
        without_profile=tuple(_label(r) for r in ok if not _has_profile(r)),
        no_roof=tuple(_no_roof(t, roof) for t in sorted(types) if roof.peak(t) is None),
        busy=tuple(_label(r) for r in ok if any(c.id == "machine-busy" for c in r.cautions)),
    )


def _label(record: CellRecord) -> str:
    """As `CellWhy.label`."""
    cell = record.cell
    return cell.format if cell.runtime == "eager" else f"{cell.format}, {cell.runtime}"


def _has_profile(record: CellRecord) -> bool:
    profile = record.measurements.profile
    return profile is not None and (profile.prefill is not None or profile.decode is not None)


def _no_roof(number_type: str, roof: Roof) -> str:
    notes = [m.note or "no reason given" for m in roof.missing() if m.type == number_type]
    return f"{number_type}: {notes[0] if notes else 'it was not among the types tried'}"


def _subject(record: CellRecord, name: str, roof: Roof, reference: str) -> _Subject | None:
    profile = record.measurements.profile
    phase = getattr(profile, name) if profile is not None else None
    if profile is None or phase is None:
        return None
    executed = executed_types(record)
    phase = as_executed(phase, profile.arithmetic, executed)
    timing: Timing | None = phase.timings.get("1")
    took, least = observed(timing), expected(phase, roof)
    spent = phase.spent
    why = CellWhy(
        format=record.cell.format,
        runtime=record.cell.runtime,
        execution=record.applied.execution if record.applied else "unverified",
        phase=name,
        declared=profile.arithmetic,
        arithmetic=max(executed, key=executed.__getitem__) if executed else profile.arithmetic,
        observed_s=took,
        observed_batch_8_s=observed(phase.timings.get("8")),
        expected=least,
        share_of_roof=least.seconds / took if took and least.seconds else None,
        flops_per_s=pass_flops(phase, 1) / took if took else None,
        bytes_per_s=pass_bytes(phase, 1) / took if took else None,
        quantizing_share=spent.quantizing if spent else None,
        matmul_share=spent.matmul if spent else None,
        outside_share=spent.outside if spent else None,
        utilisation=timing.utilisation if timing else None,
        above_roof=any(c.id == "above-roof" for c in record.cautions),
        is_reference=record.cell.format == reference,
        **_largest(phase, roof),
    )
    return _Subject(record, phase, why)


def _largest(phase: PhaseProfile, roof: Roof) -> dict[str, Any]:
    """The fields of the largest batch that was timed; none where only one request was."""
    batch = max((int(b) for b, t in phase.timings.items() if t.seconds), default=1)
    took = observed(phase.timings.get(str(batch)))
    if batch == 1 or not took:
        return {}
    return {
        "largest_batch": batch,
        "largest_batch_s": took,
        "largest_batch_share_of_roof": share_of_roof(phase, roof, batch),
        "largest_batch_flops_per_s": pass_flops(phase, batch) / took,
        "largest_batch_bytes_per_s": pass_bytes(phase, batch) / took,
    }


def _judged(subject: _Subject, all_of_phase: list[_Subject], roof: Roof) -> CellWhy:
    """The cell's `CellWhy` with all that needs the reference: its own runtime's, else any."""
    references = [s for s in all_of_phase if s.why.is_reference]
    own = [s for s in references if s.why.runtime == subject.why.runtime]
    base = next(iter([*own, *references]), None)
    values = dict(subject.why.__dict__)
    if base is not None and base is not subject:
        values["observed_speedup"] = _ratio(base.why.observed_s, subject.why.observed_s)
        if not subject.why.is_emulated:
            least, own_least = base.why.expected.seconds, subject.why.expected.seconds
            values["expected_speedup"] = _ratio(least, own_least)
            values |= _wins(subject, base, roof)
    judged = CellWhy(**values)
    lighter = base is not None and _weight_bytes(subject.record) < _weight_bytes(base.record)
    text = sentence(judged, base.why if base is not None else None, lighter)
    return CellWhy(**(values | {"sentence": text}))


def _weight_bytes(record: CellRecord) -> int:
    return (record.applied.weight_bytes if record.applied else 0) or 0


def _ratio(reference: float | None, own: float | None) -> float | None:
    return reference / own if reference is not None and own else None


def _wins(subject: _Subject, base: _Subject, roof: Roof) -> dict[str, object]:
    if subject.why.expected.seconds is None or base.why.expected.seconds is None:
        return {}
    batches = winning_batches(subject.phase, base.phase, roof)
    if batches is None:
        largest = expected(subject.phase, roof, LARGEST_BATCH)
        return {"never": never(subject.why, base.why, largest, roof)}
    return {"wins_from": batches[0], "wins_to": batches[1]}


def rank(phase: str, cells: Sequence[CellWhy]) -> Ranking:
    """How well the roofs alone foretold the order of `cells`. A pair whose roofs differ by
    less than 1 %, or whose times differ by less than 5 %, which repeats do too, counts as no wrong
    one. Emulated cells are left out."""
    known = [
        c
        for c in cells
        if c.expected.seconds is not None and c.observed_s is not None and not c.is_emulated
    ]
    promised = sorted(known, key=lambda c: c.expected.seconds or 0.0)
    came = sorted(known, key=lambda c: c.observed_s or 0.0)
    wrong = []
    for first, second in combinations(promised, 2):
        foretold = (first.expected.seconds or 0.0) < (second.expected.seconds or 0.0) * (1 - SAME)
        behind = (first.observed_s or 0.0) * (1 - LEVEL) > (second.observed_s or 0.0)
        if foretold and behind:
            wrong.append(WrongPair(first.label, second.label, reason(first, second)))
    return Ranking(
        phase,
        tuple(c.label for c in promised),
        tuple(c.label for c in came),
        _tau([(c.expected.seconds or 0.0, c.observed_s or 0.0) for c in known]),
        tuple(wrong),
    )


def _tau(pairs: list[tuple[float, float]]) -> float | None:
    """Kendall's tau-b (Kendall 1945), which allows for ties. As scipy's, whose `scipy.stats` takes
    longer to import than all else that a report does."""
    signs = [
        [(x > y) - (x < y) for x, y in zip(one, other, strict=True)]
        for one, other in combinations(pairs, 2)
    ]
    untied = math.prod(sum(map(abs, side)) for side in zip(*signs, strict=True)) if signs else 0
    return sum(map(math.prod, signs)) / math.sqrt(untied) if untied else None
