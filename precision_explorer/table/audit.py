"""What a row's audits came to, in a word and in cautions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precision_explorer.records import Audit, Caution
from precision_explorer.table.data import ROW_KEY, AuditTable

if TYPE_CHECKING:
    from precision_explorer.table.build import Entry

FAILED = "failed: "
_CAUTIONS = {
    "answers": Caution(
        id="audit-answers",
        message="timed requests did not answer what the quality pass did, beyond the format's "
        "own numeric noise: speed and quality are those of two different things; find what "
        "serves requests otherwise (a cache, a wrapper, code of the model's own), and measure "
        "again",
    ),
    "repeated-sample": Caution(
        id="audit-repeated-sample",
        message="requests that were repeated were served faster than the same ones in turn: "
        "something keeps inputs or answers, so new requests are slower than the row says; turn "
        "it off, and measure again",
    ),
    "other-seed": Caution(
        id="audit-other-seed",
        message="requests drawn by another seed had another median: the row's speed is that of "
        "its order of examples; measure more requests (min_seconds, --limit) or several "
        "seeds",
    ),
    "roofline": Caution(
        id="audit-roofline",
        message="timed requests were faster than the device's own measured limits allow: a "
        "clock, the count of the work or the limit is wrong; don't rely on speed, cost and "
        "energy before scripts/roof.py on an idle machine says which",
    ),
    "a-a": Caution(
        id="audit-a-a",
        message="measured twice as if it were two formats, it came out as two: a difference of "
        "that size between rows tells nothing; measure again on a quieter machine, with more "
        "rounds",
    ),
}


def audit_text(audit: Audit) -> str:
    """``passed 5/5``, ``failed: answers, a-a``, or ``3 of 5 judged`` where those passed."""
    failed, passed, count = audit.named("failed"), audit.named("passed"), len(audit.checks)
    if failed:
        return FAILED + ", ".join(failed)
    if passed and len(passed) == count:
        return f"passed {count}/{count}"
    return f"{len(passed)} of {count} judged"


def audit_columns(entry: Entry) -> None:
    """Fill an ok entry's, and add a caution for each check that failed."""
    audit = entry.record.measurements.audit
    if audit is None:
        return
    entry.row["audit"] = audit_text(audit)
    entry.cautions += [_CAUTIONS[name] for name in audit.named("failed") if name in _CAUTIONS]
    entry.audit = AuditTable(tuple(entry.row[name] for name in ROW_KEY), tuple(audit.checks))
