"""The warm-up of a compiled cell: every shape that it will use is compiled before anything counts.

Runs in a worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from precision_explorer.errors import NotCompiled, PrecisionExplorerError
from precision_explorer.formats.compiling import graph_breaks, graphs
from precision_explorer.formats.runtimes import Runtime
from precision_explorer.measure import NullPhases
from precision_explorer.measure.throughput import is_out_of_memory
from precision_explorer.models.adapter import Adapter, Item
from precision_explorer.models.compiled import CompiledModel, Shape
from precision_explorer.records.record import Compilation

Call = Callable[[], Any]
# With dynamic shapes a second, unlike shape shows whether the code serves it.
_DYNAMIC_TRIES = 2
# A CUDA graph is warmed up, recorded and replayed in its first three calls
# (torch/_inductor/cudagraph_trees.py).
_REPLAY_TRIES = 3
# Batches looked at per offline size: enough that a length left out is rare, and then the row says
# `recompiled`.
_OFFLINE_WINDOWS = 256


def calls(
    adapter: Adapter,
    items: Sequence[Item],
    batches: Sequence[Sequence[int]],
    count: int,
    batch_sizes: Sequence[int],
) -> Iterator[Call]:
    """Every forward pass that the cell's quality pass, requests and offline batches will make:
    `items` in `batches`, requests 0 .. `count` - 1, and offline batches as `measure.offline` takes
    them."""
    for batch in batches:
        yield lambda batch=batch: adapter.score([items[i] for i in batch])  # type: ignore[misc]
    for index in range(count):
        yield lambda index=index: adapter.request(index, NullPhases())  # type: ignore[misc]
    for size in sorted(set(batch_sizes)):
        for window in range(min(count // math.gcd(size, count), _OFFLINE_WINDOWS)):
            indices = [(window * size + k) % count for k in range(size)]
            yield lambda indices=indices: adapter.offline(indices)  # type: ignore[misc]


def warm_up(
    model: CompiledModel,
    found: Iterator[Call],
    sync: Callable[[], None],
    progress: Callable[[str, int, int], None],
) -> float:
    """Run one call of every class of shapes in `found` and return the seconds that these took.

    Raises NotCompiled where torch.compile fails; a batch too large for memory is passed over, as
    the throughput's measurement will say so.
    """
    tries = _DYNAMIC_TRIES if model.runtime.dynamic else 1
    seen: dict[Shape, set[Shape]] = {}
    seconds = 0.0
    for call in found:
        shape = model.shape_of(call)
        if shape is None:
            continue
        of_class = seen.setdefault(model.shape_class(shape), set())
        if shape in of_class or len(of_class) >= tries:
            continue
        of_class.add(shape)
        progress("compile", len(seen) - 1, len(seen))
        start = time.perf_counter()
        try:
            _run(model, call, sync)
        except Exception as error:
            if not is_out_of_memory(error):
                raise _not_compiled(error) from error
        seconds += time.perf_counter() - start
    progress("compile", len(seen), len(seen))
    return seconds


def _run(model: CompiledModel, call: Call, sync: Callable[[], None]) -> None:
    def run() -> None:
        for _ in range(_REPLAY_TRIES if model.replays else 1):
            call()
            sync()

    try:
        run()
    except Exception as error:
        if not model.shared_blocks or is_out_of_memory(error):
            raise
        # Code shared by blocks may do less than torch.compile can otherwise.
        model.compile_whole()
        run()


def _not_compiled(error: Exception) -> Exception:
    """torch's errors of many lines as one; errors with words of their own stay."""
    if isinstance(error, PrecisionExplorerError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in lines if not line.startswith("backend=")), "no message")
    return NotCompiled(
        f"torch.compile failed on this model ({type(error).__name__}: {text[:200]}); use --runtime "
        "eager for it, or see the cell's log for the traceback"
    )


def compilation(model: CompiledModel, runtime: Runtime, kind: str) -> Compilation:
    """What torch.compile made of the model so far. Raises NotCompiled where it made nothing, since
    the row's runtime would be untrue."""
    broken, made = graph_breaks(), graphs()
    if made == 0:
        why = next(iter(broken), "it gave no reason")
        raise NotCompiled(
            f"torch.compile compiled nothing of this model ({why}); use --runtime eager"
        )
    with torch.inference_mode():
        share = model.share()
    return Compilation(
        mode=str(runtime.mode(kind)),
        dynamic=runtime.dynamic,
        graphs=made,
        graph_breaks=sum(broken.values()),
        break_reasons=broken,
        compiled_share=share,
        shared_blocks=model.shared_blocks,
    )
