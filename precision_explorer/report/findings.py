"""What the rows of a group show, in plain sentences; each follows from the rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from precision_explorer.report.curve import outcome as rate_outcome
from precision_explorer.report.groups import Group, Row
from precision_explorer.report.ranking import LATENCY, MEMORY, WEIGHTS, is_busy, outcome, rank
from precision_explorer.report.text import listed
from precision_explorer.units import points, share, significant, usd

# Outside these, membership of the front is called certain.
_UNSURE = (0.1, 0.9)


@dataclass(frozen=True)
class Finding:
    """A sentence or a few under a topic."""

    topic: str
    text: str


def findings(group: Group) -> list[Finding]:
    """The group's findings, the most useful to a decision first."""
    if not group.ok:
        return [Finding("Result", "No format has a result; the reasons are given below.")]
    found = [
        Finding("Devices", _devices(group)),
        Finding("Pareto front", _front(group)),
        Finding("Quality", _quality(group)),
        Finding("Next tokens", _next_tokens(group)),
        _rate(group) or Finding("Latency", _latency(group)),
        Finding("Load", _load(group)),
        Finding("Over time", _over_time(group)),
        Finding("Memory", _memory(group)),
        Finding("Execution", _execution(group)),
        Finding("Not measured", _unmeasured(group)),
    ]
    return [f for f in found if f.text]


def is_unsure(row: Row) -> bool:
    """Whether sampling alone could put the row on or off the front."""
    probability = row["pareto_probability"]
    return probability is not None and _UNSURE[0] <= probability <= _UNSURE[1]


def _names(group: Group, rows: list[Row]) -> str:
    return group.listing(rows)


def _front(group: Group) -> str:
    rows = [r for r in group.ok if r["pareto"] is not None]
    out = [r for r in group.ok if (r["pareto_note"] or "").startswith("left out")]
    if not rows and not out:
        return "There is none: no objective was measured for every format."
    text = _members(group, rows) if rows else "There is none: every format is left out."
    if out:
        each = group.listing(out, note=lambda r: r["pareto_note"].removeprefix("left out: "))
        text += f" Left out before: {each}."
    return text


def _members(group: Group, rows: list[Row]) -> str:
    """The rows on the front and those that are not, with how sure that is."""
    on = [r for r in rows if r["pareto"] == "yes"]
    by = f", by {group.objectives}" if group.objectives else ""
    text = f"On the front{by}: {_names(group, on)}."
    references = [r for r in rows if group.is_reference(r)]
    if references:
        text += _references(group, references, on)
    off = [r for r in rows if r["pareto"] == "no"]
    if off:
        text += (
            " Not on it, as another format is as good in each of these and better in one: "
            f"{_names(group, off)}."
        )
    unsure = [r for r in rows if is_unsure(r)]
    if any(r["pareto_probability"] is None for r in rows):
        text += f" How sure that is can't be told: {_untold(group, rows)}."
    if unsure:
        known = group.listing(unsure, note=lambda r: share(r["pareto_probability"], 0))
        text += f" Not certain, by the share of resamples on the front: {known}."
    return text + _disturbed(group, rows) + _ties(group, on) + _knee(group, on)


def _disturbed(group: Group, rows: list[Row]) -> str:
    """That resampling knows nothing of what other work on the machine did to a row's times."""
    busy = [r for r in rows if is_busy(r)]
    return (
        f" Timed beside other work, so that their places are only as good as these times, whatever "
        f"the share of resamples: {_names(group, busy)}."
        if busy
        else ""
    )


def _references(group: Group, references: list[Row], on: list[Row]) -> str:
    if not group.is_joined:
        there = "on the front" if any(r in on for r in references) else "not on the front"
        return f" {group.reference}, the reference, is {there}."
    names = group.listing([r for r in references if r in on]) or "none"
    return f" Of the references on it: {names}."


def _devices(group: Group) -> str:
    """On several devices: at what price each counts, and which reference its rows have."""
    if not group.is_joined:
        return ""
    short = group.short_devices
    parts = []
    for device in group.devices:
        rows = [r for r in group.ok if r["device"] == device]
        prices = list(dict.fromkeys(r["price_per_hour_usd"] for r in rows))
        paid = [f"{usd(price)} per hour" for price in prices if price is not None]
        held = dict.fromkeys(r["reference_device"] for r in rows if r["reference_device"])
        others = [f"held against {group.reference} on {short[d]}" for d in held if d != device]
        none = [] if held else ["no reference"]
        words = [*(paid or ["no price"]), *others, *none]
        parts.append(f"{short[device]} ({', '.join(words)})")
    fronts = {r["pareto_devices"] for r in group.ok if r["pareto_devices"]}
    front = "share one front" if len(fronts) < 2 else "stand together, each meter's with a front"
    return (
        f"{listed(parts)} were measured by one method, so their rows {front}, each at the "
        f"price of its own device. Changes, ratios and verdicts are against {group.reference} on "
        "the same device, unless the brackets say otherwise."
    )


def _untold(group: Group, rows: list[Row]) -> str:
    open_ = [r for r in rows if r["held_rate_per_s"] and r["missed_rate_per_s"] is None]
    if open_:
        return f"no rate missed the objective in {_names(group, open_)}"
    return "too few requests were timed"


def _ties(group: Group, on: list[Row]) -> str:
    """Rows of the front that no objective tells apart."""
    tied = [
        f"{group.named(r)} with {listed(r['pareto_ties'].split(';'))}"
        for r in on
        if r["pareto_ties"]
    ]
    return (
        f" Tied, as the samples tell them apart in none of these: {'; '.join(tied)}."
        if tied
        else ""
    )


def _knee(group: Group, on: list[Row]) -> str:
    found = [group.named(r) for r in on if r["pareto_note"] == "knee"]
    if not found:
        return ""
    return (
        f" A hint, no recommendation: {found[0]} gives up the least in its worst objective (the "
        "knee of the front)."
    )


def all_tasks(group: Group) -> str:
    """What the front over all tasks of the model holds; nothing where there is none."""
    rows = [r for r in group.ok if r["pareto_all_tasks"] is not None]
    if not rows:
        return ""
    on = []
    for row in rows:
        if row["pareto_all_tasks"] == "yes":
            known = row["pareto_all_tasks_probability"]
            on.append(group.named(row) + ("" if known is None else f" ({share(known, 0)})"))
    if not on:
        return "None of these is on the front over all tasks, which holds rows of other devices."
    return (
        "On the front over all tasks, where a format beats another only if it is as good in every "
        f"objective on each task (in brackets: how often in the resamples): {listed(on)}."
    )


def _quality(group: Group) -> str:
    """Whose verdict is what."""
    if group.is_synthetic:
        return (
            "Not measured, as the weights are synthetic (random): nothing here says which format "
            "loses too much, and the front holds no quality. Measure that on the real weights."
        )
    if not any(group.is_reference(r) for r in group.ok):
        return f"No verdict: the reference, {group.reference}, has no result to compare with."
    others = [r for r in group.ok if not group.is_reference(r)]
    parts = []
    for verdict, words in (("within", "Within"), ("outside", "Outside")):
        rows = [r for r in others if r["verdict"] == verdict]
        if rows:
            parts.append(f"{words}: {_names(group, rows)}.")
    unsure = [r for r in others if r["verdict"] == "cannot-tell"]
    if unsure:
        parts.append(_cannot_tell(group, unsure))
    if parts:
        parts.insert(0, f"Is the loss within the budget of {_budget(group, others[0])}?")
    none = [r for r in others if r["verdict"] is None]
    apart = [r for r in none if "other-batch-plan" in (r["cautions"] or "").split(";")]
    without = [r for r in none if r not in apart]
    if without:
        names = _names(group, without)
        parts.append(f"No verdict, as nothing could be paired or resampled: {names}.")
    if apart:
        names = _names(group, apart)
        parts.append(f"No verdict, as scored in other batches than {group.reference}: {names}.")
    return " ".join([*parts, *_different(group, others)])


def _different(group: Group, rows: list[Row]) -> list[str]:
    """Which rows may be called different, whatever the budget; nothing where none was tested."""
    if all(r["different"] is None for r in rows):
        return []
    found = [r for r in rows if r["different"] == "yes"]
    floor = any(r["noise_floor_delta"] is not None for r in rows)
    beyond = "chance and the noise floor" if floor else "chance"
    if not found:
        return [f"No difference from {group.reference} stands out from {beyond}."]
    return [f"Different from {group.reference} beyond {beyond}: {_names(group, found)}."]


def _next_tokens(group: Group) -> str:
    """Of language models which formats are nearest to the reference at every token."""
    rows = [r for r in group.ok if r["kl_mean"] is not None]
    if not rows:
        return ""
    rows.sort(key=lambda r: r["kl_mean"])
    others = [r for r in group.ok if not group.is_reference(r) and r not in rows]
    each = group.listing(
        rows, note=lambda r: f"{significant(r['kl_mean'], 2)}, {share(r['same_top'], 0)}"
    )
    return (
        f"Nearest to {group.reference} first, by how far the distribution over the next token is "
        f"moved (mean KL divergence in nats; how often the likeliest token is the same): {each}."
    ) + (f" Not compared: {_names(group, others)}." if others else "")


def _load(group: Group) -> str:
    """Who could not serve what was asked, or was not seen doing so."""
    parts = []
    for caution, words in (
        ("serving-saturated", "More was asked than {} can serve (saturated): no latency holds."),
        ("serving-refused", "The serving loop was late for {} (refused): no latency is shown."),
    ):
        rows = [r for r in group.ok if caution in (r["cautions"] or "").split(";")]
        if rows:
            parts.append(words.format(_names(group, rows)))
    return " ".join(parts)


def _budget(group: Group, row: Row) -> str:
    """The quality budget with what it is counted in."""
    if group.is_share:
        text = points(row["quality_budget"]).removeprefix("+")
        return f"{text} of {group.metric}"
    return f"{share(row['quality_budget'])} of {group.reference}'s {group.metric}"


def _cannot_tell(group: Group, rows: list[Row]) -> str:
    counts = sorted({r["quality_n"] for r in rows})
    n = " or ".join(f"{c:,}" for c in counts)
    text = f"Can't tell from {n} examples: {_names(group, rows)}"
    notes: dict[str, list[Row]] = {}
    for row in rows:
        if row["verdict_note"]:
            notes.setdefault(row["verdict_note"], []).append(row)
    if len(notes) == 1 and len(next(iter(notes.values()))) == len(rows):
        return f"{text} ({next(iter(notes))})."
    each = [f"{_names(group, found)}: {note}" for note, found in notes.items()]
    return f"{text}. {'; '.join(each)}." if each else f"{text}."


def _rate(group: Group) -> Finding | None:
    """Where rates were searched, in place of latencies, which are each at a rate of its own."""
    rows = [r for r in group.ok if r["search_slo"] is not None]
    return Finding("Largest rate", rate_outcome(group, rows)) if rows else None


def _latency(group: Group) -> str:
    text = outcome(group, group.ok, LATENCY)
    named = rank(group.ok, LATENCY).best
    references = [r for r in map(group.reference_of, named) if r is not None]
    moving: list[str] = []
    for row in [*named, *references]:
        words = f"{group.named(row)} ({row['steady']})"
        if row["steady"] not in (None, "steady") and words not in moving:
            moving.append(words)
    if moving:
        text += f" Latency had not settled for {listed(moving)}: take this as rough."
    return text


def _over_time(group: Group) -> str:
    """How much of its first minute's rate each long row kept."""
    rows = [r for r in group.ok if r["peak_rate_per_s"] and r["sustained_rate_per_s"] is not None]
    kept = [
        f"{group.named(r)} {share(r['sustained_rate_per_s'] / r['peak_rate_per_s'])}" for r in rows
    ]
    return f"Of the rate of the first minute was kept after it: {listed(kept)}." if kept else ""


def _memory(group: Group) -> str:
    return f"{outcome(group, group.ok, MEMORY)} {outcome(group, group.ok, WEIGHTS)}"


def _execution(group: Group) -> str:
    """Formats that are not what their name promises to hardware."""
    parts = []
    emulated = [r for r in group.ok if r["execution"] == "emulated"]
    if emulated:
        parts.append(
            f"{group.listing(emulated, named=False)} {_are(emulated)} emulated: software computes "
            "the format here, so the speed says nothing about hardware that has it."
        )
    stored = [r for r in group.ok if r["execution"] == "dequantized"]
    if stored:
        parts.append(
            f"{group.listing(stored)} {_are(stored)} stored in the format but computed in a wider "
            "one."
        )
    return " ".join(parts)


def _unmeasured(group: Group) -> str:
    skipped = [r for r in group.unmeasured if r["status"] == "skipped"]
    failed = [r for r in group.unmeasured if r["status"] != "skipped"]
    parts = [f"{group.listing(skipped, named=False)} skipped"] if skipped else []
    parts += [f"{group.listing(failed, named=False)} failed"] if failed else []
    return f"{'; '.join(parts)}. The reasons stand below." if parts else ""


def _are(items: Sequence[object]) -> str:
    return "are" if len(items) > 1 else "is"
