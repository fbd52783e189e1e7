"""The charts of the report as PNG for slides, 1920 x 1080 pixels: what is drawn is what the HTML
page draws, here by matplotlib."""

from __future__ import annotations

import io
import json
import textwrap
import warnings
from dataclasses import dataclass
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.export.document import SCHEMA_VERSION, context_document
from precision_explorer.report.chart import Chart, make_chart
from precision_explorer.report.content import Section, make_content
from precision_explorer.report.curve import CurveChart, rate_section
from precision_explorer.report.text import cleaned
from precision_explorer.table import Context, Table

METADATA_KEY = "precision_explorer"
"""Of the PNG's text chunks: a JSON document with ``schema_version`` and ``context``."""

# The slide in units of which 2.4 make a pixel of 1920 x 1080, and the chart's part of it.
WIDTH, HEIGHT, _DOTS = 800, 450, 240
_CHART_TOP, _CHART_HEIGHT = 46, 340
_INK, _SOFT, _LINE, _BAD = "#1c2330", "#5a6475", "#d9dee6", "#b3261e"
# Those of the HTML page: told apart in all kinds of colour vision, and by shape besides.
_FRONT, _OTHER = "#0063a3", "#8a5200"
_SERIES = ("#0063a3", "#b34700", "#007a58", "#a0437a", "#7a5b00", "#333a45")
_SHAPES = ("o", "s", "^", "D", "v", "p")
_ALIGN = {"start": "left", "middle": "center", "end": "right"}


@dataclass(frozen=True)
class Key:
    """An entry of the legend: a mark of matplotlib, or ``-`` and ``|`` for lines."""

    mark: str
    colour: str
    text: str
    hollow: bool = False


def to_pngs(table: Table) -> list[tuple[str, bytes]]:
    """(title, PNG) of each chart: per model, task, device and method the front, by quality and
    latency, or by memory and latency where quality was not measured; of searched rates latency
    against rate. UsageError where nothing can be drawn, or matplotlib is missing."""
    content, context = make_content(table), cleaned(table.context)
    drawn: list[tuple[Section, Chart | CurveChart]] = []
    for section in content.sections:
        chart = _chart_of(section, cleaned(table))
        if chart is not None:
            drawn.append((section, chart))
    if not drawn:
        raise UsageError(
            "png has nothing to draw: fewer than two formats have a latency and a quality or "
            "memory; export the table instead, as in --to xlsx"
        )
    document = {"schema_version": SCHEMA_VERSION, "context": context_document(table)}
    text = json.dumps(document, ensure_ascii=True)
    return [(chart.title, _slide(section, chart, context, text)) for section, chart in drawn]


def _chart_of(section: Section, table: Table) -> Chart | CurveChart | None:
    if section.rates is not None:
        again = rate_section(section.group, table, WIDTH, _CHART_HEIGHT)
        return again.chart if again else None
    size = (WIDTH, _CHART_HEIGHT)
    return make_chart(section.group, *size, memory=_is_of_memory(section))


def _is_of_memory(section: Section) -> bool:
    """Whether quality is known of too few rows to draw it."""
    return sum(row["quality"] is not None for row in section.group.ok) < 2


def _slide(section: Section, chart: Chart | CurveChart, context: Context, document: str) -> bytes:
    """One slide: title, chart, legend, caption."""
    try:
        import matplotlib
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            f"png needs a package that is missing ({error.name}); install it by: "
            "pip install 'precision-explorer[png]'"
        ) from error
    out = io.BytesIO()
    # A dollar sign in a name starts no formula, and nobody's own style moves a byte.
    with style.context("default"), matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=_DOTS)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
        axes.axis("off")
        canvas = _Canvas(axes)
        _head(canvas, section, chart)
        canvas.down = _CHART_TOP
        keys = _scatter(canvas, chart) if isinstance(chart, Chart) else _curves(canvas, chart)
        canvas.down = 0
        _legend(canvas, keys)
        _caption(canvas, section, chart, context)
        with warnings.catch_warnings():
            # A sign that the font lacks is drawn as a box; a person sees that.
            warnings.simplefilter("ignore")
            figure.savefig(out, format="png", metadata={"Software": None, METADATA_KEY: document})
    return out.getvalue()


@dataclass
class _Canvas:
    """Drawing in the slide's units, y downwards; `down` moves all that is drawn."""

    axes: Any
    down: float = 0.0

    def text(
        self, x: float, y: float, text: str, size: float = 10.5, colour: str = _INK,
        align: str = "left", bold: bool = False,
    ) -> None:  # fmt: skip
        """One line with its base at `y`; `size` in units. Lines behind it stop short of it, marks
        don't."""
        self.axes.text(
            x, y + self.down, text, fontsize=0.72 * size, color=colour, ha=align, va="baseline",
            fontweight="bold" if bold else "normal", zorder=4,
            bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip

    def line(
        self, xs: tuple[float, ...], ys: tuple[float, ...], colour: str, width: float = 1.0,
        dashed: bool = False, behind: int = 1,
    ) -> None:  # fmt: skip
        """Through the points; `behind`: the layer, the largest in front."""
        moved = [y + self.down for y in ys]
        kind = (0, (5, 3)) if dashed else "-"
        self.axes.plot(
            xs, moved, color=colour, linewidth=0.72 * width, linestyle=kind, zorder=behind
        )

    def mark(
        self, x: float, y: float, shape: str, colour: str, size: float, fill: str | None = None,
        pale: bool = False,
    ) -> None:  # fmt: skip
        """A mark of matplotlib, `size` units across."""
        face = "#ffffff" if pale else (fill or colour)
        self.axes.plot(
            [x], [y + self.down], marker=shape, markersize=0.72 * size, color=colour,
            markerfacecolor=face, markeredgewidth=1.1, linestyle="none", zorder=5,
        )  # fmt: skip
        if pale:
            self.axes.plot(
                [x], [y + self.down], marker=shape, markersize=0.72 * size, color=colour,
                alpha=0.35, markeredgewidth=0, linestyle="none", zorder=6,
            )  # fmt: skip


def _head(canvas: _Canvas, section: Section, chart: Chart | CurveChart) -> None:
    if isinstance(chart, CurveChart):
        what = "latency against rate"
    else:
        what = f"{'memory' if _is_of_memory(section) else 'quality'} against latency"
    canvas.text(22, 26, f"{_cut(section.title, 44)}: {what} by format", 16, bold=True)
    canvas.text(22, 42, _cut(section.line, 156), 9, _SOFT)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"


def _frame(canvas: _Canvas, chart: Chart | CurveChart, x_title: str) -> None:
    """Axes, ticks and their titles."""
    for tick in chart.y_ticks:
        canvas.line((chart.left, chart.right), (tick.at, tick.at), _LINE)
        canvas.text(chart.left - 8, tick.at + 4, tick.text, 10, _SOFT, "right")
    for tick in chart.x_ticks:
        canvas.line((tick.at, tick.at), (chart.bottom, chart.bottom + 5), _SOFT)
        canvas.text(tick.at, chart.bottom + 18, tick.text, 10, _SOFT, "center")
    canvas.line((chart.left, chart.right), (chart.bottom, chart.bottom), _SOFT)
    middle = (chart.left + chart.right) / 2
    canvas.text(middle, chart.height - 18, x_title, 11, align="center")
    canvas.text(22, 22, chart.y_title, 11)


def _scatter(canvas: _Canvas, chart: Chart) -> list[Key]:
    _frame(canvas, chart, f"{chart.x_title} (← faster)")
    ends = (chart.left, chart.right)
    if chart.zero is not None:
        canvas.line(ends, (chart.zero, chart.zero), _SOFT)
    if chart.budget is not None:
        canvas.line(ends, (chart.budget, chart.budget), _BAD, 1.5, dashed=True)
    for point in chart.points:
        if point.low is not None and point.high is not None:
            canvas.line((point.x, point.x), (point.low, point.high), "#9aa2ae", 1.5, behind=2)
        if point.leader:
            at = (point.y, point.label_y - 4)
            canvas.line((point.x, point.label_x), at, "#9aa2ae", 0.8, behind=3)
    for point in chart.points:
        shape, colour, size = ("D", _FRONT, 10.0) if point.front else ("o", _OTHER, 10.0)
        canvas.mark(point.x, point.y, shape, colour, size, None if point.front else "#ffffff")
        align = _ALIGN[point.anchor]
        canvas.text(point.label_x, point.label_y, point.label, 10, align=align, bold=point.front)
    on = [Key("D", _FRONT, "on the Pareto front"), Key("o", _OTHER, "not on it", hollow=True)]
    ranged = any(point.low is not None for point in chart.points)
    return [
        *(on if chart.front else []),
        *([Key("|", "#9aa2ae", "95 % interval")] if ranged else []),
        *([Key("-", _BAD, f"quality {chart.budget_text}")] if chart.budget is not None else []),
    ]


def _curves(canvas: _Canvas, chart: CurveChart) -> list[Key]:
    _frame(canvas, chart, "Requests per second that come (more →)")
    canvas.line((chart.left, chart.right), (chart.limit, chart.limit), _BAD, 1.5, dashed=True)
    canvas.text(chart.left + 6, chart.limit - 6, chart.limit_text, 10, _BAD)
    for line in chart.lines:
        colour, shape = _SERIES[line.shape], _SHAPES[line.shape]
        seen = [mark for mark in line.marks if not mark.beyond]
        if seen:
            xs, ys = tuple(m.x for m in seen), tuple(m.y for m in seen)
            canvas.line(xs, ys, colour, 1.75, behind=3)
        for mark in line.marks:
            fill = "#ffffff" if mark.verdict == "missed" else None
            canvas.mark(mark.x, mark.y, shape, colour, 9, fill, mark.verdict == "unsure")
    return [Key(_SHAPES[line.shape], _SERIES[line.shape], line.name) for line in chart.lines]


def _legend(canvas: _Canvas, keys: list[Key]) -> None:
    x, y = 82.0, float(_CHART_TOP + _CHART_HEIGHT + 2)
    for key in keys:
        if key.mark in "-|":
            half = (7, 0) if key.mark == "-" else (0, 6)
            xs, ys = (x - half[0], x + half[0]), (y - half[1] - 3.5, y + half[1] - 3.5)
            canvas.line(xs, ys, key.colour, 1.5, dashed=key.mark == "-")
        else:
            canvas.mark(x, y - 3.5, key.mark, key.colour, 9, "#ffffff" if key.hollow else None)
        canvas.text(x + 12, y, key.text, 10)
        x += 42 + 6.2 * len(key.text)


def _caption(
    canvas: _Canvas, section: Section, chart: Chart | CurveChart, context: Context
) -> None:
    """Where the numbers come from, and how to read the marks."""
    notes = []
    if isinstance(chart, Chart):
        if section.group.is_synthetic:
            notes += ["Synthetic (random) weights: quality was not measured."]
        notes += ["?: sampling alone could put it on or off the front."] if chart.unsure else []
        notes += ["A label with a value: it lies beyond the scale."] if chart.beyond else []
        missing = f"Not drawn, as a value is missing: {chart.left_out}."
        notes += [missing] if chart.left_out else []
    else:
        notes += ["Full: held; pale: can't be told; hollow: missed."]
        notes += ["At the upper edge: missed, no percentile can be read."] if chart.beyond else []
    row = section.group.rows[0]
    days = context.measured_on
    when = f"measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") if days else ""
    torch = context.stack.get("torch")
    facts = [f"precision-explorer, run {context.run}", when, f"method {row['method_id']}",
             f"torch {torch}" if torch else "", *context.caveats[:1]]  # fmt: skip
    text = " · ".join(fact for fact in facts if fact)
    lines = [*textwrap.wrap(" ".join(notes), 150)[:1], *textwrap.wrap(text, 150)]
    y = _CHART_TOP + _CHART_HEIGHT + 19.0
    for line in [line for line in lines if line][:4]:
        canvas.text(22, y, _cut(line, 150), 8.5, _SOFT)
        y += 12.5
