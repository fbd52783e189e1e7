"""The formats known, as frozen data. A format's effect is a handler in `apply`; what a device
makes of it is decided in `support`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FormatSpec:
    """A format named by what its weights and activations are.

    `storage` is the dtype that a converted weight must be found in by `verify` (None: the format
    changes arithmetic only). `packages` are imported before memory is measured.
    """

    id: str
    weights: str
    activations: str
    storage: str | None
    library: str
    packages: tuple[str, ...]
    summary: str

    @property
    def quantizes(self) -> bool:
        """Whether linear layers are replaced or rewritten after loading."""
        return bool(self.storage) and self.library != "torch-cast"


_CAST = "torch-cast"

CATALOG: dict[str, FormatSpec] = {
    f.id: f
    for f in [
        FormatSpec("fp32", "float32", "float32", "float32", _CAST, (), "float32, TF32 off"),
        FormatSpec(
            "tf32", "float32", "TF32 matmul", None, "torch", (),
            "float32 weights, matmul inputs rounded to TF32's 10-bit mantissa",
        ),
        FormatSpec("bf16", "bfloat16", "bfloat16", "bfloat16", _CAST, (), "bfloat16"),
        FormatSpec("fp16", "float16", "float16", "float16", _CAST, (), "IEEE half precision"),
        FormatSpec(
            "fp8-dynamic", "e4m3 per row", "e4m3 per row", "float8_e4m3fn", "torchao",
            ("torchao.quantization",), "fp8 weights and activations, scales at run time",
        ),
        FormatSpec(
            "fp8-weight-only", "e4m3 per row", "16- or 32-bit", "float8_e4m3fn", "torchao",
            ("torchao.quantization",), "fp8 weights widened before each matmul: saves storage",
        ),
        FormatSpec(
            "int8-llm", "int8 + outliers", "int8 + outliers", "int8", "bitsandbytes",
            ("bitsandbytes",), "LLM.int8(): int8 matmul, outlier columns in 16 or 32 bits",
        ),
        FormatSpec(
            "int8-weight-only", "int8 per channel", "16- or 32-bit", "int8", "torchao",
            ("torchao.quantization",), "int8 weights widened before each matmul: saves storage",
        ),
        FormatSpec(
            "int8-dynamic", "int8 per channel", "int8 per token", "int8", "torch or torchao",
            (), "int8 weights and activations, scales at run time, best sound kernel here",
        ),
    ]
}  # fmt: skip

# What `sweep` runs when no formats are named, so far as the device supports them.
DEFAULT_FORMATS: tuple[str, ...] = (
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only",
    "int8-llm", "int8-weight-only", "int8-dynamic",
)  # fmt: skip
