"""The execution certificate: a short pass in which every linear layer's products are watched, and
what the libraries say that they did is set against the layer's FLOPs.

On a CPU oneDNN and MKL print a line per product (their verbose modes, which only this pass turns
on); FBGEMM and ATen's own loops print none: an operator of FBGEMM counts as int8 only where its
result equals exact integer arithmetic, and ATen's loops are known by an operator on 16-bit numbers
that called no library. On CUDA the names of the kernels tell.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.evidence import (
    NATIVE,
    SOFTWARE,
    UNKNOWN,
    Product,
    cuda_product,
    products_of,
)
from precision_explorer.formats.recipe import layers_of, parts_of, spec_in
from precision_explorer.formats.verify import Layout, is_held, linear_layers
from precision_explorer.records import Certificate, Executed, OffLabel

_MARK = "precision-explorer-call"
# Lines that cover less than this share of a layer's FLOPs leave the rest unknown.
_COVERED = 0.99
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
class _Call:
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
        self.calls: list[_Call] = []
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
            self.calls.append(_Call(name, flops, _name(x.dtype), (inner, elements // inner)))
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


def _is_exact_int8(call: _Call) -> bool:
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


def _watched(run: Callable[[], None], calls: list[_Call], cuda: bool) -> _Call:
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
    whole = _Call("", 0.0, "")
    for event in profile.events():
        if event.name.startswith(f"{_MARK} "):
            call = calls[int(event.name.rsplit(" ", 1)[1])]
            _collect(event, call)
        whole.operators.add(event.name)
        whole.kernels += _kernels(event)
    whole.text = _share_out(printed, calls)
    return whole


def _collect(event: Any, call: _Call) -> None:
    for child in event.cpu_children:
        call.operators.add(child.name)
        call.kernels += _kernels(child)
        _collect(child, call)


def _kernels(event: Any) -> list[tuple[str, float]]:
    return [(kernel.name, kernel.duration * 1e-6) for kernel in event.kernels]


def _share_out(printed: str, calls: list[_Call]) -> str:
    """Lines between a call's marks go to it; the others are returned."""
    current: _Call | None = None
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


def _of_cpu(call: _Call) -> list[tuple[Product, float]]:
    """(product, FLOPs) that make up the call's FLOPs."""
    seen = products_of(call.text)
    if not seen:
        return [(_silent(call), call.flops)]
    known = sum(product.flops or 0 for product in seen)
    if len(seen) == 1 and not known:
        return [(seen[0], call.flops)]
    if known >= _COVERED * call.flops:
        return [(p, call.flops * p.flops / known) for p in seen if p.flops]
    parts = [(p, float(p.flops)) for p in seen if p.flops]
    return [*parts, (Product("nothing said", UNKNOWN, UNKNOWN), call.flops - known)]


def _silent(call: _Call) -> Product:
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
    names = ", ".join(sorted(op for op in call.operators if "mm" in op or "linear" in op)[:2])
    return Product(names or "nothing seen", UNKNOWN, UNKNOWN)


def _of_cuda(call: _Call) -> list[tuple[Product, float]]:
    """Several kernels of one call share its FLOPs by their time: no sizes stand in names."""
    seen = [(p, t) for n, t in call.kernels if (p := cuda_product(n)) is not None]
    whole = sum(seconds for _, seconds in seen)
    if not seen:
        return [(Product("no matrix kernel seen", UNKNOWN, UNKNOWN), call.flops)]
    return [(p, call.flops * (t / whole if whole else 1 / len(seen))) for p, t in seen]


Part = tuple[_Call, Product, float]


def _as_compiled(calls: list[_Call], whole: _Call, cuda: bool) -> list[Part]:
    """What `whole`, a pass of the compiled model, shows of `calls`, which an eager pass made.

    Compiled code has no layers, but its products have sizes: those of one layer size share that
    size's FLOPs, and what is missing there is unknown. On CUDA names have no sizes, so all layers
    share all kernels by their time.
    """
    if cuda:
        return [
            (call, product, flops)
            for call in calls
            for product, flops in _of_cuda(replace(call, kernels=whole.kernels))
        ]
    by_size: dict[tuple[int, int] | None, list[Product]] = {}
    for product in products_of(whole.text):
        by_size.setdefault(product.sizes, []).append(product)
    expected: dict[tuple[int, int], float] = {}
    for call in calls:
        expected[call.sizes] = expected.get(call.sizes, 0.0) + call.flops
    parts: list[Part] = []
    for call in calls:
        found = by_size.get(call.sizes, [])
        if not found:
            # FBGEMM and ATen's loops print nothing, compiled or not.
            silent = replace(call, operators=_products_in(whole.operators))
            parts.append((call, _silent(silent), call.flops))
            continue
        seen = float(sum(product.flops or 0 for product in found))
        # Padding makes more products than the layers ask for.
        most = seen if seen >= _COVERED * expected[call.sizes] else expected[call.sizes]
        parts += [(call, p, call.flops * (p.flops or 0) / most) for p in found]
        if most > seen:
            rest = call.flops * (1 - seen / most)
            parts.append((call, Product("nothing said", UNKNOWN, UNKNOWN), rest))
    return parts


def _products_in(operators: set[str]) -> set[str]:
    return operators & {_FBGEMM, *_OWN_KERNELS, *_PLAIN_PRODUCTS}


# -- the certificate --------------------------------------------------------------------------


def certify(
    model: nn.Module,
    plan: Layout,
    wanted: dict[str, str | None],
    run: Callable[[], None],
    work: str,
    integer_units: bool,
    eagerly: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
) -> Certificate:
    """Watch `run`, which calls `model`, and say what made its linear layers' products.

    `plan` holds the layers that count, `wanted` the number type of each one's products if the label
    is true (None: the layer is not held in the format). `integer_units`: whether the device has
    units for int8, for kernels that do not name theirs. `work` says in words what `run` does.
    `eagerly` is given for a compiled model, and lets it run uncompiled meanwhile: each layer's
    FLOPs are then taken from an eager pass, and what made them from a compiled one.
    """
    cuda = any(p.is_cuda for p in model.parameters())
    # Heads tied to the embedding are watched too, but count as other work.
    tied = {n: m.weight.numel() for n, m in linear_layers(model).items() if n not in plan.elements}
    watch = _Watch(model, plan.elements | tied)
    try:
        with eagerly() if eagerly else contextlib.nullcontext():
            whole = _watched(run, watch.calls, cuda)
    finally:
        watch.remove()
    outside = products_of(whole.text)
    if eagerly is None:
        parts = [
            (call, product, flops)
            for call in watch.calls
            for product, flops in (_of_cuda(call) if cuda else _of_cpu(call))
        ]
    else:
        whole = _watched(run, [], cuda)
        parts = _as_compiled(watch.calls, whole, cuda)
        sizes = {call.sizes for call in watch.calls}
        outside = [p for p in products_of(whole.text) if p.sizes not in sizes]
    parts = [(call, _with_unit(product, integer_units), f) for call, product, f in parts]
    counted = [part for part in parts if part[0].layer in plan.elements]
    linear = sum(flops for _, _, flops in counted)
    executed = sum(f for call, p, f in counted if p.number_type == wanted[call.layer])
    others = [(False, p, float(p.flops or 0)) for p in outside]
    others += [(False, p, flops) for call, p, flops in parts if call.layer not in plan.elements]
    called = {call.layer for call in watch.calls}
    return Certificate(
        evidence="CUDA kernel names" if cuda else "oneDNN and MKL verbose lines",
        work=work,
        linear_flops=linear,
        executed_flops=executed,
        executed_share=executed / linear if linear else None,
        executed=_summed([(wanted[c.layer] is not None, p, f) for c, p, f in counted]),
        other=_summed(others),
        off_label=_off_label(counted, wanted),
        not_called=sorted(set(plan.elements) - called),
    )


def _with_unit(product: Product, integer_units: bool) -> Product:
    if product.number_type == "int8" and product.unit == UNKNOWN and integer_units:
        return Product(product.kernel, "int8", NATIVE, product.flops)
    return product


def _summed(parts: list[tuple[bool, Product, float]]) -> list[Executed]:
    """FLOPs by kernel, largest first."""
    sums: dict[tuple[str, str, str, bool], float] = {}
    for converted, product, flops in parts:
        key = (product.kernel, product.number_type, product.unit, converted)
        sums[key] = sums.get(key, 0.0) + flops
    rows = [
        Executed(kernel=k, number_type=t, unit=u, converted=c, flops=flops)
        for (k, t, u, c), flops in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.flops)


def _off_label(
    counted: list[tuple[_Call, Product, float]], wanted: dict[str, str | None]
) -> list[OffLabel]:
    """Converted layers of which more than a hundredth of the FLOPs ran in another type."""
    whole: dict[str, float] = {}
    off: dict[str, dict[str, float]] = {}
    for call, product, flops in counted:
        whole[call.layer] = whole.get(call.layer, 0.0) + flops
        if wanted[call.layer] not in (None, product.number_type):
            found = off.setdefault(call.layer, {})
            text = f"{product.number_type} by {product.kernel}"
            found[text] = found.get(text, 0.0) + flops
    return [
        OffLabel(name=name, flops=sum(found.values()), found=max(found, key=found.__getitem__))
        for name, found in off.items()
        if sum(found.values()) > (1 - _COVERED) * whole[name]
    ]


def wanted_types(
    plan: Layout, held_in: dict[str, str], storage: str | None, number_type: str
) -> dict[str, str | None]:
    """The number type in which each counted layer must multiply; None for a layer that is not held
    in `storage` (a `storage` of None: the format asks for arithmetic alone)."""
    return {
        name: number_type if storage is None or is_held(held_in.get(name), storage) else None
        for name in plan.elements
    }


def wanted_in(
    plan: Layout, held_in: dict[str, str], format_id: str, recipe: dict[str, Any]
) -> dict[str, str | None]:
    """`wanted_types` of a cell's recipe: of a mixed one, each format's for the layers it names."""
    wanted: dict[str, str | None] = dict.fromkeys(plan.elements)
    parts = parts_of(format_id, recipe)
    for part, names in layers_of(format_id, recipe, plan.elements).items():
        spec = spec_in(part, parts[part])
        made_in = recipe["compute_dtype"] if spec.arithmetic == "compute" else spec.arithmetic
        types = wanted_types(plan, held_in, spec.storage, made_in)
        wanted |= {name: types[name] for name in names}
    return wanted
