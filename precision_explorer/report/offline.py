"""Offline over batch sizes: rates and joules of each format at each size that was measured."""

from __future__ import annotations

from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group, Row
from precision_explorer.table import ROW_KEY, OfflineSize, OfflineTable, Table
from precision_explorer.units import MISSING, joules, rate, significant

_Sizes = dict[int, OfflineSize]
_FEWEST = 2


def offline_view(group: Group, table: Table) -> View | None:
    """One line per format and batch size; a column that says nothing of any of them is left out.
    None where no row of the group was measured at several sizes and none has joules of one."""
    found = {offline.row: offline for offline in table.offline}
    rows = [(row, _sizes(found.get(_key(row)))) for row in group.ok]
    sizes = [size for _, held in rows for size in held.values()]
    several = any(len(held) > 1 for _, held in rows)
    if not several and all(size.energy_per_request_j is None for size in sizes):
        return None
    lines = [
        (group.named(row), size, _reference_size(group, row, found, size.size))
        for row, held in rows
        for size in held.values()
    ]
    columns = [
        (f"{heading}", [show(size, base) for _, size, base in lines])
        for heading, show in (
            ("Batches timed", lambda s, b: f"{s.batches:,}"),
            ("Requests", lambda s, b: rate(s.requests_per_s)),
            ("Output tokens", lambda s, b: rate(s.output_tokens_per_s)),
            (f"Rate / {group.reference}'s", _rate_ratio),
            ("Energy per request", lambda s, b: joules(s.energy_per_request_j)),
            (f"Energy / {group.reference}'s", _energy_ratio),
        )
    ]
    shown = [(heading, texts) for heading, texts in columns if set(texts) != {MISSING}]
    return View(
        "Offline over batch sizes",
        ("Format", "Batch size", *(heading for heading, _ in shown)),
        tuple(
            (Cell(name), Cell(f"{size.size:,}"), *(Cell(texts[k]) for _, texts in shown))
            for k, (name, size, _) in enumerate(lines)
        ),
        (False, *(True for _ in range(len(shown) + 1))),
    )


def lacks_energy(group: Group, table: Table) -> bool:
    """Whether a meter's window of some batch size was too short for it."""
    keys = {_key(row) for row in group.ok}
    own = [offline for offline in table.offline if offline.row in keys]
    return any(size.energy_note for offline in own for size in offline.sizes)


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ROW_KEY)


def _sizes(offline: OfflineTable | None) -> _Sizes:
    return {size.size: size for size in offline.sizes} if offline else {}


def _reference_size(
    group: Group, row: Row, found: dict[tuple[object, ...], OfflineTable], size: int
) -> OfflineSize | None:
    """The reference at the same batch size; None for itself, and where it was not measured."""
    base = group.reference_of(row)
    if base is None or base is row:
        return None
    return _sizes(found.get(_key(base))).get(size)


def _rate_ratio(size: OfflineSize, base: OfflineSize | None) -> str:
    """None from a single batch: nothing says how far the next one would have been from it."""
    if base is None or min(size.batches, base.batches) < _FEWEST:
        return MISSING
    return significant(size.requests_per_s / base.requests_per_s)


def _energy_ratio(size: OfflineSize, base: OfflineSize | None) -> str:
    own, other = size.energy_per_request_j, base.energy_per_request_j if base else None
    return MISSING if own is None or not other else significant(own / other)
