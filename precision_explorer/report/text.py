"""Text from the data made safe to show anywhere, and lists in words. Escaping for one output
(HTML, Markdown, CSV) is that output's affair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")
# Control characters (terminal escapes start with one), invisible marks, and those that turn the
# direction of the text around them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]"
)
_PLAIN = frozenset({bool, int, float})
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """One line without control characters, line breaks as spaces; encodable as UTF-8."""
    if text.isascii() and text.isprintable():
        return text  # Nearly all texts: nothing to look for.
    return printable(_BREAKS.sub(" ", text))


def printable(text: str) -> str:
    """`text` without what a terminal would obey rather than print; tabs and line ends stay."""
    parts = re.split("([\t\n\r])", text)
    kept = [part if part in "\t\n\r" else _HIDDEN.sub("", part) for part in parts]
    return _SURROGATES.sub("\ufffd", "".join(kept))


def cleaned(value: Any) -> Any:
    """`value` with every text in it cleaned, through dicts, lists, tuples and dataclasses."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {
            # Rows hold thousands of numbers, which need no call each.
            cleaned(k): v if v is None or type(v) in _PLAIN else cleaned(v)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(cleaned(v) for v in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: cleaned(getattr(value, f.name)) for f in fields(value)})
    return value


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
