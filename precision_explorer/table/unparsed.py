"""Whether a format's outputs hold no answer more or less often than the reference's."""

from __future__ import annotations

from precision_explorer.records import Caution
from precision_explorer.stats import flips, mcnemar_exact
from precision_explorer.table.quality import Quality

# Two-sided, as the p values of the table.
_SIGNIFICANT = 0.05


def unparsed_caution(reference: Quality, other: Quality, name: str) -> Caution | None:
    """A caution where the share of outputs without an answer differs from that of the reference,
    called `name`, by the exact McNemar test at 5 %; None else, and without an extraction rule."""
    first, second = reference.columns.get("unparsed"), other.columns.get("unparsed")
    if first is None or second is None or None in first or None in second:
        return None
    if list(reference.columns["id"]) != list(other.columns["id"]):
        return None
    before, after = sum(first), sum(second)
    fewer, more = flips([float(v) for v in first], [float(v) for v in second])
    if mcnemar_exact(fewer, more) >= _SIGNIFICANT:
        return None
    text = (
        f"in {after} outputs the card's extraction rule found no answer, in {before} of {name}'s: "
        "the format changes the form of the outputs, and the difference of the scores counts that "
        "too"
    )
    return Caution(id="unparsed-differs", message=text)
