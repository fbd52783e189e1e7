"""Linear layers of int8 weights and int8 activations with run-time scales, one per kernel at hand.

All of them compute ``y = (q_x q_w^T) * s_x * s_w + b`` with one scale per weight row (output
channel) and one per activation row (token), symmetric, the scheme of LLM.int8() without outliers
(Dettmers et al. 2022, section 2) and of torchao's int8 dynamic. Which one is used is decided by the
timed dry run in `dryrun`, after its check against saturation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# A row of zeros has no scale; the smallest positive normal keeps its quotient 0 and finite.
_TINY = torch.finfo(torch.float32).tiny


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) float weight to int8 of the same shape and (out,) float32 scales."""
    weight = weight.detach().float()
    scale = weight.abs().amax(dim=1).clamp_min(_TINY) / 127.0
    return (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8), scale


class PackedInt8Linear(nn.Module):
    """torch's prepacked quantized GEMM (FBGEMM or oneDNN), made to scale per token.

    The operator quantizes its whole input with one scale. Each row is divided by its own largest
    magnitude first and the result multiplied by it, so that the one scale is each row's own and
    an answer does not depend on what else is in the batch.

    `reduce_range` keeps activations to 7 bits: without VNNI, pairs of u8 x s8 products are added
    in 16 bits, where 2 x 255 x 127 would saturate and 2 x 127 x 127 does not.
    """

    def __init__(self, linear: nn.Linear, engine: str, reduce_range: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.engine, self.reduce_range = engine, reduce_range
        values, scale = quantize_rows(linear.weight)
        packed = torch._make_per_channel_quantized_tensor(
            values, scale.double(), torch.zeros(self.out_features, dtype=torch.long), 0
        )
        torch.backends.quantized.engine = engine
        self._packed: Any = torch.ops.quantized.linear_prepack(packed, None)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        peak = x.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY)
        y = torch.ops.quantized.linear_dynamic(x / peak, self._packed, self.reduce_range)
        y = y.mul_(peak)
        return y if self.bias is None else y.add_(self.bias)

    def stored(self) -> dict[str, tuple[int, int]]:
        """{dtype: (elements, bytes)} of the packed weight: int8 values, and for each output row a
        float32 scale, an int32 zero point and an int32 column offset (FBGEMM's PackedLinearWeight).
        """
        weight = torch.ops.quantized.linear_unpack(self._packed)[0]
        values, rows = weight.int_repr(), weight.shape[0]
        return {
            "int8": (values.numel(), values.numel()),
            "float32": (rows, 4 * rows),
            "int32": (2 * rows, 8 * rows),
        }


class IntMatmulLinear(nn.Module):
    """`torch._int_mm`: int8 x int8 into int32, the tensor cores' or oneDNN's own GEMM."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = quantize_rows(linear.weight)
        # Column-major for the GEMM's second operand, without a copy at each call.
        self.register_buffer("weight_int8", values)
        self.register_buffer("scale", scale.to(linear.weight.device))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.out_features)
        rows = x.reshape(-1, self.in_features)
        scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp_min(_TINY) / 127.0
        values = (rows / scale).round().clamp(-127, 127).to(torch.int8)
        count = values.shape[0]
        if values.is_cuda and count <= 16:
            # cuBLASLt's int8 GEMM refuses 16 rows or fewer (torch._int_mm's own check).
            values = nn.functional.pad(values, (0, 0, 0, 17 - count))
        y = torch._int_mm(values, self.weight_int8.t())[:count]
        y = (y.float() * scale * self.scale).to(x.dtype).reshape(shape)
        return y if self.bias is None else y + self.bias


CPU_KERNELS: tuple[str, ...] = (
    "fbgemm-per-token",
    "fbgemm-per-token-7bit",
    "onednn-per-token",
    "onednn-per-token-7bit",
    "int-mm",
    "torchao",
)
CUDA_KERNELS: tuple[str, ...] = ("int-mm", "torchao")


def int8_linear(linear: nn.Linear, kernel: str) -> nn.Module:
    """The replacement of `linear` by `kernel` (not ``torchao``, which rewrites in place)."""
    if kernel == "int-mm":
        return IntMatmulLinear(linear)
    engine = kernel.split("-")[0]
    return PackedInt8Linear(linear, engine, reduce_range=kernel.endswith("7bit"))
