"""How fast a cell's passes will be: by the device's roofs and the model's size, or by the records
of an earlier run of the same cell. Seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from precision_explorer.formats.architectures import decoder_sizes
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.footprint import COMPUTE_BYTES, LayerSizes, weight_bytes
from precision_explorer.models import ModelRef
from precision_explorer.models.heads import HEADS
from precision_explorer.plan.expand import PlannedCell
from precision_explorer.records import CellRecord, Roof
from precision_explorer.tasks import KINDS, PreparedTask
from precision_explorer.units import share
from precision_explorer.workload import Workload

# The share of its roof that a pass reaches where no record tells: of 356 timings of profiles stored
# under results/ (a CPU and a GPU, 16 formats) the median is 0.39, and 95 % lie within the factor.
REACHED = 0.39
REACHED_FACTOR = 4.0
# By the records of the same cell on the same device: one machine's days differ by less.
MEASURED_FACTOR = 1.3
BUSY = 0.05
"""From what share of the processors on the work of other processes is told."""
# Of the runs stored under results/ the texts have 3.7 (demo) to 4.8 characters a token (SmolLM2),
# problems in numbers 2.8.
CHARS_PER_TOKEN = 4.0
# Stored profiles of Llama's blocks start 36 operators each, of which 8 are products (1,101 and 241
# for 30 blocks).
_OPERATORS, _PRODUCTS = 36, 8
# Of an image that a vision transformer cuts into 14 x 14 pieces.
_IMAGE_TOKENS = 196
# What is done to an example beside its pass: tokenised, batched, scored, stored.
_EXAMPLE_S = 1e-3
# Of a workload: how long its requests are.
_LENGTHS = ("prompt_tokens", "output_tokens", "lengths", "mix")
# A worker's start with the libraries' imports, by kind of device: with CUDA's, stored runs have 5.4
# to 11.6 s of imports.
START_S = {"cpu": 3.0, "cuda": 8.0}
# Of these without the imports, which a record holds.
_FORKED_S = 1.0
# Random numbers a second, of weights that are drawn on the device.
_DRAWN_PER_S = {"cpu": 1e8, "cuda": 1e10}


@dataclass(frozen=True)
class Speeds:
    """`load_s`: start, load and format; `quality_s`: the whole quality pass; `request_s`: one timed
    request; `batch_s`: one offline batch by its size. `factor`: all may be that much less or more.
    `power_w`: the mean while it works, None where it is not known."""

    load_s: float
    quality_s: float
    request_s: float
    batch_s: Mapping[int, float]
    factor: float
    source: str
    power_w: float | None = None
    power_source: str = "unavailable"


@dataclass(frozen=True)
class _Model:
    """Weights: of the linear layers, of the output layer, all; bytes as they are held; blocks."""

    linear: int
    head: int
    elements: int
    held_bytes: int
    blocks: int


def _model(ref: ModelRef, planned: PlannedCell) -> _Model:
    config, text = ref.config, ref.config.get("text_config")
    inner: Mapping[str, Any] = text if isinstance(text, dict) else config
    hidden = _number(inner, "hidden_size", "dim", "d_model", "n_embd") or 1
    words = _number(inner, "vocab_size") or 0
    decodes = HEADS[KINDS[planned.task.card.kind].head].decodes
    sizes = ref.sizes or (decoder_sizes(config) if decodes else None)
    if sizes is None:
        # Tied or not, no file tells: an output layer of its own is rare where there is no decoder.
        linear = max(ref.elements - words * hidden, ref.elements // 10)
        sizes = LayerSizes(((max(linear // hidden, 1), hidden, 1),), ref.elements - linear)
    recipe = planned.cell.recipe
    held = weight_bytes(planned.cell.format, recipe, sizes, planned.cell.device_flags)
    blocks = _number(inner, "num_hidden_layers", "n_layer", "num_layers") or 1
    return _Model(
        linear=sizes.elements - sizes.other,
        head=words * hidden if decodes else 0,
        elements=sizes.elements,
        held_bytes=held if held is not None else 2 * sizes.elements,
        blocks=blocks,
    )


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if type(value) is int and value > 0), None)


@dataclass(frozen=True)
class _Passes:
    """The seconds of passes on a device of `roof`, in which `reached` of the roof is reached."""

    model: _Model
    roof: Roof
    number_type: str
    compute_type: str
    widened: bool
    reached: float

    def seconds(self, tokens: int, scored: int) -> float:
        """Of one pass over `tokens`, `scored` of them through the output layer."""
        model, launch = self.model, self.roof.launch
        compute = 2 * model.linear * tokens / self._peak(self.number_type)
        compute += 2 * model.head * scored / self._peak(self.compute_type)
        moved = model.held_bytes
        if self.widened:
            moved += 2 * model.linear * COMPUTE_BYTES[self.compute_type]
        memory = moved / self._bandwidth()
        starts = _PRODUCTS * launch.matmul_s + (_OPERATORS - _PRODUCTS) * launch.operator_s
        return max(compute, memory, model.blocks * starts) / self.reached

    def _peak(self, number_type: str) -> float:
        """Operations per second; of the compute type, else the slowest measured, where this one has
        no roof: it is then computed some other way."""
        for kind in (number_type, self.compute_type):
            found = self.roof.peak(kind)
            if found is not None and found.flops_per_s:
                return found.flops_per_s
        known = [m.flops_per_s for m in self.roof.matmul if m.flops_per_s]
        return min(known, default=1e9)

    def _bandwidth(self) -> float:
        read = self.roof.read or self.roof.cache
        return read.bytes_per_s if read else 1e9


def by_roof(
    planned: PlannedCell, ref: ModelRef, workload: Workload, roof: Roof, reached: float | None
) -> Speeds:
    """From the config's operations and bytes and the roofs. `reached`: the share of its roof that
    the format's passes reached in an earlier run on this device; None where none tells."""
    spec, cell, task = spec_of(planned.cell.format), planned.cell, planned.task
    compute_type = str(cell.recipe.get("compute_dtype", "float32"))
    number_type = compute_type if spec.arithmetic == "compute" else spec.arithmetic
    model = _model(ref, planned)
    passes = _Passes(
        model, roof, number_type, compute_type,
        spec.quantizes and spec.arithmetic == "compute", reached or REACHED,
    )  # fmt: skip
    kind = KINDS[task.card.kind]
    decodes = HEADS[kind.head].decodes
    tokens = [example_tokens(e, task) for e in (*task.examples, *task.corpus)]
    usual = round(fmean(tokens)) if tokens else 1
    if decodes and kind.generates:
        step = passes.seconds(1, 1)
        request_s = passes.seconds(workload.prompt_tokens, 1) + step * workload.output_tokens
    else:
        request_s = passes.seconds(usual, usual if decodes else 0)

    def batch(size: int) -> float:
        if decodes and kind.generates:
            first = passes.seconds(size * workload.prompt_tokens, size)
            return first + passes.seconds(size, size) * workload.output_tokens
        return passes.seconds(size * usual, size * usual if decodes else 0)

    reaches = f"{passes.reached:.2f} of the roof"
    told = "as an earlier run reached" if reached else "declared"
    return Speeds(
        load_s=_load_s(ref, planned, passes, usual),
        quality_s=_quality_s(planned, passes, tokens, decodes),
        request_s=request_s + _EXAMPLE_S,
        batch_s={size: batch(size) + size * _EXAMPLE_S for size in cell.batch_sizes},
        factor=2.0 if reached else REACHED_FACTOR,
        source=f"{reaches} ({told})",
    )


def _load_s(ref: ModelRef, planned: PlannedCell, passes: _Passes, usual: int) -> float:
    """Read once, written once, and each weight gone through a few times where it is converted."""
    compute = COMPUTE_BYTES[passes.compute_type]
    moved = 2 * ref.load_bytes(compute, False)
    if spec_of(planned.cell.format).quantizes:
        moved += 4 * passes.model.linear * compute
    kind = planned.cell.device.split(":")[0]
    seconds = START_S[kind] + moved / passes._bandwidth()
    if ref.synthetic is not None:
        seconds += passes.model.elements / _DRAWN_PER_S[kind]
    # One text at a time, of a usual length.
    calibrated = planned.cell.recipe.get("calibration_n", 0)
    return seconds + calibrated * passes.seconds(usual, 0)


def _quality_s(planned: PlannedCell, passes: _Passes, tokens: list[int], decodes: bool) -> float:
    """All examples in batches of the plan's tokens; answers that are written token by token in
    batches of the plan's rows."""
    if not planned.has_quality or not tokens:
        return 0.0
    per_batch = int(planned.cell.batch_plan["max_tokens"])
    total = sum(tokens)
    batches = max(1, round(total / per_batch))
    each = passes.seconds(total // batches, total // batches if decodes else 0)
    seconds = batches * each + len(tokens) * _EXAMPLE_S
    rules = getattr(planned.task.card, "rules", None)
    if KINDS[planned.task.card.kind].answers and rules is not None:
        rows = max(1, per_batch // max(1, total // len(tokens)))
        steps = rules.max_new_tokens * -(-len(tokens) // rows)
        seconds += steps * passes.seconds(rows, rows)
    return seconds


def example_tokens(example: Mapping[str, Any], task: PreparedTask) -> int:
    """Tokens of an example by its characters, cut at the card's length; each choice is read after
    the prompt. No tokenizer is asked."""
    if HEADS[KINDS[task.card.kind].head].sees:
        return _IMAGE_TOKENS
    asked = ("id", "group", "label", "references", "choices")
    texts = [v for k, v in example.items() if k not in asked and isinstance(v, str)]
    choices = example.get("choices") or ()
    characters = sum(map(len, texts)) + sum(len(c) for c in choices if isinstance(c, str))
    longest = getattr(task.card, "max_length", None) or characters
    return max(1, min(round(characters / CHARS_PER_TOKEN), longest))


def by_record(planned: PlannedCell, record: CellRecord, run: str) -> Speeds | None:
    """From the record of the same model, task, format and runtime on the same device, whatever the
    number of its examples; None where it lacks what a cell of this workload needs."""
    found, kind = record.measurements, planned.cell
    if found.load is None or found.throughput is None:
        return None
    batches = {
        int(size): median(rate.batch_s)
        for size, rate in found.throughput.by_batch_size.items()
        if rate.batch_s
    }
    if not batches:
        return None
    per_item = min(batches[size] / size for size in batches)
    latency, alone = found.latency, record.cell.workload.get("scenario") == "single-stream"
    request_s = batches.get(1, per_item)
    if alone and latency is not None and latency.requests:
        request_s = latency.window_s / latency.requests
    quality, quality_s = found.quality, 0.0
    if planned.has_quality:
        if quality is None or not quality.examples:
            return None
        quality_s = quality.seconds / quality.examples * len(planned.task.examples)
    energy, power = found.energy, None
    if energy is not None and energy.energy_j is not None and energy.window_s:
        power = energy.energy_j / energy.window_s
    load, others = found.load, found.other_work_share or 0.0
    beside = "" if others < BUSY else f", beside {share(others, 0)} of other processes' work"
    return Speeds(
        load_s=_FORKED_S + load.import_s + load.load_s + load.apply_s + (load.compile_s or 0.0),
        quality_s=quality_s,
        request_s=request_s,
        batch_s={size: batches.get(size, per_item * size) for size in kind.batch_sizes},
        # What others took then may be there now, or not.
        factor=MEASURED_FACTOR / max(1 - others, 0.1),
        source=f"measured in {run}{beside}",
        power_w=power,
        power_source=energy.source if power is not None and energy is not None else "unavailable",
    )


def is_like(planned: PlannedCell, record: CellRecord) -> bool:
    """Whether `record` is of the same model, task, format, runtime, device and threads, and of as
    long requests; number of examples, the workload's other rules and libraries may differ."""
    one, other = planned.cell, record.cell
    if any(one.workload.get(name) != other.workload.get(name) for name in _LENGTHS):
        return False
    return record.status == "ok" and (
        one.model.revision, one.task.name, one.task.data_hash, one.format, one.runtime,
        one.device, one.device_name, one.device_flags, one.threads,
    ) == (
        other.model.revision, other.task.name, other.task.data_hash, other.format, other.runtime,
        other.device, other.device_name, other.device_flags, other.threads,
    )  # fmt: skip


def share_reached(shares: Iterable[float]) -> float | None:
    """The median of the shares of their roof that earlier passes reached, where there are any."""
    found = list(shares)
    return min(median(found), 1.0) if found else None
