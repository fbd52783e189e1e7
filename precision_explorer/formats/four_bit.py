"""Linear layers of 4-bit weights, widened before each product."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from precision_explorer.formats import reference
from precision_explorer.formats.footprint import INT4_CPU_OUTPUTS, int4_group


def nf4_linear(linear: nn.Linear, dtype: torch.dtype) -> nn.Module | str:
    """`linear` with weights in 4-bit NormalFloat, blocks of 64 and doubly quantized scales, the
    scheme of QLoRA (Dettmers et al. 2023, sections 3 and 4), and products in `dtype`; the reason
    why it stays as it is where the library widens weights of its size wrongly."""
    import bitsandbytes as bnb

    outer, inner = linear.weight.shape
    if not _nf4_is_right(outer, inner, linear.weight.device, dtype):
        return (
            f"bitsandbytes widens nf4 weights of {inner} inputs wrongly here: blocks of "
            f"{reference.NF4_BLOCK} do not divide them"
        )
    new = bnb.nn.Linear4bit(
        inner, outer, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    # On a CPU with AVX512-BF16 the library would pack the weights anew at the first call, drop the
    # second quantization of the scales and fail where 32 or 64 do not divide the sizes: the row
    # would hold something else than was counted.
    new.support_avx512bf16_for_cpu = False
    weight = bnb.nn.Params4bit(
        linear.weight.detach(), blocksize=reference.NF4_BLOCK, quant_type="nf4", module=new
    )
    new.weight = weight.to(linear.weight.device)
    new.bias = linear.bias
    return new


@cache
def _nf4_is_right(outer: int, inner: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this size come back as the format has them. With AVX-512 bitsandbytes
    (seen in 0.50) takes the wrong scales where a block of 64 lies across two rows of a multiple of
    16 inputs: an error of 0.2 to 0.4 instead of 0.09. What kernels do hangs on the row's length and
    on what is left over in the end, so that fewer rows tell as much."""
    from bitsandbytes import functional

    rows = outer if outer < 128 else 64 + outer % 64
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, inner, generator=generator).to(device=device, dtype=dtype)
    packed, state = functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    found = functional.dequantize_4bit(packed, state).double().cpu()
    expected = reference.nf4_weight(weight.cpu())
    return bool((found - expected).norm() <= reference.tolerance(dtype) * expected.norm())


def int4_fits(linear: nn.Linear) -> str | None:
    """Why `linear` can't be held in groups of int4 on its device; None if it can."""
    outer, inner = linear.weight.shape
    if int4_group(inner) is None:
        return f"no group of 128, 64 or 32 divides its {inner} inputs"
    if linear.weight.device.type == "cpu" and outer % INT4_CPU_OUTPUTS:
        return f"torch's int4 kernel for CPUs takes multiples of 16 outputs, not {outer}"
    return None


def int4_config(group: int, packing: str) -> Any:
    """torchao's configuration of int4 weights with a scale and an offset per `group`, asymmetric,
    scale = (max - min) / 15, packed for torch's kernel of the device."""
    # The setter would change how every later `torch.compile` tunes its kernels.
    common = {"group_size": group, "set_inductor_config": False}
    if packing == "tile_packed_to_4d":
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(int4_packing_format=packing, **common)
    from torchao.prototype.quantization.int4.inference_workflow import (
        PrototypeInt4WeightOnlyConfig,
    )

    return PrototypeInt4WeightOnlyConfig(**common)
