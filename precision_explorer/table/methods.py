"""In what two methods of measuring differ, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from precision_explorer.units import bytes_, hertz, seconds, watts

_FIELDS = {
    "version": "version of the method",
    "model": "model revision",
    "task": "task",
    "workload": "workload",
    "batch_plan": "batch plan",
    "rules": "measuring rules",
    "prompt": "prompt",
    "decoding": "decoding",
    "quality_metric": "quality metric",
    "energy": "energy rule",
    "seed": "seed",
}
# Of the fields that differ within one part of the method so many are shown; the rest is counted.
_SHOWN = 4
# A value longer than this many characters says less than that it differs.
_LONG = 60

Document = Mapping[str, Any]
_UNITS: dict[str, Callable[[float], str]] = {
    "_bytes": bytes_,
    "_hz": hertz,
    "_w": watts,
    "_s": seconds,
    "_seconds": seconds,
}
_NAMES = {"libraries": "library", "variables": "variable"}
# What names that only a program would give say to a reader.
_WORDS = {
    "task.name": "task",
    "task.card_hash": "task card (prompt, decoding, choices, metrics)",
    "task.data_hash": "data revision",
    "task.order_hash": "examples and their order",
    "batch_plan.max_tokens": "batch plan: padded tokens of a batch of the quality pass",
    "batch_sizes": "offline batch sizes",
    "calibration": "calibration set",
    "layers": "recipe of the layers' formats",
}


@dataclass(frozen=True)
class Field:
    """One field in which two documents differ. `name`: its path, with dots; `one`, `other`: both
    values, None where a document does not hold it."""

    name: str
    words: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.words} ({self.texts[0]} against {self.texts[1]})"

    @property
    def texts(self) -> tuple[str, str]:
        """Both values as text, in the unit that the field's name ends with."""
        show = _unit_of(self.name)[1]
        one, other = (show(v) if _is_number(v) else _shown(v) for v in (self.one, self.other))
        return one, other


def differing(one: Document, other: Document) -> tuple[Field, ...]:
    """All fields in which two documents differ, the parts of a part each by itself."""
    first, second = flat(one), flat(other)
    return tuple(
        Field(name, words_of(name), first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
        if first.get(name) != second.get(name)
    )


def flat(document: Document, above: str = "") -> dict[str, Any]:
    """{path with dots: value} of a document's fields; a list is one value, an empty part none."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{above}{name}.")
        else:
            found[f"{above}{name}"] = value
    return found


def words_of(name: str) -> str:
    """A field's path in words: ``workload: min requests``."""
    if name in _WORDS:
        return _WORDS[name]
    # ``min_seconds`` without its end would be no words.
    end = _unit_of(name)[0].replace("_seconds", "")
    first, *rest = name.removesuffix(end).split(".")
    head = _FIELDS.get(first, first.replace("_", " "))
    if first in _NAMES:
        # Names of their own, in which a point may stand.
        return f"{_NAMES[first]} {name.partition('.')[2]}"
    return ": ".join([head, *(part.replace("_", " ") for part in rest)])


def _shown(value: Any) -> str:
    """A field's value as text; a list by its items."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    return _value(value)


def _unit_of(name: str) -> tuple[str, Callable[[float], str]]:
    """The end of a field's name that says its unit, empty without one, and how that is shown."""
    found = (end for end in _UNITS if name.endswith(end))
    end = next(found, "")
    return end, _UNITS.get(end, _value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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
