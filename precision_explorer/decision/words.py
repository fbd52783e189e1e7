"""What would change a decision, and what its evidence does not cover, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from precision_explorer.decision.candidates import Candidate
from precision_explorer.decision.data import Question
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.groups import Group, Row
from precision_explorer.units import rate, seconds, share

# Formats of one kind of change that are named.
_MOST = 3
_OPTION = {"quality": "--max-quality-loss", "memory": "--max-memory", "cost": "--max-cost"}


def missing_value(objective: str, words: str, qualifying: Sequence[Candidate]) -> str:
    """What it takes to have the objective's figure, `words`, at all."""
    column = FIGURES[objective].column.removesuffix("_s") + "_needed_n"
    needed = [(n, c.name) for c in qualifying for r in c.rows if (n := r.get(column))]
    if needed:
        n, name = min(needed)
        return f"a {words}; {name} needs n >= {n:,} requests"
    if objective == "net":
        rows = [row for c in qualifying for row in c.rows]
        paid = all(row["price_per_hour_usd"] is not None for row in rows)
        return ("" if paid else "a price per hour and ") + (
            "what a correct result is worth (--value-per-correct) or an error costs "
            "(--cost-per-error)"
        )
    if objective in ("cost", "value"):
        return "a price per hour (--price-per-hour) and a throughput"
    if objective == "rate":
        searched = any(row["search_slo"] is not None for c in qualifying for row in c.rows)
        return "a rate that holds" if searched else "a search for the rate (sweep with --find-rate)"
    return f"a measurement of the {words}"


def changes(
    chosen: Candidate | None,
    ranked: Sequence[Candidate],
    question: Question,
    higher: bool,
    words: str,
) -> list[str]:
    """What would make another format the answer, the most telling first."""
    lines = [
        *_open(chosen, ranked, question, higher, words),
        *_wider(chosen, ranked, question, higher, words),
        *_runner_up(chosen, ranked, question, higher, words),
    ]
    if chosen is not None and question.objective == "net" and (chosen.value or 0.0) < 0:
        lines.append(f"At this worth and these prices even {chosen.name} loses money.")
    prices = {row["price_per_hour_usd"] for c in ranked for row in c.rows}
    capped = question.limits.max_cost_per_1k_usd is not None
    moved = question.objective in ("cost", "value") and len(prices) == 1 and not capped
    if chosen is not None and moved and len(ranked) > 1:
        lines.append(
            "Another price per hour moves all formats here alike: it changes the figures, not "
            "which format is best in them."
        )
    return lines


def _better(one: Candidate, than: Candidate | None, higher: bool) -> bool:
    if than is None:
        return True
    if one.value is None or than.value is None:
        return False
    return one.value > than.value if higher else one.value < than.value


def _figure(candidate: Candidate, question: Question, words: str) -> str:
    if candidate.value is None:
        return f"no {words}"
    return f"{words} {FIGURES[question.objective].show(candidate.value)}"


def contenders(
    chosen: Candidate | None, ranked: Sequence[Candidate], higher: bool
) -> list[Candidate]:
    """Formats that by their figures hold the limits, and would be the answer if that were shown."""
    return [c for c in ranked if _may_hold(c) and _better(c, chosen, higher)]


def _open(
    chosen: Candidate | None,
    ranked: Sequence[Candidate],
    question: Question,
    higher: bool,
    words: str,
) -> list[str]:
    lines = []
    for candidate in contenders(chosen, ranked, higher)[:_MOST]:
        needs = "; ".join(check.needs for check in candidate.checks if check.needs)
        would = "would be better" if chosen is not None else "would qualify"
        figure = _figure(candidate, question, words)
        lines.append(
            f"{candidate.name} {would} ({figure}) if it were shown to hold the limits: {needs}."
        )
    return lines


def _may_hold(candidate: Candidate) -> bool:
    if candidate.state != "cannot-tell" or candidate.value is None:
        return False
    return all(
        check.ratio is not None and check.ratio <= 1
        for check in candidate.checks
        if check.state == "cannot-tell"
    )


def _wider(
    chosen: Candidate | None,
    ranked: Sequence[Candidate],
    question: Question,
    higher: bool,
    words: str,
) -> list[str]:
    """Formats that break one limit only, and would else be the answer."""
    lines = []
    for candidate in ranked:
        broken = [check for check in candidate.checks if check.state == "no"]
        if candidate.state != "no" or len(broken) != 1 or not _better(candidate, chosen, higher):
            continue
        (check,) = broken
        if check.asks is None:
            continue
        limit, _, task = check.limit.partition(" on ")
        option = f"{_OPTION.get(limit, '--slo')} {check.asks}" + (f" on {task}" if task else "")
        name, figure = candidate.name, f"({_figure(candidate, question, words)})"
        open_ = [one.limit for one in candidate.checks if one.state == "cannot-tell"]
        if check.shown and not open_:
            then = " and be better" if chosen is not None else ""
            lines.append(f"{name} would qualify{then} {figure} with {option}.")
            continue
        also = f"; whether it holds {', '.join(open_)} can't be told" if open_ else ""
        lines.append(f"{name} {figure} by its figures needs at least {option}{also}.")
    return lines[:_MOST]


def _runner_up(
    chosen: Candidate | None,
    ranked: Sequence[Candidate],
    question: Question,
    higher: bool,
    words: str,
) -> list[str]:
    """By how much the choice's figure may move before the next one is better."""
    others = [c for c in ranked if c.state == "yes" and c is not chosen and c.value is not None]
    if chosen is None or not others or not chosen.value:
        return []
    runner = others[0]
    assert runner.value is not None
    move = abs(runner.value / chosen.value - 1)
    worse = "lower" if higher else "higher"
    if move == 0:
        return [f"{runner.name} has the same {words}."]
    return [
        f"{runner.name} is next: it would be the choice if the {words} of {chosen.name} were "
        f"{share(move)} {worse}."
    ]


def uncovered(of_groups: Sequence[Group], candidate: Candidate | None) -> list[str]:
    """Load, hardware, tasks, and what the rows' own cautions take away."""
    rows = [row for group in of_groups for row in group.ok]
    synthetic = any(group.is_synthetic for group in of_groups)
    tasks = _UNSCORED if synthetic else _tasks(of_groups)
    lines = [_load(rows), _hardware(rows), tasks]
    ids = {i for row in rows for i in (row["cautions"] or "").split(";")}
    if "machine-drifted" in ids:
        lines.append(
            "The machine itself got faster or slower while formats were timed: don't rely on small "
            "differences in speed and cost."
        )
    if "machine-busy" in ids:
        lines.append("Other processes were at work while formats were timed.")
    lines += _audits(rows) + _cautions(ids) + _drifting(rows) + _disturbed(of_groups)
    if candidate is not None and any(r["execution"] == "emulated" for r in candidate.rows):
        lines.append(
            f"{candidate.name} is computed by slow software here: its speed and cost hold for this "
            "device and tell nothing of one that has the format."
        )
    lines.append("Memory was measured once per format, so how far it moves between runs is not in.")
    return lines


_CAUTIONS = {
    "static-batching": (
        "Some rows' requests were not batched continuously: don't compare their serving figures "
        "with those of rows that were."
    ),
    "rounds-not-interleaved": (
        "Some formats were not timed in turn with the reference: a machine that was slower at one "
        "of the times shows as a difference between formats."
    ),
}


def _cautions(ids: set[str]) -> list[str]:
    return [text for name, text in _CAUTIONS.items() if name in ids]


def _audits(rows: Sequence[Row]) -> list[str]:
    """Rows whose measurement failed an audit; they compete all the same."""
    failed = [row for row in rows if str(row["audit"] or "").startswith("failed")]
    each = dict.fromkeys(f"{row['format']} ({row['audit']})" for row in failed)
    if not each:
        return []
    return [
        f"Audits of the measurement did not pass: {'; '.join(each)}. These rows compete all the "
        "same, though their figures may not be what they seem: measure them again before relying "
        "on the answer."
    ]


def _drifting(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(str(r["format"]) for r in rows if r["steady"] == "drifting"))
    if not names:
        return []
    return [
        f"The latency of {', '.join(names)} had not settled while it was timed: longer running may "
        "show another."
    ]


def _disturbed(of_groups: Sequence[Group]) -> list[str]:
    """What the second measurement, beside background work, says of the median latency."""
    lines = []
    for group in of_groups:
        beside = [row for row in group.ok if row["background"]]
        if not beside:
            continue
        work = ", ".join(dict.fromkeys(str(row["background"]) for row in beside))
        name = "disturbed_latency_p50_s"
        known = [row for row in beside if row[name] is not None]
        if not known:
            lines.append(
                f"Neighbours: a second measurement beside background work ({work}) was asked for "
                "and has no latency; the figures here are those alone."
            )
            continue
        each = ", ".join(f"{seconds(row[name])} for {group.named(row)}" for row in known)
        lines.append(
            f"Beside the background ({work}) the median latency is {each}; the answer rests on the "
            "figures alone."
        )
    return lines


_UNSCORED = (
    "Quality: the weights are synthetic (random), so no format's loss is known: what is fastest or "
    "cheapest here may be useless for the model; measure the loss on its real weights."
)


def _load(rows: Sequence[Row]) -> str:
    rates = [r["offered_rate_per_s"] for r in rows if r["offered_rate_per_s"] is not None]
    if not rates:
        return (
            "Load: requests came one at a time, or all at once for cost. Queues under your traffic "
            "are not in it: sweep with --workload, or ask precision-explorer capacity."
        )
    low, high = rate(min(rates)), rate(max(rates))
    asked = low if low == high else f"{low} to {high}"
    return (
        f"Load: latency is that under {asked} by one pattern of arrivals; another rate or pattern "
        "has other tails. Cost supposes a device that is busy all the time"
        f"{_also_offered(rows)}."
    )


def _also_offered(rows: Sequence[Row]) -> str:
    known = any(row["cost_per_1k_requests_offered_usd"] is not None for row in rows)
    return "; the table has it at the offered load too" if known else ""


def _hardware(rows: Sequence[Row]) -> str:
    devices = list(dict.fromkeys(str(row["device"]) for row in rows))
    return (
        f"Hardware: only {', '.join(devices)}; other devices may have another order of formats, "
        "and a processor of the same name other instructions (precision-explorer formats tells of "
        "yours)."
    )


def _tasks(of_groups: Sequence[Group]) -> str:
    tasks = [f"{g.rows[0]['task']} ({_n(g)})" for g in of_groups]
    return f"Tasks: only {', '.join(tasks)}; other tasks may lose more or less quality."


def _n(group: Group) -> str:
    n = next((row["quality_n"] for row in group.ok if row["quality_n"]), None)
    return f"{n:,} examples" if n else "not scored"
