"""One figure of two rows: what it changed by, its interval, and a test of "no change"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from precision_explorer.comparison.data import Change
from precision_explorer.comparison.fingerprint import BATCH_SIZES, ENERGY_BOUNDARY
from precision_explorer.stats import NoiseFloor, Spread, between_runs, holm
from precision_explorer.table.computed import Computed, paired_computed
from precision_explorer.table.figures import FIGURES, energy_problem
from precision_explorer.table.groups import at_own_rates
from precision_explorer.table.quality import Quality, common, paired_columns
from precision_explorer.table.rounds import REPEATED
from precision_explorer.table.samples import Samples
from precision_explorer.table.sequential import is_sequential
from precision_explorer.units import bytes_, rate, share

Row = dict[str, Any]
SHOWN = (
    "quality", "latency", "latency_p90", "latency_p99", "latency_p999", "rate", "throughput",
    "memory", "weights", "energy", "cost",
)  # fmt: skip
RELATIVE, TO_REFERENCE = ("latency", "throughput"), "_to_reference"
"""Figures that are also compared as ratios to the reference's, and the end of these figures' names.
"""
LEVEL = 0.05
DRIFTED = "the machine drifted"
MEMORY_REPEATS, MEMORY_REPEATS_BYTES = 0.25, 100_000_000
"""Peak memory is measured once in a run, so it has no interval: it is called more or less beyond
both only. Declared choices above what eleven cells of a 25 MB model, run twice on a CPU, differed
by: 25 MB, of which allocators and pools of threads take more or less as it happens."""
_WORDS = {
    "quality": ("better", "worse"),
    "rate": ("higher", "lower"),
    "memory": ("less", "more"),
    "weights": ("less", "more"),
    "energy": ("less", "more"),
    "cost": ("cheaper", "dearer"),
}
BELOW_NOISE = "not beyond the noise floor"
NO_FLIP = "no example flipped"
_NEEDED = {"latency_p90": "p90", "latency_p99": "p99", "latency_p999": "p999"}
# What says that a row's times are those of a machine that did something else as well.
_UNSETTLED = {
    "machine-busy": "timed beside other work",
    "windows-disturbed": "timed beside other work",
    "windows-throttled": "slowed down by heat or the power supply",
}
_STATES = {
    "disturbed": "timed beside other work",
    "saturated": "more was asked than the format can serve",
    "refused": "the serving loop itself was late",
}


def changes_of(one: Samples, other: Samples, allowed: Sequence[str]) -> tuple[Change, ...]:
    """All figures that either row has, without what a family of tests makes of them (`judged`).
    Notes call the runs A and B."""
    found = []
    for name in SHOWN:
        if not _is_shown(name, one.row, other.row) and not _is_missed(name, one, other):
            continue
        found.append(_change(name, one, other, allowed))
        if name in RELATIVE:
            found += _relative(name, one, other, allowed)
    return tuple(found)


def _is_shown(name: str, one: Row, other: Row) -> bool:
    """Whether a row has the figure; the p90 only where a p99 is missing: more tests would tell
    less each, and the largest percentiles only where both have them."""
    values = [row[FIGURES[name].column] for row in (one, other)]
    if name == "latency_p90" and None not in (one["latency_p99_s"], other["latency_p99_s"]):
        return False
    return None not in values if name == "latency_p999" else values != [None, None]


def _is_missed(name: str, one: Samples, other: Samples) -> bool:
    """Whether a percentile that neither row shows is worth a line: the p99 of measured rows."""
    return name == "latency_p99" and bool(one.latencies and other.latencies)


def _change(name: str, one: Samples, other: Samples, allowed: Sequence[str]) -> Change:
    if name == "quality":
        return _quality(one, other)
    first, second = (samples.row[FIGURES[name].column] for samples in (one, other))
    bare = Change(name, first, second, higher_is_better=FIGURES[name].maximise)
    if first is None or second is None:
        return replace(bare, note=_why_missing(name, one.row, other.row))
    if first > 0:
        bare = replace(bare, change=second / first - 1)
    if name == "weights":
        return _exact(bare)
    if name == "memory":
        return _once(bare)
    if name == "rate":
        return _searched(bare, one.row, other.row)
    problem = _other_sizes(name, one, other, allowed) or _unlike(name, one.row, other.row, allowed)
    found = _sampled(bare, name, one, other)
    if problem is not None:
        return replace(found, p_value=None, note=problem)
    # Its test counts all the same: which are left out must not hang on how large a change came out.
    drifted = _drifted(bare, one, other)
    return found if drifted is None else replace(found, note=drifted)


def _relative(name: str, one: Samples, other: Samples, allowed: Sequence[str]) -> list[Change]:
    """The same over the reference's of its own run, of which each round was timed beside it: what
    the machine did to both is not in it. Nothing for references, and where either has none."""
    first, second = one.reference, other.reference
    if first is None or second is None or first is one or second is other:
        return []
    column = FIGURES[name].column
    values = [samples.row[column] for samples in (one, other, first, second)]
    if any(not value for value in values) or not (first.tells(name) and second.tells(name)):
        return []
    ratios = values[0] / values[2], values[1] / values[3]
    bare = Change(
        f"{name}{TO_REFERENCE}",
        *ratios,
        change=ratios[1] / ratios[0] - 1,
        higher_is_better=FIGURES[name].maximise,
    )
    problem = (
        _other_sizes(name, one, other, allowed)
        or _unlike(name, one.row, other.row, allowed)
        or _unlike(name, first.row, second.row, allowed)
        or _apart(one.row, other.row)
    )
    found = _sampled(bare, name, one, other, (first, second))
    return [found if problem is None else replace(found, p_value=None, note=problem)]


def _apart(one: Row, other: Row) -> str | None:
    """That a row's rounds are not those of its reference."""
    states = [
        "not timed in its reference's rounds" if "rounds-not-interleaved" in ids else None
        for ids in ((row["cautions"] or "").split(";") for row in (one, other))
    ]
    return _where(states) if any(states) else None


def _sampled(
    bare: Change,
    name: str,
    one: Samples,
    other: Samples,
    bases: tuple[Samples | None, Samples | None] = (None, None),
) -> Change:
    """A figure (over that of `bases`) whose samples show how far it may be off."""
    if not (one.tells(name) and other.tells(name)):
        return replace(bare, note="too few independent requests")
    spreads = [_spread(name, one, bases[0], 0), _spread(name, other, bases[1], 1)]
    if spreads[0] is None or spreads[1] is None or bare.change is None:
        return replace(bare, note="measured once in a run")
    found = between_runs(1 + bare.change, spreads[0], spreads[1])
    if found.p_value is None or found.low is None or found.high is None:
        return replace(bare, note="nothing shows how far it may be off")
    same = name == "cost" and one.row["price_per_hour_usd"] == other.row["price_per_hour_usd"]
    return replace(
        bare,
        low=found.low - 1,
        high=found.high - 1,
        p_value=found.p_value,
        resting="throughput" if same else None,
    )


def _spread(name: str, samples: Samples, base: Samples | None, run: int) -> Spread | None:
    """The draws of a row of the first or second `run`, which share nothing; over those of `base`,
    whose rounds are the same ones."""
    drawn = samples.apart(run).draws(name)
    if drawn is None or base is None:
        return None if drawn is None else Spread(drawn, samples.units(name))
    beneath = base.apart(run).draws(name)
    if beneath is None:
        return None
    return Spread(drawn / beneath, min(samples.units(name), base.units(name)))


def _quality(one: Samples, other: Samples) -> Change:
    """On the examples that both runs asked, as pairs."""
    first, second = one.quality, other.quality
    bare = Change(
        "quality",
        one.row["quality"],
        other.row["quality"],
        higher_is_better=one.higher_is_better,
        metric=one.row["quality_metric"],
    )
    if first is None or second is None:
        return replace(bare, note="nothing is stored by which the examples could be paired")
    if first.metric != second.metric:
        return replace(bare, note=f"{first.metric} in A and {second.metric} in B")
    if is_sequential(one.record.cell) or is_sequential(other.record.cell):
        return replace(bare, note="scored until a verdict was clear, which no later test may use")
    found = _paired(first, second, one, other)
    delta = found.get("quality_delta")
    if delta is None:
        return replace(bare, note="not the same examples")
    # Relative to the score of the first run, unless the metric is a share.
    base = 1.0 if first.is_share else abs(bare.one or 0.0)
    if not base:
        return replace(bare, note="nothing is a share of a score of 0")
    ends = found.get("quality_delta_ci_low"), found.get("quality_delta_ci_high")
    moved = replace(bare, change=delta / base, is_points=first.is_share)
    if ends[0] is None or ends[1] is None:
        return replace(moved, note="no values on resampled examples are stored")
    low, high = float(ends[0]) / base, float(ends[1]) / base
    moved = replace(moved, low=low, high=high, p_value=found.get("p_value"))
    note = _beside(found, one.row)
    if len(first) != len(second):
        asked = f"on the {min(len(first), len(second)):,} examples that both asked"
        note = f"{note}, {asked}" if note else asked
    return replace(moved, note=note)


def _paired(
    first: Quality | Computed, second: Quality | Computed, one: Samples, other: Samples
) -> dict[str, Any]:
    budget, seed = one.row["quality_budget"], one.record.cell.seed
    if isinstance(first, Quality) and isinstance(second, Quality):
        both = common(first, second)
        return paired_columns(*both, budget, seed) if both and len(both[0]) else {}
    if isinstance(first, Computed) and isinstance(second, Computed):
        return paired_computed(first, second, budget)
    return {}


def _beside(found: dict[str, Any], row: Row) -> str | None:
    """What to know of a change in quality: flips, and whether the noise floor holds it."""
    flips, delta = found.get("flips"), found["quality_delta"]
    floor = row["noise_floor_delta"]
    if delta and floor is not None:
        noise = NoiseFloor(row["noise_floor_flips"], floor)
        if not noise.exceeded_by(flips, delta):
            return BELOW_NOISE
    if flips is None:
        return None
    return NO_FLIP if flips == 0 else f"{flips:,} flipped"


def _exact(bare: Change) -> Change:
    """A count: it is the same, or it is not."""
    if bare.change is None or bare.change == 0:
        return replace(bare, verdict="not-different", word="the same")
    return replace(_worded(bare, bare.change), note="counted, not measured")


def _once(bare: Change) -> Change:
    if bare.change is None or bare.change <= -1:
        return replace(bare, note="not measured")
    if bare.change == 0:
        note = "measured once in a run"
        return replace(bare, verdict="not-different", word="the same", note=note)
    ratio, apart = 1 + bare.change, abs((bare.other or 0.0) - (bare.one or 0.0))
    if max(ratio, 1 / ratio) - 1 > MEMORY_REPEATS and apart > MEMORY_REPEATS_BYTES:
        return replace(_worded(bare, bare.change), note="measured once in a run")
    within = f"{share(MEMORY_REPEATS, 0)} or {bytes_(MEMORY_REPEATS_BYTES)}"
    return replace(bare, note=f"measured once, and within {within}")


def _searched(bare: Change, one: Row, other: Row) -> Change:
    """Largest rates that held lie anywhere up to the rates that missed."""
    ends = [(row["held_rate_per_s"], row["missed_rate_per_s"]) for row in (one, other)]
    (held, missed), (held_other, missed_other) = ends
    if missed is None or missed_other is None or not held or not held_other:
        return replace(bare, note="no rate missed the objective, so the largest is not known")
    if one["search_slo"] != other["search_slo"]:
        return replace(bare, note="searched within different objectives")
    low, high = held_other / missed - 1, missed_other / held - 1
    found = replace(bare, low=low, high=high, note="from the rate that held to the one that missed")
    if low > 0 or high < 0:
        return _worded(found, low if low > 0 else high)
    return replace(found, verdict="not-different", word="not different")


def _unlike(name: str, one: Row, other: Row, allowed: Sequence[str]) -> str | None:
    """Why two measured values can't be held against each other though the methods agree."""
    if name == "energy":
        problem = energy_problem([one, other])
        meters = all(str(r["power_source"]).startswith("measured") for r in (one, other))
        if problem is not None and not (meters and ENERGY_BOUNDARY in allowed):
            return problem
    states = [_unsettled(row) for row in (one, other)]
    if any(states):
        return _where(states)
    # Joules hold the idle device between arrivals.
    if FIGURES[name].quantile is None and name != "energy":
        return None
    if one["search_slo"] is not None or other["search_slo"] is not None:
        return "at the largest rate that each held: rates are compared, not latencies"
    return _at_other_rates(one, other)


def _other_sizes(name: str, one: Samples, other: Samples, allowed: Sequence[str]) -> str | None:
    """That other batch sizes were tried, of the figures that are the best of them."""
    tried = one.record.cell.batch_sizes, other.record.cell.batch_sizes
    if name not in ("throughput", "cost") or tried[0] == tried[1] or BATCH_SIZES in allowed:
        return None
    first, second = (", ".join(map(str, sizes)) for sizes in tried)
    return f"the best of batch sizes {first} in A and {second} in B (--allow {BATCH_SIZES})"


def _where(states: Sequence[str | None]) -> str:
    """What ails A or B, or both."""
    first, second = states
    if first == second:
        return f"{first} in both"
    parts = zip(("A", "B"), (first, second), strict=True)
    return ", ".join(f"{state} in {run}" for run, state in parts if state)


def _unsettled(row: Row) -> str | None:
    ids = (row["cautions"] or "").split(";")
    found = next((words for name, words in _UNSETTLED.items() if name in ids), None)
    return found or _STATES.get(row["steady"] or "")


def _drifted(bare: Change, one: Samples, other: Samples) -> str | None:
    """Where the machine itself changed within a run, by how much, unless the rows differ by more:
    the spread of the reference's rounds, the larger of latency and throughput."""
    found = [_drift(one.row, one.reference), _drift(other.row, other.reference)]
    largest = max(found)
    ratio = 1 + (bare.change or 0.0)
    if not largest or (ratio > 0 and max(ratio, 1 / ratio) > 1 + largest):
        return None
    words = f"{DRIFTED} by up to {share(largest, 0)}"
    return _where([words if drift else None for drift in found])


def _drift(row: Row, reference: Samples | None) -> float:
    if "machine-drifted" not in (row["cautions"] or "").split(";"):
        return 0.0
    rows = [row] if reference is None else [row, reference.row]
    names = ("latency_p50_round_spread", "throughput_round_spread")
    return max((r[n] for r in rows for n in names if r[n] is not None), default=0.0)


def _at_other_rates(one: Row, other: Row) -> str | None:
    rates = one["offered_rate_per_s"], other["offered_rate_per_s"]
    if rates[0] is None or rates[1] is None:
        return None
    low, high = sorted(rates)
    if at_own_rates([one, other]) or high / low - 1 > REPEATED:
        return f"{rate(rates[0])} came in A and {rate(rates[1])} in B"
    return None


def _why_missing(name: str, one: Row, other: Row) -> str:
    rows = {"A": one, "B": other}
    lacking = {run: row for run, row in rows.items() if row[FIGURES[name].column] is None}
    where = "" if len(lacking) == 2 else f" in {next(iter(lacking))}"
    states = [_STATES.get(row["steady"] or "") for row in lacking.values()]
    if name in ("latency", *_NEEDED) and any(states):
        return f"{next(filter(None, states))}{where}"
    column = f"latency_{_NEEDED[name]}_needed_n" if name in _NEEDED else None
    needed = [row[column] for row in lacking.values()] if column else []
    known = [n for n in needed if n is not None]
    return f"needs n >= {max(known):,}{where}" if known else f"not measured{where}"


def judged(changes: Sequence[Change]) -> list[Change]:
    """`changes`, all of two runs, with their verdicts: a difference is called one where Holm's
    adjustment over all tests still has it at 5 %."""
    tested = [i for i, c in enumerate(changes) if c.p_value is not None and c.resting is None]
    adjusted = holm([changes[i].p_value or 0.0 for i in tested])
    found = list(changes)
    for index, p_value in zip(tested, adjusted, strict=True):
        found[index] = replace(found[index], p_value_holm=p_value)
    for index, change in enumerate(found):
        if change.p_value is None:
            continue
        if change.resting is not None:
            base = next(c for c in reversed(found[:index]) if c.figure == change.resting)
            change = replace(change, p_value=base.p_value, p_value_holm=base.p_value_holm)
        found[index] = _verdict(change)
    return found


def _verdict(change: Change) -> Change:
    moved, low, high = change.change, change.low, change.high
    assert moved is not None
    assert low is not None
    assert high is not None
    if change.p_value_holm is None:  # What it rests on has no test.
        return change
    if (change.note or "").startswith(DRIFTED):
        return change
    floor = (change.note or "").startswith(BELOW_NOISE)
    if change.p_value_holm <= LEVEL and not floor:
        return _worded(change, moved)
    if low <= 0 <= high or floor:
        return replace(change, verdict="not-different", word="not different")
    more = "examples" if change.figure == "quality" else "rounds"
    if change.p_value is not None and change.p_value <= LEVEL:
        note = f"by itself beyond chance, not among so many tests: more {more} would tell"
    else:
        note = f"the interval and the exact test do not agree: more {more} would tell"
    return replace(change, note=f"{change.note}; {note}" if change.note else note)


def _worded(change: Change, moved: float) -> Change:
    """With ``better`` or ``worse`` by the direction of the figure that `moved`."""
    if change.higher_is_better is None:
        return replace(change, word="different", note="nobody said which end is better")
    better = (moved > 0) == change.higher_is_better
    words = _WORDS.get(change.figure, ("faster", "slower"))
    return replace(
        change, verdict="better" if better else "worse", word=words[0] if better else words[1]
    )
