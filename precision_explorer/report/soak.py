"""Long rows in windows of time: throughput, tail, memory and what the device was like in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from precision_explorer.records import SoakWindow
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group
from precision_explorer.report.text import clean
from precision_explorer.stats import Rates, Tail, Window
from precision_explorer.table import ROW_KEY, SoakTable, Table
from precision_explorer.units import (
    MISSING,
    bytes_,
    celsius,
    clock,
    hertz,
    rate,
    seconds,
    share,
    signed,
    watts,
)

_NOT_READ = SoakWindow(start_s=0.0, seconds=1.0)


@dataclass(frozen=True)
class SoakSection:
    """One row's windows, and its first minute against the rest in words."""

    view: View
    line: str | None


@dataclass(frozen=True)
class _Column:
    heading: str
    show: Callable[[Window, SoakWindow], str]
    numeric: bool = True


@dataclass(frozen=True)
class _Shown:
    heading: str
    cells: list[Cell]
    numeric: bool


_COLUMNS = (
    _Column("Requests", lambda w, s: f"{w.n:,}"),
    _Column("Throughput", lambda w, s: rate(w.throughput_per_s)),
    _Column("p50", lambda w, s: _tail(w.p50)),
    _Column("p99", lambda w, s: _tail(w.p99)),
    _Column("Memory", lambda w, s: bytes_(s.memory_bytes)),
    _Column("Growth", lambda w, s: _growth(w.memory_growth_bytes)),
    _Column("Temperature", lambda w, s: celsius(s.temperature_c)),
    _Column("Clock", lambda w, s: hertz(s.clock_hz)),
    _Column("Power", lambda w, s: watts(s.power_w)),
    _Column("Slowed by", lambda w, s: clean(", ".join(s.throttle_reasons)) or MISSING, False),
    _Column("Other work", lambda w, s: share(s.other_work_share)),
    _Column("Other work on the GPU", lambda w, s: share(s.other_gpu_share)),
)


def soak_sections(group: Group, table: Table) -> list[SoakSection]:
    """One section per long row with results; none where no row has windows."""
    found = {soak.row: soak for soak in table.soaks}
    rows = [(row, found.get(tuple(row[name] for name in ROW_KEY))) for row in group.ok]
    return [_section(group.named(row), soak) for row, soak in rows if soak is not None]


def _section(name: str, soak: SoakTable) -> SoakSection:
    seen = soak.seen or (_NOT_READ,) * len(soak.windows)
    pairs = list(zip(soak.windows, seen, strict=True))
    shown = [
        _Shown(c.heading, [Cell(c.show(*pair)) for pair in pairs], c.numeric) for c in _COLUMNS
    ]
    shown.append(_Shown("Note", [_note(k, seen) for k in range(len(seen))], False))
    columns = [c for c in shown if any(cell.text != MISSING for cell in c.cells)]
    origin = soak.windows[0].start_s if soak.windows else 0.0
    starts = [Cell(clock(w.start_s - origin)) for w in soak.windows]
    view = View(
        f"{name} over time",
        ("From", *(c.heading for c in columns)),
        tuple(zip(starts, *(c.cells for c in columns), strict=True)),
        (True, *(c.numeric for c in columns)),
    )
    return SoakSection(view, _kept(soak.rates))


def _tail(tail: Tail | None) -> str:
    return MISSING if tail is None else tail.note or seconds(tail.value)


def _growth(value: float | None) -> str:
    return MISSING if value is None else signed(value, bytes_(value))


def _note(number: int, seen: tuple[SoakWindow, ...]) -> Cell:
    """Whether the window counts, and why not."""
    window = seen[number]
    parts = [word for word in ("disturbed", "throttled") if getattr(window, word)]
    if window.repeats is not None and window.repeats < len(seen):
        again = clock(seen[window.repeats].start_s - seen[0].start_s)
        parts.append(f"again for {again}")
    if any(other.repeats == number for other in seen):
        parts.append("measured again, not counted")
    return Cell(", ".join(parts) or MISSING, "unsure" if window.is_flagged else "")


def _kept(rates: Rates | None) -> str | None:
    if rates is None:
        return None
    kept = rates.kept
    text = share(kept.value)
    if kept.low is not None and kept.high is not None:
        text += f" [{share(kept.low).removesuffix(' %')}, {share(kept.high).removesuffix(' %')}]"
    return (
        f"First minute {rate(rates.peak_per_s)}, after it {rate(rates.sustained_per_s)}: "
        f"{text} of it kept (95 % interval in brackets)."
    )
