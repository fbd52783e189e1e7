"""Arrow streams of rows, put together. No torch here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any


def table_of(streams: Sequence[bytes]) -> Any:
    """The rows of all `streams`, one after the other."""
    import pyarrow as pa

    tables = [pa.ipc.open_stream(stream).read_all() for stream in streams]
    # A column that is empty in one of them has no type there.
    return pa.concat_tables(tables, promote_options="permissive")


def stream_of(table: Any) -> bytes:
    """`table` as one stream."""
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def joined_streams(streams: Sequence[bytes]) -> bytes:
    """One stream of all rows; the stream itself where there is one."""
    return streams[0] if len(streams) == 1 else stream_of(table_of(streams))
