"""What an operator's or a kernel's name says of its work. One table; an unknown name is `other`,
never guessed. No torch.

Names are those that torch's profiler shows: ATen's (`aten/src/ATen/native/native_functions.yaml`),
oneDNN's and FBGEMM's operators in torch, those that torchao and bitsandbytes register, and on CUDA
the kernels of cuBLAS, CUTLASS and the libraries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MATMUL, QUANTIZING, OTHER = "matmul", "quantizing", "other"

# What makes a matrix product, whatever it calls inside. Attention's fused operators are products
# with a softmax between. Fused int8 operators quantize their input inside: they count here whole.
_MATMUL = re.compile(
    r"aten::(addmm|mm|bmm|baddbmm|addbmm|addmv|mv|dot|_addmm_activation|_grouped_mm"
    r"|_int_mm|_scaled_mm|_scaled_grouped_mm|_weight_int8pack_mm|_weight_int4pack_mm\w*"
    r"|_dyn_quant_matmul_4bit|mkldnn_linear|convolution|mkldnn_convolution"
    r"|scaled_dot_product_attention|_scaled_dot_product\w*|_flash_attention_forward"
    r"|_efficient_attention_forward)"
    r"|mkldnn::_linear_pointwise\w*|mkl::_mkl_linear"
    r"|onednn::(qlinear\w*|linear_dynamic_fp16)|quantized::linear\w*"
    r"|bitsandbytes::(int8_linear_matmul|int8_scaled_mm|int8_mixed_scaled_mm|gemv_4bit|gemm_4bit)\w*"
    r"|torchao::\w*(mm|linear)\w*"
)
# What only changes the number type of its operand, or finds the scale for that.
_QUANTIZING = re.compile(
    r"aten::(_to_copy|quantize_per_\w+|dequantize\w*|choose_qparams\w*|_choose_qparams\w*"
    r"|_convert_weight_to_int4pack\w*|_dyn_quant_pack_4bit_weight|fake_quantize_per_\w+)"
    r"|quantized_decomposed::\w+|quantized::(embedding_\w+)"
    r"|bitsandbytes::(quantize\w*|dequantize\w*|int8_vectorwise_\w+|int8_double_quant"
    r"|int8_mm_dequant)"
    r"|torchao::\w*(quantize|dequant|scale)\w*"
)
# Kernels on CUDA: parts of names, in any case.
_MATMUL_KERNEL = re.compile(
    r"gemm|gemv|cutlass|xmma|nvjet|splitkreduce|flash_fwd|fmha|flash_attn|wgmma|sdpa|triton_tem_",
    re.IGNORECASE,
)
_QUANTIZING_KERNEL = re.compile(
    r"quantize|dequant|int8_vectorwise|kInt8VectorQuant|mx_scale", re.IGNORECASE
)
# Composite operators: their work is that of what they call.
_COMPOSITE = frozenset(
    f"aten::{name}"
    for name in ("linear", "matmul", "to", "type_as", "contiguous", "layer_norm", "softmax")
)
# Operators that only describe memory anew, or allocate it: nothing is computed.
_FREE = frozenset(
    f"aten::{name}"
    for name in (
        "alias", "as_strided", "as_strided_", "chunk", "detach", "detach_", "empty", "empty_like",
        "empty_strided", "expand", "expand_as", "flatten", "item", "lift_fresh",
        "_local_scalar_dense", "movedim", "narrow", "new_empty", "new_empty_strided", "permute",
        "resize_", "reshape", "resolve_conj", "resolve_neg", "result_type", "select", "set_",
        "size", "slice", "split", "split_with_sizes", "squeeze", "stride", "swapaxes",
        "sym_size", "t", "transpose", "unbind", "unflatten", "unsafe_split", "unsqueeze",
        "_unsafe_view", "view", "view_as", "_reshape_alias",
    )
)  # fmt: skip
# A bias that a converted layer adds is part of no conversion.
_PLAIN_IN_LAYER = frozenset({"aten::add", "aten::add_"})


def own_class(name: str) -> str | None:
    """`MATMUL` or `QUANTIZING` where the operator's own name says so, else None."""
    if _MATMUL.fullmatch(name):
        return MATMUL
    return QUANTIZING if _QUANTIZING.fullmatch(name) else None


def kernel_class(name: str) -> str | None:
    """The same of a CUDA kernel's name. A kernel that does both is a product with its
    (de)quantizing fused."""
    if _MATMUL_KERNEL.search(name):
        return MATMUL
    return QUANTIZING if _QUANTIZING_KERNEL.search(name) else None


def classify(path: Sequence[str], in_converted_layer: bool = False) -> str:
    """The class of the operator `path[0]`, called by `path[1]`, by `path[2]` and so on.

    The nearest name that the table knows decides: a copy inside a cast is casting, one inside a
    product belongs to the product. Inside a layer that the format converted, whatever is neither
    product nor bias is there for the format: scales, rounding, clamping.
    """
    for name in path:
        found = own_class(name)
        if found is not None:
            return found
    if path[0] in _COMPOSITE or path[0] in _FREE or path[0] in _PLAIN_IN_LAYER:
        return OTHER
    return QUANTIZING if in_converted_layer else OTHER


def counts_as_started(name: str) -> bool | None:
    """Whether an operator costs a start of its own; None for a composite one, of which what it
    calls is counted."""
    if name in _COMPOSITE:
        return None
    return name not in _FREE
