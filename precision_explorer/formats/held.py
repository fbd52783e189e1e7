"""The weight that a layer really holds, read back as float32 whatever wrapper stores it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from precision_explorer.formats.kernels import (
    ZERO_POINT,
    FbgemmLinear,
    IntMatmulLinear,
    OnednnLinear,
)
from precision_explorer.formats.static import static_weight

# LLM.int8() stores a row's largest magnitude as its scale; 127 is that value's integer
# (bitsandbytes' `int8_vectorwise_dequant`).
_INT8_LEVELS = 127


def held_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight of `module` as float32, as its format holds it; None where it can't be read back.

    To be called before the first forward pass, in which some libraries pack weights anew. A layer
    kind of one's own is read by its method `dequantized_weight`, if it has one.
    """
    own = getattr(module, "dequantized_weight", None)
    if callable(own):
        return own().float()
    packed = _of_kernels(module)
    if packed is not None:
        return packed
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    # Before the generic way: bitsandbytes' classes inherit torch's `dequantize`, which gives back
    # the bare integers.
    if hasattr(weight, "SCB"):
        return _llm_int8(module, weight)
    if hasattr(weight, "quant_state"):
        return _four_bit(weight)
    if type(weight) in (torch.Tensor, nn.Parameter):
        return weight.detach().float() if weight.is_floating_point() else None
    if type(weight).__name__.startswith("Int4"):
        return _by_identity(weight)
    dequantize = getattr(type(weight), "dequantize", torch.Tensor.dequantize)
    if dequantize is torch.Tensor.dequantize:
        return None
    return dequantize(weight.detach()).float()


def _by_identity(weight: Any) -> torch.Tensor:
    """torchao's 4-bit tensors, which are packed for a kernel and have no way back: that kernel
    leaves its inputs as they are, so rows of the identity bring out the weight."""
    inner = weight.shape[-1]
    rows = torch.eye(inner, dtype=weight.dtype, device=weight.device)
    return nn.functional.linear(rows, weight).t().float()


def _of_kernels(module: nn.Module) -> torch.Tensor | None:
    static = static_weight(module)
    if static is not None:
        return static
    if isinstance(module, IntMatmulLinear):
        return module.weight_int8.float() * module.scale[:, None]
    if isinstance(module, FbgemmLinear):
        return torch.ops.quantized.linear_unpack(module._packed)[0].dequantize()
    if isinstance(module, OnednnLinear):
        # Its blocks can't be unpacked, but rows with a single step above the zero point bring out
        # a column each. One step only: two larger products don't fit in the 16 bits in which CPUs
        # without VNNI add neighbours.
        one = torch.eye(module.in_features).add_(ZERO_POINT).to(torch.uint8)
        return module.integer_product(one).t()
    return None


def _llm_int8(module: nn.Module, weight: Any) -> torch.Tensor | None:
    state = getattr(module, "state", None)
    scales = weight.SCB if weight.SCB is not None else getattr(state, "SCB", None)
    if scales is None or weight.dtype != torch.int8:
        return None
    return weight.data.float() * (scales.float()[:, None] / _INT8_LEVELS)


def _four_bit(weight: Any) -> torch.Tensor | None:
    import bitsandbytes as bnb

    state = weight.quant_state
    # Packed for a CPU's own kernel, it is no longer what `dequantize_4bit` reads.
    if state is None or getattr(state, "packing_format_for_cpu", False):
        return None
    return bnb.functional.dequantize_4bit(weight.data, state).float()
