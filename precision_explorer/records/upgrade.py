"""The history of the record's schema, and the upgrade of old documents on reading.

History
-------
1 : the first one (release 0.1.0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SCHEMA_VERSION = 1

# Step n turns a document of version n into one of version n + 1.
_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """`document` brought up to `SCHEMA_VERSION`; ValueError if it is newer than this program."""
    version = document["schema_version"]
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"written by a newer release (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade precision-explorer"
        )
    while version < SCHEMA_VERSION:
        document = _STEPS[version](document)
        version += 1
    return document
