"""Hooks that compare a model in a format with its float32 reference, layer by layer, on the same
input. One example's activations are held at a time, on the CPU; all else are running sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.number_types import Held
from precision_explorer.formats.ranges import RangeSums
from precision_explorer.formats.verify import Layout, linear_layers


def watched(model: nn.Module, plan: Layout) -> dict[str, str]:
    """{name: kind} of all modules to watch: linear layers, and every module without children.

    Kinds: ``linear``, ``head``, ``embedding``, ``norm``, and ``other``, in which only the first
    value that is not finite is looked for.
    """
    layers = linear_layers(model)
    kinds = {}
    for name, module in model.named_modules():
        if name in layers:
            # A tied head is in the model but not in the plan, which counts it as embedding.
            is_head = name in plan.heads or name not in plan.elements
            kinds[name] = "head" if is_head else "linear"
        elif next(module.children(), None) is None:
            kinds[name] = _kind(module)
    return kinds


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norm" if "norm" in type(module).__name__.lower() else "other"


def _floating(value: Any) -> torch.Tensor | None:
    """The first floating tensor of a module's arguments or output."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, (tuple, list)):
        return next((f for f in map(_floating, value) if f is not None), None)
    return None


@dataclass
class Call:
    """One call of a module in the reference: float32 on the CPU, copied, as models may go on to
    write into their activations. `peak`: the output's largest magnitude."""

    inputs: torch.Tensor | None
    output: torch.Tensor | None
    peak: float


@dataclass
class ReferenceLayer:
    """What the reference's activations at one layer come to, against the types that the format
    would hold them in."""

    inputs: RangeSums
    outputs: RangeSums
    channel_peaks: torch.Tensor | None = None
    rows: int = 0

    def outlier_ratio(self) -> float | None:
        """The largest magnitude of the input channel that has the largest, over that of the median
        channel; None where the median channel is 0 throughout."""
        if self.channel_peaks is None:
            return None
        peaks = self.channel_peaks.double().cpu()
        middle = float(peaks.quantile(0.5))
        return float(peaks.max()) / middle if middle > 0 else None


class ReferenceWatch:
    """Watches the reference. `calls` holds the last example's calls of each module."""

    def __init__(self, model: nn.Module, kinds: dict[str, str]) -> None:
        self.kinds = kinds
        self.calls: dict[str, list[Call]] = {}
        self.layers: dict[str, ReferenceLayer] = {}
        """In the order in which they were first called."""
        self.types: dict[str, tuple[Held | None, Held | None]] = {}
        """{layer: types of inputs and outputs in the format}; those not named are not counted."""
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None
        modules = dict(model.named_modules())
        for name in kinds:
            modules[name].register_forward_hook(self._hook(name))

    def begin(self) -> None:
        """Forget the last example."""
        self.calls, self._last = {}, None

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            inputs, out = _floating(arguments), _floating(output)
            if out is None:
                return
            peak = float(out.detach().abs().max()) if out.numel() else 0.0
            kept = self.kinds[name] != "other"
            local = self.kinds[name] in ("linear", "head")
            call = Call(
                self._copy(inputs) if local and inputs is not None else None,
                out.detach().float().cpu().clone() if kept else None,
                peak,
            )
            self.calls.setdefault(name, []).append(call)
            if kept:
                self._count(name, inputs, out)

        return hook

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU; layers that share an input (query, key, value) share the copy."""
        if self._last is None or self._last[0] is not tensor:
            self._last = (tensor, tensor.detach().float().cpu().clone())
        return self._last[1]

    def _count(self, name: str, inputs: torch.Tensor | None, output: torch.Tensor) -> None:
        if name not in self.layers:
            of_inputs, of_outputs = self.types.get(name, (None, None))
            self.layers[name] = ReferenceLayer(RangeSums(of_inputs), RangeSums(of_outputs))
        layer = self.layers[name]
        layer.rows += output[..., 0].numel() if output.dim() else 0
        layer.outputs.add(output)
        if inputs is None or not inputs.numel():
            return
        layer.inputs.add(inputs)
        peaks = inputs.detach().float().abs().reshape(-1, inputs.shape[-1]).amax(dim=0)
        before = layer.channel_peaks
        layer.channel_peaks = peaks if before is None else torch.maximum(before, peaks)


@dataclass
class Sums:
    """Running sums of squares of a reference and of the differences to it; see `stats.sqnr`."""

    signal: float = 0.0
    noise: float = 0.0
    compared: int = 0
    non_finite: int = 0

    def add(self, reference: torch.Tensor, other: torch.Tensor) -> bool:
        """Add two tensors of one shape; False where the shapes differ, and nothing is added."""
        if reference.shape != other.shape:
            return False
        expected = reference.to(other.device)
        found = other.detach().float()
        noise = _squares(found - expected)
        self.compared += 1
        self.signal += _squares(expected)
        self.noise += noise
        if not math.isfinite(noise):
            self.non_finite += int((~found.isfinite() & expected.isfinite()).count_nonzero())
        return True


def _squares(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


@dataclass
class FormatLayer:
    """Sums at one layer of the model in a format: `output` of what had built up since the input,
    `local` of the layer alone, fed the reference's inputs."""

    output: Sums = field(default_factory=Sums)
    local: Sums = field(default_factory=Sums)
    mismatched: bool = False
    """Whether a call could not be compared: as where a router sent other tokens."""


@dataclass
class FirstNonFinite:
    """Where values stopped being finite first; see `records.numerics.NonFinite`."""

    module: str
    inputs_finite: bool
    input_peak: float | None
    reference_peak: float
    after: str | None


class FormatWatch:
    """Watches the model in a format; `reference` holds the same example's calls."""

    def __init__(self, model: nn.Module, reference: ReferenceWatch) -> None:
        self.reference = reference
        self.layers: dict[str, FormatLayer] = {}
        self.first: FirstNonFinite | None = None
        self._count: dict[str, int] = {}
        self._finite: str | None = None
        self._inside = False
        modules = dict(model.named_modules())
        for name in reference.kinds:
            if name in modules:
                modules[name].register_forward_hook(self._hook(name))

    def begin(self) -> None:
        """A new example: nothing was called yet, and nothing was found in it."""
        self._count, self._finite, self.first = {}, None, None

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            out = _floating(output)
            if self._inside or out is None:
                return
            index = self._count.get(name, 0)
            self._count[name] = index + 1
            calls = self.reference.calls.get(name, [])
            call = calls[index] if index < len(calls) else None
            if self.first is None:
                self._look(name, _floating(arguments), out, call)
            if call is not None and call.output is not None:
                self._compare(name, module, arguments, out, call)

        return hook

    def _look(
        self, name: str, inputs: torch.Tensor | None, output: torch.Tensor, call: Call | None
    ) -> None:
        """Whether this module is the first whose output is not finite."""
        if bool(output.isfinite().all()):
            self._finite = name
            return
        if call is None or not call.peak < float("inf"):
            return  # The reference's is not finite either, as in a mask: no fault of the format.
        finite, peak = True, None
        if inputs is not None and inputs.numel():
            known = inputs.isfinite()
            finite = bool(known.all())
            peak = float(torch.where(known, inputs, 0).abs().max())
        self.first = FirstNonFinite(name, finite, peak, call.peak, self._finite)

    def _compare(
        self, name: str, module: nn.Module, arguments: Any, output: torch.Tensor, call: Call
    ) -> None:
        assert call.output is not None
        layer = self.layers.setdefault(name, FormatLayer())
        layer.mismatched |= not layer.output.add(call.output, output)
        given = _floating(arguments)
        if call.inputs is None or given is None:
            return
        # Called here, within the model's own forward pass, so that whatever the format has set
        # around it (autocast, say) holds for this call too.
        self._inside = True
        try:
            alone = module(call.inputs.to(device=given.device, dtype=given.dtype))
        finally:
            self._inside = False
        layer.mismatched |= not layer.local.add(call.output, alone)
