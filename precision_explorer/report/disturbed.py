"""Each format alone and beside background work, and whether the ranking changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.ranking import is_busy
from precision_explorer.report.text import clean, listed
from precision_explorer.stats import Ratio, round_spread
from precision_explorer.table import ROW_KEY, DisturbedTable, Figure, Table
from precision_explorer.units import MISSING, bytes_, rate, seconds, share, significant

Pair = tuple[Row, DisturbedTable]


@dataclass(frozen=True)
class DisturbedSection:
    """The rows of a group that were measured beside background work; `lines`: what worked there,
    and whether the ranking changes."""

    lines: tuple[str, ...]
    view: View


@dataclass(frozen=True)
class _By:
    """The figure that formats are ranked by."""

    noun: str
    of: Callable[[DisturbedTable], Figure]
    higher: bool = False


_P50 = _By("median latency", lambda d: d.p50)
_P99 = _By("99th percentile of the latency", lambda d: d.p99)
_RATE = _By("throughput", lambda d: d.rate, True)


def disturbed_section(group: Group, table: Table) -> DisturbedSection | None:
    """None where no row of the group was measured beside background work."""
    found = {d.row: d for d in table.disturbed}
    pairs = [(row, found.get(tuple(row[name] for name in ROW_KEY))) for row in group.ok]
    rows = [(row, d) for row, d in pairs if d is not None]
    if not rows:
        return None
    lines = (_beside(rows[0][1]), *_ranking(group, rows), *_troubles(group, rows))
    return DisturbedSection(tuple(line for line in lines if line), _view(group, rows))


# -- the table -----------------------------------------------------------------------------------


def _view(group: Group, rows: Sequence[Pair]) -> View:
    columns: list[tuple[str, list[str]]] = []
    for name, of, show in (
        ("p50", _P50.of, seconds), ("p99", _P99.of, seconds), ("Throughput", _RATE.of, rate),
    ):  # fmt: skip
        figures = [(d, of(d)) for _, d in rows]
        alone = [_alone(row, name, f, show) for (row, _), (_, f) in zip(rows, figures, strict=True)]
        columns += [
            (f"{name} alone", alone),
            ("disturbed", [_disturbed(d, f, show) for d, f in figures]),
            ("ratio [95% CI]", [_ratio(f.ratio) for _, f in figures]),
        ]
    for label in dict.fromkeys(kept.label for _, d in rows for kept in d.kept):
        columns.append((f"{clean(label)} keeps", [_keeps(d, label) for _, d in rows]))
    shown = [(heading, cells) for heading, cells in columns if set(cells) != {MISSING}]
    return View(
        "Alone and disturbed",
        ("Format", *(heading for heading, _ in shown)),
        tuple(
            (Cell(group.named(row)), *(Cell(cells[k]) for _, cells in shown))
            for k, (row, _) in enumerate(rows)
        ),
        (False, *(True for _ in shown)),
    )


def _alone(row: Row, name: str, figure: Figure, show: Callable[[float | None], str]) -> str:
    needed = row["latency_p99_needed_n"] if name == "p99" else None
    if figure.alone is None and needed:
        return f"needs n >= {needed:,}"
    return show(figure.alone)


def _disturbed(d: DisturbedTable, figure: Figure, show: Callable[[float | None], str]) -> str:
    if d.failed is not None:
        return "failed"
    if d.saturated and figure is not d.rate:
        return "saturated"
    return figure.note or show(figure.disturbed)


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return MISSING
    text = significant(ratio.value)
    if ratio.low is None or ratio.high is None:
        return text
    return f"{text} [{significant(ratio.low)}, {significant(ratio.high)}]"


def _keeps(d: DisturbedTable, label: str) -> str:
    kept = next((k for k in d.kept if k.label == label), None)
    return share(kept.beside_per_s / kept.alone_per_s, 0) if kept else MISSING


# -- in words ------------------------------------------------------------------------------------


def _beside(d: DisturbedTable) -> str:
    """What worked beside the formats, and how fast that is without them."""
    if not d.kept:
        return f"Beside {d.background}."
    works = [f"{k.label} ({k.what}; {_pace(k.alone_per_s, k.operation)})" for k in d.kept]
    return (
        f"Beside {listed(works)}: rates of all of these together while nothing was measured. What "
        "each keeps of that beside a format stands in the last columns."
    )


def _pace(per_s: float, operation: str) -> str:
    return f"{bytes_(per_s)}/s" if operation == "bytes" else rate(per_s, f"{operation}/s")


def _ranking(group: Group, rows: Sequence[Pair]) -> list[str]:
    """Whether the ranking changes: said only of differences beyond those between rounds."""
    usable = [(row, d) for row, d in rows if d.failed is None]
    if len(usable) < 2:
        return ["The ranking can't change: fewer than two formats have a disturbed result."]
    busy = [row for row, _ in usable if is_busy(row) or _has(row, "background-busy")]
    if busy:
        return [
            "Whether the ranking changes can't be told: other work than the background disturbed "
            f"the timing of {listed([group.named(row) for row in busy])}."
        ]
    by = _by(usable)
    changes, open_ = [], []
    for pair in combinations(usable, 2):
        alone, disturbed = (_order(pair, by, where) for where in ("alone", "disturbed"))
        if alone and disturbed and alone != disturbed:
            changes.append(_change(group, pair, alone))
        elif not (alone and disturbed):
            open_.append(" and ".join(group.named(row) for row, _ in pair))
    if changes:
        return [f"By {by.noun} the ranking changes: {'; '.join(changes)}."]
    if open_:
        return [
            f"By {by.noun} no change of the ranking can be told. Alone or disturbed, these differ "
            f"by no more than rounds of one format do: {listed(open_)}."
        ]
    return [f"By {by.noun} the ranking does not change: {_in_order(group, usable, by)}."]


def _has(row: Row, caution: str) -> bool:
    return caution in (row["cautions"] or "").split(";")


def _by(rows: Sequence[Pair]) -> _By:
    """Throughput where all requests are at hand; under a load of its own clock the 99th percentile,
    if every row has it; else the median latency."""
    scenario = rows[0][0]["scenario"]
    if scenario == "offline":
        return _RATE
    told = all(d.p99.alone and (d.p99.disturbed or d.saturated) for _, d in rows)
    return _P99 if scenario == "server" and told else _P50


def _value(d: DisturbedTable, by: _By, where: str) -> float | None:
    """The figure, the lower the better; infinite for a queue that grows without end."""
    if where == "disturbed" and d.saturated and not by.higher:
        return float("inf")
    value = getattr(by.of(d), where)
    return 1 / value if value and by.higher else value or None


def _order(pair: Sequence[Pair], by: _By, where: str) -> int:
    """-1 where the first is faster, 1 where the second is, 0 where that can't be told."""
    tables = [d for _, d in pair]
    first, second = (_value(d, by, where) for d in tables)
    if first is None or second is None or first == second:
        return 0
    faster = -1 if first < second else 1
    low, high = sorted((first, second))
    if high == float("inf"):
        return faster
    spreads = [round_spread(getattr(by.of(d), f"{where}_rounds")) for d in tables]
    known = [spread for spread in spreads if spread is not None]
    return faster if len(known) == 2 and high / low - 1 > max(known) else 0


def _change(group: Group, pair: Sequence[Pair], alone: int) -> str:
    (fast, _), (slow, beaten) = pair if alone < 0 else tuple(reversed(pair))
    first = next(d for row, d in pair if row is fast)
    if first.saturated and not beaten.saturated:
        end = "can't keep up with the load when disturbed, as the other still can"
    else:
        end = "slower when disturbed"
    return f"{group.named(fast)} is faster than {group.named(slow)} alone and {end}"


def _in_order(group: Group, rows: Sequence[Pair], by: _By) -> str:
    ordered = sorted(rows, key=lambda pair: _value(pair[1], by, "alone") or float("inf"))
    names = listed([group.named(row) for row, _ in ordered])
    return f"alone and disturbed {names}, from the fastest to the slowest"


def _troubles(group: Group, rows: Sequence[Pair]) -> list[str]:
    """What else must be known of a disturbed row."""
    lines = []
    for row, d in rows:
        name = group.named(row)
        if d.failed is not None:
            lines.append(f"{name}: the disturbed measurement failed: {d.failed}.")
        elif d.saturated:
            lines.append(
                f"{name} can't keep up with the load when disturbed: of {rate(d.offered_per_s)} "
                f"that come it serves {rate(d.served_per_s)}, so no latency would hold."
            )
        elif d.late_s is not None:
            lines.append(
                f"{name}: the background also made the serving loop late, by {seconds(d.late_s)} "
                "for 1 % of the requests, as it would a server's: that is in the latency."
            )
    return lines
