"""Which columns a cell's samples have, and of what type, as their readers rely on it: the file may
come from a stranger."""

from __future__ import annotations

from typing import Any

_TEXT = (
    "row", "id", "answer", "window", "output", "finish_reason",
)  # fmt: skip
_REAL = (
    "latency_s", "start_s", "ttft_s", "tpot_s", "scheduled_s", "noticed_s", "started_s",
    "finished_s", "queue_s", "service_s", "tokenize_s", "copy_s", "forward_s", "prefill_s",
    "decode_s", "post_s", "score", "score_norm", "loss", "kl",
)  # fmt: skip
_WHOLE = (
    "index", "round", "input_tokens", "output_tokens", "tokens", "words", "bytes", "position",
    "batch", "batch_size", "point", "attempt",
)  # fmt: skip
_BOTH = ("cut", "same_top", "unparsed")
_TIMED = ("id", "window", "latency_s")
# Of each row of a kind.
_NEEDED = {
    "example": ("id",), "repeat": ("id",), "request": _TIMED, "disturbed": _TIMED,
    "position": ("id", "kl", "same_top"),
}  # fmt: skip


def check_columns(schema: Any) -> None:
    """ValueError for a known column of another type than it is written in, and for a name that
    stands twice. A column without any value has no type; of unknown ones nothing is relied on."""
    import pyarrow as pa

    wanted: dict[str, tuple[Any, ...]] = dict.fromkeys(_TEXT, (pa.types.is_string,))
    wanted |= dict.fromkeys(_REAL, (pa.types.is_floating, pa.types.is_integer))
    wanted |= dict.fromkeys(_WHOLE, (pa.types.is_integer,))
    # Truth values, also as 0 and 1.
    wanted |= dict.fromkeys(_BOTH, (pa.types.is_boolean, pa.types.is_integer))
    if len(set(schema.names)) != len(schema.names):
        raise ValueError("a column stands twice")
    for field in schema:
        tests = (*wanted.get(field.name, ()), pa.types.is_null)
        if field.name in wanted and not any(test(field.type) for test in tests):
            raise ValueError(f"the column {field.name} holds {field.type}")


def needed_columns(kind: str, rows: Any) -> dict[str, list[Any]]:
    """The columns of a table of the rows of one kind, those among them without which none is
    written; ValueError where one is missing."""
    try:
        found: dict[str, list[Any]] = rows.to_pydict()
    except OverflowError as error:
        # A time beyond Python's calendar.
        raise ValueError(f"a column's values can't be read ({error})") from error
    for name in _NEEDED.get(kind, ()):
        if name not in found and len(rows):
            raise ValueError(f"there is no column {name}")
        found.setdefault(name, [])
    return found
