"""The history of the record's schema, and the upgrade of old documents on reading.

History
-------
1 : the first one (release 0.1.0). Fields that came later are None in records from before, so that
    nothing has to be upgraded: `Cell.protocol` and `TaskIdentity.order_hash` (version 2 of the
    method); `kernel`, `container` and `settings` of `Environment`; `Measurements.audit`;
    `samples_sha256`, `samples_next_sha256`, and the file's own seal (`records.seal`).

Fields may be added within a version, with a default for records that lack them. What a field means
or is called changes with a version and a step below, and ``tests/records/<version>/`` keeps true
records of the version before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from precision_explorer.errors import StoreError

SCHEMA_VERSION = 1

# Step n turns a document of version n into one of version n + 1.
_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class NewerSchema(StoreError):
    """A document that is whole, but of a schema that this release can't know."""


def upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """`document` brought up to `SCHEMA_VERSION`; NewerSchema if it is newer than this program."""
    version = document["schema_version"]
    if version > SCHEMA_VERSION:
        raise NewerSchema(
            f"written by a newer release (schema {version}, this one reads up to "
            f"{SCHEMA_VERSION}); upgrade precision-explorer"
        )
    while version < SCHEMA_VERSION:
        document = _STEPS[version](document)
        version += 1
    return document
