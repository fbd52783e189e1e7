"""Images in a task's data: rows of pixels, files, or encoded bytes. Nothing is decoded here."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from precision_explorer.bounded import read_bounded
from precision_explorer.errors import TaskError

INLINE = "data:;base64,"
"""How an encoded image (PNG, JPEG, ...) begins that stands in the data itself (RFC 2397)."""
_DEPTHS = (1, 3)
_MOST_BYTES = 256_000_000
"""Of an image's file: a larger one is none that a model sees."""


def inline(encoded: bytes) -> str:
    """The bytes of an image file as text."""
    return INLINE + base64.b64encode(encoded).decode("ascii")


def checked_image(value: Any, column: str) -> Any:
    """`value` if it is an image: a file's path, `inline` text, or rows of pixels.

    Pixels are whole numbers from 0 to 255, (height, width) or (height, width, 3). ValueError else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"'{column}' is no image: give a file's path, or rows of pixels")
    rows = [row if isinstance(row, list) else None for row in value]
    width = len(rows[0]) if rows and rows[0] else 0
    if not width or any(row is None or len(row) != width for row in rows):
        raise ValueError(f"'{column}' is no image: its rows must be lists of one length")
    pixels = [p for row in rows for p in row or []]
    depths = {len(p) if isinstance(p, list) else 1 for p in pixels}
    flat = [v for p in pixels for v in (p if isinstance(p, list) else [p])]
    if len(depths) > 1 or not depths <= set(_DEPTHS):
        raise ValueError(f"'{column}' is no image: a pixel is one number, or three")
    if not all(isinstance(v, int) and 0 <= v <= 255 for v in flat):
        raise ValueError(f"'{column}' is no image: pixels are whole numbers from 0 to 255")
    return value


def located(image: Any, folder: Path | None) -> Any:
    """`image` with its path absolute where it is a file's; relative ones count from `folder`."""
    if not is_file(image):
        return image
    return str((Path(image) if folder is None else folder / image).absolute())


def is_file(image: Any) -> bool:
    """Whether an image is given by a file's path."""
    return isinstance(image, str) and not image.startswith(INLINE)


def files_digest(examples: list[dict[str, Any]], name: str) -> str | None:
    """The SHA-256 over the contents of the image files in order, so that a changed file is other
    data; None where no image is a file. TaskError names the first that can't be read."""
    digest, found = hashlib.sha256(), False
    for example in examples:
        if is_file(example.get("image")):
            found = True
            try:
                digest.update(hashlib.sha256(_file_bytes(Path(example["image"]))).digest())
            # ValueError: a name that can't be one, or a file that is too large.
            except (OSError, ValueError) as error:
                raise TaskError(
                    f"{name}, example {example['id']}: no readable image at {example['image']}; "
                    "paths are relative to the data file"
                ) from error
    return digest.hexdigest() if found else None


def _file_bytes(path: Path) -> bytes:
    """The content of an image's file. The data name it, and may come from a stranger: a device or a
    pipe would never end."""
    if not path.is_file():
        raise FileNotFoundError(path)
    return read_bounded(path, _MOST_BYTES)


def fingerprint(image: Any) -> str:
    """64 hex digits of the SHA-256 of an image as it stands in the data, or of its file."""
    if is_file(image):
        return hashlib.sha256(_file_bytes(Path(image))).hexdigest()
    return hashlib.sha256(json.dumps(image).encode()).hexdigest()
