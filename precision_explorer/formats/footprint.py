"""What a model's weights will take in each format, from the sizes of its layers alone. No torch.

The formulas are those of what each library stores; tests hold them to stored rows' `weight_bytes`,
which were counted from the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from precision_explorer.formats.catalog import AS_SHIPPED, spec_of
from precision_explorer.formats.recipe import is_mixed

COMPUTE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# bitsandbytes' nf4: blocks of 64 with a byte each for their scale, one float32 per 256 of these,
# and per layer the tables of both quantizations (16 and 256 float32) and the scales' mean.
_NF4_BLOCK, _NF4_NESTED, _NF4_TABLES = 64, 256, 4 * (16 + 256 + 1)
# From the one that saves most to the finest that int4 kernels take.
INT4_GROUPS = (128, 64, 32)
# torch's own check in `_convert_weight_to_int4pack_for_cpu`.
INT4_CPU_OUTPUTS = 16
# torchao's tile_packed_to_4d: whole tiles of 8 outputs by 1,024 inputs.
_TILE = 8, 1024
# The kernels' tiles: both sizes of a layer must be multiples of 16, and blocks divide the inputs.
BLOCKS = {"mxfp8": 32, "nvfp4": 16}
BLOCK_OUTPUTS = 16
# cuBLAS' layout of block scales, which torchao keeps on every device: whole tiles of 128 rows by 4
# scales.
_SCALE_TILE = 128, 4


@dataclass(frozen=True)
class LayerSizes:
    """A model's linear layers that formats convert, as (outputs, inputs, how many such), and the
    number of all its other weights (embeddings, heads, norms, biases), tied ones once."""

    linear: tuple[tuple[int, int, int], ...]
    other: int

    @property
    def elements(self) -> int:
        """All weights of the model."""
        return self.other + sum(out * inner * count for out, inner, count in self.linear)


def usual_recipe(format_id: str) -> dict[str, Any]:
    """How a format would be held where no device was asked: what it leaves alone in bfloat16."""
    spec = spec_of(format_id)
    own = spec.storage if not spec.quantizes else "bfloat16"
    wide = format_id in ("tf32", "bf16-autocast")
    return {"compute_dtype": "float32" if wide else own, "kernel": None}


def layer_sizes(linear: Sequence[Sequence[int]], elements: int) -> LayerSizes:
    """`LayerSizes` of (outputs, inputs, count) and the number of all weights."""
    sizes = tuple((int(out), int(inner), int(count)) for out, inner, count in linear)
    return LayerSizes(sizes, elements - sum(out * inner * count for out, inner, count in sizes))


def weight_bytes(
    format_id: str, recipe: dict[str, Any], sizes: LayerSizes, cpu_flags: Collection[str] = ()
) -> int | None:
    """Bytes that the weights take once the format is applied; None where it can't be said from the
    sizes (mixed recipes, checkpoints that come quantized). `cpu_flags`: of the processor, by which
    FBGEMM packs its weights."""
    spec = spec_of(format_id)
    if is_mixed(format_id) or spec.storage == AS_SHIPPED:
        return None
    wide = COMPUTE_BYTES[recipe["compute_dtype"]]
    if not spec.quantizes:
        return wide * sizes.elements
    total = wide * sizes.other
    for out, inner, count in sizes.linear:
        held = _layer_bytes(format_id, recipe, out, inner, cpu_flags)
        total += count * (wide * out * inner if held is None else held)
    return total


def _layer_bytes(
    format_id: str, recipe: dict[str, Any], out: int, inner: int, cpu_flags: Collection[str]
) -> int | None:
    """Of one layer in the format; None where it stays as it is."""
    kernel = recipe.get("kernel")
    if format_id in ("int8-dynamic", "int8-static"):
        smoothing = 4 * inner if format_id == "int8-static" else 0
        held = _int8_bytes(kernel, out, inner, cpu_flags)
        return None if held is None else held + smoothing
    if format_id == "fp8-dynamic-per-tensor":
        return out * inner + 4
    if format_id == "int8-weight-only":
        # A scale per output, and torchao's zero point.
        return out * inner + 5 * out
    if format_id in ("fp8-dynamic", "fp8-weight-only", "int8-llm"):
        return out * inner + 4 * out
    if format_id == "nf4":
        blocks = _up(out * inner, _NF4_BLOCK)
        return _up(out * inner, 2) + blocks + 4 * _up(blocks, _NF4_NESTED) + _NF4_TABLES
    if format_id == "int4-weight-only":
        return _int4_bytes(recipe.get("packing"), out, inner)
    return _block_bytes(format_id, out, inner)


def _int8_bytes(kernel: str | None, out: int, inner: int, cpu_flags: Collection[str]) -> int | None:
    if kernel is not None and kernel.startswith("fbgemm"):
        high, wide = fbgemm_block(cpu_flags)
        # Whole blocks; a float32 scale, an int32 zero point and column offset per output.
        return _up(out, high) * high * _up(inner, wide) * wide + 12 * out
    if kernel is not None and kernel.startswith("onednn"):
        # A float32 scale and an int32 zero point; oneDNN's own padding is not in it.
        return out * inner + 8 * out
    return out * inner + (5 if kernel == "torchao" else 4) * out


def _int4_bytes(packing: str | None, out: int, inner: int) -> int | None:
    """Two values to a byte, and a 16-bit scale and zero point per group."""
    group = int4_group(inner)
    if group is None:
        return None
    if packing == "tile_packed_to_4d":
        out, inner = (
            _up(size, tile) * tile for size, tile in zip((out, inner), _TILE, strict=True)
        )
    elif out % INT4_CPU_OUTPUTS:
        return None
    return out * inner // 2 + 4 * out * (inner // group)


def _block_bytes(format_id: str, out: int, inner: int) -> int | None:
    """OCP MX and NVFP4: a byte of scale per block, laid out in whole tiles; NVFP4 has a float32
    for the layer as well."""
    block = BLOCKS[format_id]
    if inner % block or out % BLOCK_OUTPUTS:
        return None
    rows, columns = _SCALE_TILE
    scales = _up(out, rows) * rows * _up(inner // block, columns) * columns
    return out * inner + scales if format_id == "mxfp8" else out * inner // 2 + scales + 4


def int4_group(inner: int) -> int | None:
    """The largest group of int4 weights that divides the number of inputs; None if none does."""
    return next((size for size in INT4_GROUPS if inner % size == 0), None)


def fbgemm_block(cpu_flags: Collection[str]) -> tuple[int, int]:
    """(output, input) sizes of the blocks that FBGEMM packs whole: NCB and KCB of its
    PackingTraits for 32-bit sums, by the instructions that it finds or is allowed."""
    allowed = os.environ.get("FBGEMM_ENABLE_INSTRUCTIONS", "").upper()
    if "avx512f" not in cpu_flags or allowed == "AVX2":
        return 8, 512
    if "avx512_vnni" not in cpu_flags or allowed == "AVX512":
        return 32, 256
    return 48, 512


def _up(value: int, step: int) -> int:
    return -(-value // step)
