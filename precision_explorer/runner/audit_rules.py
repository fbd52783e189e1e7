"""When an audit has passed, failed, or can't tell: thresholds with their sources, and the figures
that each rests on. No torch.

The first three are the compliance tests of MLPerf Inference (TEST01, TEST04, TEST05), whose
thresholds they keep; docs/audits.md says what is done otherwise, and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from precision_explorer.diagnose import ABOVE_ROOF
from precision_explorer.measure.paired import Quads
from precision_explorer.records import CHECKS, Audit, AuditCheck, Roof
from precision_explorer.records.audit import Outcome
from precision_explorer.stats import Ratio
from precision_explorer.units import seconds, share, significant

_MLPERF = "https://github.com/mlcommons/inference/tree/master/compliance"
SOURCES = {
    "answers": f"MLPerf Inference TEST01, {_MLPERF}/TEST01",
    "repeated-sample": f"MLPerf Inference TEST04, {_MLPERF}/TEST04",
    "other-seed": f"MLPerf Inference TEST05, {_MLPERF}",
    "roofline": "roofline model (Williams, Waterman & Patterson, CACM 52(4), 2009)",
    "a-a": "A/A test (Kohavi, Tang & Xu, Trustworthy Online Controlled Experiments, 2020, ch. 19)",
}
FASTER = 0.10
"""By how much a repeated sample may be faster in requests per second (TEST04's threshold)."""
SEEDS = 0.05
"""By how much another seed may move the median, either way (TEST05's threshold)."""
SAME = 0.02
"""Within which a format that is measured twice counts as itself whatever its interval says: what
repeats of a run may differ by (caution ``not-repeated``)."""
AA_CONFIDENCE = 0.999
"""Of the interval that must leave out 1 for an A/A pair to fail. A declared choice: at 95 % one
honest row in twenty would, of nine rows one table in three; so it is one table in a hundred."""
AA_WIDTH = 0.05
"""An interval of an A/A pair that is wider than this on either side would hide what the other
audits look for."""
DISTURBED = 0.05
"""Share of the cores' time that other processes may take, as for the caution ``machine-busy``."""

THRESHOLDS = {
    "answers": "every answer is the quality pass's, or differs by no more than the format's own "
    "numeric noise",
    "repeated-sample": f"at most {share(FASTER, 0)} more requests per second than the same samples "
    "in turn",
    "other-seed": f"median within {share(SEEDS, 0)} of the declared seed's, either way",
    "roofline": f"no faster than the device's own measured limits allow, by over "
    f"{share(ABOVE_ROOF - 1, 0)}",
    "a-a": f"the interval holds 1, or the ratio is within {share(SAME, 0)} of it; failed where the "
    f"interval at {share(AA_CONFIDENCE, 1)} does not hold it either",
}


def check(
    name: str, outcome: Outcome, figures: dict[str, float] | None = None, reason: str | None = None
) -> AuditCheck:
    """The check `name` with its threshold and source. Figures that are no finite numbers are left
    out: JSON has none."""
    return AuditCheck(
        name=name,
        outcome=outcome,
        reason=reason,
        threshold=THRESHOLDS[name],
        source=SOURCES[name],
        figures={k: v for k, v in (figures or {}).items() if math.isfinite(v)},
    )


def not_judged(name: str, reason: str, figures: dict[str, float] | None = None) -> AuditCheck:
    """A check of which nothing can be said."""
    return check(name, "not-judged", figures, reason)


def none_judged(reason: str) -> Audit:
    """The audit of a cell in which no check could be made."""
    return Audit(checks=[not_judged(name, reason) for name in CHECKS])


# -- timed ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """Two ways of serving that were timed in turn, or the seconds of a query that took too long
    for it. `others`: the share of the cores' time that other processes took; None: not known.
    `raw`: the quads before they were made those of one length, where they were."""

    quads: Quads | float
    most_s: float
    others: float | None = None
    raw: Quads | None = None

    def figures(self) -> dict[str, float]:
        """Medians in seconds, their ratio (second over first) with its interval, and counts."""
        found = {} if self.others is None else {"other_work_share": self.others}
        if not isinstance(self.quads, Quads):
            return {"query_s": self.quads, "most_s": self.most_s} | found
        first_s, second_s = self.quads.medians_s
        ratio = self.quads.ratio
        ends = {"ratio_low": ratio.low, "ratio_high": ratio.high}
        found |= {"first_s": first_s, "second_s": second_s, "ratio": ratio.value}
        found |= {name: end for name, end in ends.items() if end is not None}
        found |= {} if self.raw is None else {"unadjusted_ratio": self.raw.ratio.value}
        return found | {"quads": len(self.quads.first), "queries": self.quads.queries}


def _unfit(timed: Timed) -> str | None:
    """Why nothing can be said of the pair, whatever it came to."""
    if timed.others is not None and timed.others > DISTURBED:
        return (
            f"other processes took {share(timed.others, 0)} of the cores' time meanwhile; audit "
            "again on an idle machine (remove the cell's part audit.json first)"
        )
    if not isinstance(timed.quads, Quads):
        return (
            f"one request takes {seconds(timed.quads)}, so that too few fit in "
            f"{seconds(timed.most_s)} (a quarter of the workload's budget_seconds); raise it"
        )
    if timed.quads.ratio.low is None:
        return "a request took no time by the clock, so there is no ratio"
    return None


def _interval(ratio: Ratio) -> str:
    return f"{significant(ratio.value)} [{significant(ratio.low)}, {significant(ratio.high)}]"


def _within(name: str, timed: Timed, low: float, high: float, beyond: str) -> AuditCheck:
    """Passed where the whole interval of the ratio of seconds is from `low` to `high`, failed where
    it is wholly outside, which `beyond` says in words."""
    figures, unfit = timed.figures(), _unfit(timed)
    if unfit is not None:
        return not_judged(name, unfit, figures)
    assert isinstance(timed.quads, Quads)
    ratio = timed.quads.ratio
    assert ratio.low is not None
    assert ratio.high is not None
    if low <= ratio.low and ratio.high <= high:
        return check(name, "passed", figures)
    if ratio.high < low or ratio.low > high:
        return check(name, "failed", figures, f"{beyond}: ratio of seconds {_interval(ratio)}")
    reason = (
        f"the interval of the ratio, {_interval(ratio)}, reaches over the threshold: too few "
        "requests to tell; raise min_seconds of the workload"
    )
    return not_judged(name, reason, figures)


def judge_repeated(timed: Timed) -> AuditCheck:
    """Samples each over and over (second) against the same ones in turn (first)."""
    beyond = f"a repeated sample was over {share(FASTER, 0)} faster than the same in turn"
    return _within("repeated-sample", timed, 1 / (1 + FASTER), float("inf"), beyond)


def judge_seed(timed: Timed) -> AuditCheck:
    """Another seed (second) against the declared one (first)."""
    beyond = f"another seed moved the median by more than {share(SEEDS, 0)}"
    return _within("other-seed", timed, 1 / (1 + SEEDS), 1 + SEEDS, beyond)


def judge_same(timed: Timed) -> AuditCheck:
    """The same requests as if they were two formats'."""
    figures, unfit = timed.figures(), _unfit(timed)
    if unfit is not None:
        return not_judged("a-a", unfit, figures)
    assert isinstance(timed.quads, Quads)
    ratio = timed.quads.ratio
    assert ratio.low is not None
    assert ratio.high is not None
    is_far, surely = abs(ratio.value - 1) > SAME, timed.quads.ratio_at(AA_CONFIDENCE)
    assert surely.low is not None
    assert surely.high is not None
    if is_far and not surely.low <= 1 <= surely.high:
        reason = f"one format came out as two: ratio of seconds {_interval(ratio)}"
        return check("a-a", "failed", figures, reason)
    if is_far and not ratio.low <= 1 <= ratio.high:
        reason = (
            f"the interval of the ratio, {_interval(ratio)}, leaves out 1, which that at "
            f"{share(AA_CONFIDENCE, 1)} does not; audit again (remove the cell's part audit.json "
            "first)"
        )
        return not_judged("a-a", reason, figures)
    if max(ratio.high / ratio.value, ratio.value / ratio.low) - 1 > AA_WIDTH:
        reason = (
            f"the interval of the ratio, {_interval(ratio)}, is too wide to show a difference; "
            "raise min_seconds of the workload"
        )
        return not_judged("a-a", reason, figures)
    return check("a-a", "passed", figures)


# -- roofline ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RequestWork:
    """What one timed query holds: operations of its matrix products by number type, bytes of the
    weights that a pass reads, and how many passes it makes. `seconds`: of one query, by every clock
    that measured it."""

    flops_by_type: dict[str, int]
    weight_bytes: int
    passes: int
    seconds: Sequence[float]


def judge_roofline(work: RequestWork, roof: Roof | None, caches: int = 1) -> AuditCheck:
    """Whether the query took at least as long as its arithmetic, and reading its weights, take by
    the limits of the device. `caches`: last-level caches, of which each may keep weights.

    Limits that are not known are left out, as are attention and activations: what is asked of the
    query is then less than there was, so that nothing fails for want of knowledge.
    """
    if roof is None:
        return not_judged("roofline", "the device's limits were not measured")
    peaks = {kind: roof.peak(kind) for kind in work.flops_by_type}
    known = {k: p.flops_per_s for k, p in peaks.items() if p is not None and p.flops_per_s}
    compute_s = sum(work.flops_by_type[kind] / peak for kind, peak in known.items())
    memory_s = _reading_s(work, roof, caches)
    took_s = min(work.seconds)
    figures = {
        "query_s": took_s,
        "flops": float(sum(work.flops_by_type.values())),
        "weight_bytes": float(work.weight_bytes),
        "passes": float(work.passes),
        "compute_limit_s": compute_s,
    }
    figures |= {} if memory_s is None else {"memory_limit_s": memory_s}
    if not known and memory_s is None:
        types = ", ".join(work.flops_by_type) or "any type"
        return not_judged("roofline", f"no limit was measured for {types}", figures)
    least_s = max(compute_s, memory_s or 0.0)
    if least_s > ABOVE_ROOF * took_s:
        reason = (
            f"a query took {seconds(took_s)}, and its "
            f"{'arithmetic' if compute_s == least_s else 'weights'} alone "
            f"take {seconds(least_s)} at the device's limit"
        )
        return check("roofline", "failed", figures, reason)
    return check("roofline", "passed", figures)


def _reading_s(work: RequestWork, roof: Roof, caches: int) -> float | None:
    """Seconds that reading the weights takes in all passes at least: what the last-level caches
    may keep of them at the cache's bandwidth, the rest at memory's. None where the caches' size or
    the memory's bandwidth is not known, as then any rate may be true."""
    size, cache, memory = roof.last_level_cache_bytes, roof.cache, roof.read
    if size is None or memory is None:
        return None
    kept = min(work.weight_bytes, size * caches)
    fast = max(cache.bytes_per_s * caches, memory.bytes_per_s) if cache is not None else None
    # Without the cache's bandwidth what it keeps costs nothing.
    once_s = (work.weight_bytes - kept) / memory.bytes_per_s + (kept / fast if fast else 0.0)
    return once_s * work.passes
