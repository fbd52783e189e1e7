"""The formats known, as frozen data. A format's effect is a handler in `apply`; what a device
makes of it is decided in `support`."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.endpoint import is_declared


@dataclass(frozen=True)
class FormatSpec:
    """A format named by what its weights and activations are.

    `storage` is the dtype that a converted weight must be found in by `verify` (None: the format
    changes arithmetic only). `arithmetic` is the number type in which converted layers' products
    must be seen to be made; ``compute``: the recipe's compute type, to which stored weights are
    widened; ``shipped``: the recipe's `arithmetic`. `packages` are imported before memory is
    measured. `calibrates`: scales are chosen by running the model on the task's calibration set
    first.
    """

    id: str
    weights: str
    activations: str
    storage: str | None
    arithmetic: str
    library: str
    summary: str
    packages: tuple[str, ...] = ()
    calibrates: bool = False

    @property
    def quantizes(self) -> bool:
        """Whether linear layers are replaced or rewritten after loading."""
        return bool(self.storage) and self.library != "torch-cast"


_CAST = "torch-cast"
AS_SHIPPED = "as-shipped"
_TORCHAO = ("torchao.quantization",)
_MICROSCALING = (*_TORCHAO, "torchao.prototype.mx_formats")
_BITSANDBYTES = ("bitsandbytes",)

CATALOG: dict[str, FormatSpec] = {
    f.id: f
    for f in [
        FormatSpec(
            "fp32", "float32", "float32",
            storage="float32", arithmetic="float32", library=_CAST,
            summary="float32, TF32 off",
        ),
        FormatSpec(
            "tf32", "float32", "TF32 matmul",
            storage=None, arithmetic="tf32", library="torch",
            summary="float32 weights, matmul inputs rounded to TF32's 10-bit mantissa",
        ),
        FormatSpec(
            "bf16", "bfloat16", "bfloat16",
            storage="bfloat16", arithmetic="bfloat16", library=_CAST,
            summary="bfloat16",
        ),
        FormatSpec(
            "fp16", "float16", "float16",
            storage="float16", arithmetic="float16", library=_CAST,
            summary="IEEE half precision",
        ),
        FormatSpec(
            "fp8-dynamic", "e4m3 per row", "e4m3 per row",
            storage="float8_e4m3fn", arithmetic="float8_e4m3fn", library="torchao",
            packages=_TORCHAO,
            summary="fp8 weights and activations, scales at run time",
        ),
        FormatSpec(
            "fp8-weight-only", "e4m3 per row", "16- or 32-bit",
            storage="float8_e4m3fn", arithmetic="compute", library="torchao",
            packages=_TORCHAO,
            summary="fp8 weights widened before each matmul: saves storage",
        ),
        FormatSpec(
            "int8-llm", "int8 + outliers", "int8 + outliers",
            storage="int8", arithmetic="int8", library="bitsandbytes",
            packages=_BITSANDBYTES,
            summary="LLM.int8(): int8 matmul, outlier columns in 16 or 32 bits",
        ),
        FormatSpec(
            "int8-weight-only", "int8 per channel", "16- or 32-bit",
            storage="int8", arithmetic="compute", library="torchao",
            packages=_TORCHAO,
            summary="int8 weights widened before each matmul: saves storage",
        ),
        FormatSpec(
            "int8-dynamic", "int8 per channel", "int8 per token",
            storage="int8", arithmetic="int8", library="torch or torchao",
            summary="int8 weights and activations, scales at run time, best sound kernel here",
        ),
        FormatSpec(
            "int8-static", "int8 per channel", "int8 per tensor",
            storage="int8", arithmetic="int8", library="torch", calibrates=True,
            summary="int8 weights and activations, calibrated scales after SmoothQuant",
        ),
        FormatSpec(
            "nf4", "4-bit NormalFloat, block 64", "16- or 32-bit",
            storage="nf4", arithmetic="compute", library="bitsandbytes",
            packages=_BITSANDBYTES,
            summary="QLoRA's 4-bit weights widened before each matmul: saves storage",
        ),
        FormatSpec(
            "int4-weight-only", "int4 per group", "16- or 32-bit",
            storage="int4", arithmetic="compute", library="torchao",
            packages=(*_TORCHAO, "torchao.prototype.quantization.int4.inference_workflow"),
            summary="int4 weights, scale and offset per group, widened in the matmul",
        ),
        FormatSpec(
            "fp8-dynamic-per-tensor", "e4m3 per tensor", "e4m3 per tensor",
            storage="float8_e4m3fn", arithmetic="float8_e4m3fn", library="torchao",
            packages=_TORCHAO,
            summary="fp8 weights and activations, one scale a tensor, at run time",
        ),
        FormatSpec(
            "mxfp8", "e4m3 per 32, e8m0 scales", "e4m3 per 32, e8m0 scales",
            storage="mxfp8", arithmetic="float8_e4m3fn", library="torchao",
            packages=_MICROSCALING,
            summary="OCP MX: fp8 weights and activations, power-of-two scales per 32",
        ),
        FormatSpec(
            "nvfp4", "e2m1 per 16, e4m3 scales", "e2m1 per 16, e4m3 scales",
            storage="nvfp4", arithmetic="float4_e2m1fn", library="torchao",
            packages=_MICROSCALING,
            summary="NVIDIA's fp4 weights and activations, fp8 scales per 16",
        ),
        FormatSpec(
            "bf16-autocast", "float32", "bfloat16 matmul",
            storage=None, arithmetic="bfloat16", library="torch",
            summary="float32 weights, matmuls and the like cast to bfloat16 as they are made",
        ),
        FormatSpec(
            AS_SHIPPED, "as the checkpoint says", "as the checkpoint says",
            storage=AS_SHIPPED, arithmetic="shipped", library="transformers",
            summary="a checkpoint that comes quantized, read by its own library",
        ),
    ]
}  # fmt: skip

# What `sweep` runs when no formats are named, so far as the device supports them.
DEFAULT_FORMATS: tuple[str, ...] = (
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only",
    "int8-llm", "int8-weight-only", "int8-dynamic",
)  # fmt: skip


SCALED_MM, WIDENED = "scaled-mm", "widened"
OWN_ON_CUDA = {
    "fp8-dynamic": SCALED_MM,
    "fp8-dynamic-per-tensor": SCALED_MM,
    "fp8-weight-only": WIDENED,
    "int8-weight-only": WIDENED,
}
"""Formats that are tried on CUDA by torchao's layers and by our own kernel of this name (`fp8`)."""
# The library, storage and arithmetic of a format that is several: `mixed:NAME`, by a recipe.
MIXED = "mixed"


def is_mixed(format_id: str) -> bool:
    """Whether the format is a recipe's: ``mixed:`` and the recipe's name (in options: its path)."""
    return format_id.startswith(f"{MIXED}:")


def spec_of(format_id: str) -> FormatSpec:
    """The spec of a format id. KeyError for an unknown one."""
    if is_mixed(format_id):
        return FormatSpec(
            format_id, "by layer", "by layer",
            storage=MIXED, arithmetic=MIXED, library=MIXED,
            summary="each linear layer in the format that a recipe names for it",
        )  # fmt: skip
    if is_declared(format_id):
        return FormatSpec(
            format_id, "as declared", "as declared",
            storage=None, arithmetic="declared", library="the server's",
            summary="what a server runs, by its user's word",
        )  # fmt: skip
    return CATALOG[format_id]
