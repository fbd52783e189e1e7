"""The wire between manager and worker.

The manager sends pickled dicts. What comes back is bytes only: a JSON header, and Arrow streams
when the header announces them; nothing that comes back is unpickled.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any


def reply(connection: Connection, header: dict[str, Any], arrow: bytes = b"") -> None:
    """Send a header and, if there are any, its rows."""
    header = header | {"arrow_bytes": len(arrow)}
    connection.send_bytes(json.dumps(header, allow_nan=False).encode())
    if arrow:
        connection.send_bytes(arrow)


def receive(connection: Connection) -> tuple[dict[str, Any], bytes]:
    """A header and its rows. Raises EOFError when the worker is gone, ValueError on rubbish."""
    header = json.loads(connection.recv_bytes())
    if not isinstance(header, dict):
        raise ValueError("the worker's answer is no JSON object")
    arrow = connection.recv_bytes() if header.get("arrow_bytes") else b""
    return header, arrow
