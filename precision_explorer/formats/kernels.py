"""Linear layers of int8 weights and int8 activations with run-time scales, one per kernel at hand.

All of them compute ``y = (q_x q_w^T) * s_x * s_w + b`` with one scale per weight row (output
channel) and one per activation row (token), symmetric, the scheme of LLM.int8() without outliers
(Dettmers et al. 2022, section 2) and of torchao's int8 dynamic. Which one is used is decided by the
timed dry run in `dryrun`, after its check against saturation.
"""

from __future__ import annotations

from functools import cache
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from precision_explorer.formats.footprint import fbgemm_block
from precision_explorer.hardware.cpu import parse_cpuinfo, read_cpuinfo

# A row of zeros has no scale; the smallest positive normal keeps its quotient 0 and finite.
_TINY = torch.finfo(torch.float32).tiny
_LEVELS = 127
# Of the unsigned bytes that hold an activation.
ZERO_POINT = _LEVELS + 1


def quantize_rows(weight: torch.Tensor, paired: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, in) float weight to int8 of the same shape, and (out,) float32 scales. `paired`: no
    two neighbours of one sign, of which the first stands in an even column, sum to more than 128
    (see `_PackedLinear`)."""
    weight = weight.detach().float()
    reach = _pair_sums(weight) if paired else weight.abs()
    scale = reach.amax(dim=1).clamp_min(_TINY) / _LEVELS
    return (weight / scale[:, None]).round().clamp(-_LEVELS, _LEVELS).to(torch.int8), scale


def _pair_sums(weight: torch.Tensor) -> torch.Tensor:
    """(out, pairs) the larger of the sums of each pair's positive and of its negative weights."""
    even = nn.functional.pad(weight, (0, weight.shape[1] % 2))
    pairs = even.reshape(len(even), -1, 2)
    return torch.maximum(pairs.clamp_min(0).sum(-1), (-pairs).clamp_min(0).sum(-1))


class _PackedLinear(nn.Module):
    """A GEMM of unsigned 8-bit activations and prepacked int8 weights.

    Each row is divided by its own largest magnitude and quantized with one fixed scale and zero
    point, and the result is multiplied back, so that an answer does not depend on what else is in
    the batch (torch's `linear_dynamic` would take the range of the whole input).

    `paired` is for processors without VNNI, where the products of neighbours are added in 16 bits
    (vpmaddubsw): two weights of 127 by two inputs of 255 would saturate. It scales each row so that
    no pair of one sign sums to more than 128, and 255 x 128 stays below 32,767; that costs less
    than halving every weight's range. A `factor` is multiplied into the weight's scales.
    """

    # Some models ask a layer for its weight's type before they call it (T5's feed-forward block).
    weight = None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.number = next(_NUMBERS)
        _LAYERS[self.number] = self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).float()
        peak = rows.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY)
        y = self.multiplied(self.quantized(rows / peak)).mul_(peak)
        y = y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y.add_(self.bias)

    def multiplied(self, values: torch.Tensor) -> torch.Tensor:
        """`product`, as one operator where torch.compile is tracing."""
        if torch.compiler.is_compiling():
            return packed_product(values, self.number, self.out_features)
        return self.product(values)

    def quantized(self, unit: torch.Tensor) -> torch.Tensor:
        """`unit`, rows within -1 to 1, as `product` takes it; may overwrite it."""
        return unit

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """What `quantized` gave times the weight, in float32."""
        raise NotImplementedError


# Packed weights are objects that a graph can't hold: the compiled code names its layer by number.
_NUMBERS = count()
_LAYERS: WeakValueDictionary[int, _PackedLinear] = WeakValueDictionary()


@torch.library.custom_op("precision_explorer::packed_product", mutates_args=())
def packed_product(values: torch.Tensor, number: int, outer: int) -> torch.Tensor:
    """(rows, in) values times the packed weight of layer `number`: (rows, `outer`) float32, in one
    operator, around which torch.compile needs not break the graph."""
    return _LAYERS[number].product(values)


@packed_product.register_fake
def _packed_product_shape(values: torch.Tensor, number: int, outer: int) -> torch.Tensor:
    return values.new_empty((values.shape[0], outer), dtype=torch.float32)


class FbgemmLinear(_PackedLinear):
    """FBGEMM, torch's own int8 GEMM of x86."""

    def __init__(self, linear: nn.Linear, paired: bool, factor: float = 1.0) -> None:
        super().__init__(linear)
        values, scale = quantize_rows(linear.weight, paired)
        scale = scale * factor
        weight = torch._make_per_channel_quantized_tensor(
            values, scale.double(), torch.zeros(self.out_features, dtype=torch.long), 0
        )
        torch.backends.quantized.engine = "fbgemm"
        self._packed: Any = torch.ops.quantized.linear_prepack(weight, None)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Floats times the weight; quantized, and the result scaled, inside the operator."""
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            values, 1.0 / _LEVELS, ZERO_POINT, self._packed
        )

    def exact(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, out) float64: what `forward` would give for (rows, in) `x` if integers were added
        without any limit."""
        rows = x.reshape(-1, self.in_features).float()
        peak = rows.abs().amax(dim=-1, keepdim=True).clamp_min(_TINY)
        return self.exact_product(rows / peak * _LEVELS, peak.double() / _LEVELS)

    def exact_product(self, steps: torch.Tensor, step: torch.Tensor | float) -> torch.Tensor:
        """(rows, out) float64: `steps`, rounded and held within -128 to 127, times the weight and
        the size `step` of one, plus the bias."""
        values = steps.round().clamp(-_LEVELS - 1, _LEVELS).double()
        weight, _ = torch.ops.quantized.linear_unpack(self._packed)
        y = values @ weight.int_repr().double().t() * weight.q_per_channel_scales().double() * step
        return y if self.bias is None else y + self.bias.double()

    def stored(self) -> dict[str, tuple[int, int]]:
        """{dtype: (elements, bytes)} of the packed weight: int8 values in whole blocks, and for
        each output row a float32 scale, an int32 zero point and an int32 column offset."""
        outer, inner = fbgemm_block(_cpu_flags())
        rows, columns = self.out_features, self.in_features
        padded = -(-rows // outer) * outer * (-(-columns // inner) * inner)
        return {
            "int8": (rows * columns, padded),
            "float32": (rows, 4 * rows),
            "int32": (2 * rows, 8 * rows),
        }


@cache
def _cpu_flags() -> frozenset[str]:
    return frozenset(parse_cpuinfo(read_cpuinfo()).flags)


class OnednnLinear(_PackedLinear):
    """oneDNN's int8 GEMM, which uses AMX where there is one."""

    def __init__(self, linear: nn.Linear, paired: bool, factor: float = 1.0) -> None:
        super().__init__(linear)
        values, scale = quantize_rows(linear.weight, paired)
        scale = scale * factor
        self._packed = torch.ops.onednn.qlinear_prepack(values, None)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(self.out_features, dtype=torch.int32))

    def quantized(self, unit: torch.Tensor) -> torch.Tensor:
        """Unsigned bytes around the zero point."""
        return unit.mul_(_LEVELS).round_().add_(ZERO_POINT).to(torch.uint8)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """Bytes times the weight."""
        return self.integer_product(values).div_(_LEVELS)

    def integer_product(self, values: torch.Tensor) -> torch.Tensor:
        """The unsigned `values`, of zero point 128 and scale 1, times the weight, in float32."""
        return torch.ops.onednn.qlinear_pointwise(
            values, 1.0, ZERO_POINT, self._packed, self.scale, self.zero,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    def stored(self) -> dict[str, tuple[int, int]]:
        """{dtype: (elements, bytes)} of the packed weight; scales are ordinary buffers."""
        elements = self.out_features * self.in_features
        return {"int8": (elements, torch.ops.mkldnn._nbytes(self._packed))}


class IntMatmulLinear(nn.Module):
    """`torch._int_mm`: int8 x int8 into int32, the tensor cores' or oneDNN's own GEMM."""

    weight = None

    def __init__(self, linear: nn.Linear, factor: float = 1.0) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = quantize_rows(linear.weight)
        scale = scale * factor
        # Column-major for the GEMM's second operand, without a copy at each call.
        self.register_buffer("weight_int8", values)
        self.register_buffer("scale", scale.to(linear.weight.device))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:-1], self.out_features)
        rows = x.reshape(-1, self.in_features)
        scale = rows.abs().amax(dim=-1, keepdim=True).float().clamp_min(_TINY) / 127.0
        values = (rows / scale).round().clamp(-127, 127).to(torch.int8)
        y = self.integer_product(values)
        y = (y.float() * scale * self.scale).to(x.dtype).reshape(shape)
        return y if self.bias is None else y + self.bias

    def integer_product(self, values: torch.Tensor) -> torch.Tensor:
        """(rows, in) int8 times the int8 weight, in int32."""
        count = values.shape[0]
        if values.is_cuda and count <= 16:
            # cuBLASLt's int8 GEMM refuses 16 rows or fewer (torch._int_mm's own check).
            values = nn.functional.pad(values, (0, 0, 0, 17 - count))
        return torch._int_mm(values, self.weight_int8.t())[:count]


CPU_KERNELS: tuple[str, ...] = (
    "fbgemm-per-token",
    "fbgemm-per-token-paired",
    "onednn-per-token",
    "onednn-per-token-paired",
    "int-mm",
    "torchao",
)
CUDA_KERNELS: tuple[str, ...] = ("int-mm", "torchao")


def int8_linear(linear: nn.Linear, kernel: str) -> nn.Module:
    """The replacement of `linear` by `kernel` (not ``torchao``, which rewrites in place); `linear`
    itself where the kernel can't multiply its sizes."""
    if kernel == "int-mm":
        sizes = (linear.in_features, linear.out_features)
        # cuBLASLt's int8 GEMM takes multiples of 8 only (torch._int_mm's own check).
        if linear.weight.is_cuda and any(size % 8 for size in sizes):
            return linear
        return IntMatmulLinear(linear)
    layer = FbgemmLinear if kernel.startswith("fbgemm") else OnednnLinear
    return layer(linear, kernel.endswith("paired"))
