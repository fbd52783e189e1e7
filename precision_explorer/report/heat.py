"""The heat-map: layers in order by formats, coloured by signal-to-quantization-noise ratio."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from precision_explorer.records.numerics import FormatNumerics, LayerNumerics

# Ends of the colours in dB, lower is worse: "below 0", then tens. 8 steps of the viridis map, which
# keeps its order for all kinds of colour vision (van der Walt & Smith 2015).
STEPS = (0, 10, 20, 30, 40, 50, 60)
# `model.layers.3.mlp.down_proj` is `mlp.down_proj` of the block `model.layers.3`.
_BLOCK = re.compile(r"^(.*?\.\d+)\.(.+)$")
# Of the overview's drawing, in its own units.
_LEFT, _WIDTH, _ROW, _AXIS = 130, 960, 22, 26
# Closer together, the names of blocks would run into each other.
_LABEL_GAP = 34


@dataclass(frozen=True)
class HeatCell:
    """`css`: ``c0`` to ``c7``, ``exact``, ``bad`` (not finite) or ``none``, with ``unsure`` after
    it where it is hatched; `text` is the number in dB or a word; `title` says it in full."""

    css: str
    text: str
    title: str


@dataclass(frozen=True)
class HeatRow:
    """A layer. `block` is set in the first row of a block, with the number of its rows."""

    block: str
    span: int
    name: str
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True)
class Strip:
    """One format of the overview: its place, and (x, width, css class) of each layer."""

    label: str
    y: float
    cells: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Heat:
    """One heat-map: a small drawing of the whole, and the table with its numbers."""

    id: str
    title: str
    line: str
    formats: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    strips: tuple[Strip, ...]
    ticks: tuple[tuple[float, str], ...]
    """Where blocks begin, and their numbers."""
    left: float
    width: float
    height: float
    row_height: float
    description: str
    key: tuple[tuple[str, str], ...]
    """(css class, words) of the legend."""


def make_heat(ran: list[FormatNumerics]) -> tuple[Heat, ...]:
    """The heat-maps of what had built up and of each layer alone; none without layers."""
    layers = _layers(ran)
    if not layers:
        return ()
    return (
        _heat(
            ran, layers, "output", "Error built up",
            "Each layer's output in the format's own run against the reference's.",
        ),
        _heat(
            ran, layers, "local", "Error of each layer alone",
            "Each layer's output when it is fed the reference's inputs, against the reference's.",
        ),
    )  # fmt: skip


def _layers(ran: list[FormatNumerics]) -> list[str]:
    """Names of all linear layers in the order in which they are run."""
    found = [x.layer for f in ran for x in f.layers if x.kind in ("linear", "head")]
    return list(dict.fromkeys(found))


def _heat(ran: list[FormatNumerics], layers: list[str], what: str, title: str, line: str) -> Heat:
    by_format = [{x.layer: x for x in f.layers} for f in ran]
    grid = {
        layer: tuple(
            _cell(found.format, layer, known.get(layer), what)
            for found, known in zip(ran, by_format, strict=True)
        )
        for layer in layers
    }
    step = (_WIDTH - _LEFT) / len(layers)
    strips = tuple(
        Strip(
            found.format,
            k * _ROW,
            tuple(
                (round(_LEFT + i * step, 2), round(step, 2), grid[layer][k].css)
                for i, layer in enumerate(layers)
            ),
        )
        for k, found in enumerate(ran)
    )
    return Heat(
        id=what,
        title=title,
        line=line,
        formats=tuple(f.format for f in ran),
        rows=tuple(_rows(layers, grid)),
        strips=strips,
        ticks=_ticks(layers, step),
        left=_LEFT,
        width=_WIDTH,
        height=_ROW * len(ran) + _AXIS,
        row_height=_ROW,
        description=_description(ran, what),
        key=_KEY,
    )


_KEY = (
    ("c0", "below 0 dB"),
    *((f"c{k + 1}", f"{low} to {low + 10}") for k, low in enumerate(STEPS[:-1])),
    (f"c{len(STEPS)}", f"{STEPS[-1]} dB and more"),
    ("exact", "exact"),
    ("bad", "not finite"),
    ("none", "not measured"),
)


def _cell(format_id: str, name: str, layer: LayerNumerics | None, what: str) -> HeatCell:
    state = getattr(layer, f"{what}_state") if layer else "unavailable"
    value = getattr(layer, f"{what}_sqnr_db") if layer else None
    where = f"{name} in {format_id}"
    if value is not None:
        return HeatCell(f"c{_step(value)}", f"{value:.0f}", f"{where}: {value:.1f} dB")
    if state == "exact":
        return HeatCell("exact", "exact", f"{where}: no error")
    if state == "not-finite":
        return HeatCell("bad", "inf/NaN", f"{where}: not finite")
    return HeatCell("none", "—", f"{where}: not measured")


def _step(value: float) -> int:
    """The colour of a value in dB: 0 for below `STEPS[0]`, up to ``len(STEPS)``."""
    return sum(value >= low for low in STEPS)


def split_name(name: str) -> tuple[str, str]:
    """(block, rest) of a layer's name; the block is empty for layers outside the numbered ones."""
    match = _BLOCK.match(name)
    return (match.group(1), match.group(2)) if match else ("", name)


def _rows(layers: list[str], grid: dict[str, tuple[HeatCell, ...]]) -> list[HeatRow]:
    rows = []
    for block, names in groupby(layers, key=lambda name: split_name(name)[0]):
        whole = list(names)
        for k, name in enumerate(whole):
            span = len(whole) if k == 0 else 0
            rows.append(HeatRow(block if k == 0 else "", span, split_name(name)[1], grid[name]))
    return rows


def _ticks(layers: list[str], step: float) -> tuple[tuple[float, str], ...]:
    ticks: list[tuple[float, str]] = []
    before = ""
    for i, name in enumerate(layers):
        block = split_name(name)[0]
        at = round(_LEFT + i * step, 2)
        if block and block != before and (not ticks or at - ticks[-1][0] >= _LABEL_GAP):
            ticks.append((at, block.rsplit(".", 1)[-1]))
        before = block
    return tuple(ticks)


def _description(ran: list[FormatNumerics], what: str) -> str:
    """The drawing in words: the range of each format."""
    parts = []
    for found in ran:
        layers = [x for x in found.layers if x.kind in ("linear", "head")]
        values = [v for v in (getattr(x, f"{what}_sqnr_db") for x in layers) if v is not None]
        bad = sum(getattr(x, f"{what}_state") == "not-finite" for x in layers)
        text = f"{min(values):.0f} to {max(values):.0f} dB" if values else "no measured layer"
        parts.append(f"{found.format} {text}" + (f", {bad} layers not finite" if bad else ""))
    return "; ".join(parts) + ". The table below has every number."
