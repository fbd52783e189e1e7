"""The wire between manager and worker.

The manager sends pickled dicts. What comes back is bytes only: a JSON header, and Arrow streams
when the header announces them; nothing that comes back is unpickled, and no more is read than
either may have.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

from precision_explorer.bounded import MAX_JSON_BYTES, json_document

MAX_ARROW_BYTES = 8_000_000_000
"""The largest rows are those kept for comparing, some gigabytes for a vocabulary of 128,000."""


def reply(connection: Connection, header: dict[str, Any], arrow: bytes = b"") -> None:
    """Send a header and, if there are any, its rows."""
    header = header | {"arrow_bytes": len(arrow)}
    connection.send_bytes(json.dumps(header, allow_nan=False).encode())
    if arrow:
        connection.send_bytes(arrow)


def receive(connection: Connection) -> tuple[dict[str, Any], bytes]:
    """A header and its rows. Raises EOFError when the worker is gone, ValueError on rubbish (a
    pickle among it), OSError on more bytes than were announced or than `MAX_ARROW_BYTES` and
    `MAX_JSON_BYTES`; the connection is of no use after either."""
    header = json_document(connection.recv_bytes(MAX_JSON_BYTES))
    if not isinstance(header, dict):
        raise ValueError("the worker's answer is no JSON object")
    size = header.get("arrow_bytes", 0)
    if type(size) is not int or not 0 <= size <= MAX_ARROW_BYTES:
        raise ValueError("the worker announced rows of an impossible size")
    arrow = connection.recv_bytes(size) if size else b""
    if len(arrow) != size:
        raise ValueError("the worker's rows are not as long as it said")
    return header, arrow
