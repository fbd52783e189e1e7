"""What a cell's record says of its measurement beside background work. No torch here."""

from __future__ import annotations

from typing import Any

from precision_explorer.plan import PlannedCell
from precision_explorer.records import Caution, CellRecord
from precision_explorer.runner.rounds import NOT_DISTURBED, blocks_in, joined_block
from precision_explorer.units import share

Json = dict[str, Any]
# As of a whole row, see `runner.join`.
_BUSY = 0.05


def has_background(planned: PlannedCell) -> bool:
    """Whether the cell is to be measured beside background work too."""
    return bool(planned.cell.workload.get("background"))


def lacks_disturbed(planned: PlannedCell, record: CellRecord | None) -> bool:
    """Whether a finished cell's disturbed part is missing, or failed."""
    if record is None or not has_background(planned):
        return False
    found = record.measurements.disturbed
    return found is None or found.failed is not None


def disturbed_part(answers: dict[str, Json]) -> Json | None:
    """The record's ``disturbed`` from a cell's answers; None where there was no background."""
    blocks = blocks_in(answers, disturbed=True)
    failed = answers.get(NOT_DISTURBED, {}).get("why")
    if not blocks and failed is None:
        return None
    joined = joined_block(blocks) or {}
    names = ("latency", "serving", "throughput", "other_work_share")
    found = {name: joined.get(name) for name in names}
    return found | {"neighbours": _neighbours(blocks), "failed": failed}


def _neighbours(blocks: list[Json]) -> list[Json]:
    found: dict[str, Json] = {}
    for block in blocks:
        for pace in block["neighbours"]:
            told = {name: pace[name] for name in ("label", "what", "operation", "processes")}
            rates = {name: pace[name] for name in ("alone_per_s", "beside_per_s")}
            kept = found.setdefault(pace["label"], told | {"rounds": []})
            kept["rounds"].append({"round": block["place"]["round"]} | rates)
    return list(found.values())


def disturbed_cautions(part: Json | None) -> list[Caution]:
    """What is wrong with a record's ``disturbed``."""
    if part is None:
        return []
    if part["failed"] is not None:
        text = (
            f"the measurement beside background work failed ({part['failed']}): its figures are "
            "left empty, those of the format alone stand; run the sweep again, which measures what "
            "is missing"
        )
        return [Caution(id="background-failed", message=text)]
    found = []
    if (part["other_work_share"] or 0.0) > _BUSY:
        text = (
            f"processes that are no part of the background took more than {share(_BUSY, 0)} of the "
            "usable cores' time during the disturbed part: it was disturbed by more than is "
            "declared; measure again on an idle machine"
        )
        found.append(Caution(id="background-busy", message=text))
    windows = [w["round"] for w in part["serving"] or []]
    rounds = (part["latency"] or {}).get("rounds") or windows
    if any(r["interleaved"] is False for r in rounds):
        text = (
            "not all rounds of the disturbed part were timed in the run of the sweep, and beside "
            "the reference, that timed those alone: a machine that changed in between shows as an "
            "effect of the background"
        )
        found.append(Caution(id="background-apart", message=text))
    return found
