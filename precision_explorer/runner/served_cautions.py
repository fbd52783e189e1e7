"""What is wrong with the windows of a cell whose requests came by their own clock, in words."""

from __future__ import annotations

from typing import Any

from precision_explorer.records import Caution
from precision_explorer.units import rate, share


def served_cautions(windows: list[dict[str, Any]], asked_of_reference: bool) -> list[Caution]:
    """Cautions of a record's ``serving``. `asked_of_reference`: whether the load was to be a share
    of the reference's capacity."""
    found = []
    late = next((w for w in windows if w["refused"]), None)
    if late is not None:
        text = (
            f"{late['refused']}, also when the window was repeated; nothing is read from it: "
            "measure again on an idle machine, or with fewer --threads than cores"
        )
        found.append(Caution(id="serving-refused", message=text))
    full = [w for w in windows if w["saturated"] and not w["refused"]]
    if full:
        found.append(Caution(id="serving-saturated", message=_saturated(max(full, key=_dropped))))
    odd = next((w for w in windows if not w["little"]["holds"]), None)
    if odd is not None:
        text = (
            f"the requests counted in the system and those that the rows tell of differ by "
            f"{share(odd['little']['relative_gap'])} (Little's law): don't use the row, and "
            "report it"
        )
        found.append(Caution(id="serving-unbalanced", message=text))
    cut = sum(w.get("cut_requests", 0) for w in windows)
    if cut:
        text = (
            f"{cut} requests had more tokens by the workload than the model has positions, and "
            "were cut there: they were shorter than asked for; lower the lengths"
        )
        found.append(Caution(id="lengths-cut", message=text))
    static = next((w for w in windows if w.get("batching_fallback")), None)
    if static is not None:
        text = (
            f"requests were not batched continuously, as {static['note']}; compare it with rows "
            "that were with care, or set batching: static for all"
        )
        found.append(Caution(id="static-batching", message=text))
    if asked_of_reference and any(w.get("load_of") == "own" for w in windows):
        text = (
            "no capacity of the reference was known when the format was served (the reference "
            "failed, or memory did not hold it beside the others, so it came after them): the load "
            "is a share of the format's own, its rate not that of other rows; give rate_per_s"
        )
        found.append(Caution(id="serving-own-load", message=text))
    return found


def ended_cautions(count: int) -> list[Caution]:
    """Of `count` timed answers that ended too soon."""
    text = (
        f"{count} timed answers ended before they had as many tokens as were asked for, as the "
        "server takes no ignore_eos: formats whose answers differ in length do different work; "
        "compare tpot_s rather than latency"
    )
    return [Caution(id="answers-ended", message=text)] if count else []


def _dropped(window: dict[str, Any]) -> int:
    return window.get("dropped", 0)


def _saturated(window: dict[str, Any]) -> str:
    waiting, dropped = window["unfinished"] - _dropped(window), _dropped(window)
    parts = [f"the server refused or dropped {dropped} of the requests"] if dropped else []
    if waiting:
        parts.append(f"{waiting} of the requests had no turn before the window was cut")
    left = " and ".join(parts) or "the queue grew from the window's start to its end"
    return (
        f"at {rate(window['offered_rate_per_s'])} {left}: more is asked than the format can serve, "
        "so no latency would hold, and no percentile is shown; lower the rate or the load, or "
        "raise max_batch"
    )
