"""How formats differ from the reference, beyond the verdict: flips each way, ratios, KL, and the
noise floor that all of it is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group, Row
from precision_explorer.stats import Ratio
from precision_explorer.table import ROW_KEY, Comparison, Table
from precision_explorer.units import MISSING, points, share, signed, significant

_NOTHING = Comparison(())


@dataclass(frozen=True)
class _Column:
    heading: str
    show: Callable[[Row, Comparison], str]
    numeric: bool = True


def differences_view(group: Group, table: Table) -> View | None:
    """One row per format with results; a column that says nothing of any of them is left out. None
    where nothing was compared."""
    if group.is_synthetic:
        return None
    found = {comparison.row: comparison for comparison in table.comparisons}
    rows = [(r, found.get(tuple(r[name] for name in ROW_KEY), _NOTHING)) for r in group.ok]
    shown = [(column, [column.show(*row) for row in rows]) for column in _columns(group)]
    columns = [(column, texts) for column, texts in shown if set(texts) != {MISSING}]
    if not columns:
        return None
    lines = zip(*(texts for _, texts in columns), strict=True)
    return View(
        f"Differences to {group.reference}",
        ("Format", *(column.heading for column, _ in columns)),
        tuple(
            (Cell(group.named(row)), *map(Cell, line))
            for (row, _), line in zip(rows, lines, strict=True)
        ),
        (False, *(column.numeric for column, _ in columns)),
    )


def _columns(group: Group) -> list[_Column]:
    reference = group.reference
    return [
        _Column(f"Right only in {reference}", lambda r, c: _count(r["flips_to_wrong"])),
        _Column("Right only in it", lambda r, c: _count(r["flips_to_right"])),
        _Column(f"Errors / {reference}'s [95% CI]", lambda r, c: _ratio(c.errors)),
        _Column(f"Perplexity / {reference}'s [95% CI]", lambda r, c: _ratio(c.perplexity, 5)),
        _Column("p, Holm", lambda r, c: significant(r["p_value_holm"], 2)),
        _Column("Different", lambda r, c: r["different"] or MISSING, numeric=False),
        _Column("KL mean [95% CI]", _kl_mean),
        *(_quantile(name) for name in ("p50", "p90", "p99")),
        _Column("KL max", lambda r, c: _nats(c.divergence.largest) if c.divergence else MISSING),
        _Column("Same top token [95% CI]", _same_top),
        _Column("Positions (examples)", _positions),
        _Column("Noise floor, flips", lambda r, c: _count(r["noise_floor_flips"])),
        _Column("Noise floor, change", lambda r, c: _floor(group, r)),
        _Column("Noise floor, KL", lambda r, c: _nats(r["noise_floor_kl"])),
        _Column("On KL", lambda r, c: r["kl_note"] or MISSING, numeric=False),
    ]


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def _interval(text: str, ends: tuple[str, str] | None) -> str:
    return text if ends is None else f"{text} [{ends[0]}, {ends[1]}]"


def _ratio(ratio: Ratio | None, digits: int = 3) -> str:
    if ratio is None:
        return MISSING
    ends = None
    if ratio.low is not None and ratio.high is not None:
        ends = significant(ratio.low, digits), significant(ratio.high, digits)
    return _interval(significant(ratio.value, digits), ends)


def _nats(value: float | None) -> str:
    return MISSING if value is None else significant(value, 2)


def _kl_mean(row: Row, found: Comparison) -> str:
    kl = found.divergence
    if kl is None:
        return MISSING
    ends = None if kl.low is None else (_nats(kl.low), _nats(kl.high))
    return _interval(_nats(kl.mean), ends)


def _quantile(name: str) -> _Column:
    def show(row: Row, found: Comparison) -> str:
        return _nats(getattr(found.divergence, name)) if found.divergence else MISSING

    return _Column(f"KL {name}", show)


def _same_top(row: Row, found: Comparison) -> str:
    kl = found.divergence
    if kl is None:
        return MISSING
    ends = None
    if kl.same_top_low is not None and kl.same_top_high is not None:
        low, high = share(kl.same_top_low, 2), share(kl.same_top_high, 2)
        ends = low.removesuffix(" %"), high.removesuffix(" %")
    return _interval(share(kl.same_top, 2), ends)


def _positions(row: Row, found: Comparison) -> str:
    kl = found.divergence
    return MISSING if kl is None else f"{kl.positions:,} ({kl.examples:,})"


def _floor(group: Group, row: Row) -> str:
    delta = row["noise_floor_delta"]
    if delta is None:
        return MISSING
    return points(delta) if group.is_share else signed(delta, significant(delta, 2))
