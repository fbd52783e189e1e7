"""What a sweep will take, by part: from how fast its passes will be and the windows that its
workload declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models.heads import HEADS
from precision_explorer.plan.expand import PlannedCell
from precision_explorer.plan.speeds import Speeds
from precision_explorer.records.estimate import CellEstimate, PartEstimate
from precision_explorer.tasks import KINDS
from precision_explorer.workload import Workload

# Declared: what each shape takes to be compiled, and how many there are.
_COMPILED_S = {"dynamic": 40.0, "fixed": 80.0}
# A watched pass against an unwatched one (hooks, a profiler's or libraries' lines).
_WATCHED = 2.0
# Of the workload's least window, per phase and batch size of a profile (`runner.profiling`).
_PROFILED_SHARE = 0.25
# Between windows blocks are set up, collected and written: up to this much more, declared.
_BETWEEN = 1.25
# Of a meter that is read: the idle device before and after each round's block.
_IDLE_S = 3.0
_METER_WINDOW_S = 0.5
# Checks of an audit (docs/audits.md: some 8 s a cell).
_AUDIT_S = 8.0
# Distances to the reference's distributions, in quality passes: the reference keeps its states and
# reads them again, others read them.
_KEPT, _HELD_AGAINST = 1.0, 0.7


@dataclass(frozen=True)
class Asked:
    """What decides a cell's parts beside its speeds. `compared`: it has a quality pass that is
    compared; `reference`: it is what others are compared with."""

    workload: Workload
    metered: bool
    audit: bool
    reference: bool


def cell_estimate(planned: PlannedCell, speeds: Speeds, asked: Asked) -> CellEstimate:
    """All parts of one cell. Each part is computed at the speeds given, and again with all of them
    `factor` times as fast and as slow: a window that the workload declares stays what it is."""
    made: list[tuple[str, Callable[[float], float], str]] = [
        ("load", lambda f: _load_s(planned, speeds, f), speeds.source),
        ("quality", lambda f: f * speeds.quality_s, speeds.source),
        ("timed", lambda f: timed_s(speeds, asked, f), f"declared windows; {speeds.source}"),
        ("closing", lambda f: _closing_s(planned, speeds, asked, f), speeds.source),
        ("compare", lambda f: _compare_s(planned, speeds, asked, f), speeds.source),
        ("audit", lambda f: f * _AUDIT_S if asked.audit else 0.0, "declared"),
    ]
    parts = [
        PartEstimate(
            part=name, seconds=of(1.0), low_s=of(1 / speeds.factor),
            high_s=of(speeds.factor) * (_BETWEEN if name == "timed" else 1.0),
            source=source,
        )
        for name, of, source in made
        if of(1.0) > 0
    ]  # fmt: skip
    return CellEstimate(
        cell_id=planned.cell_id,
        model=planned.ref.name,
        task=planned.task.card.name,
        format=planned.cell.format,
        runtime=planned.cell.runtime,
        parts=parts,
        power_w=speeds.power_w,
        power_source=speeds.power_source,
    )


def _load_s(planned: PlannedCell, speeds: Speeds, factor: float) -> float:
    runtime = RUNTIMES[planned.cell.runtime]
    compiled = _COMPILED_S["dynamic" if runtime.dynamic else "fixed"] if runtime.compiles else 0.0
    return factor * (speeds.load_s + compiled)


def timed_s(speeds: Speeds, asked: Asked, factor: float = 1.0) -> float:
    """All rounds of a cell: latency or serving, then offline throughput, as `measure` bounds them;
    twice where each is measured beside background work as well."""
    rules = asked.workload
    request_s = factor * speeds.request_s * (rules.streams if _streams(rules) else 1)
    idle = rules.rounds * _IDLE_S if asked.metered else 0.0
    total = idle + _offline_s(speeds, rules, factor)
    if rules.scenario == "server":
        total += _served_s(rules)
    elif rules.scenario != "offline":
        total += _in_turn_s(request_s, rules, asked.metered)
    return total * (2 if rules.background else 1)


def _streams(rules: Workload) -> bool:
    return rules.scenario == "multi-stream"


def _in_turn_s(request_s: float, rules: Workload, metered: bool) -> float:
    """Requests one after the other: in each round a warm-up, whole in the first, and a window of
    least seconds and requests, within the budget but for the request under way."""
    n = rules.rounds
    window_s = rules.min_seconds / n
    if metered:
        window_s = max(window_s, rules.energy_seconds, _METER_WINDOW_S)
    window = max(-(-rules.min_requests // n) * request_s, window_s)
    warm = max(rules.warmup_requests * request_s, rules.warmup_seconds)
    later = max(-(-rules.warmup_requests // n) * request_s, rules.warmup_seconds / n)
    budget = rules.budget_seconds / n + request_s
    # The first, cold request takes about two.
    first = min(2 * request_s + warm + window, budget)
    return first + (n - 1) * min(later + window, budget)


def _offline_s(speeds: Speeds, rules: Workload, factor: float) -> float:
    """Each batch size: a warm-up batch in the first round, then least batches and seconds, within
    its share of the budget but for the batch under way; one batch at least of the smallest."""
    n, total = rules.rounds, 0.0
    for number in range(n):
        left = rules.offline_budget_seconds / n
        sizes = sorted(speeds.batch_s)
        for place, size in enumerate(sizes):
            if place and left <= 0:
                break
            share, batch_s = left / (len(sizes) - place), factor * speeds.batch_s[size]
            least = max(-(-rules.offline_min_batches // n) * batch_s, rules.offline_seconds / n)
            warm = batch_s if number == 0 else 0.0
            taken = max(min(warm + least, share + batch_s), warm + batch_s)
            total, left = total + taken, left - taken
    return total


def _served_s(rules: Workload) -> float:
    """The declared window; with a tail to be reached, or a rate to be found, all of the budget."""
    if rules.tails is not None or rules.search:
        return max(rules.duration_seconds, rules.budget_seconds)
    return rules.duration_seconds + (rules.rounds - 1) * rules.warmup_seconds


def _closing_s(planned: PlannedCell, speeds: Speeds, asked: Asked, factor: float) -> float:
    """The certificate's watched passes (a request, the quality pass's last batch), then a profile:
    for each phase and batch size a share of the least window, or three passes where that is
    longer."""
    kind = KINDS[planned.task.card.kind]
    phases = 2 if HEADS[kind.head].decodes else 1
    sizes = 3 if planned.cell.device.startswith("cuda") else 2
    watched = _WATCHED * (2 * speeds.request_s + speeds.batch_s[max(speeds.batch_s)])
    window = _PROFILED_SHARE * asked.workload.min_seconds
    return factor * watched + phases * sizes * max(window, 3 * factor * speeds.request_s)


def _compare_s(planned: PlannedCell, speeds: Speeds, asked: Asked, factor: float) -> float:
    """The reference's second pass, and distances of language models' distributions: along answers
    that are there these are few passes, and count as none."""
    if not planned.has_quality:
        return 0.0
    kind = KINDS[planned.task.card.kind]
    language = kind.head == "causal-lm" and not kind.answers
    passes = 1.0 if asked.reference and RUNTIMES[planned.cell.runtime].dynamic else 0.0
    if language:
        passes += _HELD_AGAINST + (_KEPT if asked.reference else 0.0)
    return factor * passes * speeds.quality_s
