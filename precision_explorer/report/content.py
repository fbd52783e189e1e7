"""What every report says, apart from how: context, sections, caveats and notes."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field, replace

from precision_explorer.report.aggregates import group_scores
from precision_explorer.report.answers import Answer, answers, limits_line
from precision_explorer.report.audits import NOT_AUDITED, AuditSection, Badge, audit_section, badge
from precision_explorer.report.columns import View, detail_view, main_views, unmeasured_view
from precision_explorer.report.curve import RateSection, rate_section
from precision_explorer.report.differences import differences_view
from precision_explorer.report.disturbed import DisturbedSection, disturbed_section
from precision_explorer.report.findings import Finding, findings
from precision_explorer.report.groups import Group, Row, direction_words, groups
from precision_explorer.report.loads import Loads, load_sections
from precision_explorer.report.offline import lacks_energy, offline_view
from precision_explorer.report.questions import Question, questions
from precision_explorer.report.safety import Safety, safeties
from precision_explorer.report.sensitivity import group_view
from precision_explorer.report.soak import SoakSection, soak_sections
from precision_explorer.report.text import cleaned, listed
from precision_explorer.report.why import WhySection, of_group
from precision_explorer.table import Context, Table, TaskContext
from precision_explorer.units import share


@dataclass(frozen=True)
class Fact:
    """A label and one or several lines of context."""

    label: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """All that is said of one (model, task, method)."""

    group: Group
    title: str
    line: str
    """Model, task, n and device in one line."""
    findings: list[Finding]
    answers: list[Answer]
    """What stands above everything else."""
    views: list[View]
    rates: RateSection | None
    """Rows whose rate was searched."""
    unmeasured: View | None
    questions: list[Question] = field(default_factory=list)
    detail: View | None = None
    offline: View | None = None
    """Rates and joules at each batch size."""
    short_windows: bool = False
    """Whether a batch size has no joules since a meter's window was too short."""
    differences: View | None = None
    """How formats differ from the reference, beyond the verdict."""
    over_time: list[SoakSection] = field(default_factory=list)
    """Rows that were measured for several windows of time."""
    disturbed: DisturbedSection | None = None
    """Alone and beside background work."""
    sensitivity: View | None = None
    """Which input, moved alone, would change the choices."""
    why: WhySection | None = None
    """Why formats are or are not faster than the reference."""
    audits: AuditSection | None = None
    """Of rows whose measurement was audited."""


@dataclass(frozen=True)
class Content:
    """A report ready to be laid out; every text in it is one clean line, unescaped."""

    title: str
    compared: list[Fact]
    """What was compared: what a reader must know before any number."""
    price: Fact
    """What cost and value are computed with."""
    method: list[Fact]
    """How it was measured, and where the records are."""
    safety: list[Safety]
    """Which format is safe for which task, of models with several."""
    group_scores: list[View]
    """Scores over groups of tasks, of sweeps that asked for groups."""
    loads: list[Loads]
    """How latency moves with the load, of models measured under several workloads."""
    sections: list[Section]
    caveats: tuple[str, ...]
    cautions: dict[str, str]
    notes: tuple[str, ...]
    """How to read the tables."""
    reproduce: str
    held: str
    """The limits that the formats named in `answers` hold."""
    left_out: str
    """Of a brief report: what is left out, and where it stands; else empty."""
    badge: Badge = NOT_AUDITED
    """What the audits came to, in a line."""

    @property
    def is_audited(self) -> bool:
        """Whether any row was."""
        return self.badge != NOT_AUDITED


_LEFT_OUT = (
    "As there are many cells, this page leaves out details: bars of cost, efficiency and value, "
    "differences beyond the verdict, rates at each batch size, rows over time, beside background "
    "work, audits row by row, and why formats are or are not faster. They stand in tradeoffs.md, "
    "which was written beside this page, and every figure in tradeoffs.csv."
)


def make_content(table: Table, brief: bool = False) -> Content:
    """The content of a report of `table`. `brief`: without what only few readers ask of each row,
    which `left_out` then says."""
    table = cleaned(_without_details(table) if brief else table)
    context = table.context
    sections = [_section(group, table, brief) for group in groups(table)]
    of_models = [f"{m.name}: {c}" for m in context.models for c in m.cautions]
    return Content(
        title=f"Precision tradeoffs: {_subject(table)}",
        compared=_compared(context),
        price=Fact("Price", context.prices or ("none given, so no cost and no value",)),
        method=_method(context),
        safety=safeties([section.group for section in sections]),
        group_scores=group_scores(table),
        loads=load_sections([section.group for section in sections]),
        sections=sections,
        caveats=(*context.caveats, *dict.fromkeys(of_models)),
        cautions=context.cautions,
        notes=_notes(sections, context),
        held=limits_line(table),
        left_out=_LEFT_OUT if brief else "",
        badge=badge(table),
        reproduce=f"precision-explorer report {shlex.join(context.run.split(', '))}",
    )


def _without_details(table: Table) -> Table:
    return replace(table, why=(), comparisons=(), soaks=(), disturbed=(), offline=(), audits=())


def _subject(table: Table) -> str:
    """Models and tasks, and the load where it is not one request after the other."""
    named = {r["workload"] for r in table.rows} - {None}
    if named <= {"single-stream"}:
        return _models_and_tasks(table)
    what = f"workload{'s' * (len(named) > 1)} {listed(sorted(named))}"
    return f"{_models_and_tasks(table)}, {what}"


def _models_and_tasks(table: Table) -> str:
    pairs = list(dict.fromkeys((r["model"], r["task"]) for r in table.rows))
    if len(pairs) <= 2:
        return "; ".join(f"{model} on {task}" for model, task in pairs)
    models, tasks = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return f"{listed(models)} on {listed(tasks)}"


def _section(group: Group, table: Table, brief: bool) -> Section:
    row = group.rows[0]
    n = next((r["quality_n"] for r in group.ok if r["quality_n"]), None)
    parts = [
        f"model {row['model']} ({row['model_revision']})",
        f"task {row['task']} v{row['task_version']}",
        f"n = {n:,}" if n else "no examples scored",
        f"{'devices' if group.is_joined else 'device'} {listed(list(group.devices))}",
    ]
    if row.get("workload") not in (None, "single-stream"):
        parts.append(f"workload {row['workload']} ({row['scenario']})")
    if row.get("background"):
        parts.append(f"background {row['background']}")
    found = answers(table, group)
    section = Section(
        group=group,
        title=group.title,
        line=" · ".join(parts),
        findings=findings(group),
        answers=found,
        views=main_views(group),
        rates=rate_section(group, table),
        unmeasured=unmeasured_view(group),
    )
    if brief:
        return section
    return replace(
        section,
        questions=questions(group, found),
        detail=detail_view(group),
        offline=offline_view(group, table),
        short_windows=lacks_energy(group, table),
        differences=differences_view(group, table),
        over_time=soak_sections(group, table),
        disturbed=disturbed_section(group, table),
        sensitivity=group_view(table, group),
        why=of_group(table, group),
        audits=audit_section(group, table),
    )


def _compared(context: Context) -> list[Fact]:
    return [
        Fact("Run", (context.run,)),
        Fact("Model", tuple(f"{m.name}, revision {m.revision}" for m in context.models)),
        Fact("Task", tuple(_task(t) for t in context.tasks)),
        Fact("Device", context.devices),
        Fact("Reference", (context.reference,)),
        Fact(
            "Quality budget",
            (f"a loss of {share(context.quality_budget)} (points for shares, else relative)",),
        ),
        Fact("Latency limit (SLO)", (context.slo or "none",)),
        *([Fact("Limits of the front", context.limits.words)] if context.limits else []),
    ]


def _task(task: TaskContext) -> str:
    unit = f"{task.unit}, " if task.unit else ""
    return (
        f"{task.name} v{task.version}, {task.kind}, n = {task.n:,}, {task.metric} "
        f"({unit}{direction_words(task.higher_is_better)})"
    )


def _method(context: Context) -> list[Fact]:
    return [
        Fact("Method", context.method),
        Fact("Method id", context.method_ids),
        *([Fact("Measured on (UTC)", context.measured_on)] if context.measured_on else []),
        Fact("Stack", (", ".join(f"{k} {v}" for k, v in context.stack.items()),)),
        Fact("Data source", tuple(f"{t.name}: {t.source}" for t in context.tasks)),
        Fact("Data licence", tuple(f"{t.name}: {t.licence}" for t in context.tasks)),
        Fact("Manifest root", (context.manifest_root,)),
    ]


def _resampled(sections: list[Section]) -> str:
    if any((row["rounds"] or 1) > 1 for section in sections for row in section.group.ok):
        return (
            "examples, rounds, and requests and batches within rounds are resampled. Memory, and "
            "what only another run would show, are not resampled."
        )
    return (
        "examples, requests and batches are resampled. Memory, and differences from run to run, "
        "are not resampled."
    )


def _longer(sections: list[Section]) -> str:
    """How long a window would show the p99 that rows here lack: as many requests as it needs, at
    the rate that was achieved, or one after the other."""
    lacking = [
        (row["latency_p99_needed_n"] * _apart_s(row), row)
        for section in sections
        for row in section.group.ok
        if row["latency_p99_needed_n"] and row["latency_p50_s"] and not row["search_slo"]
    ]
    if not lacking:
        return ""
    lasts_s, row = max(lacking, key=lambda pair: pair[0])
    length = f"{math.ceil(lasts_s / 60)}m" if lasts_s > 60 else f"{math.ceil(lasts_s)}s"
    most = row["format"]
    return f" The p99 of every row here would take about --duration {length} ({most} most)."


def _apart_s(row: Row) -> float:
    """Mean seconds between two requests of a row that has a median latency."""
    achieved = row["achieved_rate_per_s"]
    return float(1 / achieved if achieved else row["latency_p50_s"])


_OFFLINE = (
    "Offline over batch sizes: all requests at hand, batch after batch; ratios are to the "
    "reference at the same size."
)
_METERED = " Energy is the meter's over the measured batches of that size."
_SHORT = (
    " A size without energy: its batches took less time than the meter needs; raise "
    "offline_seconds and offline_budget_seconds of the workload, which the rounds share."
)


def _notes(sections: list[Section], context: Context) -> tuple[str, ...]:
    generates = any(s.group.generates for s in sections)
    estimated = any("est." in c.text for s in sections for v in s.views for r in v.rows for c in r)
    notes = [
        f"Change: the format minus {context.reference} on the same examples, with its 95 % "
        "interval; pp are percentage points, and after = it is relative to the reference's value.",
        "Verdict, against the quality budget: within, where even the worst loss that the examples "
        "leave possible (one-sided 95 %) is inside it; outside, where even the least is beyond it; "
        "else cannot-tell, with how many examples would tell if the formats went on to differ as "
        "they did. Flips are examples that are right in one of the two only. Different: there is "
        "a change, whether or not it is too large.",
        "On the front: yes where no other row is as good in every objective and better in one; the "
        f"percentage is how often the row is on it when {_resampled(sections)}",
        "Series: whether latency had settled; disturbed, where other processes took the cores "
        "meanwhile; of requests that came by their own clock also saturated, where more was asked "
        "than the format can serve, and refused, where the serving loop itself was late: neither "
        "has a latency. A dash (—) is a value that was not measured.",
        "needs n >= N: so many requests like these would support the percentile at 95 %. Where a "
        "request depends on those before it, as in a queue, they are worth fewer independent ones."
        + _longer(sections),
    ]
    if any(s.differences for s in sections):
        notes.append(
            f"Differences: ratios are the format's over {context.reference}'s, so that 1.00 is "
            "none; KL is in nats, over next tokens. The noise floor is the reference against "
            "itself in other batches: a format is called different only beyond it."
        )
    if shown := [s.offline for s in sections if s.offline]:
        known = any("Energy per request" in view.headings for view in shown)
        short = any(s.short_windows for s in sections)
        notes.append(_OFFLINE + (_METERED if known else "") + (_SHORT if short else ""))
    if any(s.disturbed for s in sections):
        notes.append(
            "Alone and disturbed: ratios are disturbed over alone; their intervals are paired over "
            "the rounds (Student's t on logarithms), so few rounds make them wide. Keeps: the "
            "share of its own rate that the background's work has left beside the format."
        )
    if any(s.rates for s in sections):
        notes.append(
            "Largest rate: at Held up to the whole 95 % interval of the percentile was within the "
            "limit, and no queue grew; at Missed from it was beyond, or more came than was served. "
            "In between it could not be told. The row's own latencies are those at Held up to, or "
            "at the lowest rate that was tried where none held."
        )
    if any(s.audits for s in sections):
        notes.append(
            "Audits: checks of the measurement itself, after MLPerf's compliance tests. Ratios are "
            "of seconds, the second way of serving over the first, with their 95 % interval; a "
            "check that can't tell is not judged, with the reason below its table. Within the "
            "device's limits: the share of a request's time that its work takes at these limits."
        )
    if any(s.sensitivity for s in sections):
        notes.append(
            "What would change the choice: each input moved alone, from a tenth to ten times what "
            "it is as far as it can be, everything measured as it is. Below and from say where "
            "another format is named; x is the multiple of what it is now."
        )
    if estimated:
        notes.append("est.: an estimate, not a measurement; it is never ranked.")
    if generates:
        notes.append("First token and Per token are medians; a request is prefill and decode.")
    return tuple(notes)
