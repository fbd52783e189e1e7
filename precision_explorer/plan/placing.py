"""On how many devices of this machine a cell runs: one where that holds it, else the fewest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from precision_explorer.formats import AS_SHIPPED, Support
from precision_explorer.formats.architectures import decoder_sizes
from precision_explorer.formats.footprint import COMPUTE_BYTES, weight_bytes
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.models.splitting import Block, Split, TensorPlan, split, split_tensors
from precision_explorer.plan.fit import request_cache
from precision_explorer.plan.spec import SweepSpec
from precision_explorer.tasks import KINDS, PreparedTask
from precision_explorer.units import bytes_
from precision_explorer.workload import Workload

Known = tuple[Block, ...] | TensorPlan | str | None
"""What may be put on several devices: blocks, or tensors. A text says why it can't be, None that
nothing tells."""
Blocks = Mapping[tuple[str, str], Known]
"""By `blocks_key`."""

BY_TENSORS = ("fp32", "tf32", "bf16", "fp16")
"""Formats of which a share of every tensor may be on each device: what is loaded is the format."""
_KINDS_BY_TENSORS = ("text-classification", "multiple-choice", "language-modeling", "generation")


def blocks_key(ref: ModelRef, kind: str) -> tuple[str, str]:
    """What tells one model under one head from others."""
    return str(ref.path), KINDS[kind].head


@dataclass(frozen=True)
class Placing:
    """`split`: over which devices, None for one; `skip`: why on none."""

    split: Split | None = None
    skip: str | None = None


@dataclass(frozen=True)
class Need:
    """Bytes of a cell's weights while they are loaded (in the compute type, then converted layer by
    layer) and once the format is applied, and of the cache without which no request is served: a
    larger batch may be refused by memory, as on one device."""

    load_bytes: int
    held_bytes: int
    cache_bytes: int

    @property
    def most_bytes(self) -> int:
        """The larger of loading and serving, activations apart."""
        return max(self.load_bytes, self.held_bytes + self.cache_bytes)


def need_of(
    ref: ModelRef,
    task: PreparedTask,
    workload: Workload,
    spec: SweepSpec,
    support: Support,
    facts: DeviceFacts,
) -> Need | None:
    """None where nothing tells. Where the sizes of the layers are not known, a format that converts
    weights is taken to hold nothing more than what is loaded."""
    dtype = support.recipe.get("compute_dtype")
    if dtype is None:
        return None
    load = ref.load_bytes(COMPUTE_BYTES[dtype], support.recipe.get("widened", False))
    cache = request_cache(ref, task, workload, spec, dtype, at_least=True)
    sizes = ref.sizes
    if sizes is None and ref.scheme is None and KINDS[task.card.kind].head == "causal-lm":
        sizes = decoder_sizes(ref.config)
    held = sizes and weight_bytes(support.format, support.recipe, sizes, facts.cpu_flags)
    return Need(load, held or 0, cache.total_bytes if cache is not None and held else 0)


def may_spread(spec: SweepSpec, facts: DeviceFacts) -> int:
    """Over how many devices a model may be spread."""
    there = len(facts.each)
    return there if spec.devices is None else min(spec.devices, there)


def is_asked_for(spec: SweepSpec) -> bool:
    """Whether models are split by tensors over a number of devices that was named, also those that
    one would hold."""
    return spec.split == "tensors" and (spec.devices or 1) > 1


def is_over(need: Need | None, facts: DeviceFacts) -> bool:
    """Whether one device does not hold it, all of its memory free."""
    there = memory_of(facts)
    return need is not None and there is not None and need.most_bytes > there


def memory_of(facts: DeviceFacts) -> int | None:
    """Bytes of one device, where that is known."""
    return facts.device_memory_bytes if facts.kind == "cuda" else facts.memory_bytes


def place(
    ref: ModelRef,
    task: PreparedTask,
    workload: Workload,
    spec: SweepSpec,
    support: Support,
    facts: DeviceFacts,
    runtime: str,
    known: Blocks | None,
) -> Placing:
    """Where the cell's model goes: on one device where weights and cache fit there, else on the
    fewest of those beside it; a skip where its weights fit on none of these. `known`: of models
    that one device does not hold, or that are split whatever it holds, what may be put on several.
    """
    need, there = need_of(ref, task, workload, spec, support, facts), memory_of(facts)
    asked = is_asked_for(spec)
    if need is None or not (asked or is_over(need, facts)):
        return Placing()
    most = may_spread(spec, facts)
    advice = _one_alone(spec, facts, most)
    if advice is None:
        tensors = spec.split == "tensors"
        advice = (_unsplit if tensors else _uncut)(ref, task, support, runtime)
    if advice is None:
        found = (known or {}).get(blocks_key(ref, task.card.kind))
        numbers = [most] if asked else range(2, most + 1)
        made, advice = _spread(need, found, there, numbers)
        if made is not None:
            return Placing(made)
    if asked:
        return Placing(skip=advice)
    if there is None or need.load_bytes <= there:
        return Placing()  # Only its cache, at its longest, may be too much: that is tried.
    dtype = support.recipe["compute_dtype"]
    return Placing(
        skip=f"its weights take {bytes_(need.load_bytes)} in {dtype} while they are loaded, and "
        f"{facts.name} has {bytes_(there)}; {advice}"
    )


def _spread(
    need: Need, known: Known, there: int | None, devices: Sequence[int]
) -> tuple[Split | None, str]:
    """(what goes on which of the fewest of `devices`, why on none of these)."""
    most, sizes = max(devices), (need.load_bytes, need.held_bytes, need.cache_bytes)
    if isinstance(known, str):
        return None, known
    if isinstance(known, TensorPlan):
        if known.heads == 1:
            return None, "its heads can't be shared out over devices; use --split layers"
        if all(known.heads % count for count in devices):
            return None, (
                f"{min(devices)}{f' to {most}' if len(devices) > 1 else ''} devices do not divide "
                f"its heads, as {known.heads} and its divisors do; give --devices one of these, or "
                "use --split layers"
            )
        return split_tensors(known, *sizes, there, devices), (
            f"{most} devices do not hold its shares; use a smaller model or more devices"
        )
    if not known or there is None:
        return None, (
            "nothing tells which of its layers must stay whole, so that it can't be spread; use a "
            "smaller model or a device with more memory"
        )
    return split(known, *sizes, there, most), (
        f"{most} of them do not hold it in whole layers; use a smaller model or more devices"
    )


def _one_alone(spec: SweepSpec, facts: DeviceFacts, most: int) -> str | None:
    """What to do where a cell has fewer devices than it needs; None where it may have more."""
    if is_asked_for(spec) and most < (spec.devices or 1):
        return (
            f"--devices {spec.devices} are more than this machine has of {facts.name} ({most}); "
            "give fewer, or leave out --split"
        )
    if most > 1:
        return None
    if spec.executor != "local" or spec.device == "all":
        several = "; one with several runs it by the local executor with --device cuda"
        advice = "use a smaller model or a device with more memory"
        return f"{advice}{several if facts.kind == 'cuda' else ''}"
    if len(facts.each) > 1:
        return f"leave out --devices {spec.devices} to spread it over several"
    return "use a smaller model or a device with more memory"


def _uncut(ref: ModelRef, task: PreparedTask, support: Support, runtime: str) -> str | None:
    """What to do about a cell that is not spread whatever there is; None where it may be."""
    if ref.scheme is not None or support.format == AS_SHIPPED:
        return "a checkpoint that comes quantized is loaded on one device alone; use a smaller one"
    if RUNTIMES[runtime].compiles:
        return f"runtime {runtime} is for one device; use --runtime eager to spread it over several"
    return None


def _unsplit(ref: ModelRef, task: PreparedTask, support: Support, runtime: str) -> str | None:
    """The same of a cell whose tensors are not split."""
    kind = task.card.kind
    if ref.scheme is not None or support.format not in BY_TENSORS:
        known = ", ".join(BY_TENSORS)
        return f"of {support.format} no tensors are split, only of {known}; use --split layers"
    if RUNTIMES[runtime].compiles:
        return f"under runtime {runtime} no tensors are split; use --runtime eager"
    if ref.pickled:
        return "of a pickle each device would read all; save the model as safetensors"
    if ref.synthetic is not None:
        return "random weights are drawn whole; use --split layers, or a model with weights"
    if kind not in _KINDS_BY_TENSORS:
        return f"for tasks of kind {kind} no tensors are split; use --split layers"
    return None
