"""The diagnosis laid out: a table per phase, a sentence per format, and how the ranking by the
device's limits fared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from precision_explorer.diagnose import CellWhy, Ranking, Why
from precision_explorer.diagnose.roofline import LARGEST_BATCH
from precision_explorer.diagnose.words import LEVEL
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group
from precision_explorer.report.text import listed
from precision_explorer.table import Table
from precision_explorer.units import MISSING, rate, seconds, share, significant

WITHOUT = (
    "Not known: these cells hold no profile (docs/diagnose.md). A sweep of this release with "
    "another --out makes one."
)


@dataclass(frozen=True)
class WhySection:
    """`views`: a table per phase; `sentences`: one per format and phase; `lines`: the ranking, and
    what is missing. Only `lines` where there is no diagnosis."""

    views: tuple[View, ...]
    sentences: tuple[str, ...]
    lines: tuple[str, ...]


def _times(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} x"


def _wins(cell: CellWhy) -> str:
    if cell.is_reference:
        return "reference"
    if cell.is_emulated:
        return "not foretold"
    if cell.wins_from is None:
        return "never" if cell.never else MISSING
    if cell.wins_to == LARGEST_BATCH:
        return f"from {cell.wins_from}"
    return f"{cell.wins_from} to {cell.wins_to}"


def _bound(cell: CellWhy) -> str:
    """What bounds it; ``none`` where it is far from every limit."""
    return "no roof" if cell.expected.bound is None else cell.bound or "none"


def _limit(cell: CellWhy) -> str:
    nearest = cell.expected.bound
    text = seconds(cell.expected.seconds)
    return text if nearest is None else f"{text}, {nearest}"


def _roof_share(cell: CellWhy) -> str:
    text = "no roof" if cell.expected.seconds is None else share(cell.share_of_roof, 0)
    return f"{text} (above)" if cell.above_roof and (cell.share_of_roof or 0) > 1 else text


_COLUMNS: tuple[tuple[str, Callable[[CellWhy], str], bool], ...] = (
    ("Format", lambda c: c.label, False),
    ("Took", lambda c: seconds(c.observed_s), True),
    ("Bound by", _bound, False),
    ("Nearest limit", _limit, True),
    ("Of its limit", _roof_share, True),
    ("(De)quantizing", lambda c: share(c.quantizing_share, 0), True),
    ("Between operators", lambda c: share(c.outside_share, 0), True),
    ("Speed-up expected", lambda c: _times(c.expected_speedup), True),
    ("Observed", lambda c: _times(c.observed_speedup), True),
    ("Should win at batch", _wins, True),
)
# Beside the rate that was achieved, without which the figure misleads.
_ON_GPU: tuple[tuple[str, Callable[[CellWhy], str], bool], ...] = (
    (
        "Achieved",
        lambda c: rate(None if c.flops_per_s is None else c.flops_per_s / 1e12, "Tera-op/s"),
        True,
    ),
    ("GPU utilisation (NVML)", lambda c: share(c.utilisation, 0), True),
)


def _tera(value: float | None, unit: str) -> str:
    return rate(None if value is None else value / 1e12, unit)


# The same of the largest batch: arithmetic shows in a prefill's, bandwidth in a decode step's.
_LARGEST: tuple[tuple[str, Callable[[CellWhy], str], bool], ...] = (
    (
        "Of its limit, largest batch",
        lambda c: (
            f"{share(c.largest_batch_share_of_roof, 0)} at {c.largest_batch}"
            if c.largest_batch
            else MISSING
        ),
        True,
    ),
    ("Achieved there", lambda c: _tera(c.largest_batch_flops_per_s, "Tera-op/s"), True),
    ("Moved there", lambda c: _tera(c.largest_batch_bytes_per_s, "TB/s"), True),
)


def _yet(cell: CellWhy) -> str:
    """That a format which should never win did so."""
    speed = cell.observed_speedup
    return "; at batch 1 it did, so they miss something" if speed and speed > 1 + LEVEL else ""


def _view(why: Why, phase: str) -> View | None:
    cells = [c for c in why.cells if c.phase == phase]
    if not cells:
        return None
    columns = [*_COLUMNS]
    if any(c.utilisation is not None for c in cells):
        columns += _ON_GPU + _LARGEST
    return View(
        f"Why: {phase}, batch 1",
        tuple(heading for heading, _, _ in columns),
        tuple(tuple(Cell(show(c)) for _, show, _ in columns) for c in cells),
        tuple(numeric for _, _, numeric in columns),
    )


def _ranking(ranking: Ranking) -> list[str]:
    if len(ranking.promised) < 2:
        return []
    tau = "" if ranking.tau is None else f" (Kendall's tau {ranking.tau:+.2f})"
    lines = [
        f"Ranking in {ranking.phase}, fastest first, by the device's limits alone: "
        f"{listed(ranking.promised)}; observed: {listed(ranking.observed)}{tau}."
    ]
    alike: dict[tuple[str, str], list[str]] = {}
    for wrong in ranking.wrong:
        alike.setdefault((wrong.promised, wrong.reason), []).append(wrong.other)
    lines += [
        f"Wrong in {ranking.phase}: {promised} was expected before {listed(others)}: {reason}."
        for (promised, reason), others in alike.items()
    ]
    return lines


def why_section(why: Sequence[Why]) -> WhySection:
    """The diagnoses of one group; that of each run after the other."""
    views, sentences, lines = [], [], []
    for one in why:
        views += [v for phase in ("prefill", "decode") if (v := _view(one, phase)) is not None]
        sentences += [c.sentence for c in one.cells if c.sentence]
        lines += [
            f"{c.label} should never win in {c.phase}, by the limits alone: {c.never}{_yet(c)}."
            for c in one.cells
            if c.never
        ]
        for ranking in one.rankings:
            lines += _ranking(ranking)
        emulated = list(dict.fromkeys(c.label for c in one.cells if c.is_emulated))
        if emulated:
            lines.append(
                f"Outside the prediction: {listed(emulated)}. Slow software makes the format here, "
                "so what bounds it tells nothing of a device that has it."
            )
        lines += [f"No roof for {text}." for text in one.no_roof]
        if one.busy:
            lines.append(
                f"Other processes were at work while {listed(one.busy)} were timed: don't rely on "
                "what is said of them; measure again on an idle machine."
            )
        if one.without_profile:
            lines.append(f"Without a profile: {listed(one.without_profile)}.")
    if not why:
        lines.append(WITHOUT)
    return WhySection(tuple(views), tuple(dict.fromkeys(sentences)), tuple(dict.fromkeys(lines)))


def of_group(table: Table, group: Group) -> WhySection | None:
    """The section of `group`; None where nothing was measured."""
    if not group.ok:
        return None
    row = group.rows[0]
    names = ("model_revision", "task", "task_version", "method_id")
    fit = [w for w in table.why if all(getattr(w, n) == row[n] for n in names)]
    found = {d: why_section(o) for d in group.devices if (o := [w for w in fit if w.device == d])}
    if not found or not group.is_joined:
        return next(iter(found.values()), why_section([]))
    short = group.short_devices
    return WhySection(
        tuple(
            replace(view, title=f"{short[device]}: {view.title}")
            for device, one in found.items()
            for view in one.views
        ),
        tuple(f"{short[d]}: {text}" for d, one in found.items() for text in one.sentences),
        tuple(f"{short[d]}: {text}" for d, one in found.items() for text in one.lines),
    )
