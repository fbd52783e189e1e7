"""A JSON file that tells whether it is as it was written: its last field is the SHA-256 of all that
stands before it, so that no changed byte, and no half file, is read as a measurement."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from precision_explorer.bounded import json_document

SEAL = "sha256"
_LAST = re.compile(rb'\n "[^"\n]*": "([0-9a-f]{64})"\n}\n\Z')


def sealed(document: dict[str, Any]) -> bytes:
    """`document` as JSON, keys in their order, floats as Python prints them, and its seal.

    ValueError for NaN, which JSON has not, and for a document that has a seal.
    """
    if SEAL in document:
        raise ValueError("a document is sealed once")
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False).encode()
    # Without the end, "\n}", or of an empty document "}".
    head = text[:-2] + b"," if document else b"{"
    return head + _end(head)


def is_sealed(content: bytes) -> bool:
    """Whether a file's `content` ends with a seal, as all that is written now."""
    return _LAST.search(content) is not None


def unsealed(content: bytes) -> dict[str, Any]:
    """The document of a file's `content`, without its seal; ValueError where it is not as it was
    written, or what `json_document` refuses. One from before there were seals has none, and
    is taken as it is."""
    document = json_document(content)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")
    told = document.pop(SEAL, None)
    found = _LAST.search(content)
    place = found.start() if found else len(content)
    fits = content[place:] == _end(content[:place])
    if told is None and found is not None and found[1].decode() == _digest(content[:place]):
        raise ValueError(f"its field {SEAL} was renamed")
    if told is not None and not fits:
        raise ValueError(f"its content is not what its {SEAL} stands for")
    return document


def _end(head: bytes) -> bytes:
    return f'\n "{SEAL}": "{_digest(head)}"\n}}\n'.encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
