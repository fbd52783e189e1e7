"""The table as one JSON document."""

from __future__ import annotations

import json

from precision_explorer.export.document import (
    SCHEMA_VERSION,
    context_document,
    finite,
    plain_rows,
)
from precision_explorer.table import Table


def to_json(table: Table) -> bytes:
    """``schema_version``, ``context`` and ``rows``: an object per row with every column, whose name
    holds its unit. Missing is null (RFC 8259: UTF-8, no NaN)."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "context": context_document(table),
        "rows": [{name: finite(v) for name, v in row.items()} for row in plain_rows(table)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
