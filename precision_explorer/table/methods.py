"""In what two methods of measuring differ, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_FIELDS = {
    "version": "version of the method",
    "model": "model revision",
    "task": "task",
    "workload": "workload",
    "batch_plan": "batch plan",
    "rules": "measuring rules",
    "seed": "seed",
}
# Of the fields that differ within one part of the method so many are shown; the rest is counted.
_SHOWN = 4
# A value longer than this many characters says less than that it differs.
_LONG = 60

Document = Mapping[str, Any]


def apart(documents: Mapping[str, Document]) -> str:
    """One sentence per method of `documents` (method id to `Cell.method()`) but the first: the
    fields in which it differs from the first, with both values."""
    (first, base), *others = documents.items()
    return " ".join(
        f"Methods {first} and {name} differ in {'; '.join(_parts(base, other))}."
        for name, other in others
    )


def _parts(one: Document, other: Document) -> Iterator[str]:
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            words = _FIELDS.get(name, name.replace("_", " "))
            yield f"{words} ({_differing(one.get(name), other.get(name))})"


def _differing(one: Any, other: Any) -> str:
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return f"{_value(one)} against {_value(other)}"
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    shown = [
        f"{name.replace('_', ' ')} {_against(one.get(name), other.get(name))}"
        for name in names[:_SHOWN]
    ]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*shown, *more])


def _against(one: Any, other: Any) -> str:
    texts = [_value(one), _value(other)]
    if max(map(len, texts)) > _LONG:
        return "differently worded" if isinstance(one, str) and isinstance(other, str) else "differ"
    return " against ".join(texts)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
