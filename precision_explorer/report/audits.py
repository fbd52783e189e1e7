"""The audits of a group's measurements, and the badge that sums up a table's."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.records import CHECKS, AuditCheck
from precision_explorer.report.columns import Cell, View
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.text import clean, listed
from precision_explorer.table import ROW_KEY, AuditTable, Table
from precision_explorer.units import MISSING, seconds, share, significant

_TONES = {"passed": "good", "failed": "bad", "not-judged": "unsure"}
_HEADINGS = {
    "answers": "Answers equal the quality pass's",
    "repeated-sample": "Repeated sample over distinct ones",
    "other-seed": "Another seed",
    "roofline": "Within the device's limits",
    "a-a": "Measured twice",
}


@dataclass(frozen=True)
class AuditSection:
    """A group's audits: a row per format, what each check asks, and why some did not pass."""

    view: View
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Badge:
    """`text` says it all; `tone` as of a `Cell`."""

    text: str
    tone: str = ""


NOT_AUDITED = Badge("Not audited: run the same sweep again with --audit")


def badge(table: Table) -> Badge:
    """How many of the rows with results passed all their audits."""
    rows = [row for row in table.rows if row["status"] == "ok"]
    texts = [str(row["audit"]) for row in rows if row["audit"]]
    if not texts:
        return NOT_AUDITED
    failed = [row for row in rows if str(row["audit"] or "").startswith("failed")]
    passed = sum(text.startswith("passed") for text in texts)
    parts = [f"{passed} of {len(rows)} rows passed"]
    if failed:
        names = listed(list(dict.fromkeys(str(row["format"]) for row in failed)))
        parts.append(f"{len(failed)} failed ({names})")
    others = {
        "judged in part": len(texts) - passed - len(failed),
        "not audited": len(rows) - len(texts),
    }
    parts += [f"{count} {words}" for words, count in others.items() if count]
    tone = "bad" if failed else "good" if passed == len(rows) else "unsure"
    return Badge(f"Audited: {', '.join(parts)}", tone)


def audit_section(group: Group, table: Table) -> AuditSection | None:
    """None where no row of the group was audited."""
    found = {audit.row: audit for audit in table.audits}
    pairs = [(row, found.get(tuple(row[name] for name in ROW_KEY))) for row in group.ok]
    rows = [(row, audit) for row, audit in pairs if audit is not None]
    if not rows:
        return None
    view = View(
        "Audits",
        ("Format", *(_HEADINGS[name] for name in CHECKS), "All"),
        tuple(_cells(group, row, audit) for row, audit in rows),
        (False,) * (len(CHECKS) + 2),
    )
    reasons = [line for row, audit in rows for line in _reasons(group.named(row), audit)]
    return AuditSection(view, (*_asked(rows[0][1]), *reasons))


def _cells(group: Group, row: Row, audit: AuditTable) -> tuple[Cell, ...]:
    checks = {check.name: check for check in audit.checks}
    shown = [_cell(checks.get(name)) for name in CHECKS]
    return (Cell(group.named(row)), *shown, Cell(str(row["audit"])))


def _cell(check: AuditCheck | None) -> Cell:
    if check is None:
        return Cell(MISSING)
    figures = _figures(check)
    text = check.outcome.replace("-", " ")
    return Cell(f"{text}: {figures}" if figures else text, _TONES[check.outcome])


def _figures(check: AuditCheck) -> str:
    """The figures that the outcome rests on, shortly."""
    known = check.figures
    if "ratio" in known:
        ends = [known.get(name) for name in ("ratio_low", "ratio_high")]
        shown = "" if None in ends else f" [{', '.join(significant(end) for end in ends)}]"
        return f"{significant(known['ratio'])}{shown}"
    if "differing" in known:
        return f"{known['differing']:,.0f} of {known['answers']:,.0f} differ"
    limits = [known[n] for n in ("compute_limit_s", "memory_limit_s") if n in known]
    if limits and known.get("query_s"):
        return f"{share(max(limits) / known['query_s'])} of {seconds(known['query_s'])}"
    return ""


def _asked(audit: AuditTable) -> list[str]:
    return [
        clean(f"{_HEADINGS.get(check.name, check.name)}: {check.threshold}. {check.source}.")
        for check in audit.checks
    ]


def _reasons(name: str, audit: AuditTable) -> list[str]:
    return [
        clean(f"{name}, {check.name}, {check.outcome.replace('-', ' ')}: {check.reason}.")
        for check in audit.checks
        if check.reason
    ]
