"""Applying a format to a loaded model: one handler per format, registered by id.

A handler changes the model in place and may not judge its own success: `apply_format` counts what
was converted afterwards and refuses a label that would be untrue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import microscaling
from precision_explorer.formats.autocast import autocast_forward
from precision_explorer.formats.catalog import (
    AS_SHIPPED,
    MIXED,
    SCALED_MM,
    WIDENED,
    is_mixed,
    spec_of,
)
from precision_explorer.formats.footprint import int4_group
from precision_explorer.formats.four_bit import int4_config, int4_fits, nf4_linear
from precision_explorer.formats.fp8 import (
    float8_linear,
    widened_float8,
    widened_int8,
)
from precision_explorer.formats.kernels import int8_linear
from precision_explorer.formats.recipe import layers_of
from precision_explorer.formats.static import Calibrate, observe, static_linear
from precision_explorer.formats.verify import Layout, census, layout, left_behind, shipped_layout
from precision_explorer.records import AppliedFormat, Caution, LeftBehind
from precision_explorer.units import share

# What a handler leaves as it was on purpose it returns: {layer: why}.
Reasons = dict[str, str]
# (model, its layout, recipe); those of formats that calibrate take the run that does it as well.
Handler = Callable[..., Reasons | None]
_HANDLERS: dict[str, Handler] = {}


def handler(*formats: str) -> Callable[[Handler], Handler]:
    """Register a function as the handler of `formats`."""

    def register(function: Handler) -> Handler:
        for name in formats:
            _HANDLERS[name] = function
        return function

    return register


def compute_dtype(recipe: dict[str, Any]) -> torch.dtype:
    """The dtype in which the model is loaded and everything unconverted computes."""
    return getattr(torch, recipe["compute_dtype"])


def set_matmul_precision(format_id: str) -> None:
    """TF32 on for `tf32`, off for all others, whatever the library's default is."""
    allowed = format_id == "tf32"
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@handler("fp32", "tf32", "bf16", "fp16")
def _cast(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> None:
    """Loading in the dtype is the format. Only a model loaded in another one is cast, and only its
    parameters: transformers keeps in float32 what must stay wide, such as rotary frequencies."""
    dtype = compute_dtype(recipe)
    found = [p for p in model.parameters() if p.is_floating_point()]
    if any(p.dtype == dtype for p in found):
        return
    for parameter in found:
        parameter.data = parameter.data.to(dtype)


def _torchao(
    model: nn.Module, plan: Layout, config: Any, targets: Collection[str] | None = None
) -> None:
    """Convert `targets` in place (all of the plan's, if None)."""
    from torchao.quantization import quantize_

    chosen = set(plan.targets if targets is None else targets)
    quantize_(model, config, filter_fn=lambda module, name: name in chosen)


def _too_odd(model: nn.Module, plan: Layout, why_not: Callable[[nn.Linear], str | None]) -> Reasons:
    """The targets that `why_not` rules out, with its reasons."""
    found = {name: why_not(cast(nn.Linear, model.get_submodule(name))) for name in plan.targets}
    return {name: why for name, why in found.items() if why is not None}


@handler("int8-weight-only")
def _int8_weight_only(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons | None:
    if recipe["kernel"] == WIDENED:
        return _replace(model, plan, widened_int8)
    from torchao.quantization import Int8WeightOnlyConfig

    _torchao(model, plan, Int8WeightOnlyConfig())
    return None


@handler("fp8-weight-only")
def _fp8_weight_only(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons | None:
    if recipe["kernel"] == WIDENED:
        return _replace(model, plan, widened_float8)
    from torchao.quantization import Float8WeightOnlyConfig

    _torchao(model, plan, Float8WeightOnlyConfig())
    return None


@handler("fp8-dynamic")
def _fp8_dynamic(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons | None:
    if recipe["kernel"] == SCALED_MM:
        return _replace(model, plan, partial(float8_linear, by_row=True))
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    _torchao(model, plan, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    return None


@handler("int8-dynamic")
def _int8_dynamic(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> None:
    kernel = recipe["kernel"]
    if kernel == "torchao":
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig

        _torchao(model, plan, Int8DynamicActivationInt8WeightConfig())
        return
    _replace(model, plan, lambda linear: int8_linear(linear, kernel))


@handler("int8-static")
def _int8_static(
    model: nn.Module, plan: Layout, recipe: dict[str, Any], calibrate: Calibrate
) -> None:
    peaks = observe(model, plan.targets, calibrate)
    for name in plan.targets:
        if model.get_submodule(name) not in peaks:
            plan.kept[name] = "no calibration text reached it, so its input's range is unknown"

    def convert(linear: nn.Linear) -> nn.Module:
        # Taken out, so that what is replaced is freed.
        peak = peaks.pop(linear, None)
        if peak is None:
            return linear
        return static_linear(linear, recipe["kernel"], peak, recipe["smoothing_alpha"])

    _replace(model, plan, convert)


@handler("int8-llm")
def _int8_llm(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> None:
    import bitsandbytes as bnb

    # At each call it would log that inputs are rounded to float16, which `support` says in its
    # reason: hundreds of lines a request, written while the latency is measured.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    def convert(linear: nn.Linear) -> nn.Module:
        # The outlier threshold of the paper (Dettmers et al. 2022, section 3.2).
        new = bnb.nn.Linear8bitLt(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            has_fp16_weights=False,
            threshold=6.0,
            device="meta",
        )
        device = linear.weight.device
        weight = linear.weight.detach()
        new.weight = bnb.nn.Int8Params(
            weight.cpu(), requires_grad=False, has_fp16_weights=False
        ).to(device)
        new.bias = linear.bias
        return new

    _replace(model, plan, convert)


@handler("fp8-dynamic-per-tensor")
def _fp8_dynamic_per_tensor(
    model: nn.Module, plan: Layout, recipe: dict[str, Any]
) -> Reasons | None:
    if recipe["kernel"] == SCALED_MM:
        return _replace(model, plan, partial(float8_linear, by_row=False))
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerTensor

    _torchao(model, plan, Float8DynamicActivationFloat8WeightConfig(granularity=PerTensor()))
    return None


@handler("mxfp8")
def _mxfp8(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons:
    return _in_blocks("mxfp8", microscaling.mxfp8_config(recipe["kernel"]), model, plan)


@handler("nvfp4")
def _nvfp4(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons:
    if recipe["kernel"] == "emulated":
        return _replace(
            model,
            plan,
            lambda linear: (
                microscaling.fits("nvfp4", linear) or microscaling.EmulatedNvfp4Linear(linear)
            ),
        )
    return _in_blocks("nvfp4", microscaling.nvfp4_config(), model, plan)


def _in_blocks(format_id: str, config: Any, model: nn.Module, plan: Layout) -> Reasons:
    left = _too_odd(model, plan, partial(microscaling.fits, format_id))
    chosen = set(plan.targets) - set(left)
    _torchao(model, plan, config, chosen)
    for name in chosen:
        microscaling.take_any_layout(model.get_submodule(name))
    return left


@handler("int4-weight-only")
def _int4_weight_only(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons:
    left = _too_odd(model, plan, int4_fits)
    groups: dict[int, list[str]] = {}
    for name in set(plan.targets) - set(left):
        linear = cast(nn.Linear, model.get_submodule(name))
        groups.setdefault(cast(int, int4_group(linear.in_features)), []).append(name)
    for group, names in groups.items():
        _torchao(model, plan, int4_config(group, recipe["packing"]), names)
    return left


@handler("bf16-autocast")
def _bf16_autocast(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> None:
    autocast_forward(model, torch.bfloat16)


@handler("nf4")
def _nf4(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons:
    # Those that the library itself leaves: T5's feed-forward block casts its activations to the
    # type of such a layer's weight, and packed weights are bytes.
    wide = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    kept = [name for name in plan.targets if name.rpartition(".")[2] in wide]
    rest = replace(plan, targets=tuple(name for name in plan.targets if name not in kept))
    reasons = _replace(model, rest, lambda linear: nf4_linear(linear, compute_dtype(recipe)))
    return reasons | dict.fromkeys(
        kept, "the model's code casts its inputs to the weight's type, which would be bytes"
    )


@handler(AS_SHIPPED)
def _as_shipped(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> None:
    """Loading was the format. One token goes through, since a library may widen its weights only
    when they are first used (compressed-tensors does), and what is counted must be what serves."""
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    device = next(model.parameters()).device
    model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=device))


def convert(
    model: nn.Module, format_id: str, plan: Layout, recipe: dict[str, Any], *more: Any
) -> Reasons:
    """Let the format's handler change `plan.targets` in place; why it left some on purpose. What it
    did is for the caller to count; `apply_format` does. `more` as the handler takes it."""
    handle = _HANDLERS[MIXED if is_mixed(format_id) else format_id]
    return handle(model, plan, recipe, *more) or {}


@handler(MIXED)
def _mixed(model: nn.Module, plan: Layout, recipe: dict[str, Any]) -> Reasons:
    """Each format of a recipe on its own layers."""
    layers: dict[str, list[str]] = recipe["layers"]
    unknown = sorted({n for held in layers.values() for n in held} - set(plan.targets))
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise FormatNotApplied(
            f"the recipe names {', '.join(unknown[:3])}{more}, which the model has not as a linear "
            "layer that can be converted; correct the recipe"
        )
    reasons: Reasons = {}
    for format_id, held in layers.items():
        part = replace(plan, targets=tuple(held))
        reasons |= convert(model, format_id, part, recipe["parts"][format_id])
    return reasons


def _replace(
    model: nn.Module, plan: Layout, make: Callable[[nn.Linear], nn.Module | str]
) -> Reasons:
    """Replace each target by `make(target)`, one at a time, so that memory grows by one layer. A
    text in its place is the reason why the target stays; these are returned."""
    reasons = {}
    for name in plan.targets:
        parent_name, _, child = name.rpartition(".")
        parent = model.get_submodule(parent_name)
        old = getattr(parent, child)
        new = make(old)
        if isinstance(new, str):
            reasons[name] = new
            continue
        new.train(False)
        setattr(parent, child, new)
        _keep_hook(old, new)
    return reasons


def _keep_hook(old: nn.Module, new: nn.Module) -> None:
    """Where a model is spread over several devices, what brings a layer's input to its own
    (accelerate's hook) is the new layer's too."""
    hook = getattr(old, "_hf_hook", None)
    if hook is not None and new is not old:
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(new, hook)


@dataclass(frozen=True)
class Outcome:
    """`cautions` name what a reader of the row must know about the conversion; `layout` and
    `held_in` are the layers as loaded and the dtype that holds each now."""

    applied: AppliedFormat
    cautions: list[Caution]
    layout: Layout
    held_in: dict[str, str]


def apply_format(
    model: nn.Module,
    format_id: str,
    recipe: dict[str, Any],
    execution: str,
    reason: str,
    calibrate: Calibrate | None = None,
) -> Outcome:
    """Apply `format_id` in place and count what was converted. `calibrate` runs the model on its
    calibration texts, for formats that look at them.

    Raises FormatNotApplied when not one weight element is held in the format (formats of
    arithmetic only apart), since the row's name would be untrue.
    """
    spec = spec_of(format_id)
    shipped = format_id == AS_SHIPPED
    before = _shipped_layout(model, recipe) if shipped else layout(model)
    set_matmul_precision(format_id)
    with torch.no_grad():
        more = [calibrate] if spec.calibrates else []
        reasons = convert(model, format_id, before, recipe, *more)
    # Some versions of torchao allow TF32 for the whole process along with Inductor's settings.
    set_matmul_precision(format_id)
    after = census(model)
    converted: int | None = None
    held: float | None = None
    left: list[LeftBehind] = []
    on_purpose: dict[str, str] = {}
    if spec.storage is not None:
        wanted, on_purpose = _wanted(before, format_id, recipe)
        reasons |= on_purpose
        converted, left = left_behind(before, after, wanted, recipe["compute_dtype"], reasons)
        if converted == 0 and not shipped:
            raise FormatNotApplied(
                f"{format_id} converted none of the model's {len(before.elements)} linear layers; "
                f"the first left behind: {_first_reason(left)}; run it without this format"
            )
        held = converted / before.linear_elements
    if shipped and converted == 0:
        execution = "emulated"
    applied = AppliedFormat(
        format=format_id,
        execution=execution,  # type: ignore[arg-type]
        reason=reason,
        library=recipe["library"],
        kernel=recipe["kernel"],
        compute_dtype=recipe["compute_dtype"],
        linear_elements=before.linear_elements,
        converted_elements=converted,
        converted_share=held,
        weight_bytes=after.weight_bytes,
        elements_by_dtype=after.elements_by_dtype,
        bytes_by_dtype=after.bytes_by_dtype,
        left_behind=left,
    )
    return Outcome(applied, _cautions({*before.heads, *on_purpose}, applied), before, after.held_in)


def _wanted(
    before: Layout, format_id: str, recipe: dict[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """({layer: the storage it must be found in}, {layer that is meant to stay: why})."""
    layers = layers_of(format_id, recipe, before.elements)
    wanted = {name: str(spec_of(part).storage) for part, held in layers.items() for name in held}
    rest = [name for name in before.targets if name not in wanted]
    return wanted, dict.fromkeys(rest, f"the recipe leaves it in {recipe.get('base')}")


def _first_reason(left: list[LeftBehind]) -> str:
    return f"{left[0].name} ({left[0].reason})" if left else "the model has no linear layer"


def _shipped_layout(model: nn.Module, recipe: dict[str, Any]) -> Layout:
    return shipped_layout(model, recipe.get("ignored", ()), recipe.get("weight_bits"))


def _cautions(meant: set[str], applied: AppliedFormat) -> list[Caution]:
    """`meant`: the layers that were to stay as they were."""
    if applied.format == AS_SHIPPED and applied.converted_elements == 0:
        return [
            Caution(
                id="shipped-widened",
                message=f"the library widened all weights to {applied.compute_dtype}: quality is "
                "that of the checkpoint's weights, speed and memory are not what a server that "
                "computes in its scheme would show",
            )
        ]
    surprising = [layer for layer in applied.left_behind if layer.name not in meant]
    if not surprising:
        return []
    names = ", ".join(layer.name for layer in surprising[:5])
    more = f" and {len(surprising) - 5} more" if len(surprising) > 5 else ""
    return [
        Caution(
            id="partly-converted",
            message=f"{applied.format} holds {share(applied.converted_share)} of the linear "
            f"weights; {names}{more} stayed as they were; read the row as a mixture",
        )
    ]
