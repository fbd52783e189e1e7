"""The tradeoff table as data: declared columns, rows of plain values, and the context that must
travel with them. How it looks is `report`'s affair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from precision_explorer.diagnose import Why
from precision_explorer.economics import Slo
from precision_explorer.records import AuditCheck, SoakWindow
from precision_explorer.stats import Divergence, Rates, Ratio, Window, ratio_over_rounds

if TYPE_CHECKING:
    from precision_explorer.table.limits import Limits
    from precision_explorer.table.samples import Samples
from precision_explorer.stats import Tail
from precision_explorer.stats.rate_search import Verdict

# The contract's columns, in order; columns may only be added at the end.
CONTRACT_COLUMNS: tuple[str, ...] = (
    "model", "task", "format", "runtime", "device", "batch_size", "status", "execution",
    "converted_share",
    "quality_metric", "quality", "quality_ci_low", "quality_ci_high", "quality_n",
    "quality_delta", "quality_delta_ci_low", "quality_delta_ci_high", "flips", "p_value", "verdict",
    "latency_p50_s", "latency_p90_s", "latency_p99_s", "latency_p999_s", "latency_n", "steady",
    "throughput_per_s",
    "ttft_s", "tpot_s", "output_tokens_per_s",
    "weight_bytes", "peak_memory_bytes",
    "power_w", "energy_per_request_j", "power_source",
    "cost_per_1k_requests_usd", "requests_per_joule", "value_per_usd",
    "pareto", "pareto_probability", "method_id", "cautions",
)  # fmt: skip
EXTRA_COLUMNS: tuple[str, ...] = (
    "verdict_note", "cold_first_s", "load_s", "kernel", "compute_dtype", "reason", "model_revision",
    "task_version", "quality_budget", "price_per_hour_usd", "price_source", "stack",
    "manifest_root", "quality_budget_unit",
    "requests_per_joule_above_idle", "output_tokens_per_joule", "energy_boundary",
    "executed_share", "compile_s", "graph_breaks", "scores", "unparsed", "looks",
    "noise_floor_flips", "noise_floor_delta", "noise_floor_kl",
    "flips_to_wrong", "flips_to_right", "error_ratio", "p_value_holm", "different",
    "perplexity_ratio", "kl_mean", "kl_p99", "same_top", "kl_note",
    "latency_p50_ci_low_s", "latency_p50_ci_high_s", "latency_p99_ci_low_s",
    "latency_p99_ci_high_s", "latency_n_eff", "peak_rate_per_s", "sustained_rate_per_s",
    "latency_p90_needed_n", "latency_p99_needed_n", "latency_p999_needed_n",
    "rounds", "latency_p50_round_spread", "throughput_round_spread",
    "scenario", "offered_rate_per_s", "achieved_rate_per_s", "utilisation", "queue_p50_s",
    "service_p50_s", "lateness_p99_s", "workload", "batching",
    "background", "disturbed_latency_p50_s", "disturbed_latency_p99_s",
    "disturbed_throughput_per_s",
    "pareto_ties", "pareto_note", "pareto_all_tasks", "pareto_all_tasks_probability",
    "search_slo", "held_rate_per_s", "missed_rate_per_s", "search_note",
    "energy_net_per_request_j", "energy_check", "grid_g_per_kwh", "carbon_g_per_1k_requests",
    "price_kind", "price_term", "price_inputs", "cost_per_1m_output_tokens_usd",
    "cost_per_1k_requests_offered_usd", "cost_per_1m_output_tokens_offered_usd",
    "usd_per_correct", "usd_per_error", "net_usd_per_1k_requests",
    "net_usd_per_1k_requests_ci_low", "net_usd_per_1k_requests_ci_high",
    "pareto_devices", "reference_device",
    "output_tokens_per_joule_above_idle",
    "run", "measured_on", "limits", "caveats",
    "audit",
)  # fmt: skip
COLUMNS = CONTRACT_COLUMNS + EXTRA_COLUMNS
SPREAD_COLUMN = "devices"
"""Behind all others, where a row's model was spread over several devices: tables of runs from
before there was such a column stay what they were."""
# What tells a row from all others of a table.
ROW_KEY = (
    "model", "model_revision", "task", "task_version", "device", "method_id", "runtime", "format",
    "manifest_root",
)  # fmt: skip


@dataclass(frozen=True)
class TaskContext:
    """What a reader must know of one task."""

    name: str
    version: int
    kind: str
    metric: str
    unit: str
    higher_is_better: bool | None
    """None where nobody said, for a metric of the `evaluate` library."""
    n: int
    licence: str
    source: str


@dataclass(frozen=True)
class ModelContext:
    """What a reader must know of one model; `cautions` are sentences."""

    name: str
    revision: str
    cautions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What must stand above the numbers wherever they go."""

    run: str
    models: tuple[ModelContext, ...]
    tasks: tuple[TaskContext, ...]
    devices: tuple[str, ...]
    """One line per device: name, cores or memory, threads."""
    stack: dict[str, str]
    """Library name to version."""
    method_ids: tuple[str, ...]
    method: tuple[str, ...]
    """How it was measured, one sentence each."""
    prices: tuple[str, ...]
    """Which price, its source and date, one line each."""
    reference: str
    quality_budget: float
    slo: str | None
    caveats: tuple[str, ...]
    """What the numbers do not say, one sentence each."""
    cautions: dict[str, str] = field(default_factory=dict)
    """Caution id to its sentence, for every id in the table."""
    objectives: tuple[str, ...] = ()
    """What the Pareto column is taken over, in words."""
    limits: Limits | None = None
    """The reader's, which a row must not break to be on the front."""
    manifest_root: str = ""
    measured_on: tuple[str, ...] = ()
    """The days (UTC, ISO 8601) on which the cells were measured."""


@dataclass(frozen=True)
class Comparison:
    """What a row's columns leave out of its comparison with the reference: intervals and
    percentiles. `row`: its values of `ROW_KEY`. Of a reference, `divergence` is that to itself."""

    row: tuple[Any, ...]
    errors: Ratio | None = None
    perplexity: Ratio | None = None
    divergence: Divergence | None = None


@dataclass(frozen=True)
class Aggregate:
    """A format's score over a group of tasks by the rule of lm-evaluation-harness: the mean of the
    tasks' scores, weighted by their examples where `by_size`. `delta`, `low`, `high`: difference to
    the reference's, in the metric's unit, with its 95 % interval; None where it has none."""

    model: str
    model_revision: str
    device: str
    group: str
    metric: str
    format: str
    runtime: str
    value: float
    delta: float | None
    low: float | None
    high: float | None
    tasks: int
    examples: int
    by_size: bool
    is_reference: bool


@dataclass(frozen=True)
class SoakTable:
    """A long row in windows of time. `row`: its values of `ROW_KEY`; `seen`: what the device was
    like in each window, empty where nothing was read; `rates`: the first minute against the rest.
    """

    row: tuple[Any, ...]
    windows: tuple[Window, ...]
    seen: tuple[SoakWindow, ...] = ()
    rates: Rates | None = None


@dataclass(frozen=True)
class OfflineSize:
    """One batch size that was measured with all requests at hand. `energy_per_request_j`: a
    meter's, None with `energy_note` where its windows were too short, or without a meter."""

    size: int
    requests_per_s: float
    output_tokens_per_s: float | None
    energy_per_request_j: float | None
    energy_note: str | None
    batches: int
    """How many batches the rate is of."""


@dataclass(frozen=True)
class OfflineTable:
    """A row over the batch sizes that it was measured at, the smallest first. `row`: its values of
    `ROW_KEY`."""

    row: tuple[Any, ...]
    sizes: tuple[OfflineSize, ...]


@dataclass(frozen=True)
class Figure:
    """One figure alone and disturbed, None where it is not known; `alone_rounds`,
    `disturbed_rounds`: the same of each round. `ratio`: disturbed over alone, with the interval
    that the rounds' ratios make. `note`: why there is none disturbed."""

    alone: float | None
    disturbed: float | None
    alone_rounds: tuple[float, ...] = ()
    disturbed_rounds: tuple[float, ...] = ()
    note: str | None = None

    @property
    def ratio(self) -> Ratio | None:
        """None where either is missing."""
        if not self.alone or not self.disturbed:
            return None
        value = self.disturbed / self.alone
        return ratio_over_rounds(value, self.alone_rounds, self.disturbed_rounds)


@dataclass(frozen=True)
class Kept:
    """One kind of background work: medians over the rounds of its operations per second while
    nothing was measured, and beside this row's blocks."""

    label: str
    what: str
    operation: str
    alone_per_s: float
    beside_per_s: float


@dataclass(frozen=True)
class DisturbedTable:
    """A row beside background work. `row`: its values of `ROW_KEY`; `saturated`: its queue grew
    without end; `served_per_s` of `offered_per_s`, where requests came by their own clock;
    `late_s`: by how much the serving loop was late (p99), where that was beyond its limit.
    `failed`: why nothing is shown."""

    row: tuple[object, ...]
    background: str
    p50: Figure
    p99: Figure
    rate: Figure
    kept: tuple[Kept, ...] = ()
    saturated: bool = False
    served_per_s: float | None = None
    offered_per_s: float | None = None
    late_s: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class CurvePoint:
    """A rate that a search tried. Rates in requests per second: asked for, come, and served;
    `requests` that count, over `windows` of `seconds` together, of which `saturated` grew a queue
    and `refused` came late and count nothing. `percentile` is the objective's, `verdict` and `why`
    what the windows say of it."""

    rate_per_s: float
    offered_rate_per_s: float | None
    achieved_rate_per_s: float | None
    utilisation: float | None
    requests: int
    seconds: float
    p50: Tail | None
    percentile: Tail | None
    verdict: Verdict
    why: str
    saturated: int
    refused: int
    windows: int


@dataclass(frozen=True)
class Curve:
    """Latency against rate of one row, by rising rate. `row`: its values of `ROW_KEY`; `slo`: what
    was searched; `held`, `missed`: the largest rate that held it, and the least above that missed,
    None where none did, which `note` then explains."""

    row: tuple[Any, ...]
    slo: Slo
    points: tuple[CurvePoint, ...]
    held: CurvePoint | None
    missed: CurvePoint | None
    note: str | None


@dataclass(frozen=True)
class AuditTable:
    """The checks of one row's audit, in order. `row`: its values of `ROW_KEY`."""

    row: tuple[Any, ...]
    checks: tuple[AuditCheck, ...]


@dataclass(frozen=True)
class Table:
    """`rows`: one dict per cell with every name in `COLUMNS`; None where not measured."""

    rows: list[dict[str, Any]]
    context: Context
    columns: tuple[str, ...] = COLUMNS
    why: tuple[Why, ...] = ()
    """Why formats are or are not faster, per run and group; empty without profiles and roofs."""
    comparisons: tuple[Comparison, ...] = ()
    soaks: tuple[SoakTable, ...] = ()
    """Of rows that were measured for several windows of time."""
    aggregates: tuple[Aggregate, ...] = ()
    """Scores over groups of tasks, where a sweep asked for such groups."""
    disturbed: tuple[DisturbedTable, ...] = ()
    """Of rows that were measured beside background work too."""
    samples: Mapping[tuple[Any, ...], Samples] = field(
        default_factory=dict, compare=False, repr=False
    )
    """By the values of `ROW_KEY`: what the figures of a row that is ok rest on."""
    offline: tuple[OfflineTable, ...] = ()
    """Of rows that were measured at some batch size."""
    curves: tuple[Curve, ...] = ()
    """Of rows whose rate was searched."""
    audits: tuple[AuditTable, ...] = ()
    """Of rows that were audited."""
    objectives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{group: the names of `FIGURES` over which its front was taken}."""

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame with the declared columns (imports pandas)."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(self.columns))
