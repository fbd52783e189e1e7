"""Where one pass's time goes: torch's profiler around a callable, summed by classes of operators.

The profiler slows what it watches, so these are shares; seconds come from passes without it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.products import is_annotation
from precision_explorer.measure.operators import (
    MATMUL,
    OTHER,
    QUANTIZING,
    classify,
    counts_as_started,
    kernel_class,
)

_MARK = "precision-explorer layer "
# CUDA's and its driver's calls that start work on the device.
_STARTS = (
    "cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync",
)  # fmt: skip


@dataclass
class Timeline:
    """`seconds` by class, `wall_s` of the pass (both with the profiler on), operators started,
    matrix products among them, and the layers in which a tensor as large as the weight was cast or
    dequantized."""

    wall_s: float
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operators: int = 0
    matmuls: int = 0
    widened: set[str] = field(default_factory=set)

    def shares(self, pass_s: float | None = None) -> dict[str, float]:
        """Shares of `pass_s` (by default of the profiled pass itself) by class, and ``outside``.

        Classes that add up to more than the pass, as they may when it was timed apart, are scaled
        to fill it.
        """
        whole = max(pass_s or self.wall_s, sum(self.seconds.values()))
        if whole <= 0:
            return {MATMUL: 0.0, QUANTIZING: 0.0, OTHER: 0.0, "outside": 1.0}
        found = {c: self.seconds.get(c, 0.0) / whole for c in (MATMUL, QUANTIZING, OTHER)}
        return found | {"outside": max(0.0, 1.0 - sum(found.values()))}


@contextmanager
def marked(layers: dict[str, nn.Module]) -> Iterator[None]:
    """Show the calls of `layers` to the profiler. Code that was compiled before shows none."""
    open_marks: list[Any] = []

    def begin(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            mark = torch.profiler.record_function(_MARK + name)
            mark.__enter__()
            open_marks.append(mark)

        return hook

    def end(module: nn.Module, arguments: Any, output: Any) -> None:
        open_marks.pop().__exit__(None, None, None)

    handles = []
    for name, module in layers.items():
        handles += [
            module.register_forward_pre_hook(begin(name)),
            module.register_forward_hook(end),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profiled(call: Callable[[], Any], device: str, elements: dict[str, int]) -> Timeline:
    """The timeline of one `call` on `device`. `elements`: weight elements of each marked layer."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_cuda = device != "cpu"
    if on_cuda:
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profiler:
        start = time.perf_counter()
        call()
        if on_cuda:
            torch.cuda.synchronize(device)
        wall_s = time.perf_counter() - start
    return summed(profiler.events(), wall_s, on_cuda, elements)


def summed(events: Any, wall_s: float, on_cuda: bool, elements: dict[str, int]) -> Timeline:
    """A `Timeline` from the profiler's events. On a CPU an operator's time is its own, without
    those it calls; on CUDA it is that of the kernels which it started. Kernels that no operator
    started (a replayed CUDA graph's, compiled code's) are classed by their own names."""
    line = Timeline(wall_s)
    unstarted: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for event in events:
        if str(event.device_type) != "DeviceType.CPU":
            if on_cuda and not is_annotation(event):
                unstarted[event.name] += _seconds(event)
                count[event.name] += 1
            continue
        if event.name.startswith("ProfilerStep"):
            continue
        if on_cuda and event.name.startswith(_STARTS):
            line.operators += 1
            continue
        if event.is_user_annotation or "::" not in event.name:
            continue
        path, layer = _path(event)
        group = classify(path, layer is not None)
        if on_cuda:
            for kernel in event.kernels:
                found = kernel_class(kernel.name) or group
                line.seconds[found] += kernel.duration / 1e6
                line.matmuls += found == MATMUL
                unstarted[kernel.name] -= kernel.duration / 1e6
                count[kernel.name] -= 1
        else:
            line.seconds[group] += event.self_cpu_time_total / 1e6
            if _is_started(path):
                line.operators += 1
                line.matmuls += group == MATMUL
        if layer is not None and group == QUANTIZING and _largest(event) >= elements[layer]:
            line.widened.add(layer)
    _add_unstarted(line, unstarted, count)
    return line


def _seconds(event: Any) -> float:
    return (event.time_range.end - event.time_range.start) / 1e6


def _add_unstarted(line: Timeline, unstarted: dict[str, float], count: dict[str, int]) -> None:
    """Add the time of kernels that is no operator's to `line`, and the `count` of those among them
    that make a product; both by name."""
    for name, seconds in unstarted.items():
        # Differences of sums are not exactly 0.
        if seconds > 1e-9:
            found = kernel_class(name) or OTHER
            line.seconds[found] += seconds
            line.matmuls += count[name] if found == MATMUL else 0


def _path(event: Any) -> tuple[list[str], str | None]:
    """Names from the operator up to its layer's mark, and the layer's name."""
    path: list[str] = []
    while event is not None:
        if event.name.startswith(_MARK):
            return path, event.name.removeprefix(_MARK)
        if not event.is_user_annotation:
            path.append(event.name)
        event = event.cpu_parent
    return path, None


def _is_started(path: list[str]) -> bool:
    """Whether the operator costs a start of its own: it computes, and whoever called it is only a
    composite of such operators."""
    return bool(counts_as_started(path[0])) and all(counts_as_started(n) is None for n in path[1:])


def _largest(event: Any) -> int:
    """Elements of the operator's largest input."""
    largest = 0
    for shape in event.input_shapes or ():
        if shape and all(isinstance(size, int) for size in shape):
            count = 1
            for size in shape:
                count *= size
            largest = max(largest, count)
    return largest
