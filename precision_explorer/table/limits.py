"""The limits that a reader sets (loss of quality, latency, memory, cost), and whether a row is
known to hold each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from precision_explorer.economics import Slo, parse_slo
from precision_explorer.errors import UsageError
from precision_explorer.stats import share_within
from precision_explorer.table.data import Context
from precision_explorer.table.figures import FIGURES
from precision_explorer.table.quality import Quality
from precision_explorer.table.samples import Samples
from precision_explorer.table.sequential import is_sequential
from precision_explorer.tasks import zero_one_column
from precision_explorer.units import (
    bytes_,
    duration_option,
    number_option,
    points,
    seconds,
    share,
    share_option,
    size_option,
    usd,
)

State = Literal["yes", "no", "cannot-tell"]
_IDLE = "timing on an idle machine: other work disturbed this one"
_BEYOND = 1e-9  # A budget that is the bound itself tells nothing.
SURE = 0.95
"""As the verdicts: one-sided 95 %."""


@dataclass(frozen=True)
class Limits:
    """None: no such limit. `max_quality_loss` is that of the rows' verdicts (points of a share,
    else relative). UsageError for limits that nothing can hold."""

    max_quality_loss: float | None = None
    slo: Slo | None = None
    max_memory_bytes: float | None = None
    max_cost_per_1k_usd: float | None = None

    def __post_init__(self) -> None:
        rules = [
            (self.max_memory_bytes, "max-memory must be above 0 bytes; write it as 8GB"),
            (self.max_cost_per_1k_usd, "max-cost must be above 0 dollars per 1,000 requests"),
        ]
        for value, rule in rules:
            if value is not None and not 0 < value < math.inf:
                raise UsageError(rule)

    @property
    def words(self) -> tuple[str, ...]:
        """Each in words, in the order of `checks`."""
        found = []
        if self.max_quality_loss is not None:
            found.append(f"loss of quality at most {share(self.max_quality_loss)}")
        if self.slo is not None:
            found.append(f"{self.slo.name} of the latency at most {seconds(self.slo.limit_s)}")
        if self.max_memory_bytes is not None:
            found.append(f"peak memory at most {bytes_(self.max_memory_bytes)}")
        if self.max_cost_per_1k_usd is not None:
            found.append(f"at most {usd(self.max_cost_per_1k_usd)} per 1,000 requests")
        return tuple(found)


@dataclass(frozen=True)
class Check:
    """Whether a row holds one limit. `found`: what was measured, in words; `needs`: what would
    tell, or what is missing; `probability` that it holds over the draws, None where these can't
    say; `ratio`: the measured figure over the limit, above 1 where it is beyond. `at_least`: the
    `probability` is a bound. `asks`: the least limit, rounded up, as its option takes it, that the
    row would be shown to hold (`shown`), or that its figure holds."""

    limit: str
    state: State
    found: str
    needs: str | None = None
    probability: float | None = None
    ratio: float | None = None
    asks: str | None = None
    at_least: bool = False
    shown: bool = False


def checks(samples: Samples, limits: Limits) -> tuple[Check, ...]:
    """One `Check` per limit that is set."""
    found = []
    if limits.max_quality_loss is not None:
        found.append(_quality(samples, limits.max_quality_loss))
    if limits.slo is not None:
        found.append(_latency(samples, limits.slo))
    if limits.max_memory_bytes is not None:
        found.append(_memory(samples, limits.max_memory_bytes))
    if limits.max_cost_per_1k_usd is not None:
        found.append(_cost(samples, limits.max_cost_per_1k_usd))
    return tuple(found)


def is_disturbed(row: dict[str, Any]) -> bool:
    """Whether other work on the machine moved the row's times: they are then no less than those of
    an idle machine, as far as anyone can tell."""
    return "machine-busy" in (row["cautions"] or "").split(";")


def _quality(samples: Samples, budget: float) -> Check:
    row, limit = samples.row, "quality"
    if samples.record.cell.model.is_synthetic:
        needs = "the model with its real weights"
        return Check(limit, "cannot-tell", "quality was not measured (synthetic weights)", needs)
    unsolved = _unsolved(samples.reference)
    if unsolved is not None:
        return Check(limit, "cannot-tell", unsolved)
    if samples is samples.reference:
        return Check(limit, "yes", "the reference itself", probability=1.0, ratio=0.0)
    verdict, note, loss = row["verdict"], row["verdict_note"], _loss(samples)
    if verdict is None:
        return Check(limit, "cannot-tell", "no verdict", note or "a reference on the same examples")
    ratio = None if loss is None else loss / budget
    lost = "" if loss is None else f" ({_lost(samples, loss)} measured)"
    if verdict == "within":
        # What the verdict's bound says; a bootstrap of hardly any flips knows no spread.
        found = f"loss within {share(budget)}{lost}"
        return Check(limit, "yes", found, None, SURE, ratio, at_least=True)
    if verdict == "outside":
        asks, shown = _budget(samples, loss)
        found = f"loss beyond {share(budget)}{lost}"
        return Check(limit, "no", found, ratio=ratio, asks=asks, shown=shown)
    needs = note or "more examples"
    if needs.startswith("needs n"):
        needs = f"{needs} examples (has {row['quality_n']:,})"
    found = f"loss not shown to be within {share(budget)}{lost}"
    return Check(limit, "cannot-tell", found, needs, ratio=ratio)


def _unsolved(reference: Samples | None) -> str | None:
    """Beside a reference without a right answer nothing can be lost; None where it has some."""
    quality = reference.quality if reference is not None else None
    if reference is None or quality is None or not (quality.is_share and quality.higher_is_better):
        return None
    n = reference.row["quality_n"]
    return None if reference.row["quality"] else f"the reference solves none of the {n:,} examples"


def _lost(samples: Samples, loss: float) -> str:
    if loss <= 0:
        return "no loss"
    is_share = samples.quality is not None and samples.quality.is_share
    return points(loss).removeprefix("+") if is_share else share(loss, 2)


def _loss(samples: Samples) -> float | None:
    """The measured loss of quality as the budget counts it; below 0 where there is a gain."""
    row, base = samples.row, samples.reference
    delta = row["quality_delta"]
    if delta is None or samples.quality is None:
        return None
    loss = -delta if samples.higher_is_better else delta
    if samples.quality.is_share:
        return float(loss)
    known = base.row["quality"] if base is not None else None
    return float(loss / abs(known)) if known else None


def _budget(samples: Samples, loss: float | None) -> tuple[str | None, bool]:
    """(the least budget as its option takes it, whether the loss would be shown to be within it).

    Of 0/1 scores the 95 % interval's far end: two-sided, so the verdict's one-sided bound of the
    same test lies inside it. Of all else the loss that was measured.
    """
    row, quality = samples.row, samples.quality
    ends = row["quality_delta_ci_low"], row["quality_delta_ci_high"]
    least, shown = loss, False
    if isinstance(quality, Quality) and zero_one_column(quality.metric, quality.columns):
        far = ends[0] if samples.higher_is_better else ends[1]
        if far is not None and not is_sequential(samples.record.cell):
            least, shown = abs(far), True
    if least is None or not 0 < least < 1:
        return None, False
    return share_option(least + _BEYOND), shown


def _latency(samples: Samples, slo: Slo) -> Check:
    limit, ids = slo.name, (samples.row["cautions"] or "").split(";")
    if "serving-saturated" in ids:
        return Check(limit, "no", "more was asked than it can serve")
    within = samples.within(slo)
    if within is None:
        refused = "serving-refused" in ids
        why = "the serving loop was late" if refused else "no latency was measured"
        return Check(limit, "cannot-tell", why, "requests timed on an idle machine")
    found = f"{share(within.share)} of {within.n:,} requests within {seconds(slo.limit_s)}"
    reached = float(np.quantile(np.concatenate(list(samples.latencies)), slo.quantile))
    rest = (within.probability, reached / slo.limit_s)
    if within.verdict == "within":
        return Check(limit, "yes", found, None, *rest)
    if within.verdict == "outside" and not is_disturbed(samples.row):
        least = slowest_held(samples, slo)
        asks = f"{slo.name}={duration_option(least or reached)}"
        return Check(limit, "no", found, None, *rest, asks=asks, shown=least is not None)
    if within.verdict == "outside":
        return Check(limit, "cannot-tell", found, _IDLE, *rest)
    n = "more requests than can be foretold"
    if within.needed_n is not None:
        n = f"n >= {within.needed_n:,} requests (has {within.n:,})"
    return Check(limit, "cannot-tell", found, f"{slo.name} needs {n}", *rest)


def slowest_held(samples: Samples, slo: Slo) -> float | None:
    """The least limit that the row's requests are shown to hold: one of its latencies, since the
    answer changes nowhere else; None where these are too few for any."""
    values = np.concatenate(list(samples.latencies))
    ordered = np.unique(values)

    def held(k: int) -> bool:
        found = share_within(values, float(ordered[k]), slo.quantile)
        return found is not None and found.verdict == "within"

    low, high = 0, len(ordered) - 1
    if not held(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if held(middle) else (middle + 1, high)
    return float(ordered[low])


def _memory(samples: Samples, most: float) -> Check:
    peak = samples.row["peak_memory_bytes"]
    if peak is None:
        return Check("memory", "cannot-tell", "peak memory was not measured", "its peak memory")
    state: State = "yes" if peak <= most else "no"
    # One measurement: nothing says how far another would be off.
    found = f"peak memory {bytes_(peak)}"
    return Check(
        "memory",
        state,
        found,
        None,
        float(peak <= most),
        peak / most,
        size_option(peak),
        shown=True,
    )


def _cost(samples: Samples, most: float) -> Check:
    cost, draws = samples.row[FIGURES["cost"].column], samples.draws("cost")
    if cost is None or draws is None:
        return Check("cost", "cannot-tell", "no cost", "a price (--price-per-hour) and a rate")
    chance, found = float((draws <= most).mean()), f"{usd(cost)} per 1,000 requests"
    # From the least that 95 % of the draws hold on, the answer is yes.
    least = max(cost, float(np.quantile(draws, SURE, method="inverted_cdf")))
    rest = (chance, cost / most, number_option(least))
    if chance >= SURE and cost <= most:
        return Check("cost", "yes", found, None, *rest)
    if is_disturbed(samples.row):
        return Check("cost", "cannot-tell", found, _IDLE, *rest)
    if chance <= 1 - SURE and cost > most:
        return Check("cost", "no", found, None, *rest, shown=True)
    needs = "more rounds or batches: the limit lies within what these differ by"
    return Check("cost", "cannot-tell", found, needs, *rest)


def limits_of(context: Context, scored: bool = True) -> Limits:
    """The reader's limits; the table's quality budget and latency objective where none is given.
    The budget is none of those of models that are not `scored`: nothing would ever hold it."""
    limits = context.limits or Limits()
    if limits.max_quality_loss is None and scored:
        limits = replace(limits, max_quality_loss=context.quality_budget)
    if limits.slo is None and context.slo:
        limits = replace(limits, slo=parse_slo(context.slo))
    return limits


def state_of(found: tuple[Check, ...]) -> State:
    """``no`` where one limit is broken, ``yes`` where all are held."""
    states = {check.state for check in found}
    if "no" in states:
        return "no"
    return "cannot-tell" if "cannot-tell" in states else "yes"
