"""The job behind `inspect`: one format beside its float32 reference, in one worker."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import TaskError
from precision_explorer.formats.apply import apply_format, compute_dtype, set_matmul_precision
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.held import held_weight
from precision_explorer.formats.number_types import NUMBER_TYPES, Held, plain, uses
from precision_explorer.formats.ranges import RangeSums
from precision_explorer.formats.recipe import layers_of, parts_of
from precision_explorer.formats.verify import Layout, census, is_held, layout
from precision_explorer.formats.watch import (
    FirstNonFinite,
    FormatLayer,
    FormatWatch,
    ReferenceWatch,
    Sums,
    watched,
)
from precision_explorer.models.adapter import Adapter, Item
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.loading import load, prepare
from precision_explorer.stats import sqnr

Progress = Callable[[str, int, int], None]
REFERENCE = "fp32"
# Computes in a narrower type than the one that the model is held in.
AUTOCAST = "bf16-autocast"


def run(request: dict[str, Any], progress: Progress) -> tuple[dict[str, Any], bytes]:
    """{layers, first_non_finite, tokens, cautions} of ``request["format"]``.

    The layers are rows as in `records.numerics.LayerNumerics`. Both models are in memory at once.
    """
    torch.manual_seed(request["seed"])
    path, kind = Path(request["path"]), request["card"]["kind"]
    tokenizer = prepare(path, kind, request["trust_remote_code"])
    progress("load", 0, 2)
    reference = _load(request, torch.float32)
    plan = layout(reference)
    progress("load", 1, 2)
    model = _load(request, compute_dtype(request["recipe"]))
    outcome = apply_format(
        model,
        request["format"],
        request["recipe"],
        request["execution"],
        request["reason"],
        lambda: _calibrate(model, tokenizer, request),
    )
    progress("load", 2, 2)
    kinds = watched(reference, plan)
    held = _held_types(model, plan, kinds, request)
    # Before the first forward pass, in which some libraries pack the weights anew. Not in inference
    # mode, in which torchao's wrappers can't be detached.
    with torch.no_grad():
        weights = _weights(reference, model, kinds, held)
    output_type = plain(_passed_on(request))
    watch = ReferenceWatch(reference, kinds)
    watch.types = {name: (held[name][1], output_type) for name in kinds}
    found = FormatWatch(model, watch)
    with torch.inference_mode():
        adapters = [
            make_adapter(each, tokenizer, request["device"], request) for each in (reference, model)
        ]
        tokens, firsts = _run_examples(adapters, watch, found, request, progress)
    rows = _rows(watch, found, weights, held, kinds, output_type)
    answer = {
        "layers": rows,
        "first_non_finite": _first(firsts, request),
        "tokens": tokens,
        "cautions": [c.model_dump() for c in outcome.cautions],
    }
    return answer, b""


def _calibrate(model: nn.Module, tokenizer: Any, request: dict[str, Any]) -> None:
    """Run `model` on the calibration texts, one at a time, as a cell's session does."""
    asked = request | {"examples": request["calibration"]}
    adapter = make_adapter(model, tokenizer, request["device"], asked)
    with torch.inference_mode():
        for item in adapter.items():
            adapter.scores([item])


def _load(request: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    return load(
        Path(request["path"]),
        request["card"]["kind"],
        dtype,
        request["device"],
        request["trust_remote_code"],
        pickled=request.get("pickled", False),
    )


def _run_examples(
    adapters: list[Adapter],
    watch: ReferenceWatch,
    found: FormatWatch,
    request: dict[str, Any],
    progress: Progress,
) -> tuple[int, list[tuple[str, FirstNonFinite]]]:
    """(tokens, [(example, first module that was not finite)]) of the first row of each example."""
    items: dict[int, Item] = {}
    for item in adapters[0].items():
        items.setdefault(item.example, item)
    if not items:
        raise TaskError("no example has a token to run; choose others by --seed, or another task")
    firsts = []
    for done, (index, item) in enumerate(items.items()):
        progress("examples", done, len(items))
        watch.begin()
        set_matmul_precision(REFERENCE)
        adapters[0].scores([item])
        found.begin()
        set_matmul_precision(request["format"])
        adapters[1].scores([item])
        if found.first is not None:
            firsts.append((str(request["examples"][index]["id"]), found.first))
    progress("examples", len(items), len(items))
    return sum(len(item.ids) for item in items.values()), firsts


def _passed_on(request: dict[str, Any]) -> str:
    """The number type of what the linear layers give."""
    return "bfloat16" if request["format"] == AUTOCAST else request["recipe"]["compute_dtype"]


# -- types and weights ---------------------------------------------------------------------------

Types = dict[str, tuple[Held | None, Held | None, bool]]


def _held_types(
    model: nn.Module, plan: Layout, kinds: dict[str, str], request: dict[str, Any]
) -> Types:
    """{layer: (type of its weight, type of its inputs, whether it was converted)}."""
    format_id, recipe = request["format"], request["recipe"]
    compute = plain(recipe["compute_dtype"])
    held_in, parts = census(model).held_in, parts_of(format_id, recipe)
    meant = {
        name: part
        for part, names in layers_of(format_id, recipe, plan.targets).items()
        for name in names
    }
    types: Types = {}
    for name in kinds:
        part = meant.get(name)
        weight, inputs = plain(held_in.get(name, "")), compute
        if part is None:
            types[name] = (weight, inputs, False)
            continue
        spec, known = spec_of(part), uses(part, parts[part]["kernel"])
        converted = spec.storage is None or is_held(held_in.get(name), spec.storage)
        if converted and known is not None:
            # Where no scale is known of the weight: it is that of the compute type.
            weight, inputs = known.weights or weight, known.inputs or compute
        elif converted and spec.quantizes:
            weight, inputs = None, None
        types[name] = (weight, inputs, converted)
    return types


def _weights(
    reference: nn.Module, model: nn.Module, kinds: dict[str, str], held: Types
) -> dict[str, dict[str, Any]]:
    """{layer: its columns on weights}."""
    ours, theirs = dict(reference.named_modules()), dict(model.named_modules())
    columns = {}
    for name, kind in kinds.items():
        weight = ours[name]._parameters.get("weight")
        if kind == "other" or weight is None:
            continue
        found = held_weight(theirs[name]) if name in theirs else None
        columns[name] = _weight_columns(weight.detach().float(), found, held[name][0])
    return columns


def _weight_columns(
    weight: torch.Tensor, found: torch.Tensor | None, kind: Held | None
) -> dict[str, Any]:
    """The columns on one weight against what the format holds in its place; what became infinite
    or zero is counted in that rather than reckoned from the type."""
    ranges, sums = RangeSums(kind), Sums()
    ranges.add(weight)
    state: str = "unavailable"
    decibels = None
    shares = ranges.shares()
    if found is not None and sums.add(weight, found):
        state, decibels = sqnr(sums.signal, sums.noise)
        held = found.to(weight.device)
        shares["overflow"] = sums.non_finite / weight.numel()
        shares["flushed"] = int(((held == 0) & (weight != 0)).sum()) / weight.numel()
    largest, smallest = ranges.ends()
    return {
        "weight_state": state,
        "weight_sqnr_db": decibels,
        "weight_type": kind.type.name if kind else None,
        "weight_scale": kind.scale_name if kind else None,
        "weight_elements": weight.numel(),
        "weight_max_abs": largest,
        "weight_min_abs": smallest,
        **{f"weight_{name}_share": value for name, value in shares.items()},
    }


# -- rows ----------------------------------------------------------------------------------------


def _rows(
    watch: ReferenceWatch,
    found: FormatWatch,
    weights: dict[str, dict[str, Any]],
    held: Types,
    kinds: dict[str, str],
    output_type: Held | None,
) -> list[dict[str, Any]]:
    rows = []
    for order, (name, seen) in enumerate(watch.layers.items()):
        layer = found.layers.get(name, FormatLayer())
        output_state, output_db = _state(layer.output, layer.mismatched)
        local_state, local_db = _state(layer.local, layer.mismatched)
        kind = held[name][1]
        input_max, input_min = seen.inputs.ends()
        linear = kinds[name] in ("linear", "head")
        rows.append(
            {
                "order": order,
                "layer": name,
                "kind": kinds[name],
                "converted": held[name][2],
                "rows": seen.rows,
                "output_state": output_state,
                "output_sqnr_db": output_db,
                "local_state": local_state,
                "local_sqnr_db": local_db,
                "weight_state": "unavailable",
                "non_finite_outputs": layer.output.non_finite,
                "input_type": kind.type.name if kind and seen.inputs.count else None,
                "input_scale": kind.scale_name if kind and seen.inputs.count else None,
                "input_max_abs": input_max,
                "input_min_abs": input_min,
                **{f"input_{k}_share": v for k, v in seen.inputs.shares().items()},
                "input_outlier_ratio": _finite(seen.outlier_ratio()) if linear else None,
                "output_type": output_type.type.name if output_type else None,
                "output_max_abs": seen.outputs.ends()[0],
                "output_overflow_share": seen.outputs.shares()["overflow"],
                **weights.get(name, {}),
            }
        )
    return rows


def _state(sums: Sums, mismatched: bool) -> tuple[str, float | None]:
    # A reference that is not finite itself says nothing about the format.
    if mismatched or not sums.compared or not math.isfinite(sums.signal):
        return "unavailable", None
    return sqnr(sums.signal, sums.noise)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _first(
    firsts: list[tuple[str, FirstNonFinite]], request: dict[str, Any]
) -> dict[str, Any] | None:
    """`records.numerics.NonFinite` of the first example that had one."""
    if not firsts:
        return None
    example, first = firsts[0]
    name = _passed_on(request)
    known = NUMBER_TYPES.get(name)
    return {
        "module": first.module,
        "example": example,
        "inputs_finite": first.inputs_finite,
        "input_max_abs": _finite(first.input_peak),
        "reference_output_max_abs": _finite(first.reference_peak),
        "type": name,
        "type_largest": known.largest if known else None,
        "after": first.after,
        "examples": len(firsts),
    }
