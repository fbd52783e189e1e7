"""Rows whose rate was searched: the largest rate of each, what was tried, and a chart of it."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.economics import Slo, parse_slo
from precision_explorer.report.axes import Axis, Tick
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.text import clean, listed
from precision_explorer.stats import Tail
from precision_explorer.table import ROW_KEY, Curve, CurvePoint, Table
from precision_explorer.table.curve import is_below
from precision_explorer.units import MISSING, rate, seconds, share

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 24, 40, 56
_TONES = {"held": "good", "missed": "bad", "unsure": "unsure"}
SHAPES = 6
"""Colours and marks that tell lines apart, each with a mark of its own; then they begin again."""


@dataclass(frozen=True)
class CurveMark:
    """A point of a line: pixels, verdict, and the words of its tooltip. `beyond`: at the upper
    edge, since no percentile can be read where a queue grows."""

    x: float
    y: float
    verdict: str
    beyond: bool
    title: str


@dataclass(frozen=True)
class CurveLine:
    """One format: its name, the number of its colour and mark, its points by rising rate, and the
    SVG path through those that have a percentile."""

    name: str
    shape: int
    marks: tuple[CurveMark, ...]
    path: str


@dataclass(frozen=True)
class CurveChart:
    """All that the template needs to draw."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    lines: tuple[CurveLine, ...]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    y_title: str
    limit: float
    limit_text: str
    title: str
    description: str
    beyond: bool


@dataclass(frozen=True)
class RateSection:
    """`line`: the outcome in words; `view`: a row per format; `points`: a table of each format's
    rates; `chart`: None where nothing can be drawn."""

    line: str
    view: View
    points: list[View]
    chart: CurveChart | None


def rate_section(
    group: Group, table: Table, width: int = WIDTH, height: int = HEIGHT
) -> RateSection | None:
    """Of a group whose rates were searched, at one objective; None for all others. `width` and
    `height`: the chart's."""
    found = {curve.row: curve for curve in table.curves}
    pairs = [(row, found.get(tuple(row[name] for name in ROW_KEY))) for row in group.ok]
    curves = [(group.named(row), row, curve) for row, curve in pairs if curve is not None]
    if not curves:
        return None
    slo = curves[0][2].slo
    objective = f"{slo.name} within {seconds(slo.limit_s)}"
    headings = (
        "Format", "Held up to", "Missed from", f"{slo.name} there [95% CI]", "p50 there", "Busy",
        "Requests", "Note",
    )  # fmt: skip
    view = View(
        f"Largest rate with {objective}",
        headings,
        tuple(_cells(name, curve) for name, _, curve in curves),
        (False, True, True, True, True, True, True, False),
    )
    return RateSection(
        line=outcome(group, [row for _, row, _ in curves]),
        view=view,
        points=[_points_view(name, curve) for name, _, curve in curves],
        chart=_chart([(name, curve) for name, _, curve in curves], group, slo, width, height),
    )


def outcome(group: Group, rows: list[Row]) -> str:
    """Which format holds the objective at the largest rate; no winner where the rates between
    which the answers lie overlap."""
    slo = parse_slo(rows[0]["search_slo"])
    limit = f"{slo.name} within {seconds(slo.limit_s)}"
    held = [row for row in rows if row["held_rate_per_s"] is not None]
    none = [group.named(row) for row in rows if row["held_rate_per_s"] is None]
    text = f"No rate was shown to hold {limit} in {listed(none)}." if none else ""
    if not held:
        return text
    best = max(held, key=lambda row: row["held_rate_per_s"])
    others = [row for row in held if row is not best]
    start = f"{group.named(best)} held {limit} up to {rate(best['held_rate_per_s'])}"
    if best["missed_rate_per_s"] is not None:
        start += f" and missed it from {rate(best['missed_rate_per_s'])} on"
    if not others:
        return f"{start}. {text}".strip()
    near = [r for r in others if not is_below(r, best)]
    if near:
        names = listed([group.named(row) for row in near])
        start += f"; whether that is more than of {names} can't be told, as the answers overlap"
    else:
        each = [f"{group.named(r)} {rate(r['held_rate_per_s'])}" for r in others]
        start += f", the largest rate; {listed(each)}"
    return f"{start}. {text}".strip()


def _cells(name: str, curve: Curve) -> tuple[Cell, ...]:
    held, missed = curve.held, curve.missed
    return (
        Cell(name),
        Cell(rate(held.rate_per_s) if held else "none", "strong" if held else "bad"),
        Cell(rate(missed.rate_per_s) if missed else MISSING),
        Cell(_tail(held.percentile if held else None)),
        Cell(_tail(held.p50 if held else None, interval=False)),
        Cell(share(held.utilisation, 0) if held else MISSING),
        Cell(f"{held.requests:,}" if held else MISSING),
        Cell(clean(curve.note or "") or MISSING),
    )


def _tail(tail: Tail | None, interval: bool = True) -> str:
    if tail is None or tail.value is None:
        return MISSING if tail is None else tail.note or MISSING
    if not interval or tail.low is None or tail.high is None:
        return seconds(tail.value)
    return f"{seconds(tail.value)} [{seconds(tail.low)}, {seconds(tail.high)}]"


def _points_view(name: str, curve: Curve) -> View:
    headings = (
        "Rate", "Offered", "Achieved", "Busy", "p50", f"{curve.slo.name} [95% CI]", "Requests",
        "Windows", "Late", "Objective",
    )  # fmt: skip
    return View(
        f"{name}: latency against rate",
        headings,
        tuple(_point_cells(point) for point in curve.points),
        (*[True] * 9, False),
    )


def _point_cells(point: CurvePoint) -> tuple[Cell, ...]:
    verdict = f"{point.verdict}: {point.why}" if point.why else point.verdict
    return (
        Cell(rate(point.rate_per_s)),
        Cell(rate(point.offered_rate_per_s)),
        Cell(rate(point.achieved_rate_per_s)),
        Cell(share(point.utilisation, 0)),
        Cell(_tail(point.p50, interval=False)),
        Cell(_tail(point.percentile)),
        Cell(f"{point.requests:,}"),
        Cell(f"{point.windows} in {seconds(point.seconds)}"),
        Cell(str(point.refused) if point.refused else MISSING),
        Cell(verdict, _TONES[point.verdict]),
    )


# -- the chart ---------------------------------------------------------------------------------


def _value(point: CurvePoint) -> float | None:
    return point.percentile.value if point.percentile else None


def _chart(
    curves: list[tuple[str, Curve]], group: Group, slo: Slo, width: int, height: int
) -> CurveChart | None:
    values = [v for _, curve in curves for p in curve.points if (v := _value(p))]
    if not values:
        return None
    most = max(point.rate_per_s for _, curve in curves for point in curve.points)
    x_axis = Axis(0.0, most * 1.06, _LEFT, width - _RIGHT)
    # Room above the largest for what has no percentile.
    ends = min(*values, slo.limit_s), max(*values, slo.limit_s)
    y_axis = Axis(ends[0] / 1.3, ends[1] * 2, height - _BOTTOM, _TOP, log=True)
    lines = tuple(
        _line(name, number, curve, x_axis, y_axis) for number, (name, curve) in enumerate(curves)
    )
    return CurveChart(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        lines=lines,
        x_ticks=x_axis.ticks(lambda v: rate(v, "")),
        y_ticks=y_axis.ticks(seconds),
        y_title=f"{slo.name} of the latency, from the planned arrival (logarithmic, ↓ better)",
        limit=y_axis.at(slo.limit_s),
        limit_text=f"{slo.name} = {seconds(slo.limit_s)}",
        title=f"Latency against rate: {group.title}",
        description=" ".join(_said(name, curve) for name, curve in curves),
        beyond=any(mark.beyond for line in lines for mark in line.marks),
    )


def _line(name: str, number: int, curve: Curve, x_axis: Axis, y_axis: Axis) -> CurveLine:
    marks = []
    for point in curve.points:
        value = _value(point)
        if value is None and point.verdict != "missed":
            continue  # Too few requests to say where it lies.
        y = y_axis.at(value) if value is not None else float(_TOP)
        marks.append(
            CurveMark(
                x_axis.at(point.rate_per_s),
                y,
                point.verdict,
                value is None,
                _tooltip(name, point, curve),
            )
        )
    drawn = [f"{mark.x} {mark.y}" for mark in marks if not mark.beyond]
    return CurveLine(name, number % SHAPES, tuple(marks), f"M{'L'.join(drawn)}" if drawn else "")


def _tooltip(name: str, point: CurvePoint, curve: Curve) -> str:
    parts = [
        f"{name} at {rate(point.rate_per_s)}",
        f"{curve.slo.name} {_tail(point.percentile)}",
        f"p50 {_tail(point.p50, interval=False)}",
        f"busy {share(point.utilisation, 0)}",
        f"{point.requests:,} requests",
        point.verdict + (f" ({point.why})" if point.why else ""),
    ]
    return "; ".join(parts)


def _said(name: str, curve: Curve) -> str:
    held = rate(curve.held.rate_per_s) if curve.held else "no rate"
    missed = f", missed from {rate(curve.missed.rate_per_s)}" if curve.missed else ""
    return f"{name}: held up to {held}{missed}."
