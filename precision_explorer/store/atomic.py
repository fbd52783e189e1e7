"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import IO, Any


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, even after a crash, sees the old or the new file.

    The temporary name never ends in ``.json``, so that no half file is taken for a record.
    """
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        with _created(temporary) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _created(path: Path) -> IO[bytes]:
    """A new file at `path`, for writing. Never through a link that stands there: what has the name
    was left by a process that was killed, or put there by somebody, and goes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except FileExistsError:
        path.unlink()
        handle = os.open(path, flags, 0o666)
    return os.fdopen(handle, "wb")


def write_json(path: Path, document: Any) -> None:
    """`document` as UTF-8 JSON, keys in their order, floats as Python prints them; no NaN."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")
