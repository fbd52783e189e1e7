"""From a cell's parts to its record: the only place that makes `CellRecord`s."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from precision_explorer.diagnose import ABOVE_ROOF, is_above_roof
from precision_explorer.plan import PlannedCell
from precision_explorer.records import (
    AppliedFormat,
    Attempt,
    Caution,
    CellRecord,
    Environment,
    ErrorInfo,
    Measurements,
    Profile,
    Roof,
)
from precision_explorer.runner.checked_energy import energy_cautions
from precision_explorer.runner.disturbed import disturbed_cautions, disturbed_part
from precision_explorer.runner.rounds import blocks_in, joined_block
from precision_explorer.runner.served_cautions import ended_cautions, served_cautions
from precision_explorer.units import share

# An idle Linux machine's own housekeeping stays below 1 %; at a twentieth of the cores the order of
# two formats whose times differ by as much may turn round.
_DISTURBED = 0.05
# Share of outputs without an answer that moves a score by as many points at most.
_UNPARSED = 0.05


def utc_now() -> str:
    """Now in UTC, to the second, for people."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _peak(*values: int | None) -> int | None:
    known = [v for v in values if v is not None]
    return max(known) if known else None


_OTHER_PEAKS = ("reserved_peak_bytes", "process_peak_bytes", "largest_device_peak_bytes")


def measurements(
    load: dict[str, Any] | None,
    quality: dict[str, Any] | None,
    block: dict[str, Any] | None,
    compiled: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record's measurements from the worker's answers, `block` that of all rounds; what is
    missing stays None."""
    result: dict[str, Any] = {}
    if load:
        result |= {name: dict(load[name]) for name in ("load", "memory") if load.get(name)}
    if compiled:
        result["load"]["compile_s"] = compiled["compile_s"]
        again = [part.get("recompiles") or 0 for part in (quality, block) if part]
        result["compilation"] = compiled["compilation"] | {"recompiles": sum(again)}
    if quality:
        result["quality"] = quality["quality"]
    if block:
        names = ("latency", "throughput", "energy", "other_work_share")
        result |= {name: block[name] for name in names}
        result |= {name: block[name] for name in ("serving", "tried", "soak") if block.get(name)}
    if "memory" in result and (quality or block):
        parts = [p for p in (quality, block) if p]
        memory = result["memory"]
        memory["serving_peak_bytes"] = _peak(*(p.get("peak_bytes") for p in parts))
        for name in _OTHER_PEAKS:
            memory[name] = _peak(*(p.get(name) for p in parts))
    return result


def profile_of(
    answer: dict[str, Any] | None, roof: Roof | None
) -> tuple[Profile | None, list[Caution]]:
    """The record's profile from the worker's answer (none where that says ``why`` there is none),
    and a caution where a phase stayed faster than the roof after it was measured again."""
    if answer is None or "profile" not in answer:
        return None, []
    profile = Profile.model_validate(answer["profile"])
    phases = {"prefill": profile.prefill, "decode": profile.decode}
    above = [n for n, p in phases.items() if p and roof and is_above_roof(p, roof)]
    if not above:
        return profile, []
    text = (
        f"{' and '.join(above)} came out more than {share(ABOVE_ROOF - 1, 0)} faster than the "
        "device's own measured limit, twice: the limit was measured too low (other work on the "
        "machine), or part of the work is done in a cheaper way than was counted; don't rely on "
        "its diagnosis"
    )
    return profile, [Caution(id="above-roof", message=text)]


def _cautions(
    planned: PlannedCell,
    load: dict[str, Any] | None,
    certificate: dict[str, Any] | None,
    parts: dict[str, Any],
) -> list[Caution]:
    found = [*planned.cautions]
    for answer in (load, certificate):
        found += [Caution.model_validate(c) for c in (answer or {"cautions": []})["cautions"]]
    energy = parts.get("energy") or {}
    if energy.get("source", "").startswith("estimated"):
        text = f"energy is an estimate, not a measurement: {energy['boundary']}"
        found.append(Caution(id="energy-estimated", message=text))
    found += energy_cautions(parts.get("energy"))
    latency = parts.get("latency") or {}
    if latency.get("stopped_by") == "budget":
        text = (
            f"the latency budget ended after {latency['requests']} requests; the tails and steady "
            "state rest on few values"
        )
        found.append(Caution(id="latency-budget", message=text))
    if (parts.get("other_work_share") or 0.0) > _DISTURBED:
        text = (
            f"other processes took more than {share(_DISTURBED, 0)} of the usable cores' time "
            "during the timed part: latency, throughput and cost are worse than on an idle "
            "machine; measure again on one"
        )
        found.append(Caution(id="machine-busy", message=text))
    found += served_cautions(
        parts.get("serving") or [], planned.cell.workload.get("load_of") == "reference"
    )
    found += ended_cautions(parts.get("ended_early") or 0)
    found += _compile_cautions(parts.get("compilation"))
    quality = parts.get("quality") or {}
    if quality.get("cut_examples"):
        text = (
            f"{quality['cut_examples']} of {quality['examples']} inputs were longer than the "
            "task's max_length and were cut"
        )
        found.append(Caution(id="inputs-cut", message=text))
    found += disturbed_cautions(parts.get("disturbed"))
    return [*found, *_unparsed_cautions(quality), *_round_cautions(parts)]


def _round_cautions(parts: dict[str, Any]) -> list[Caution]:
    windows = [w["round"] for w in parts.get("serving") or [] if w.get("round")]
    # A search serves several windows in its one round.
    own = {window["round"]: window for window in windows}
    rounds = (parts.get("latency") or {}).get("rounds") or list(own.values())
    apart = [r["round"] for r in rounds if r["interleaved"] is False]
    if len(rounds) < 2 or not apart:
        return []
    which = "no round was" if len(apart) == len(rounds) else f"not all of {len(rounds)} rounds were"
    text = (
        f"{which} timed between those of the reference (memory does not hold both models, or two "
        "runs of the sweep measured them): a machine that was slower at one of the times shows as "
        "a difference between formats; measure them together, with fewer formats at a time or "
        "another --out"
    )
    return [Caution(id="rounds-not-interleaved", message=text)]


def resumed_caution(has_memory: bool) -> Caution:
    """Of a cell that more than one process measured."""
    memory = (
        "peak memory is that of the first"
        if has_memory
        else "peak memory is left empty, since it would not compare"
    )
    text = (
        "quality and timing come from more than one process, as the sweep was interrupted in "
        f"between; {memory}"
    )
    return Caution(id="resumed", message=text)


def _unparsed_cautions(quality: dict[str, Any]) -> list[Caution]:
    count, total = quality.get("unparsed") or 0, quality.get("examples") or 0
    if count <= _UNPARSED * total:
        return []
    text = (
        f"the card's extraction rule found no answer in {count} of {total} outputs, which scored "
        "0: the score tells of the form of the outputs as much as of their answers; look at some "
        "in the samples, and mend the prompt, the stop texts or the pattern"
    )
    return [Caution(id="unparsed-answers", message=text)]


def unproved(why: str) -> dict[str, Any]:
    """In place of a certificate, where the pass that would have shown what ran failed."""
    text = (
        f"what multiplied could not be watched ({why}); nothing of it is counted as executed in "
        "the format"
    )
    return {
        "certificate": None,
        "execution": "unverified",
        "reason": text,
        "cautions": [{"id": "execution-unknown", "message": text}],
    }


def _proved(applied: dict[str, Any], certificate: dict[str, Any]) -> AppliedFormat:
    """What was applied, with what was then seen to run in place of what the device promised."""
    seen = {name: certificate[name] for name in ("certificate", "execution", "reason")}
    return AppliedFormat.model_validate(applied | seen)


def _compile_cautions(made: dict[str, Any] | None) -> list[Caution]:
    found = []
    if made and made["graph_breaks"]:
        reason = next(iter(made["break_reasons"]))
        text = (
            f"torch.compile left parts of the model to Python at {made['graph_breaks']} places "
            f"({reason}); {share(made['compiled_share'])} of a forward pass's operators ran "
            "compiled: read the row as a mixture of compiled and eager"
        )
        found.append(Caution(id="graph-breaks", message=text))
    if made and made["recompiles"]:
        text = (
            f"{made['recompiles']} graphs were compiled after the warm-up, so their seconds stand "
            "in the measured times: run the sweep again with a larger min_requests, or without "
            "the inputs of rare shapes"
        )
        found.append(Caution(id="recompiled", message=text))
    return found


def _blocks(answers: dict[str, Any]) -> dict[str, Any] | None:
    """All rounds' blocks as one. Memory is that of the process which did the quality pass, before
    any comparison left something in it."""
    blocks = blocks_in(answers)
    block = joined_block(blocks)
    if block is None:
        return None
    of_quality = answers["quality"].get("session")
    own = [b for b in blocks if b.get("session") == of_quality and not b.get("compared")]
    names = ("peak_bytes", *_OTHER_PEAKS)
    return block | {name: _peak(*(b.get(name) for b in own)) for name in names}


def _ended_early(answers: dict[str, Any]) -> int:
    """Timed answers of a server that ended too soon, over all rounds whoever measured them."""
    return sum(block.get("ended_early", 0) for block in blocks_in(answers))


def _is_resumed(answers: dict[str, Any]) -> bool:
    measured = [answers["quality"], *blocks_in(answers)]
    return len({answer.get("session", 0) for answer in measured}) > 1


def ok_record(
    planned: PlannedCell,
    answers: dict[str, dict[str, Any]],
    environment: Environment,
    started_at: str,
    attempts: list[Attempt],
    roof: Roof | None = None,
) -> CellRecord:
    """The record of a cell whose load, quality, blocks of all rounds and certificate answered;
    `answers` may hold its profile, which is held against `roof`."""
    load, quality, block = answers["load"], answers["quality"], _blocks(answers)
    parts = measurements(load, quality, block, answers.get("compile"))
    parts["disturbed"] = disturbed_part(answers)
    parts["ended_early"] = _ended_early(answers)
    cautions = _cautions(planned, load, answers["certificate"], parts)
    if _is_resumed(answers):
        # A process that did the timed part alone holds less than one that scored before it.
        memory = parts.get("memory", {})
        if memory and (block is None or block["peak_bytes"] is None):
            memory["serving_peak_bytes"] = None
        cautions.append(resumed_caution(memory.get("serving_peak_bytes") is not None))
    parts["profile"], above = profile_of(answers.get("profile"), roof)
    parts["audit"] = (answers.get("audit") or {}).get("audit")
    return CellRecord(
        cell_id=planned.cell_id,
        status="ok",
        cell=planned.cell,
        method_id=planned.cell.method_id,
        applied=_proved(load["applied"], answers["certificate"]),
        measurements=Measurements.model_validate(parts),
        cautions=[*cautions, *above],
        environment=environment,
        started_at=started_at,
        attempts=attempts,
    )


def failed_record(
    planned: PlannedCell,
    error: dict[str, Any],
    answers: dict[str, dict[str, Any]],
    log_tail: str,
    environment: Environment,
    started_at: str,
    attempts: list[Attempt],
) -> CellRecord:
    """The record of a cell that came to grief, with whatever was measured before."""
    load = answers.get("load")
    parts = measurements(load, answers.get("quality"), _blocks(answers), answers.get("compile"))
    parts["disturbed"] = disturbed_part(answers)
    parts["ended_early"] = _ended_early(answers)
    return CellRecord(
        cell_id=planned.cell_id,
        status=error["status"],
        cell=planned.cell,
        method_id=planned.cell.method_id,
        # The load's `execution` is what the device promised; nothing was seen to keep it.
        applied=load["applied"] | {"execution": "unverified"} if load else None,
        measurements=Measurements.model_validate(parts),
        cautions=_cautions(planned, load, None, parts),
        error=ErrorInfo(
            kind=error["kind"],
            message=error["message"],
            phase=error.get("phase"),
            signal=error.get("signal"),
            log_tail=log_tail,
        ),
        environment=environment,
        started_at=started_at,
        attempts=attempts,
    )


def skipped_record(planned: PlannedCell, environment: Environment, started_at: str) -> CellRecord:
    """The record of a cell that the device can't run."""
    return CellRecord(
        cell_id=planned.cell_id,
        status="skipped",
        cell=planned.cell,
        method_id=planned.cell.method_id,
        skip_reason=planned.skip,
        cautions=list(planned.cautions),
        environment=environment,
        started_at=started_at,
    )
