"""Where a stored table differs from the one that the records give."""

from __future__ import annotations

import csv
import io
import math
import re

from precision_explorer.store import Fault

ROUNDING = 1e-9
"""Relative: sums of some thousand float64 in another order differ by less than 1e-12 of their value
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2), with room for what is
divided by small differences; a table's figures are known to no more than 1e-3."""
_NUMBER = re.compile(rb"(?<![\w.])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.]*\w)")
# A figure that was rounded otherwise has all digits that a float64 is written with; versions, days
# and figures for people have fewer.
_FULL_DIGITS = 12
# What a row is of, and what it came to.
_DECIDING = (
    "model",
    "task",
    "format",
    "runtime",
    "device",
    "status",
    "execution",
    "verdict",
    "pareto",
)
_SHOWN = 60


def table_fault(name: str, stored: bytes, made: bytes, root: str, advice: str) -> Fault:
    """The first difference of a table from the one made of the records, which differ. `root`: the
    manifest's, which a table of these records shows; `advice`: how to make it again."""
    if root.encode() not in stored:
        found = f"does not show the manifest's root {root}: it is the table of other records"
        return Fault(name, found, advice)
    cell = _cell(stored, made) if name.endswith(".csv") else None
    return Fault(name, cell or _line(stored, made), advice)


def _rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(errors="replace"), newline="")))


def _cell(stored: bytes, made: bytes) -> str | None:
    """The first cell that differs; None where it is not a cell that does."""
    try:
        old, new = _rows(stored), _rows(made)
    except csv.Error:
        return None
    if not old or not new:
        return None
    for number, (one, two) in enumerate(zip(old, new, strict=False)):
        for column, (had, gives) in enumerate(zip(one, two, strict=False)):
            if had != gives:
                where = f"column {new[0][column] if column < len(new[0]) else column + 1}"
                row = f"row {number} ({', '.join(two[1:3])}), {where}" if number else "the header"
                return f"{row} says {_short(had)}, the records give {_short(gives)}"
        if len(one) != len(two):
            what = f"row {number} has {len(one)} cells" if number else f"has {len(one)} columns"
            return f"{what}, the records give {len(two)}"
    if len(old) != len(new):
        return f"has {len(old) - 1} rows, the records give {len(new) - 1}"
    return None


def _line(stored: bytes, made: bytes) -> str:
    """The first line that differs, from where it does."""
    old, new = stored.split(b"\n"), made.split(b"\n")
    pairs = zip(old, new, strict=False)
    at = next((n for n, (one, two) in enumerate(pairs) if one != two), min(len(old), len(new)))
    had = old[at] if at < len(old) else b""
    gives = new[at] if at < len(new) else b""
    start = next((n for n, (a, b) in enumerate(zip(had, gives, strict=False)) if a != b), 0)
    begin = max(start - 20, 0)
    told = [_short(text[begin:].decode(errors="replace")) for text in (had, gives)]
    return f"line {at + 1} says {told[0]}, the records give {told[1]}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...") if text else "nothing"


def is_rounding(stored: bytes, made: bytes) -> bool:
    """Whether two tables are the same but for the last digits of numbers (`ROUNDING`)."""
    if _NUMBER.sub(b"#", stored) != _NUMBER.sub(b"#", made):
        return False
    pairs = zip(_NUMBER.findall(stored), _NUMBER.findall(made), strict=True)
    return all(a == b or _close(a, b) for a, b in pairs)


def _close(a: bytes, b: bytes) -> bool:
    """Only of figures in full precision: nothing rounds counts, versions or pieces of hashes."""
    if a.isdigit() or b.isdigit():
        return False
    if max(sum(chr(c).isdigit() for c in text) for text in (a, b)) < _FULL_DIGITS:
        return False
    return math.isclose(float(a), float(b), rel_tol=ROUNDING, abs_tol=0.0)


def same_figures(stored: bytes, made: bytes) -> bool:
    """Whether two CSV tables have the same rows, and in every column that both have the same
    numbers up to `ROUNDING`, and the same of `_DECIDING`; other texts may differ, where they are
    words about the numbers."""
    old, new = (list(csv.DictReader(io.StringIO(c.decode(errors="replace"), newline="")))
                for c in (stored, made))  # fmt: skip
    return len(old) == len(new) and all(
        had == two[name] if name in _DECIDING else _same_cell(had, two[name])
        for one, two in zip(old, new, strict=True)
        for name, had in one.items()
        if name in two
    )


def _same_cell(had: str | None, gives: str | None) -> bool:
    if had == gives:
        return True
    try:
        return math.isclose(float(had or ""), float(gives or ""), rel_tol=ROUNDING)
    except ValueError:
        # Words, as long as neither was a number: a figure must not go or come.
        return not (_is_number(had) or _is_number(gives))


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True
