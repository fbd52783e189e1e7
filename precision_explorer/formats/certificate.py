"""The execution certificate: a short pass in which every linear layer's products are watched, and
what the libraries say that they did is set against the layer's FLOPs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import nn

from precision_explorer.formats.evidence import NATIVE, UNKNOWN, Product
from precision_explorer.formats.products import COVERED, Part, watch
from precision_explorer.formats.recipe import layers_of, parts_of, spec_in
from precision_explorer.formats.verify import Layout, elements_here, is_held, linear_layers
from precision_explorer.records import Certificate, Executed, OffLabel


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
    `eagerly` as for `products.watch`.
    """
    # Heads tied to the embedding are watched too, but count as other work.
    tied = {
        n: elements_here(m.weight)
        for n, m in linear_layers(model).items()
        if n not in plan.elements
    }
    expected = {name: kind for name, kind in wanted.items() if kind is not None}
    seen = watch(model, plan.elements | tied, run, eagerly, expected)
    parts = [(call, _with_unit(product, integer_units), f) for call, product, f in seen.parts]
    counted = [part for part in parts if part[0].layer in plan.elements]
    linear = sum(flops for _, _, flops in counted)
    executed = sum(f for call, p, f in counted if p.number_type == wanted[call.layer])
    others = [(False, p, float(p.flops or 0)) for p in seen.outside]
    others += [(False, p, flops) for call, p, flops in parts if call.layer not in plan.elements]
    called = {call.layer for call in seen.calls}
    return Certificate(
        evidence=seen.evidence,
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


def _off_label(counted: list[Part], wanted: dict[str, str | None]) -> list[OffLabel]:
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
        if sum(found.values()) > (1 - COVERED) * whole[name]
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
