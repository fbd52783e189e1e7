"""The scatter chart of quality against latency, as coordinates for an inline SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precision_explorer.report.axes import Axis, Tick
from precision_explorer.report.columns import change, change_text, quality_text
from precision_explorer.report.findings import is_unsure
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.placing import Box, Place, covered, place
from precision_explorer.report.text import listed
from precision_explorer.units import bytes_, seconds, share

WIDTH, HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 24, 34, 56
# From this ratio on, the latencies of the fast formats would crowd on a linear axis.
_LOG_FROM = 20
# Outlines that stand for devices, told apart without colour: circle, square, triangle, star.
_OUTLINES = (
    "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
    "M-6-6h12v12h-12z",
    "M0-8l8 14h-16z",
    "M0-9l2.5 6.5l6.5 2.5l-6.5 2.5l-2.5 6.5l-2.5-6.5l-6.5-2.5l6.5-2.5z",
)
# Losses beyond so many budgets stand at the edge, so that those near the budget can be told apart.
_FAR_BUDGETS = 25


@dataclass(frozen=True)
class Point:
    """One row: place, interval, label with its place, and the words of its tooltip."""

    x: float
    y: float
    low: float | None
    high: float | None
    front: bool
    label: str
    label_x: float
    label_y: float
    anchor: str
    leader: bool
    title: str
    mark: str = ""
    """Of rows of several devices: the outline that stands for the device, about 0, 0."""


@dataclass(frozen=True)
class Chart:
    """All that the template needs to draw."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    points: list[Point]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str
    zero: float | None
    budget: float | None
    budget_text: str
    budget_text_y: float
    """Beyond the budget's line, as seen from no change."""
    title: str
    description: str
    front: bool
    """Whether there is a front at all."""
    unsure: bool
    """Whether sampling alone could change the front; such labels end in a question mark."""
    beyond: bool
    """Whether a row stands at the edge since its value lies beyond; its label gives the value."""
    left_out: str
    devices: tuple[tuple[str, str], ...] = ()
    """Where there are several: each with its outline."""


@dataclass(frozen=True)
class _Measure:
    """What stands on the vertical axis: the change to the reference, else quality itself."""

    relative: bool
    group: Group
    memory: bool = False
    """Peak memory in its place."""

    def value(self, row: Row) -> float | None:
        if self.memory:
            value = row["peak_memory_bytes"]
        elif self.relative:
            value = 0.0 if self._is_base(row) else change(self.group, row)
        else:
            value = row["quality"]
        return value if value is not None and math.isfinite(value) else None

    def interval(self, row: Row) -> tuple[float, float] | None:
        if self.memory:
            low = high = None
        elif self.relative:
            low = change(self.group, row, "quality_delta_ci_low")
            high = change(self.group, row, "quality_delta_ci_high")
        else:
            low, high = row["quality_ci_low"], row["quality_ci_high"]
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return None
        return low, high

    def text(self, value: float, digits: int = 2) -> str:
        if self.memory:
            return bytes_(value)
        if self.relative:
            return change_text(self.group, value, digits)
        return quality_text(self.group, value)

    def _is_base(self, row: Row) -> bool:
        return self.group.is_reference(row) and row["quality"] is not None


def make_chart(
    group: Group, width: int = WIDTH, height: int = HEIGHT, memory: bool = False
) -> Chart | None:
    """The chart of the rows that have both values; None where fewer than two have. `memory`: with
    peak memory in place of quality."""
    measure = _Measure(not memory and _is_paired(group), group, memory)
    rows = [r for r in group.ok if r["latency_p50_s"] and measure.value(r) is not None]
    if len(rows) < 2:
        return None
    values = [measure.value(r) or 0.0 for r in rows]
    x_axis, y_axis = _x_axis(rows, width), _y_axis(rows, measure, height)
    budget = _budget(group, measure)
    outlines = _outlines(group)
    left_out = listed([group.named(r) for r in group.ok if r not in rows])
    return Chart(
        width=width,
        height=height,
        left=_LEFT,
        right=width - _RIGHT,
        top=_TOP,
        bottom=height - _BOTTOM,
        points=_points(rows, measure, x_axis, y_axis),
        x_ticks=x_axis.ticks(seconds),
        y_ticks=y_axis.ticks(lambda v: measure.text(v, 0 if memory else y_axis.digits())),
        x_title="Median latency of a request" + (" (logarithmic)" if x_axis.log else ""),
        y_title=_y_title(group, measure),
        zero=y_axis.at(0) if measure.relative else None,
        budget=None if budget is None else y_axis.at(budget),
        budget_text="" if budget is None else _budget_text(measure, budget),
        budget_text_y=0.0 if budget is None else _budget_text_y(y_axis, budget),
        title=f"{_y_title(group, measure)} against median latency: {group.title}",
        description=_description(group, rows),
        front=any(r["pareto"] is not None for r in rows),
        unsure=any(map(is_unsure, rows)),
        beyond=any(map(y_axis.is_beyond, values)),
        left_out=left_out,
        devices=tuple((short, outlines[d]) for d, short in group.short_devices.items())
        if outlines
        else (),
    )


def _outlines(group: Group) -> dict[str, str]:
    """{device: its outline}; none where one device needs no telling, and where there are more than
    outlines, so that labels tell."""
    if not 1 < len(group.devices) <= len(_OUTLINES):
        return {}
    return dict(zip(group.devices, _OUTLINES, strict=False))


def _is_paired(group: Group) -> bool:
    """Whether every row with a quality has its change to the reference, or is the reference."""
    rows = [r for r in group.ok if r["quality"] is not None]
    others = [r for r in rows if not group.is_reference(r)]
    return len(others) < len(rows) and all(change(group, r) is not None for r in others)


def _x_axis(rows: list[Row], width: int) -> Axis:
    values = [r["latency_p50_s"] for r in rows]
    low, high = min(values), max(values)
    if high / low > _LOG_FROM:
        return Axis(low / 1.3, high * 1.3, _LEFT, width - _RIGHT, log=True)
    return Axis(0.0, high * 1.08, _LEFT, width - _RIGHT)


def _y_axis(rows: list[Row], measure: _Measure, height: int) -> Axis:
    values = [v for v in map(measure.value, rows) if v is not None]
    for ends in filter(None, map(measure.interval, rows)):
        values.extend(ends)
    budget = _budget(measure.group, measure)
    if budget is not None:
        values += [budget, -budget]
        far = _FAR_BUDGETS * abs(budget)
        near = [v for v in values if abs(v) <= far]
        values = near if far > 0 else values
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - margin, high + margin, height - _BOTTOM, _TOP)


def _budget(group: Group, measure: _Measure) -> float | None:
    """The largest loss within the budget, as a signed change."""
    budget = group.ok[0]["quality_budget"]
    known = group.task is None or group.task.higher_is_better is not None
    if not measure.relative or budget is None or not known:
        return None
    return -float(budget) if group.higher_is_better else float(budget)


def _budget_text(measure: _Measure, budget: float) -> str:
    return f"budget {measure.text(budget)}"


def _budget_text_y(y_axis: Axis, budget: float) -> float:
    return y_axis.at(budget) + (14 if budget < 0 else -5)


def _points(rows: list[Row], measure: _Measure, x_axis: Axis, y_axis: Axis) -> list[Point]:
    group = measure.group
    outlines = _outlines(group)
    spots, labels = [], []
    for row in rows:
        value = measure.value(row) or 0.0
        beyond = y_axis.is_beyond(value)
        unsure = "?" if is_unsure(row) else ""
        name = group.on_its_device(row) if outlines else group.named(row)
        labels.append(name + unsure + (f" {measure.text(value)}" if beyond else ""))
        spots.append((x_axis.at(row["latency_p50_s"]), y_axis.at(value)))
    area = Box(x_axis.start, y_axis.end, x_axis.end, y_axis.start)
    limit = _budget(group, measure)
    obstacles = []
    if limit is not None:
        words = Place(x_axis.end, _budget_text_y(y_axis, limit), "end", False)
        obstacles.append(covered(words, _budget_text(measure, limit)))
    points = []
    for row, (x, y), label, where in zip(
        rows, spots, labels, place(spots, labels, area, obstacles), strict=True
    ):
        ends = measure.interval(row)
        points.append(
            Point(
                x=x,
                y=y,
                low=y_axis.at(ends[0]) if ends else None,
                high=y_axis.at(ends[1]) if ends else None,
                front=row["pareto"] == "yes",
                label=label,
                label_x=where.x,
                label_y=where.y,
                anchor=where.anchor,
                leader=where.far,
                title=_tooltip(measure, row),
                mark=outlines.get(str(row["device"]), ""),
            )
        )
    return points


def _tooltip(measure: _Measure, row: Row) -> str:
    group = measure.group
    parts = [
        group.named(row),
        f"median latency {seconds(row['latency_p50_s'])}",
        "peak memory " + bytes_(row["peak_memory_bytes"])
        if measure.memory
        else f"{group.metric} {quality_text(group, row['quality'])}",
    ]
    if row["quality_delta"] is not None:
        parts.append(f"change {change_text(group, change(group, row))}")
    if row["pareto"] is not None:
        on = "on" if row["pareto"] == "yes" else "not on"
        known = row["pareto_probability"]
        sure = "" if known is None else f" ({share(known, 0)} of resamples)"
        parts.append(f"{on} the front{sure}")
    return "; ".join(parts)


def _y_title(group: Group, measure: _Measure) -> str:
    if measure.memory:
        return "Peak memory of serving (lower is better)"
    what = (
        f"Change in {group.metric} against {group.reference}" if measure.relative else group.metric
    )
    return f"{what} ({group.direction})"


def _description(group: Group, rows: list[Row]) -> str:
    on = [group.named(r) for r in rows if r["pareto"] == "yes"]
    off = [group.named(r) for r in rows if r["pareto"] == "no"]
    count = len(rows)
    text = (
        f"{count} rows of {len(group.devices)} devices." if group.is_joined else f"{count} formats."
    )
    text += f" On the Pareto front: {listed(on)}." if on else ""
    return text + (f" Not on it: {listed(off)}." if off else "")
