"""The table as a Parquet file that carries its context."""

from __future__ import annotations

import json

from precision_explorer.export.document import (
    SCHEMA_VERSION,
    context_document,
    kind_of,
    plain_rows,
)
from precision_explorer.table import Table

METADATA_KEY = b"precision_explorer"
"""Of the file's metadata: a JSON document with ``schema_version`` and ``context``."""


def to_parquet(table: Table) -> bytes:
    """One row per cell, with a column's type the same in every export, and null where missing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    rows = plain_rows(table)
    arrays, fields = [], []
    for name in table.columns:
        values = [row[name] for row in rows]
        kind = kind_of(name, values)
        made = [None if value is None else kind(value) for value in values]
        arrays.append(pa.array(made, types[kind]))
        fields.append(pa.field(name, types[kind]))
    document = {"schema_version": SCHEMA_VERSION, "context": context_document(table)}
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    schema = pa.schema(fields, metadata={METADATA_KEY: text.encode()})
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), out)
    return bytes(out.getvalue().to_pybytes())
