"""Watching a model multiply: which products each linear layer made, and what the libraries say that
they were.

On a CPU oneDNN and MKL print a line per product (their verbose modes, which are on only while one
watches); FBGEMM and ATen's own loops print none: an operator of FBGEMM counts as int8 only where
its result equals exact integer arithmetic, and ATen's loops are known by an operator on 16-bit
numbers that called no library. On CUDA the names of the kernels tell. Compiled code has no layers:
an eager pass tells each layer's FLOPs, and the compiled one what made products of its size.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.evidence import (
    CUDA_NAMES,
    NATIVE,
    SOFTWARE,
    UNKNOWN,
    Product,
    cuda_product,
    products_of,
)

_MARK = "precision-explorer-call"
# What this tool and Inductor mark: the profiler shows the span of each on the device too.
_MARKS = (
    "precision-explorer", "## Call CompiledFxGraph", "Torch-Compiled Region", "ProfilerStep",
)  # fmt: skip
# Lines that cover less than this share of a layer's FLOPs leave the rest unknown.
COVERED = 0.99
# Rounding of the shares that several layers have of one product.
_DUST = 1e-6
# How far an int8 result may be from exact integer arithmetic on the same numbers: ties are rounded
# apart in a few of them, while saturation or float arithmetic give 0.01 and more (see `dryrun`).
_EXACT = 2e-3
_ROWS_CHECKED = 4
# Operators that multiply with code of their own, which prints nothing.
_FBGEMM = "quantized::linear_with_input_q_dq_qweight_dq_output_fp32"
_OWN_KERNELS = {
    "aten::_weight_int4pack_mm_for_cpu": "ATen int4pack",
    "bitsandbytes::gemm_4bit": "bitsandbytes gemm_4bit",
}
_PLAIN_PRODUCTS = {
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::addmv",
    "aten::mv",
}


@dataclass
class Call:
    """One forward of a linear layer: how large, and what was seen during it."""

    layer: str
    flops: float
    input_type: str
    sizes: tuple[int, int] = (0, 0)
    """(inputs, outputs) of the layer."""
    checked: tuple[nn.Module, torch.Tensor, torch.Tensor] | None = None
    """A layer that knows its exact result, with the first rows of an input and of its result."""
    text: str = ""
    operators: set[str] = field(default_factory=set)
    kernels: list[tuple[str, float]] = field(default_factory=list)
    """CUDA kernels with their seconds."""


# -- watching ---------------------------------------------------------------------------------


class _Watch:
    """Hooks on every linear layer that mark where its calls begin and end."""

    def __init__(self, model: nn.Module, elements: dict[str, int]) -> None:
        self.calls: list[Call] = []
        self._ranges: list[Any] = []
        self._handles: list[Any] = []
        modules = dict(model.named_modules())
        for name, count in elements.items():
            if name in modules:
                before, after = self._hooks(name, count)
                module = modules[name]
                self._handles.append(module.register_forward_pre_hook(before))
                self._handles.append(module.register_forward_hook(after, always_call=True))

    def _hooks(self, name: str, elements: int) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            x = arguments[0]
            inner = x.shape[-1]
            flops = 2.0 * x.numel() / inner * elements
            self.calls.append(Call(name, flops, _name(x.dtype), (inner, elements // inner)))
            number = len(self.calls) - 1
            _mark(f"{_MARK} begin {number}")
            self._ranges.append(torch.profiler.record_function(f"{_MARK} {number}"))
            self._ranges[-1].__enter__()

        def after(module: nn.Module, arguments: tuple[torch.Tensor, ...], output: Any) -> None:
            self._ranges.pop().__exit__(None, None, None)
            _mark(f"{_MARK} end")
            if hasattr(module, "exact") and output is not None:
                # Kept, and checked when the watch is over: the check multiplies too.
                self.calls[-1].checked = (module, _first_rows(arguments[0]), _first_rows(output))

        return before, after

    def remove(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1])[:_ROWS_CHECKED].clone()


def _is_exact_int8(call: Call) -> bool:
    """Whether the call's result is what exact integer arithmetic gives, for the layers of ours that
    can tell (`kernels.FbgemmLinear`); False for all others."""
    if call.checked is None:
        return False
    module, rows, found = call.checked
    expected = module.exact(rows)
    return bool((found.double() - expected).norm() <= _EXACT * expected.norm())


def _mark(text: str) -> None:
    """A line between those that the libraries print; C's buffer first, so that the order holds."""
    _flush()
    os.write(1, f"\n{text}\n".encode())


def _flush() -> None:
    sys.stdout.flush()
    with contextlib.suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)


@contextlib.contextmanager
def _captured() -> Iterator[Callable[[], str]]:
    """What this process prints on its standard output meanwhile, C libraries' lines included."""
    with tempfile.TemporaryFile() as file:
        _flush()
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)

        def text() -> str:
            _flush()
            file.seek(0)
            return file.read().decode("utf8", "replace")

        try:
            yield text
        finally:
            _flush()
            os.dup2(kept, 1)
            os.close(kept)


@contextlib.contextmanager
def _verbose() -> Iterator[None]:
    """oneDNN and MKL tell of each product, as far as this torch was built with them."""
    with contextlib.ExitStack() as stack:
        if torch.backends.mkldnn.is_available():
            stack.enter_context(torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON))
        if torch.backends.mkl.is_available():
            stack.enter_context(torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON))
        yield


def _watched(run: Callable[[], None], calls: list[Call], cuda: bool) -> Call:
    """Run, and give each call its lines, operators and kernels. Returns a call for the whole: the
    lines that are outside of all calls, and every operator and kernel."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with _captured() as text, torch.profiler.profile(activities=activities) as profile:
        with _verbose(), torch.inference_mode():
            run()
        if cuda:
            torch.cuda.synchronize()
        printed = text()
    whole = Call("", 0.0, "")
    for event in profile.events():
        if is_of_device(event):
            if not is_annotation(event):
                seconds = (event.time_range.end - event.time_range.start) * 1e-6
                whole.kernels.append((event.name, seconds))
            continue
        if event.name.startswith(f"{_MARK} "):
            call = calls[int(event.name.rsplit(" ", 1)[1])]
            call.kernels += _kernels(event)
            _collect(event, call)
        whole.operators.add(event.name)
    whole.text = _share_out(printed, calls)
    return whole


def is_of_device(event: Any) -> bool:
    """Whether a profiler's event is the device's own: a kernel, a copy or an annotation's span.
    Kernels of a replayed CUDA graph, or started outside any operator, are found by no other."""
    return str(event.device_type) != "DeviceType.CPU"


def is_annotation(event: Any) -> bool:
    """Whether a device's event is but the span of what was marked on the host."""
    return bool(getattr(event, "is_user_annotation", False)) or event.name.startswith(_MARKS)


def _collect(event: Any, call: Call) -> None:
    for child in event.cpu_children:
        call.operators.add(child.name)
        call.kernels += _kernels(child)
        _collect(child, call)


def _kernels(event: Any) -> list[tuple[str, float]]:
    """Those that `event` started itself; the profiler adds the device's span of its mark."""
    return [
        (kernel.name, kernel.duration * 1e-6)
        for kernel in event.kernels
        if not kernel.name.startswith(_MARKS)
    ]


def _share_out(printed: str, calls: list[Call]) -> str:
    """Lines between a call's marks go to it; the others are returned."""
    current: Call | None = None
    outside = []
    for line in printed.splitlines():
        if line.startswith(f"{_MARK} begin"):
            current = calls[int(line.rsplit(" ", 1)[1])]
        elif line.startswith(f"{_MARK} end"):
            current = None
        elif current is not None:
            current.text += line + "\n"
        else:
            outside.append(line)
    return "\n".join(outside)


# -- reading ----------------------------------------------------------------------------------


def _of_cpu(call: Call) -> list[tuple[Product, float]]:
    """(product, FLOPs) that make up the call's FLOPs."""
    seen = products_of(call.text)
    if not seen:
        return [(_silent(call), call.flops)]
    known = sum(product.flops or 0 for product in seen)
    if len(seen) == 1 and not known:
        return [(seen[0], call.flops)]
    if known >= COVERED * call.flops:
        return [(p, call.flops * p.flops / known) for p in seen if p.flops]
    parts = [(p, float(p.flops)) for p in seen if p.flops]
    return [*parts, (Product("nothing said", UNKNOWN, UNKNOWN), call.flops - known)]


def _silent(call: Call) -> Product:
    """What multiplied where no library printed a line."""
    if _FBGEMM in call.operators:
        if _is_exact_int8(call):
            return Product("FBGEMM", "int8", NATIVE)
        return Product("FBGEMM, not exact", UNKNOWN, UNKNOWN)
    own = next((name for op, name in _OWN_KERNELS.items() if op in call.operators), None)
    if own is not None:
        unit = NATIVE if call.input_type == "float32" else UNKNOWN
        return Product(own, call.input_type, unit)
    if call.input_type in ("bfloat16", "float16") and call.operators & _PLAIN_PRODUCTS:
        # With units for the type torch would have called oneDNN (ATen, native/LinearAlgebra.cpp).
        return Product("ATen's own loop", call.input_type, SOFTWARE)
    if "aten::_int_mm" in call.operators:
        # Where oneDNN can't or prints nothing, torch adds integers itself (ATen, native/Blas.cpp).
        return Product("ATen's own loop", "int8", SOFTWARE)
    names = ", ".join(sorted(op for op in call.operators if "mm" in op or "linear" in op)[:2])
    return Product(names or "nothing seen", UNKNOWN, UNKNOWN)


def _of_cuda(call: Call) -> list[tuple[Product, float]]:
    """(product, FLOPs) that make up the call's FLOPs."""
    return _by_seconds(call.flops, _products(call.kernels))


Part = tuple[Call, Product, float]


def _as_compiled(
    calls: list[Call],
    whole: Call,
    cuda: bool,
    expected: Mapping[str, str],
    eager: Call | None = None,
) -> list[Part]:
    """What `whole`, a pass of the compiled model, shows of `calls`, which an eager pass made.

    Compiled code has no layers, but its products have sizes: `_shared` gives those of one size to
    the layers of that size. On CUDA names have no sizes, but kernels have an order: see
    `_in_order`. `expected` as for `_shared`, `eager` is the whole of the eager pass.
    """
    if cuda:
        return _in_order(calls, eager, whole) or _by_time(calls, whole, expected)
    by_size: dict[tuple[int, int] | None, list[Product]] = {}
    for product in products_of(whole.text):
        by_size.setdefault(product.sizes, []).append(product)
    parts: list[Part] = []
    groups: dict[tuple[int, int], list[Call]] = {}
    for call in calls:
        own = _own_in(call, whole)
        if own:
            parts.append((call, _silent(replace(call, operators=own)), call.flops))
        elif call.sizes in by_size:
            groups.setdefault(call.sizes, []).append(call)
        else:
            # ATen's loops print nothing, compiled or not.
            plain = replace(call, operators=whole.operators & _PLAIN_PRODUCTS)
            parts.append((call, _silent(plain), call.flops))
    for sizes, group in groups.items():
        parts += _shared(group, by_size[sizes], expected)
    return parts


def _products(kernels: list[tuple[str, float]]) -> list[tuple[Product, float]]:
    """(product, seconds) of those kernels that make one."""
    return [(p, t) for name, t in kernels if (p := cuda_product(name)) is not None]


def _in_order(calls: list[Call], eager: Call | None, whole: Call) -> list[Part] | None:
    """Each call with the kernels that stand in its place in `whole`, whose products are as many as
    the eager pass made, be it those of its layers or, beside them, such as rotary embeddings make;
    None where they are neither.

    A compiler keeps the order of what depends on each other, and moves the rest: a product that no
    layer makes may stand anywhere, so kernels that the eager pass started outside of layers alone
    are left out on both sides.
    """
    owned = _owners(calls, eager) if eager is not None else []
    inside = {name for name, owner in owned if owner is not None}
    outside = {name for name, owner in owned if owner is None} - inside
    owners = [owner for name, owner in owned if name not in outside]
    made = _products([(name, t) for name, t in whole.kernels if name not in outside])
    if len(made) != len(owners):
        owners = [owner for owner in owners if owner is not None]
    if not made or len(made) != len(owners):
        return None
    of_call: dict[int, list[tuple[Product, float]]] = {}
    for owner, found in zip(owners, made, strict=True):
        of_call.setdefault(id(owner), []).append(found)
    return [
        (call, product, flops)
        for call in calls
        for product, flops in _by_seconds(call.flops, of_call.get(id(call), []))
    ]


def _owners(calls: list[Call], eager: Call) -> list[tuple[str, Call | None]]:
    """(kernel, the call that made it) of each product of the eager pass, in its order; None where
    no layer did."""
    waiting: dict[tuple[str, float], list[Call]] = {}
    for call in calls:
        for name, seconds in call.kernels:
            waiting.setdefault((name, round(seconds, 9)), []).append(call)
    owners: list[tuple[str, Call | None]] = []
    for name, seconds in eager.kernels:
        if cuda_product(name) is not None:
            left = waiting.get((name, round(seconds, 9)))
            owners.append((name, left.pop(0) if left else None))
    return owners


def _by_seconds(flops: float, found: list[tuple[Product, float]]) -> list[tuple[Product, float]]:
    """`flops` shared by the kernels `found` by their seconds: no sizes stand in names."""
    if not found:
        return [(Product("no matrix kernel seen", UNKNOWN, UNKNOWN), flops)]
    whole = sum(seconds for _, seconds in found)
    return [(p, flops * (t / whole if whole else 1 / len(found))) for p, t in found]


def _by_time(calls: list[Call], whole: Call, expected: Mapping[str, str]) -> list[Part]:
    """All products of `whole`, each with the share of all FLOPs that it has of the time, given to
    the calls as `_shared` does."""
    every = sum(call.flops for call in calls)
    shares = _by_seconds(every, _products(whole.kernels))
    made = [replace(product, flops=round(flops)) for product, flops in shares]
    return _shared(calls, made, expected)


def _own_in(call: Call, whole: Call) -> set[str]:
    """The operators that print nothing by which the call was made when eager, and which the
    compiled pass calls too."""
    return call.operators & whole.operators & {_FBGEMM, *_OWN_KERNELS}


def _shared(calls: list[Call], products: list[Product], expected: Mapping[str, str]) -> list[Part]:
    """`products`, made by layers of one size, given to the `calls` of that size: first to those
    that `expected` ({layer: number type}; else the type of its input) says to be made in the
    product's type, what is left to all that miss some. What nothing is left for is unknown."""
    needed = sum(call.flops for call in calls)
    seen = float(sum(product.flops or 0 for product in products))
    # Padding makes more products than the layers ask for.
    scale = needed / seen if seen >= COVERED * needed else 1.0
    there: dict[Product, float] = {}
    for product in products:
        there[product] = there.get(product, 0.0) + scale * (product.flops or 0)
    missing = {index: call.flops for index, call in enumerate(calls)}
    kinds = [expected.get(call.layer, call.input_type) for call in calls]
    given = []
    for kind in dict.fromkeys(kinds):
        takers = [index for index, own in enumerate(kinds) if own == kind]
        given += _give(there, [p for p in there if p.number_type == kind], missing, takers)
    given += _give(there, list(there), missing, list(missing))
    unsaid = Product("nothing said", UNKNOWN, UNKNOWN)
    given += [(index, unsaid, flops) for index, flops in missing.items()]
    return [
        (calls[index], product, flops)
        for index, product, flops in given
        if flops > _DUST * calls[index].flops
    ]


def _give(
    there: dict[Product, float], products: list[Product], missing: dict[int, float], to: list[int]
) -> list[tuple[int, Product, float]]:
    """Take what is `there` of `products` and spread it evenly over what is `missing` for the
    indices `to`: (index, product, FLOPs), taken off both sides."""
    have, want = sum(there[p] for p in products), sum(missing[index] for index in to)
    moved = min(have, want)
    if moved <= 0:
        return []
    given = [(i, p, moved * missing[i] / want * there[p] / have) for i in to for p in products]
    for index, product, flops in given:
        missing[index] -= flops
        there[product] -= flops
    return given


@dataclass(frozen=True)
class Seen:
    """What a watched pass showed: whose words (`evidence`), every call of a linear layer, the
    (call, product, FLOPs) that make up each call's FLOPs, and the products outside of all layers,
    as far as libraries tell of them."""

    evidence: str
    calls: list[Call]
    parts: list[Part]
    outside: list[Product]


def watch(
    model: nn.Module,
    elements: dict[str, int],
    run: Callable[[], None],
    eagerly: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
    expected: Mapping[str, str] | None = None,
) -> Seen:
    """Watch `run`, which calls `model`, whose linear layers have so many weight `elements`.

    `eagerly` is given for a compiled model, and lets it run uncompiled meanwhile: each layer's
    FLOPs are then taken from an eager pass, and what made them from a compiled one, by `expected`
    as `_shared` says.
    """
    cuda = any(p.is_cuda for p in model.parameters())
    evidence = CUDA_NAMES if cuda else "oneDNN and MKL verbose lines"
    hooks = _Watch(model, elements)
    calls = hooks.calls
    try:
        with eagerly() if eagerly else contextlib.nullcontext():
            eager = whole = _watched(run, calls, cuda)
    finally:
        hooks.remove()
    if eagerly is None:
        read = _of_cuda if cuda else _of_cpu
        parts = [(call, product, flops) for call in calls for product, flops in read(call)]
        return Seen(evidence, calls, parts, products_of(whole.text))
    whole = _watched(run, [], cuda)
    sizes = {call.sizes for call in calls}
    outside = [product for product in products_of(whole.text) if product.sizes not in sizes]
    parts = _as_compiled(calls, whole, cuda, expected or {}, eager)
    return Seen(evidence, calls, parts, outside)
