"""`CellRecord`: what is known of one cell, failures included, and how old records are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from precision_explorer.bounded import MAX_JSON_BYTES, read_bounded
from precision_explorer.errors import StoreError
from precision_explorer.records.audit import Audit
from precision_explorer.records.background import NeighbourWork
from precision_explorer.records.cell import Cell
from precision_explorer.records.profile import Profile
from precision_explorer.records.rounds import LatencyRound
from precision_explorer.records.seal import unsealed
from precision_explorer.records.serving import Serving, TriedRate
from precision_explorer.records.soak import Soak
from precision_explorer.records.upgrade import SCHEMA_VERSION, NewerSchema, upgrade

Status = Literal["ok", "failed", "timeout", "out_of_memory", "invalid_numerics", "skipped"]
STATUSES: tuple[str, ...] = (
    "ok", "failed", "timeout", "out_of_memory", "invalid_numerics", "skipped",
)  # fmt: skip
Execution = Literal["native", "dequantized", "emulated", "unsupported", "unverified"]


class _Data(BaseModel):
    # A newer minor release may add fields; an older reader keeps what it knows.
    model_config = ConfigDict(extra="ignore")


class Caution(_Data):
    """A warning as a value: `id` is short and stable, `message` says what to make of it or do."""

    id: str
    message: str


class LeftBehind(_Data):
    """A linear layer that the format did not convert."""

    name: str
    elements: int
    reason: str


class Executed(_Data):
    """FLOPs that one kernel was seen to make in one number type (``unknown`` where neither the
    library's words nor the kernel's name tell). `unit`: ``native``, ``software`` or ``unknown``.
    `converted`: whether the layers hold their weights in the row's format."""

    kernel: str
    number_type: str
    unit: str
    flops: float
    converted: bool = False


class OffLabel(_Data):
    """A converted layer whose products were not all seen in the format's number type."""

    name: str
    flops: float
    """Those that were not."""
    found: str
    """What was seen instead: number type and kernel of the largest part."""


class Certificate(_Data):
    """What multiplied, seen in a short pass after the timed part.

    FLOPs are 2 per multiply-add. `linear_flops` are those of the layers that `converted_share`
    counts; `executed_flops` those of them made in the format's number type from weights held in
    the format. `other` are products outside these layers (attention, tied heads), as far as the
    libraries tell of them.
    """

    evidence: str
    """Whose words: ``oneDNN and MKL verbose lines`` or ``CUDA kernel names``."""
    work: str
    """What was run for it."""
    linear_flops: float
    executed_flops: float
    executed_share: float | None
    """`executed_flops / linear_flops`; None where no such layer ran."""
    executed: list[Executed] = Field(default_factory=list)
    other: list[Executed] = Field(default_factory=list)
    off_label: list[OffLabel] = Field(default_factory=list)
    not_called: list[str] = Field(default_factory=list)
    """Counted layers that the pass never ran."""


class DevicePart(_Data):
    """What one of several devices holds: `modules` in short, and their bytes in the format."""

    device: str
    modules: str
    weight_bytes: int


class AppliedFormat(_Data):
    """What really became of the model, counted after applying the format."""

    format: str
    execution: Execution
    reason: str
    library: str
    kernel: str | None
    """Which code multiplies: e.g. ``fbgemm-per-token``; ``torch`` for plain matmul. None, as all
    that would be counted, where a server runs the model."""
    compute_dtype: str | None
    linear_elements: int | None
    converted_elements: int | None
    converted_share: float | None
    """`converted_elements / linear_elements`; None for formats of arithmetic only."""
    weight_bytes: int | None
    """Real storage of parameters and persistent buffers: inner tensors, tied weights once."""
    elements_by_dtype: dict[str, int] = Field(default_factory=dict)
    bytes_by_dtype: dict[str, int] = Field(default_factory=dict)
    left_behind: list[LeftBehind] = Field(default_factory=list)
    certificate: Certificate | None = None
    """None in records made before there were any: `execution` is then the device's promise."""
    reported: dict[str, Any] | None = None
    """What a server says of itself and its model; nothing of it was checked."""
    devices: list[DevicePart] | None = None
    """Where the model's parts are, of one that is spread over several devices."""
    split: str | None = None
    """``tensors`` where each device holds a share of every tensor; None where each holds layers."""


class Quality(_Data):
    """The quality pass. `scores` are the card's metrics over all examples; intervals and
    differences are derived on reading, from the per-example rows."""

    metric: str
    scores: dict[str, float]
    seconds: float
    examples: int
    tokens: int | None
    """Of all inputs; None where a server makes them and does not say how many."""
    batches: int
    batch_plan_hash: str
    look_batch_plans: list[str] | None = None
    """The hash of each look's batches, where examples were scored until the verdict was clear."""
    cut_examples: int = 0
    """How many inputs were longer than `max_length` and were cut."""
    unparsed: int | None = None
    """In how many outputs the card's extraction rule found no answer; None without such a rule."""
    signatures: dict[str, str] = Field(default_factory=dict)
    """How the libraries of metrics were asked, where a metric has several variants."""
    higher_is_better: bool | None = None
    """Of `metric`, where the registry does not know it and the task says so."""


class Repeat(_Data):
    """The reference's quality pass made again in other batches and in another order: the noise
    floor. Its scores stand in the samples, as rows of kind ``repeat``."""

    seconds: float
    examples: int
    batches: int
    batch_plan_hash: str


class KeptDistributions(_Data):
    """What the reference kept of its next-token distributions, in a part of its cell.

    `method`: ``states`` (what enters the output head, from which the log-probabilities follow
    exactly) or ``log-probabilities`` (rounded to 16 bits; `why` says what stood against states).
    `head`: file, key, bias and dtype of the head in the model's checkpoint. `error`: largest
    difference in nats between the model's log-probabilities and those made of its states.
    """

    method: Literal["states", "log-probabilities"]
    positions: int
    items: int
    items_hash: str
    bytes: int
    head: dict[str, Any] | None = None
    error: float | None = None
    why: str | None = None
    seconds: float


class Positions(_Data):
    """Next-token distributions held against those of the cell `reference` (of the reference itself:
    in other batches). Per position in the samples, as rows of kind ``position``: id, kl (nats),
    same_top."""

    reference: str
    positions: int
    seconds: float


class PhaseTimes(_Data):
    """Medians over the measured requests, in seconds."""

    tokenize_s: float | None = None
    copy_s: float | None = None
    forward_s: float | None = None
    post_s: float | None = None


class Latency(_Data):
    """Single-stream: the next request when the last is done. Raw values stand in the samples.

    Over all `rounds` where there are any: `requests`, `warmup_requests` and `window_s` are sums,
    `phases` medians of the rounds' medians; `stopped_by` is ``budget`` if that ended any of them.
    """

    cold_first_s: float | None
    """None only in a round that a process served after another."""
    warmup_requests: int
    requests: int
    window_s: float
    """From the first measured request to the end of the last."""
    stopped_by: Literal["rules", "budget"]
    phases: PhaseTimes
    generates: bool = False
    rounds: list[LatencyRound] | None = None
    """None in records of one block, made before there were rounds."""


class Throughput(_Data):
    """Offline: all requests at hand, as fast as possible, at each batch size tried."""

    by_batch_size: dict[str, BatchRate]
    best_batch_size: int | None


class RateRound(_Data):
    """One round at one batch size; `energy_j` of its measured batches, where a meter told."""

    round: int
    requests_per_s: float
    batches: int
    energy_j: float | None = None


NO_BUDGET = "skipped: smaller batches spent the offline budget"
"""The note of a batch size that there was no time for."""


class BatchRate(_Data):
    """`batch_s`: raw seconds of every measured batch. None rate: the batch size did not fit.
    `rounds`: the batches of each round in `batch_s`, in order, and its rate; `requests_per_s` and
    `output_tokens_per_s` are then medians of the rounds'.

    `energy_j` is a meter's, over the `window_s` of the measured batches with their `requests`, the
    sums of the rounds; None, with `energy_note`, where the meter needs longer windows, and all of
    them None where there is no meter: an estimate from processor time would say what the rate says.
    """

    requests_per_s: float | None
    output_tokens_per_s: float | None = None
    batches: int
    batch_s: list[float]
    note: str | None = None
    rounds: list[RateRound] | None = None
    energy_j: float | None = None
    window_s: float | None = None
    requests: int | None = None
    energy_note: str | None = None


class Disturbed(_Data):
    """The same beside background work, measured in the same rounds; `serving` under the arrivals
    and the rate of the measurement alone. Raw values stand in the samples, as rows of kind
    ``disturbed``. `other_work_share` is that of processes which are no part of the background.

    `failed`: why it came to nothing; then the others hold what was measured until that.
    """

    latency: Latency | None = None
    serving: list[Serving] | None = None
    throughput: Throughput | None = None
    other_work_share: float | None = None
    neighbours: list[NeighbourWork] = Field(default_factory=list)
    failed: str | None = None


class Memory(_Data):
    """Peaks over the worker's own memory before the load, in bytes.

    CPU: unique set size (USS). CUDA: `allocated`, `reserved` by torch's allocator and the whole
    process by NVML. `serving_peak_bytes` is the table's figure: weights, activations and cache
    while the cell was served; `load_peak_bytes` is what loading and converting took. Where a model
    is spread over several devices all are sums over them, of each device's own peak, and
    `largest_device_peak_bytes` is that of the fullest one while it was served.
    """

    method: str
    baseline_bytes: int
    load_peak_bytes: int | None = None
    serving_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    largest_device_peak_bytes: int | None = None


class EnergyRound(_Data):
    """Joules and requests of one round's window; `integrated_j` as of `Energy`."""

    round: int
    energy_j: float
    requests: int
    integrated_j: float | None = None


class Energy(_Data):
    """Energy over the single-stream latency window (or a longer window of the same requests); sums
    over the rounds, watts of the idle device their means, weighted by the windows.

    `idle_power_w` is the mean of those before and after the window; in records made before there
    were both it is that before. Where the device tells its power beside its counter, both were read
    every `power_every_s` within the window: `power_reading` names the call or field,
    `power_averaged_s` the time over which the device averages it (0: instantaneous), `integrated_j`
    is the power's integral by the trapezoid rule, and `counter_updates` how often the counter was
    seen to change. `check_note`: why the two figures can't be held against each other.
    """

    source: str
    """``measured:nvml``, ``measured:rapl``, ``measured:zeus``, ``estimated:cpu-time`` or
    ``unavailable``."""
    boundary: str | None = None
    energy_j: float | None = None
    window_s: float | None = None
    requests: int | None = None
    idle_power_w: float | None = None
    note: str | None = None
    rounds: list[EnergyRound] | None = None
    idle_power_before_w: float | None = None
    idle_power_after_w: float | None = None
    integrated_j: float | None = None
    power_reading: str | None = None
    power_averaged_s: float | None = None
    power_every_s: float | None = None
    power_samples: int | None = None
    power_longest_gap_s: float | None = None
    counter_updates: int | None = None
    check_note: str | None = None

    @property
    def cross_check(self) -> float | None:
        """(integrated power - counter) / counter; None where either is missing, or `check_note`
        says why they do not compare."""
        if not self.energy_j or self.integrated_j is None or self.check_note is not None:
            return None
        return self.integrated_j / self.energy_j - 1

    @property
    def idle_change(self) -> float | None:
        """(after - before) / before of the idle device's power; None where one is missing."""
        if not self.idle_power_before_w or self.idle_power_after_w is None:
            return None
        return self.idle_power_after_w / self.idle_power_before_w - 1


class Compilation(_Data):
    """What torch.compile did with the model; None in eager rows.

    `graphs`, `graph_breaks` and their reasons are those of the warm-up, in which every shape is
    compiled; `recompiles` are graphs made after it, while scores and times were taken.
    """

    mode: str
    dynamic: bool
    graphs: int
    graph_breaks: int
    break_reasons: dict[str, int] = Field(default_factory=dict)
    compiled_share: float | None = None
    """Operator calls of a forward pass inside compiled graphs, over all that it makes eagerly."""
    recompiles: int | None = None
    shared_blocks: int | None = None
    """Blocks of the model whose code was made once and is used for each that is alike; None in
    records from before it was so."""


class Load(_Data):
    """Seconds of each step before the first request. `compile_s`: the first calls of every shape
    that the cell uses, in an empty compiler cache."""

    import_s: float
    load_s: float
    apply_s: float
    compile_s: float | None = None


class Measurements(_Data):
    """All that was measured of one cell; what was not measured is None."""

    load: Load | None = None
    compilation: Compilation | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    serving: list[Serving] | None = None
    """In place of `latency` where requests come by their own clock; one of each window. Of a search
    those at the largest rate that held, else at the lowest."""
    tried: list[TriedRate] | None = None
    """All rates of a search, in the order in which they were tried."""
    throughput: Throughput | None = None
    memory: Memory | None = None
    energy: Energy | None = None
    other_work_share: float | None = None
    """Share of the usable cores' time that other processes took during the timed part."""
    soak: Soak | None = None
    """The windows of a long run."""
    disturbed: Disturbed | None = None
    """Beside background work, where the workload declares any."""
    profile: Profile | None = None
    noise: Repeat | None = None
    kept: KeptDistributions | None = None
    positions: Positions | None = None
    not_compared: dict[str, str] | None = None
    """Why ``noise``, ``kept`` or ``positions`` is missing where it was tried."""
    audit: Audit | None = None
    """The audits of all this, where they were asked for; no part of what is measured."""


class ErrorInfo(_Data):
    """Why a cell is not ok. `message` is one line with what to do; `log_tail` the log's end."""

    kind: str
    message: str
    phase: str | None = None
    signal: str | None = None
    log_tail: str = ""


class DeviceSettings(_Data):
    """How a device is set, as far as it tells: limits in watts and hertz, not what it did.

    `clock_limit_hz` of a GPU is that of its SMs; `application_clock_hz` is what they were set to.
    `governor` and `boost` (whether clocks above the base are allowed) are a processor's.
    """

    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    clock_limit_hz: float | None = None
    application_clock_hz: float | None = None
    memory_clock_limit_hz: float | None = None
    ecc: bool | None = None
    governor: str | None = None
    boost: bool | None = None


class Placement(_Data):
    """Where of several places the cell ran. No host names: `place` is the machine's number in its
    sweep, as in ``node-2``.

    `device_type` is the custom resource by which the place was asked for (``--on``), None without.
    `cpus` are the logical processors that its processes were bound to, so that no other place had
    any of them; None where nothing was bound.
    """

    executor: str
    place: str
    device_type: str | None = None
    cpus: list[int] | None = None
    beside_change: float | None = None
    """How the typical time of the reference's requests changed beside the other places of its
    machine, relative to alone; None where places share no machine, or ran one after the other."""


class Environment(_Data):
    """The system on which the cell ran. No host or user names. Of a server's cells the client's
    software alone: of the device nothing is known."""

    python: str
    platform: str
    device_name: str
    device: dict[str, Any]
    """Facts of the device: flags or compute capability, memory, driver."""
    cpu_model: str | None
    cores: int | None
    memory_bytes: int | None
    threads: int | None
    libraries: dict[str, str]
    variables: dict[str, str] = Field(default_factory=dict)
    """Environment variables that change results, where they are set."""
    kernel: str | None = None
    """Release of the operating system's kernel; None, as the next two, in records from before."""
    container: str | None = None
    """The engine whose container it ran in; None where nothing told of one."""
    settings: DeviceSettings | None = None
    placement: Placement | None = None
    """None where the local executor ran it, one cell after the other."""


class Attempt(_Data):
    """An earlier try at the same cell that was not ok."""

    status: Status
    started_at: str
    error: ErrorInfo | None = None


class CellRecord(_Data):
    """One JSON per cell, `cells/<cell_id>.json`; `schema_version` stands first."""

    schema_version: int = SCHEMA_VERSION
    cell_id: str
    status: Status
    cell: Cell
    method_id: str
    applied: AppliedFormat | None = None
    measurements: Measurements = Field(default_factory=Measurements)
    cautions: list[Caution] = Field(default_factory=list)
    error: ErrorInfo | None = None
    skip_reason: str | None = None
    environment: Environment | None = None
    started_at: str
    """UTC, ISO 8601, for people only: nothing is computed from it."""
    attempts: list[Attempt] = Field(default_factory=list)
    samples_sha256: str | None = None
    """SHA-256 of the cell's samples; None where it has none, and in records from before it was
    kept."""
    samples_next_sha256: str | None = None
    """SHA-256 of samples that were about to take their place when this was written: a sweep that
    is killed between the two files leaves one or the other, each of which this record fits."""

    @property
    def known_samples(self) -> tuple[str, ...] | None:
        """SHA-256 of each file of samples that may stand beside this record; None where nothing is
        known of them."""
        if self.samples_sha256 is None:
            return None
        return tuple(filter(None, (self.samples_sha256, self.samples_next_sha256)))

    def measured_as(self) -> tuple[Any, ...]:
        """What makes two records one and the same measurement, whatever was added to either since
        (a profile, comparisons, an audit)."""
        made = self.measurements
        return self.cell_id, self.started_at, made.quality, made.latency, made.throughput


Throughput.model_rebuild()
Disturbed.model_rebuild()


def read_record(path: Path) -> CellRecord:
    """The record at `path`, upgraded to the current schema; StoreError if it is none, or not as it
    was written (`records.seal`), NewerSchema if only a newer release can read it. OSError where it
    can't be read now, which says nothing of what it holds."""
    try:
        document = unsealed(read_bounded(path, MAX_JSON_BYTES))
        return CellRecord.model_validate(upgrade(document))
    except NewerSchema as error:
        raise NewerSchema(f"{path.name}: {error}") from error
    # RecursionError: absurd nesting.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(
            f"{path.name} is no readable cell record ({first}); remove it and run the sweep again"
        ) from error
