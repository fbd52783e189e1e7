"""Columns of a data set as plain values: paths into structs, and images left encoded."""

from __future__ import annotations

from typing import Any

from precision_explorer.errors import TaskError, unknown_name
from precision_explorer.tasks.images import inline

Row = dict[str, Any]


def taken_columns(source: str, data: Any, columns: list[str]) -> list[Row]:
    """One dict per row of `data` (a `datasets.Dataset`) with every one of `columns`.

    A name with dots that no column has is a path: ``answers.text`` is the field ``text`` of the
    struct in ``answers``, or of each struct where it holds a list of them, and ``choices.0`` the
    first of a list. TaskError names a column
    or a field that is not there.
    """
    paths = {column: _path(source, column, data.column_names) for column in columns}
    roots = sorted({path[0] for path in paths.values()})
    rows = _encoded(data.select_columns(roots)).to_list()
    return [
        {column: _plain(_at(source, row, path)) for column, path in paths.items()} for row in rows
    ]


def _path(source: str, column: str, present: list[str]) -> list[str]:
    if column in present:
        return [column]
    parts = column.split(".")
    for length in range(len(parts) - 1, 0, -1):
        root = ".".join(parts[:length])
        if root in present:
            return [root, *parts[length:]]
    there = unknown_name("column", column, present)
    raise TaskError(f"{source}: {there} (columns there: {', '.join(present)})")


def _at(source: str, row: Row, path: list[str]) -> Any:
    value: Any = row[path[0]]
    for name in path[1:]:
        value = _field(source, value, name, path)
    return value


def _field(source: str, value: Any, name: str, path: list[str]) -> Any:
    if value is None:
        return None
    if isinstance(value, list) and name.isdigit():
        return value[int(name)] if int(name) < len(value) else None
    if isinstance(value, list):
        return [_field(source, each, name, path) for each in value]
    if isinstance(value, dict) and name in value:
        return value[name]
    if isinstance(value, dict):
        there = unknown_name("field", name, [str(key) for key in value])
        raise TaskError(f"{source}: {there} (in the column {path[0]})")
    raise TaskError(f"{source}: column {path[0]} holds no struct, so {'.'.join(path)} is not there")


def _encoded(data: Any) -> Any:
    """`data` with its images as the bytes that they are stored in: decoding is the worker's."""
    from datasets import Image

    for name, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(name, Image(decode=False))
    return data


def _plain(value: Any) -> Any:
    """Bytes as text; of an image with its bytes and its path the bytes, or the path alone."""
    if isinstance(value, bytes):
        return inline(value)
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        return inline(value["bytes"]) if value["bytes"] is not None else value["path"]
    return value
