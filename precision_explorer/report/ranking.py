"""Which row is best in one measure, and when no winner may be named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from precision_explorer.report.groups import Group, Row
from precision_explorer.report.text import listed
from precision_explorer.units import bytes_, count, rate, seconds, share, significant, usd


@dataclass(frozen=True)
class Measure:
    """A column that has a better end, and the words for it."""

    column: str
    noun: str
    superlative: str
    show: Callable[[float | None], str]
    ratio: Callable[[float, float], str]
    """(best, reference) in words."""
    higher: bool = False
    timed: bool = True
    """Whether other work on the machine moves it."""
    spread: str | None = None
    """The column that says how far a row's rounds lie apart in it."""


def _less(best: float, reference: float) -> str:
    return f"{share(1 - best / reference)} less"


def _times(best: float, reference: float) -> str:
    return f"{significant(best / reference)} times as many"


def _more(best: float, reference: float) -> str:
    return f"{usd(best - reference)} more"


def _larger(best: float, reference: float) -> str:
    return f"{significant(best / reference)} times as large"


def _faster(best: float, reference: float) -> str:
    return f"{significant(reference / best)} times as fast"


_LATENCY, _RATE = "latency_p50_round_spread", "throughput_round_spread"
LATENCY = Measure("latency_p50_s", "median latency", "lowest", seconds, _faster, spread=_LATENCY)
MEMORY = Measure("peak_memory_bytes", "peak memory", "lowest", bytes_, _less, timed=False)
WEIGHTS = Measure("weight_bytes", "weight memory", "lowest", bytes_, _less, timed=False)
COST = Measure(
    "cost_per_1k_requests_usd", "cost per 1,000 requests", "lowest", usd, _less, spread=_RATE
)
EFFICIENCY = Measure(
    "requests_per_joule", "number of requests per joule", "highest", significant, _times, True
)
RESULTS = Measure(
    "value_per_usd",
    "number of useful results per dollar",
    "highest",
    count,
    _times,
    True,
    spread=_RATE,
)
REQUESTS = Measure(
    "value_per_usd", "number of requests per dollar", "highest", count, _times, True, spread=_RATE
)
NET = Measure("net_usd_per_1k_requests", "net dollars per 1,000 requests", "most", usd, _more, True)
LARGEST_RATE = Measure("held_rate_per_s", "rate that held", "largest", rate, _larger, True)


@dataclass(frozen=True)
class Ranking:
    """`best`: the rows that share the best value as it is shown, or within the spread of their
    rounds; `missing`: rows without one."""

    best: list[Row]
    missing: list[Row]
    compared: int
    disturbed: tuple[Row, ...] = ()
    """Rows that were timed beside other work."""
    within_spread: bool = False
    """Whether some of `best` read differently, but by no more than rounds of one format do."""

    @property
    def winner(self) -> Row | None:
        """The one best row of at least two, every one of which has a value; else None."""
        decided = len(self.best) == 1 and self.compared > 1 and not self.missing
        return self.best[0] if decided and not self.disturbed else None


def rank(rows: Sequence[Row], measure: Measure) -> Ranking:
    """Rows whose values read the same share a place: a difference that can't be seen in the table
    is no reason to name a winner. Nor is one that is no larger than that between the rounds of one
    of the two rows: the next run may turn it round."""
    having = [r for r in rows if r[measure.column] is not None]
    missing = [r for r in rows if r[measure.column] is None]
    if not having:
        return Ranking([], missing, 0)
    pick = max if measure.higher else min
    best = pick(having, key=lambda r: r[measure.column])
    disturbed = tuple(r for r in having if measure.timed and is_busy(r))
    same = measure.show(best[measure.column])
    alike = [measure.show(r[measure.column]) == same for r in having]
    near = [is_within_spread(r, best, measure) for r in having]
    shared = [r for r, one, other in zip(having, alike, near, strict=True) if one or other]
    return Ranking(shared, missing, len(having), disturbed, len(shared) > sum(alike))


def is_within_spread(row: Row, best: Row, measure: Measure) -> bool:
    """Whether the two values differ by no more than the rounds of either row, relatively."""
    if measure.spread is None:
        return False
    spreads = [r[measure.spread] for r in (row, best) if r[measure.spread] is not None]
    low, high = sorted([row[measure.column], best[measure.column]])
    return bool(spreads) and low > 0 and high / low - 1 <= max(spreads)


def is_busy(row: Row) -> bool:
    """Whether the row was timed beside other work on the machine."""
    return "machine-busy" in (row["cautions"] or "").split(";")


def outcome(group: Group, rows: Sequence[Row], measure: Measure) -> str:
    """The ranking in one sentence, the reference beside the winner."""
    ranking = rank(rows, measure)
    if not ranking.best:
        return f"No {measure.noun} was measured."
    text = measure.show(ranking.best[0][measure.column])
    names = listed([group.named(r) for r in ranking.best])
    if ranking.missing:
        missing = listed([group.named(r) for r in ranking.missing])
        return (
            f"No {measure.superlative} {measure.noun} of all formats is named: {missing} lacks a "
            "value."
        )
    if ranking.compared == 1:
        return f"Only {names} has a result ({measure.noun}: {text}); nothing to compare it with."
    if ranking.disturbed:
        every = len(ranking.disturbed) == ranking.compared
        whose = "every format" if every else listed([group.named(r) for r in ranking.disturbed])
        return (
            f"No {measure.superlative} {measure.noun} of all formats is named, as other work "
            f"disturbed the timing of {whose}."
        )
    if ranking.within_spread:
        return _too_close(names, ranking.best, measure)
    if ranking.winner is None:
        return f"No single winner: {names} share the {measure.superlative} {measure.noun}, {text}."
    return _won(group, ranking.winner, measure, text)


def _too_close(names: str, rows: list[Row], measure: Measure) -> str:
    values = sorted(row[measure.column] for row in rows)
    ends = f"{measure.show(values[0])} to {measure.show(values[-1])}"
    return (
        f"No single winner: {names} differ in {measure.noun} ({ends}) by no more than rounds of "
        "one format do."
    )


def _won(group: Group, winner: Row, measure: Measure, text: str) -> str:
    if group.is_reference(winner):
        return (
            f"The reference, {group.named(winner)}, has the {measure.superlative} "
            f"{measure.noun}: {text}."
        )
    start = f"{group.named(winner)} has the {measure.superlative} {measure.noun}: {text}"
    reference = group.reference_of(winner)
    base = reference[measure.column] if reference else None
    if not reference or not base or not winner[measure.column]:
        return f"{start}."
    ratio = measure.ratio(winner[measure.column], base)
    return f"{start}, against {measure.show(base)} for {group.named(reference)} ({ratio})."
