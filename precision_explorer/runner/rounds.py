"""The blocks of a cell's rounds joined to one: sums, medians and the list of rounds. No torch."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from precision_explorer.measure.energy import FAILED_METER
from precision_explorer.plan import PlannedCell

Json = dict[str, Any]
PREFIX = "block-"
DISTURBED = "disturbed-"
NOT_DISTURBED = "not-disturbed"
"""Among a cell's answers: why no block beside background work is taken any more. No part, so that
the next run tries again."""


def block_name(number: int) -> str:
    """The part's name of a round's block."""
    return f"{PREFIX}{number}"


def disturbed_name(number: int) -> str:
    """The same of the block beside background work."""
    return f"{DISTURBED}{number}"


def blocks_in(answers: dict[str, Json], disturbed: bool = False) -> list[Json]:
    """The blocks among a cell's answers, or those beside background work, by round."""
    prefix = DISTURBED if disturbed else PREFIX
    found = {int(n.removeprefix(prefix)): a for n, a in answers.items() if n.startswith(prefix)}
    return [found[number] for number in sorted(found)]


def block_names(planned: PlannedCell, disturbed: bool = False) -> list[str]:
    """The parts of all rounds' blocks of a cell, or of those beside background work; one in cells
    from before there were rounds."""
    name = disturbed_name if disturbed else block_name
    return [name(number) for number in range(planned.cell.workload.get("rounds", 1))]


def joined_block(blocks: list[Json]) -> Json | None:
    """The answers of all rounds as one; None without any. Peaks are the highest. A block without a
    place is one of a run from before there were rounds, and stays as it is."""
    if not blocks:
        return None
    if "place" not in blocks[0]:
        return blocks[0]
    shares = [s for block in blocks if (s := block.get("other_work_share")) is not None]
    again = [n for block in blocks if (n := block.get("recompiles")) is not None]
    # What only some scenarios have is not divided over rounds.
    return blocks[0] | {
        "latency": _latency(blocks) if blocks[0]["latency"] else None,
        "serving": _serving(blocks),
        # Rounds are too short for one.
        "soak": blocks[0].get("soak") if len(blocks) == 1 else None,
        "throughput": _throughput(blocks),
        "energy": _energy(blocks),
        # Rounds last about as long as each other.
        "other_work_share": fmean(shares) if shares else None,
        "recompiles": sum(again) if again else None,
    }


def _latency(blocks: list[Json]) -> Json:
    each = [block["latency"] for block in blocks]
    phases = [latency["phases"] for latency in each]
    cold = (latency["cold_first_s"] for latency in each)
    names = dict.fromkeys(name for taken in phases for name in taken)
    return {
        "cold_first_s": next((value for value in cold if value is not None), None),
        "warmup_requests": sum(latency["warmup_requests"] for latency in each),
        "requests": sum(latency["requests"] for latency in each),
        "window_s": sum(latency["window_s"] for latency in each),
        "stopped_by": "budget" if any(b["stopped_by"] == "budget" for b in each) else "rules",
        "phases": {name: _median([taken.get(name) for taken in phases]) for name in names},
        "generates": each[0].get("generates", False),
        "rounds": [_round(b, b["latency"]["requests"], b["latency"]["window_s"]) for b in blocks],
    }


def _serving(blocks: list[Json]) -> list[Json] | None:
    """The windows of requests that came by their own clock; None in other scenarios."""
    if not blocks[0].get("serving"):
        return None
    return [
        window | {"round": _round(block, window["requests"], window["ended_s"])}
        for block in blocks
        for window in _windows(block["serving"])
    ]


def _windows(serving: Json | list[Json]) -> list[Json]:
    """A round's window; of a search those that stand for it."""
    return serving if isinstance(serving, list) else [serving]


def _round(block: Json, requests: int, window_s: float) -> Json:
    timed = {"requests": requests, "window_s": window_s}
    return block["place"] | timed | {"other_work_share": block.get("other_work_share")}


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _throughput(blocks: list[Json]) -> Json:
    """A batch size has the median of its rounds' rates; none where one of the rounds has none."""
    by_round = {b["place"]["round"]: b["throughput"]["by_batch_size"] for b in blocks}
    sizes = list(dict.fromkeys(size for rates in by_round.values() for size in rates))
    joined = {size: _rate({k: rates[size] for k, rates in by_round.items()}) for size in sizes}
    known = {size: r["requests_per_s"] for size, r in joined.items() if r["requests_per_s"]}
    best = max(known, key=known.__getitem__, default=None)
    return {"by_batch_size": joined, "best_batch_size": int(best) if best else None}


def _rate(by_round: dict[int, Json]) -> Json:
    note = _first(list(by_round.values()), "note")
    rates = [rate["requests_per_s"] for rate in by_round.values()]
    batch_s = [second for rate in by_round.values() for second in rate["batch_s"]]
    joined = {"batches": len(batch_s), "batch_s": batch_s, "note": note}
    joined |= _sums(list(by_round.values()), ("energy_j", "window_s", "requests"))
    joined["energy_note"] = _first(list(by_round.values()), "energy_note")
    if None in rates:
        return joined | {"requests_per_s": None}
    tokens = [rate.get("output_tokens_per_s") for rate in by_round.values()]
    names = ("requests_per_s", "batches", "energy_j")
    rounds = [
        {"round": k} | {name: rate.get(name) for name in names} for k, rate in by_round.items()
    ]
    return joined | {
        "requests_per_s": median(rates),
        "output_tokens_per_s": None if None in tokens else _median(tokens),
        "rounds": rounds,
    }


def _energy(blocks: list[Json]) -> Json:
    """Joules over all windows, and of each; None where one of them has none, with its note."""
    each = [block["energy"] for block in blocks]
    found = joined_energy(each)
    if found["energy_j"] is not None and found["requests"]:
        told = zip(blocks, each, strict=True)
        found["rounds"] = [
            {"round": b["place"]["round"]}
            | {n: e[n] for n in ("energy_j", "requests", "integrated_j") if n in e}
            for b, e in told
        ]
    return found


def joined_energy(each: list[Json]) -> Json:
    """Joules over windows; None where one of them has none, with its note. Of the power beside the
    counter the integrals and numbers are summed and the longest gap is that of all windows, which
    compare only if each of them does; watts of the idle device are means weighted by windows. A
    meter that was there in some windows only has told nothing of all of them."""
    found = {
        "source": each[0]["source"],
        "boundary": each[0].get("boundary"),
        "note": _first(each, "note"),
        "check_note": _first(each, "check_note"),
    }
    found |= {n: each[0].get(n) for n in ("power_reading", "power_averaged_s", "power_every_s")}
    counts = ("power_samples", "counter_updates")
    found |= _sums(each, ("energy_j", "window_s", "requests", "integrated_j", *counts))
    if len({energy["source"] for energy in each}) > 1:
        found["energy_j"] = found["integrated_j"] = None
        found["note"] = found["note"] or f"{FAILED_METER} between the rounds"
    gaps = [energy.get("power_longest_gap_s") for energy in each]
    found["power_longest_gap_s"] = max((gap for gap in gaps if gap is not None), default=None)
    for name in ("idle_power_w", "idle_power_before_w", "idle_power_after_w"):
        watts = [energy.get(name) for energy in each]
        if None not in watts and found["window_s"]:
            spent = sum(w * energy["window_s"] for w, energy in zip(watts, each, strict=True))
            found[name] = spent / found["window_s"]
    return found


def _sums(each: list[Json], names: tuple[str, ...]) -> Json:
    """{name: sum}; None where one of them has none."""
    values = {name: [one.get(name) for one in each] for name in names}
    return {name: None if None in held else sum(held) for name, held in values.items()}


def _first(each: list[Json], name: str) -> str | None:
    """The first text under a name."""
    return next((text for one in each if (text := one.get(name))), None)
