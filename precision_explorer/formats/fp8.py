"""Linear layers of 8-bit weights on CUDA, as few operators around one product.

torchao's tensor subclasses are meant to be compiled. Called eagerly, those that quantize
activations spend some half a millisecond of Python on each product: on an H200 92 % of an
8B-shaped model's decode step passed between operators (`results/h200-decoder`). Those that hold
weights alone widen them in more passes over memory than a cast takes (57 and 85 % of the step).
Which way is taken is decided by the timed dry run in `dryrun`.
"""

from __future__ import annotations

import torch
from torch import nn

E4M3_MAX = 448.0
"""The largest value of e4m3 (OCP 8-bit Floating Point Specification, v1.0, table 1)."""
# A row of zeros has no scale; as torchao's.
_LEAST_PEAK = 1e-12
# cuBLASLt's fp8 GEMM takes multiples of 16 only (torch._scaled_mm's own check).
_MULTIPLE = 16


def _quantized(values: torch.Tensor, by_row: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, n) floats to e4m3 of the same shape, and float32 scales: (rows, 1), or (1, 1) for one
    of all. A scale is the largest magnitude over 448, in float32 whatever the input's type."""
    if by_row:
        peak = torch.linalg.vector_norm(
            values, float("inf"), dim=-1, keepdim=True, dtype=torch.float32
        )
    else:
        peak = values.abs().amax().float().reshape(1, 1)
    scale = peak.clamp_min(_LEAST_PEAK) / E4M3_MAX
    return (values / scale).to(torch.float8_e4m3fn), scale


class Float8Linear(nn.Module):
    """e4m3 weights times activations quantized at run time, by `torch._scaled_mm`: one scale per
    weight row and per activation row, or one of each tensor. Sums with fast accumulation, as
    torchao's do."""

    weight = None

    def __init__(self, linear: nn.Linear, by_row: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.by_row = by_row
        values, scale = _quantized(linear.weight.detach(), by_row)
        self.register_buffer("weight_8bit", values)
        self.register_buffer("scale", scale.t().contiguous())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, scale = _quantized(x.reshape(-1, self.in_features), self.by_row)
        y = torch._scaled_mm(
            values, self.weight_8bit.t(), scale_a=scale, scale_b=self.scale,
            out_dtype=x.dtype, use_fast_accum=True,
        )  # fmt: skip
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias

    def dequantized_weight(self) -> torch.Tensor:
        """(out, in) float32: the weight as it is held."""
        return self.weight_8bit.float() * self.scale.t()


class WidenedLinear(nn.Module):
    """8-bit weights with a scale per row, widened to the activations' type at each call. e4m3 and
    int8 values are exact in it, and the scale goes on the result, so the type must hold unscaled
    sums: bfloat16 or float32. ValueError for float16, in which they overflow."""

    weight = None

    def __init__(self, linear: nn.Linear, values: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        if linear.weight.dtype == torch.float16:
            raise ValueError("unscaled 8-bit weights overflow float16's sums; compute in bfloat16")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("weight_8bit", values)
        self.register_buffer("scale", scale.reshape(-1).float())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.linear(x, self.weight_8bit.to(x.dtype))
        y = (y * self.scale).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def dequantized_weight(self) -> torch.Tensor:
        """(out, in) float32: the weight as it is held."""
        return self.weight_8bit.float() * self.scale[:, None]


def float8_linear(linear: nn.Linear, by_row: bool) -> nn.Module | str:
    """The replacement of `linear`; or why the kernel can't multiply it."""
    if linear.in_features % _MULTIPLE or linear.out_features % _MULTIPLE:
        return f"the fp8 kernel takes sizes that are multiples of {_MULTIPLE} only"
    return Float8Linear(linear, by_row)


def widened_float8(linear: nn.Linear) -> nn.Module:
    """`linear` with its weight in e4m3, a scale per row."""
    return WidenedLinear(linear, *_quantized(linear.weight.detach(), by_row=True))


def widened_int8(linear: nn.Linear) -> nn.Module:
    """`linear` with its weight in int8, a scale per row."""
    from precision_explorer.formats.kernels import quantize_rows

    return WidenedLinear(linear, *quantize_rows(linear.weight))
