"""The cache of extracted columns, so that a sweep run again opens no data library.

One file per (data, columns): a header line with the body's SHA-256, then one JSON array per row.
A cache that can't be read or written is as good as none; it never fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from precision_explorer.paths import cache_dir

_LAYOUT = 1
Row = dict[str, Any]


def cache_key(*parts: Any) -> str:
    """64 hex digits of the SHA-256 over `parts` as canonical JSON and the layout of the file."""
    text = json.dumps([_LAYOUT, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_rows(key: str, columns: list[str]) -> list[Row] | None:
    """The rows stored under `key`, or None if there are none or the file is damaged."""
    try:
        head, _, body = (_folder() / key).read_bytes().partition(b"\n")
        if json.loads(head)["sha256"] != hashlib.sha256(body).hexdigest():
            return None
        return unpack(body, columns)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def write_rows(key: str, body: bytes) -> None:
    """Store `body` (of `pack`) under `key`, whole or not at all."""
    head = json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode()
    _write(key, head + b"\n" + body)


def read_note(key: str) -> str | None:
    """A short text stored under `key`, or None."""
    try:
        return (_folder() / key).read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError):
        return None


def write_note(key: str, text: str) -> None:
    """Store a short text under `key`."""
    _write(key, text.encode())


def pack(rows: list[Row], columns: list[str]) -> bytes:
    """`rows` as JSON lines of arrays in the order of `columns`; dates and the like become text."""
    lines = [json.dumps([row[c] for c in columns], default=str) + "\n" for row in rows]
    return "".join(lines).encode()


def unpack(body: bytes, columns: list[str]) -> list[Row]:
    """The rows of `pack`."""
    return [dict(zip(columns, json.loads(line), strict=True)) for line in body.splitlines()]


def _folder() -> Path:
    return cache_dir() / "tasks"


def _write(key: str, content: bytes) -> None:
    # RuntimeError: the user has no home folder.
    with contextlib.suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{key[:8]}-", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).replace(folder / key)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
