"""torch.compile as this tool asks for it, and what it said of it. Runs in a worker only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.runtimes import Runtime

# Graphs of one function. torch's limit of 8 is meant to show a training loop that recompiles by
# mistake; fixed shapes are many by intent, and past the limit the rest would silently run eagerly.
_MOST_GRAPHS = 256
# Fewer blocks compile in about the time of one.
_LEAST_REPEATS = 4
# What `nested_compile_region` leaves on a function: the one that it marked.
_MARK = "__marked_compile_region_fn__"


def configure(cache: str, kind: str) -> None:
    """Set this process's compiler up; `cache` is an empty folder, so that every compilation is a
    cold one and its seconds compare between formats, whatever ran on the machine before."""
    import torch._dynamo.config
    import torch._inductor.config
    import torch.fx.experimental._config as shapes

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    os.environ["TRITON_CACHE_DIR"] = os.path.join(cache, "triton")  # noqa: PTH118
    torch._dynamo.config.recompile_limit = _MOST_GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.suppress_errors = False
    # Two sizes that happen to be equal in the first call (4 texts, 4 positions) are no rule.
    shapes.use_duck_shape = False
    if kind == "cpu":
        # In this process: a pool of compiling processes would outlive a killed worker and stay
        # beside what is timed. On a GPU there is too much to compile for one.
        torch._inductor.config.compile_threads = 1


def load_compiler() -> None:
    """Import what compiling needs, so that it does not count as the model's memory."""
    import torch._dynamo
    import torch._inductor.compile_fx  # noqa: F401


def compiled(function: Callable[..., Any], runtime: Runtime, kind: str) -> Callable[..., Any]:
    """`function` by torch.compile as `runtime` asks on a device of `kind`."""
    return torch.compile(function, dynamic=runtime.dynamic, mode=runtime.mode(kind))


def share_blocks(model: nn.Module) -> int:
    """Let torch.compile make the code of a block that `model` repeats once per shape, and use it
    for each; returns how many blocks share code so. Blocks are the members of a `ModuleList` of at
    least four that are all of one class and hold plain tensors, as torch takes no others there.
    What torch finds unlike in two of them (another number format) has code of its own; what is lost
    is fusing across the end of a block.

    It marks the class until `unshare_blocks`; eagerly the mark does nothing.
    """
    if not hasattr(torch.compiler, "nested_compile_region"):  # Is there from torch 2.8.
        return 0
    repeated = _repeated_blocks(model)
    for kind in {type(blocks[0]) for blocks in repeated}:
        if not hasattr(kind.forward, _MARK):
            kind.forward = torch.compiler.nested_compile_region(kind.forward)  # type: ignore[method-assign]
    return sum(map(len, repeated))


def unshare_blocks(model: nn.Module) -> None:
    """Undo `share_blocks`, and forget what was compiled."""
    for kind in {type(blocks[0]) for blocks in _repeated_blocks(model)}:
        kind.forward = getattr(kind.forward, _MARK, kind.forward)  # type: ignore[method-assign]
    torch.compiler.reset()


def _repeated_blocks(model: nn.Module) -> list[list[nn.Module]]:
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return [
        blocks
        for blocks in lists
        if len(blocks) >= _LEAST_REPEATS
        and len({type(block) for block in blocks}) == 1
        and all(map(_is_plain, blocks))
    ]


def _is_plain(block: nn.Module) -> bool:
    """Whether its weights are tensors of no library's own kind."""
    held = [*block.parameters(), *block.buffers()]
    return all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in held)


def without_guards() -> contextlib.AbstractContextManager[Any]:
    """Meanwhile a compiled function checks only what tells its graphs apart. Only for a call whose
    like has been compiled: nothing else says that no graph fits.

    Every check of an argument, a weight and a setting costs the host about as much as starting a
    small kernel, and there are several for each layer.
    """
    return torch.compiler.set_stance(skip_guard_eval_unsafe=True)


def graphs() -> int:
    """How many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))


def graph_breaks() -> dict[str, int]:
    """{reason in one line: times} of the places so far where torch.compile gave up and left what
    followed to Python."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for reason, times in counters["graph_break"].items():
        # What it was and the explanation; hints for who writes the model come after.
        said = str(reason).partition("Hint:")[0].partition("Developer debug")[0]
        line = " ".join(said.split())[:200]
        found[line] = found.get(line, 0) + int(times)
    return found


def compiled_share(compiled_call: Callable[[], Any], eager_call: Callable[[], Any]) -> float | None:
    """The share of a forward pass's operator calls that happened inside compiled graphs: 1 less
    those outside over all that the eager pass makes; None where the eager pass makes none.

    Operators are torch's own and libraries' as the profiler sees them; only outermost ones count,
    so that a call counts once.
    """
    total = _operators(eager_call)
    if total == 0:
        return None
    return max(0.0, 1.0 - _operators(compiled_call) / total)


def _operators(call: Callable[[], Any]) -> int:
    """Outermost operators that `call` makes outside of Inductor's graphs."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return sum(_outside(event) for event in seen.events())


def _outside(event: Any) -> bool:
    """Whether `event` is an operator with neither another one nor an Inductor graph around it
    (Inductor marks each call of a graph by an event of this name)."""
    if "::" not in event.name:
        return False
    around = event.cpu_parent
    while around is not None:
        if "::" in around.name or "CompiledFxGraph" in around.name:
            return False
        around = around.cpu_parent
    return True
