"""A cell's profile, made in its worker after everything else: passes timed at declared shapes, then
one of each looked into. See `records.profile` for what it holds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precision_explorer.diagnose.roofline import is_above_roof, observed
from precision_explorer.formats.catalog import FormatSpec
from precision_explorer.formats.recipe import layers_of, parts_of, spec_in
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import DeviceFacts
from precision_explorer.measure.repeats import repeated
from precision_explorer.measure.throughput import is_out_of_memory
from precision_explorer.measure.timeline import Timeline, marked, profiled
from precision_explorer.measure.utilisation import Utilisation
from precision_explorer.models.heads import HEADS
from precision_explorer.models.passes import (
    Pass,
    decode_pass,
    encode_pass,
    first_token_pass,
    prefill_pass,
)
from precision_explorer.models.work import (
    LinearLayer,
    arithmetic_of,
    counted_rows,
    linear_layers,
    pass_work,
)
from precision_explorer.records import PhaseProfile, Profile, Roof, Spent, Timing
from precision_explorer.tasks import KINDS

BATCHES = (1, 8)
# With 128 tokens each the prompts of 64 requests keep a GPU's units busy, and a decode step still
# reads all weights once.
CUDA_BATCHES = (1, 8, 64)
# Of the workload's least window, per phase and batch size: with 3 s, the four of them (six on a
# GPU) and two profiled passes are some 5 to 6 s a cell.
_SHARE_OF_WINDOW = 0.25
# A larger batch is left out where the smallest one's time says that it would take longer.
_LONGEST_S = 4.0

Make = Callable[[Any, int], Pass]
Eagerly = Callable[[], AbstractContextManager[Any]]

_PREFILLS: dict[str, Make] = {"causal-lm": prefill_pass, "seq2seq-lm": first_token_pass}
# Its decoder reads none of the encoder's weights, which the work of a pass would count.
_NO_DECODE = "decode: not profiled for encoder-decoders"


@dataclass(frozen=True)
class Subject:
    """The loaded model and what is known of it."""

    model: nn.Module
    adapter: Any
    spec: FormatSpec
    compute_dtype: str
    device: str
    devices: tuple[str, ...]
    """Those that the model is on, to be waited for; none on a processor."""
    pci_bus_id: str | None
    """Of the one GPU that it is on; of several each works a part of the time, and no one's share is
    the model's."""
    eagerly: Eagerly | None
    layers: dict[str, LinearLayer]
    budget_s: float
    batches: tuple[int, ...] = BATCHES

    def sync(self) -> None:
        """Wait for the device."""
        for device in self.devices:
            torch.cuda.synchronize(device)


def make_subject(
    model: nn.Module,
    adapter: Any,
    request: dict[str, Any],
    facts: DeviceFacts | None,
    min_seconds: float,
    batch_sizes: Sequence[int] = (),
    eagerly: Eagerly | None = None,
) -> Subject:
    """The subject of a session whose load was asked by `request`; `min_seconds`: the workload's;
    `batch_sizes`: those of the cell's offline batches; `eagerly`: while it is entered a compiled
    model runs uncompiled, None for one that is not."""
    budget_s = _SHARE_OF_WINDOW * min_seconds
    format_id, recipe = request["format"], request["recipe"]
    spec, compute = spec_in(format_id, recipe), recipe["compute_dtype"]
    parts = parts_of(format_id, recipe)
    by_layer = {
        name: spec_in(part, parts[part])
        for part, names in layers_of(format_id, recipe, ()).items()
        for name in names
    }
    layers = linear_layers(model, spec, compute, by_layer)
    runtime = RUNTIMES[request.get("runtime", "eager")]
    batches: tuple[int, ...] = BATCHES
    if request["device"] != "cpu":
        # Fixed shapes would be compiled for a batch that nothing else has.
        there = CUDA_BATCHES if runtime.dynamic else (*BATCHES, *batch_sizes)
        batches = tuple(size for size in CUDA_BATCHES if size in there)
    devices: tuple[str, ...] = ()
    if request["device"] != "cpu":
        devices = tuple(one.device for one in facts.each) if facts else (request["device"],)
    return Subject(
        model,
        adapter,
        spec,
        compute,
        request["device"],
        devices,
        facts.pci_bus_id if facts is not None and not facts.beside else None,
        eagerly,
        layers,
        budget_s,
        batches,
    )


def profile_cell(subject: Subject, kind: str, roof: Roof | None) -> Profile:
    """The profile of a cell of a task of `kind`. A phase faster than `roof` allows is measured once
    more. Never raises for what a model's code does: the reason becomes the profile's `note`."""
    head = KINDS[kind].head
    makers: dict[str, Make] = {"prefill": _PREFILLS.get(head, encode_pass)}
    if HEADS[head].decodes:
        makers["decode"] = decode_pass
    phases: dict[str, PhaseProfile | None] = {}
    again = []
    notes = [_NO_DECODE] if head == "seq2seq-lm" else []
    for name, make in makers.items():
        try:
            found = _phase(subject, make)
            if roof is not None and is_above_roof(found, roof):
                again.append(name)
                found = _phase(subject, make)
            phases[name] = found
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            notes.append(f"{name}: {type(error).__name__}: {first[:160]}")
            gc.collect()
    return Profile(
        arithmetic=arithmetic_of(subject.spec, subject.compute_dtype),
        compute_dtype=subject.compute_dtype,
        prefill=phases.get("prefill"),
        decode=phases.get("decode"),
        measured_again=again,
        note="; ".join(notes) or None,
    )


def _phase(subject: Subject, make: Make) -> PhaseProfile:
    timings = _timings(subject, make)
    run = make(subject.adapter, BATCHES[0])
    line, rows = _look_into(subject, run)
    on_cuda = subject.device != "cpu"
    pass_s = observed(timings[str(BATCHES[0])])
    return PhaseProfile(
        tokens=run.tokens,
        cached_tokens=run.cached,
        timings=timings,
        # Kernels' own times are not slowed by the profiler, so they are held to the timed pass.
        spent=Spent(**line.shares(pass_s if on_cuda else None)),
        operators=line.operators,
        matmuls=line.matmuls,
        work=pass_work(
            subject.model,
            subject.layers,
            rows,
            run,
            subject.spec,
            subject.compute_dtype,
            line.widened,
        ),
    )


def _timings(subject: Subject, make: Make) -> dict[str, Timing]:
    """Each batch size's repeats; one that would take too long or does not fit says so."""
    timings: dict[str, Timing] = {}
    # Seconds per row of the last batch: of a GPU's single row most is not arithmetic.
    per_row: float | None = None
    for batch in subject.batches:
        tokens = make is not decode_pass
        if tokens and per_row is not None and per_row * batch > _LONGEST_S:
            note = "not timed: it would take longer than the profile's budget"
            timings[str(batch)] = Timing(seconds=[], note=note)
            continue
        try:
            run = make(subject.adapter, batch)
            with Utilisation(subject.pci_bus_id) as seen:
                seconds = repeated(run.call, subject.budget_s, reset=run.reset, sync=subject.sync)
            timings[str(batch)] = Timing(seconds=seconds, utilisation=seen.share)
        except Exception as error:
            if batch == BATCHES[0] or not is_out_of_memory(error):
                raise
            timings[str(batch)] = Timing(seconds=[], note="not timed: out of memory")
        took = observed(timings[str(batch)])
        per_row = took / batch if took is not None else per_row
    return timings


def _look_into(subject: Subject, run: Pass) -> tuple[Timeline, dict[str, int]]:
    """The timeline of one pass and the rows that each layer was given. Compiled code calls no
    hooks, so there the rows are counted in an eager pass of its own."""
    converted = {n: layer for n, layer in subject.layers.items() if layer.converted}
    elements = {name: layer.elements for name, layer in converted.items()}
    with ExitStack() as stack:
        rows = stack.enter_context(counted_rows(subject.layers))
        if subject.eagerly is not None:
            with subject.eagerly():
                run.call()
            run.reset()
            stack.close()
            line = profiled(run.call, subject.device, elements)
        else:
            stack.enter_context(marked({n: layer.module for n, layer in converted.items()}))
            line = profiled(run.call, subject.device, elements)
    run.reset()
    return line, rows
