"""What a format makes of numbers, by its definition, in float64: what a kernel's answer in the dry
run is held against. A format rounds by as much as it must; a kernel may not add to that.
"""

from __future__ import annotations

from typing import Any

import torch

# 4-bit NormalFloat: quantiles of the standard normal distribution, scaled to -1 to 1 (QLoRA,
# Dettmers et al. 2023, appendix E).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_E4M3_MAX = 448.0
# The magnitudes of e2m1 (OCP Microscaling Formats v1.0, section 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
NF4_BLOCK, _NF4_SCALE_BLOCK = 64, 256


def _nearest(values: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Each of `values` moved to the nearest entry of the sorted `codebook`."""
    borders = (codebook[1:] + codebook[:-1]) / 2
    return codebook[torch.bucketize(values.contiguous(), borders)]


def _e2m1(magnitudes: torch.Tensor) -> torch.Tensor:
    """`magnitudes` in e2m1, ties to the even mantissa as in IEEE 754: inputs of 8 bits hit them."""
    values = torch.tensor(_E2M1, dtype=torch.float64)
    borders = (values[1:] + values[:-1]) / 2
    below, above = (torch.bucketize(magnitudes, borders, right=right) for right in (False, True))
    return values[torch.where(below % 2 == 0, below, above)]


def _blocks(flat: torch.Tensor, size: int) -> torch.Tensor:
    """`flat` as rows of `size`, the last one filled up with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def dynamic_codebook() -> torch.Tensor:
    """The 256 values of dynamic tree quantization with a sign: for each power of ten down to 1e-6 a
    linear fraction in the bits left over (8-bit Optimizers, Dettmers et al. 2022, section 1.3)."""
    positive = []
    for bits in range(7):
        borders = torch.linspace(0.1, 1, 2**bits + 1, dtype=torch.float64)
        positive.append((borders[1:] + borders[:-1]) / 2 * 10.0 ** (bits - 6))
    steps = torch.cat(positive)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([-steps, steps, ends]).sort().values


def nf4_weight(weight: torch.Tensor) -> torch.Tensor:
    """`weight` in NF4: blocks of 64, whose largest magnitudes less their mean are quantized in turn
    to 8 bits in blocks of 256 (QLoRA, sections 3 and 4)."""
    blocks = _blocks(weight.double().flatten(), NF4_BLOCK)
    peak = blocks.abs().amax(dim=1)
    values = _nearest(blocks / peak.clamp_min(1e-30)[:, None], torch.tensor(NF4_VALUES).double())
    mean = peak.mean()
    rest = _blocks(peak - mean, _NF4_SCALE_BLOCK)
    largest = rest.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    scales = (_nearest(rest / largest, dynamic_codebook()) * largest).flatten()[: len(peak)] + mean
    return (values * scales[:, None]).flatten()[: weight.numel()].view(weight.shape)


def int4_weight(weight: torch.Tensor, group: int) -> torch.Tensor:
    """`weight` in 16 steps from the smallest to the largest of each group of `group` inputs. Scale,
    offset and quotient are rounded to the compute type, as the format is stored in it."""
    groups = weight.reshape(weight.shape[0], -1, group)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    tiny = 1e-6 if weight.dtype == torch.float32 else torch.finfo(weight.dtype).smallest_normal
    scale = ((high - low) / 15).clamp_min(tiny)
    middle = low + scale * 8
    values = ((groups - (middle - scale * 8)) / scale).round().clamp(0, 15)
    return ((values.double() - 8) * scale.double() + middle.double()).view(weight.shape)


def fp8_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in e4m3 (OCP 8-bit Floating Point, v1.0) with one scale, its largest magnitude over
    448."""
    scale = tensor.abs().max().float().clamp_min(1e-12) / _E4M3_MAX
    return (tensor.float() / scale).to(torch.float8_e4m3fn).double() * scale.double()


def mxfp8_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in MXFP8: e4m3 in blocks of 32 inputs, each with the power of two as scale that is
    the least in which no value saturates (OCP Microscaling Formats v1.0, section 5; the scale as in
    cuBLAS's documentation, "1D Block Scaling")."""
    blocks = tensor.float().reshape(tensor.shape[0], -1, 32)
    peak = blocks.abs().amax(dim=2, keepdim=True)
    exponent = (peak / _E4M3_MAX).log2().ceil().clamp(-127, 127)
    values = (blocks / exponent.exp2()).to(torch.float8_e4m3fn)
    return (values.double() * exponent.double().exp2()).view(tensor.shape)


def nvfp4_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in NVFP4: e2m1 in blocks of 16 inputs, each with an e4m3 scale, and one float32
    scale that brings the largest of these to 448 (NVIDIA, Pretraining Large Language Models with
    NVFP4, 2025, appendix C)."""
    blocks = tensor.float().reshape(tensor.shape[0], -1, 16)
    peak = blocks.abs().amax(dim=2, keepdim=True)
    whole = peak.max() / (_E4M3_MAX * _E2M1[-1])
    least = torch.finfo(torch.float8_e4m3fn).tiny
    scale = (peak / _E2M1[-1] / whole).clamp(least, _E4M3_MAX).to(torch.float8_e4m3fn).float()
    unit = blocks * ((1 / whole) / scale)
    values = _e2m1(unit.abs().double()) * unit.sign()
    return (values * scale.double() * whole.double()).view(tensor.shape)


def product(
    format_id: str, recipe: dict[str, Any], x: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor | None:
    """``x weight^T`` in float64 after rounding `x` (rows, in) and `weight` (out, in), which are in
    the compute type, to the format; None for a format that has no emulation here."""
    if format_id == "nf4":
        return x.double() @ nf4_weight(weight).t()
    if format_id == "int4-weight-only":
        sizes = (size for size in recipe["group_size"] if weight.shape[1] % size == 0)
        return x.double() @ int4_weight(weight, next(sizes)).t()
    both = {
        "fp8-dynamic-per-tensor": fp8_tensor,
        "mxfp8": mxfp8_tensor,
        "nvfp4": nvfp4_tensor,
    }.get(format_id)
    return None if both is None else both(x) @ both(weight).t()


def tolerance(dtype: torch.dtype) -> float:
    """The relative deviation (Frobenius) from `product` that the compute type `dtype` explains.

    A widened weight, a scale and a result are each rounded to it: three unit roundoffs (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2). The sum is made in
    float32. In float32 the few weights on the border of two steps count for more: one in a million
    of them moved by a step of a third of its size are 3e-4.
    """
    return max(1e-3, 3 * torch.finfo(dtype).eps / 2)
