"""Rows of examples on their way from a worker: scored, proved finite, packed. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precision_explorer.errors import InvalidNumerics
from precision_explorer.tasks import GenerationRules, signatures

Row = dict[str, Any]


def signatures_of(card: Row, rows: list[Row]) -> dict[str, str]:
    """How the libraries of a card's metrics were asked."""
    if "generation" not in card:
        return {}
    rules = GenerationRules.model_validate(card["generation"])
    return signatures(card["metrics"], [row["references"] for row in rows], rules)


def refuse_non_finite(
    rows: list[Row], proof: str, where: Callable[[int], str | None] | None = None
) -> None:
    """NaN and infinity never become a score: argmax of NaNs would be the first answer's share.
    `where`: in words where the row of that number has its first one, None where that is not
    found."""
    bad = [number for number, row in enumerate(rows) if row[proof] is None]
    if bad:
        first = where(bad[0]) if where is not None else None
        place = f", first in {first}" if first else ""
        raise InvalidNumerics(
            f"{len(bad)} of {len(rows)} examples gave NaN or infinity{place}; the format's range "
            "is too small for this model or its weights are damaged: use a wider format"
        )


def to_arrow(rows: list[Row]) -> bytes:
    """`rows` as an Arrow stream."""
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
