"""Block formats with a small floating-point scale per block: OCP MX and NVIDIA's NVFP4."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from precision_explorer.formats.footprint import BLOCK_OUTPUTS, BLOCKS


def fits(format_id: str, linear: nn.Linear) -> str | None:
    """Why `linear` can't be held in the format; None if it can. The same on all devices, so that an
    emulated row answers for the hardware."""
    outer, inner = linear.weight.shape
    if inner % BLOCKS[format_id]:
        return f"blocks of {BLOCKS[format_id]} do not divide its {inner} inputs"
    if outer % BLOCK_OUTPUTS:
        return f"the kernels take multiples of {BLOCK_OUTPUTS} outputs, not {outer}"
    return None


def mxfp8_config(kernel: str) -> Any:
    """torchao's configuration of MXFP8 (OCP Microscaling Formats v1.0: e4m3, blocks of 32, e8m0
    scales). Scales are rounded up, so that no value saturates, as Blackwell's instructions do,
    where OCP's section 6.3 rounds down."""
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig
    from torchao.quantization.quantize_.common.kernel_preference import KernelPreference

    emulated = kernel == "emulated"
    preference = KernelPreference.EMULATED if emulated else KernelPreference.AUTO
    return MXDynamicActivationMXWeightConfig(kernel_preference=preference)


def nvfp4_config() -> Any:
    """torchao's configuration of NVFP4 on hardware that has it: e2m1 in blocks of 16, e4m3 scales,
    a float32 scale per tensor, also of activations, at run time."""
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig

    # The fused kernel needs a package of its own (mslk); the result is the same.
    return NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False)


def take_any_layout(linear: nn.Module) -> None:
    """Lay inputs out in order before `linear`: torchao's rounding refuses slices and transposed
    views (a pooler's first token, say)."""
    linear.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))


class EmulatedNvfp4Linear(nn.Module):
    """NVFP4 without its hardware: torchao's own rounding of weights and activations, then a product
    of the rounded values in the compute type."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(_nvfp4(linear.weight.detach()), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = _nvfp4(x.reshape(-1, self.in_features)).dequantize()
        y = nn.functional.linear(rows, self.weight.dequantize(), self.bias)  # type: ignore[operator]
        return y.reshape(*x.shape[:-1], self.out_features)


def _nvfp4(tensor: torch.Tensor) -> Any:
    """`tensor` (rows, columns) in NVFP4, scaled by its own largest magnitude."""
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    scale = per_tensor_amax_to_scale(tensor.abs().max())
    return NVFP4Tensor.to_nvfp4(
        tensor.contiguous(), per_tensor_scale=scale, is_swizzled_scales=True
    )
