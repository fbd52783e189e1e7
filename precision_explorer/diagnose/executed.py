"""The number types in which products were really made, where a cell's certificate tells."""

from __future__ import annotations

from precision_explorer.records import CellRecord, PhaseProfile

_UNKNOWN = "unknown"


def executed_types(record: CellRecord) -> dict[str, float] | None:
    """{number type: share of the converted layers' operations} by the certificate; None without
    one, or where it leaves any of them unknown."""
    certificate = record.applied.certificate if record.applied else None
    seen: dict[str, float] = {}
    for part in certificate.executed if certificate else []:
        if part.converted:
            seen[part.number_type] = seen.get(part.number_type, 0.0) + part.flops
    total = sum(seen.values())
    if total <= 0 or _UNKNOWN in seen:
        return None
    return {kind: flops / total for kind, flops in seen.items()}


def as_executed(
    phase: PhaseProfile, declared: str, executed: dict[str, float] | None
) -> PhaseProfile:
    """`phase` with the operations that were declared to be made in `declared` counted in the types
    that `executed` names."""
    flops = dict(phase.work.flops_by_type)
    if executed is None or declared not in flops or set(executed) == {declared}:
        return phase
    moved = flops.pop(declared)
    for kind, part in executed.items():
        flops[kind] = flops.get(kind, 0) + round(moved * part)
    work = phase.work.model_copy(update={"flops_by_type": flops})
    return phase.model_copy(update={"work": work})
