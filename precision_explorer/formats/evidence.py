"""What libraries say of the products that they made: number type, kernel and size, read from
oneDNN's and MKL's verbose lines and from the names of CUDA kernels. Pure text, no torch.

A line or name that is not understood is ``unknown``, never a match for any format.

Sources: oneDNN Developer Guide, "Verbose Mode" (fields of a line) and "CPU Dispatcher Control"
(names of instruction sets); oneMKL Developer Guide, "Using oneMKL Verbose Mode"; CUTLASS, "CUTLASS
Profiler" (procedural names of kernels); the names in the libraries' own files (cuBLASLt 13.1.0.3,
bitsandbytes 0.50.2, torch 2.11).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

UNKNOWN = "unknown"
NATIVE, SOFTWARE = "native", "software"


@dataclass(frozen=True)
class Product:
    """One matrix product that a library reports.

    `number_type` is that of the factors: ``float32``, ``tf32``, ``bfloat16``, ``float16``,
    ``float8_e4m3fn``, ``int8``, ``float64`` or ``unknown``. `unit`: ``native`` where an arithmetic
    unit of that type does the work, ``software`` where instructions of a wider type stand in for
    it, ``unknown``. `flops`: 2 per multiply-add; None where the line does not tell the sizes.
    `sizes`: (length of a dot product, columns of the result), where it tells them.
    """

    kernel: str
    number_type: str
    unit: str
    flops: int | None = None
    sizes: tuple[int, int] | None = None


# -- oneDNN -----------------------------------------------------------------------------------

_ONEDNN_KINDS = ("matmul", "inner_product", "gemm_api", "brgemm")
_ONEDNN_TYPES = {
    "f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16",
    "f8_e4m3": "float8_e4m3fn", "f8_e5m2": "float8_e5m2", "s8": "int8", "u8": "int8",
}  # fmt: skip
_MEMORY = re.compile(r"\b(src|wei)(?:_|:)([a-z0-9]+(?:_e[45]m[23])?):")
_FPMATH = re.compile(r"attr-fpmath:([a-z0-9]+)")
_SIZES = re.compile(r"^(\d+(?:x\d+)+):(\d+(?:x\d+)+)")
_INNER = re.compile(r"mb(\d+)ic(\d+)((?:[idhw]{2}\d+)*)oc(\d+)")
# Each set includes those before it; AMX and AVX10 include all 16-bit types that matter here.
_HAS_INT8 = ("vnni", "bf16", "fp16", "amx", "avx10")
_HAS_BF16 = ("bf16", "fp16", "amx", "avx10")
_HAS_FP16 = ("fp16", "avx10")


def _onednn_unit(number_type: str, implementation: str) -> str:
    """Whether `implementation`, as in ``brg_matmul:avx512_core_vnni``, has a unit of the type."""
    name, _, isa = implementation.partition(":")
    if number_type in ("float32", "float64"):
        return NATIVE
    if name.startswith("ref") or isa in ("any", "uni"):
        return SOFTWARE
    if not isa:
        return UNKNOWN
    if number_type == "int8":
        # Below VNNI pairs are multiplied and added by vpmaddubsw: integer units, in more steps.
        known = any(part in isa for part in (*_HAS_INT8, "avx2", "avx512_core", "sse41"))
        return NATIVE if known else UNKNOWN
    has = {"bfloat16": _HAS_BF16, "float16": _HAS_FP16, "float8_e4m3fn": ("amx_fp8", "avx10_2")}
    # The 16-bit instructions of AVX2_VNNI_2 only convert; AVX512_CORE_FP16 includes bf16's.
    units = has.get(number_type, ())
    return NATIVE if any(part in isa for part in units) else SOFTWARE


def _onednn_type(memory: str, attributes: str) -> str:
    found = dict(_MEMORY.findall(memory))
    src, wei = (_ONEDNN_TYPES.get(found.get(side, "")) for side in ("src", "wei"))
    fpmath = _FPMATH.search(attributes)
    if src == "float32" and fpmath and fpmath[1] not in ("strict", "any"):
        return {"tf32": "tf32"}.get(fpmath[1], _ONEDNN_TYPES.get(fpmath[1], UNKNOWN))
    if src == "float32" and fpmath:
        return UNKNOWN if fpmath[1] == "any" else "float32"
    if src is None or wei is None:
        return UNKNOWN
    if src == wei:
        return src
    # Weights that are stored narrower are widened to the type of the input.
    return src if wei == "int8" and src != "int8" else UNKNOWN


def _onednn_size(problem: str) -> tuple[int | None, tuple[int, int] | None]:
    """(FLOPs, sizes) of a problem such as ``128x576:576x1536``."""
    sizes = _SIZES.match(problem)
    if sizes:
        left, right = ([int(n) for n in side.split("x")] for side in sizes.groups())
        return 2 * math.prod(left) * right[-1], (left[-1], right[-1])
    inner = _INNER.search(problem)
    if inner:
        depth = int(inner[2]) * math.prod(int(n) for n in re.findall(r"\d+", inner[3]))
        return 2 * int(inner[1]) * depth * int(inner[4]), (depth, int(inner[4]))
    return None, None


def onednn_product(line: str) -> Product | None:
    """The product of a line of oneDNN's verbose output; None if the line tells of none."""
    fields = line.strip().split(",")
    # `onednn_verbose,v1,primitive,exec,cpu,KIND,IMPLEMENTATION,PROPAGATION,MEMORY,ATTRIBUTES,
    # AUXILIARY,PROBLEM,TIME`; a time stamp may stand before `primitive`.
    if not fields[0].startswith("onednn_verbose") or "exec" not in fields:
        return None
    rest = fields[fields.index("exec") + 1 :]
    if len(rest) < 8 or rest[1] not in _ONEDNN_KINDS:
        return None
    kind, implementation, memory, attributes, problem = rest[1], rest[2], rest[4], rest[5], rest[7]
    number_type = _onednn_type(memory, attributes)
    unit = UNKNOWN if number_type == UNKNOWN else _onednn_unit(number_type, implementation)
    name = f"oneDNN {kind} {implementation}".rstrip()
    return Product(name, number_type, unit, *_onednn_size(problem))


# -- MKL --------------------------------------------------------------------------------------

_MKL = re.compile(r"^MKL_VERBOSE (\w+)\(([^)]*)\)")
_MKL_TYPES = {
    "SGEMM": "float32", "SGEMV": "float32", "DGEMM": "float64", "DGEMV": "float64",
    "GEMM_BF16BF16F32": "bfloat16", "GEMM_F16F16F32": "float16", "HGEMM": "float16",
    "GEMM_S8U8S32": "int8", "GEMM_S8S8S32": "int8",
}  # fmt: skip


def mkl_product(line: str) -> Product | None:
    """The product of a line of MKL's verbose output; None if the line tells of none."""
    found = _MKL.match(line.strip())
    if not found or "GEM" not in found[1]:
        return None
    routine = found[1].removesuffix("_64")
    base = re.sub(r"_(COMPUTE|BATCH|BATCH_STRIDED)$", "", routine)
    number_type = _MKL_TYPES.get(base, UNKNOWN)
    # MKL does not say which instructions it took: only float's own are sure to be a unit's.
    unit = NATIVE if number_type in ("float32", "float64") else UNKNOWN
    size = _mkl_size(routine, [a.strip() for a in found[2].split(",")])
    return Product(f"MKL {routine}", number_type, unit, *size)


def _mkl_size(routine: str, arguments: list[str]) -> tuple[int | None, tuple[int, int] | None]:
    """(FLOPs, sizes). They stand behind the letters that say how factors are laid out: M, N, K of
    GEMM. MKL counts by columns, so that torch's columns are its M."""
    sizes = [int(a) for a in arguments if a.isdigit()]
    if "BATCH" in routine:
        return None, None
    if "GEMV" in routine and len(sizes) >= 2:
        return 2 * sizes[0] * sizes[1], None
    if len(sizes) < 3:
        return None, None
    m, n, k = sizes[:3]
    return 2 * m * n * k, (k, m)


def products_of(text: str) -> list[Product]:
    """All products that verbose output `text` tells of, in its order."""
    found = (onednn_product(line) or mkl_product(line) for line in text.splitlines())
    return [product for product in found if product is not None]


# -- CUDA -------------------------------------------------------------------------------------

CUDA_NAMES = "CUDA kernel names"
"""The evidence of a certificate made on CUDA."""
_IS_PRODUCT = re.compile(r"gemm|gemv|nvjet|xmma|cutlass|wgmma|scaled_mm|matmul", re.IGNORECASE)
# Attention's own kernels multiply too, but no layer's weights.
_NO_PRODUCT = re.compile(
    r"splitk_?reduce|reduce_?splitk|memset|memcpy|quantiz|flash|fmha|attention|sdpa", re.IGNORECASE
)
# Inductor's kernels are named by all operators that went into them. Products are its templates, and
# reductions into which a product of few rows was rewritten (a multiplication and a sum).
_INDUCTOR = re.compile(r"triton_(?:poi|red|per|mix|tem|for)_")
_INDUCTOR_PRODUCT = re.compile(
    r"triton_tem_fused_\w*mm_|triton_(?:red|per|mix)_fused_(?:\w+_)?(?<!int_)(?<!scaled_)b?mm_"
)
# The first that fits names the factors' type; what fits none is unknown. Types of results and sums
# stand in the names too, so each pattern takes the place where the factors stand.
_CUDA_TYPES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), number_type)
    for pattern, number_type in (
        # cuBLAS: sm90_xmma_gemm_<A><C>_<B><D>_<compute>, sm80_xmma_gemm_f32f32_tf32f32_f32.
        (r"xmma_gemm_f32f32_tf32", "tf32"),
        (r"xmma_gemm_f32", "float32"),
        (r"xmma_gemm_bf16", "bfloat16"),
        (r"xmma_gemm_f16", "float16"),
        (r"xmma_gemm_e4m3(?!e5m2)", "float8_e4m3fn"),
        (r"xmma_gemm_i8", "int8"),
        # cuBLAS of Hopper and later. Letters of A and B (one where they are alike), sum, C and D:
        # t is bfloat16, h float16, q e4m3, r e5m2, o e2m1, b int8, s float32, i int32.
        (r"nvjet_(?:sm\d+_)?t[a-z]{2}_", "bfloat16"),
        (r"nvjet_(?:sm\d+_)?h[a-z]{2}_", "float16"),
        (r"nvjet_(?:sm\d+_)?sss_tf32_", "tf32"),
        (r"nvjet_(?:sm\d+_)?bii_", "int8"),
        (r"nvjet_(?:sm\d+_)?qq[a-z]{3}_", "float8_e4m3fn"),
        (r"nvjet_(?:sm\d+_)?oo[a-z]{3}_", "float4_e2m1fn"),
        # CUTLASS 2 and cuBLAS of Ampere: <sum letter><instruction shape>gemm_<factors>.
        (r"i\d+(?:x\d+x\d+)?gemm_(?:s8|u8|int8)|tensorop_gemm_s8", "int8"),
        (r"s\d+tf32gemm|s\d+gemm_tf32", "tf32"),
        (r"[sh]\d+(?:x\d+x\d+)?gemm_(?:relu_)?bf16", "bfloat16"),
        (r"[sh]\d+(?:x\d+x\d+)?gemm_(?:relu_)?(?:f16|fp16)", "float16"),
        (r"[sh]\d+(?:x\d+x\d+)?gemm_e4m3_e4m3", "float8_e4m3fn"),
        # cuBLAS gives tensor-core products of float32 without a factor's name: TF32.
        (r"s1688gemm_\d", "tf32"),
        # CUTLASS 3, as torch compiles it: the factors are template parameters.
        (r"cutlass::.*float_e4m3.*float_e4m3", "float8_e4m3fn"),
        # Small sums of products of cuBLAS; a type with float's sum and result is that of both
        # factors: gemvNSP_kernel<A, x, y, sum, ...>, internal::gemvx::kernel<int, int, A, ...>.
        (r"gemv[\w:]*<(?:int, |long, )*__nv_bfloat16", "bfloat16"),
        (r"gemv[\w:]*<(?:int, |long, )*__half", "float16"),
        (r"gemv[\w:]*<(?:int, |long, )*float, float", "float32"),
        (r"gemmk1\w*<(?:int|long), float, ", "float32"),
        (r"gemmSN_kernel_int", "int8"),
        (r"gemmSN_[NT]+_kernel_half", "float16"),
        (r"gemmSN_[NT]+_kernel\w*<float, ", "float32"),
        # Simple kernels without tensor cores.
        (r"(?:^|_)(?:ampere|volta|maxwell|turing|hopper)_sgemm|simt_sgemm", "float32"),
        (r"(?:ampere|volta|maxwell|turing|hopper)_hgemm|simt_hgemm", "float16"),
        # ATen's int4 kernel multiplies by mma.m16n8k16 of bfloat16 (native/cuda/int4mm.cu).
        (r"at::native::tinygemm_m16n8k16", "bfloat16"),
        # bitsandbytes widens to its input's type and multiplies in it (csrc/gemm_4bit_*.cu).
        (r"gemm_4bit_\w+<__nv_bfloat16", "bfloat16"),
        (r"gemm_4bit_\w+<__half", "float16"),
        (r"gemm_4bit_\w+<float", "float32"),
        # Inductor's template for integers.
        (r"triton_tem_fused_\w*_int_mm_", "int8"),
    )
)


def cuda_product(name: str) -> Product | None:
    """The product that a CUDA kernel makes, by its name; None if it makes none."""
    if _INDUCTOR.search(name):
        if not _INDUCTOR_PRODUCT.search(name):
            return None
    elif not _IS_PRODUCT.search(name) or _NO_PRODUCT.search(name):
        return None
    kind = next((t for pattern, t in _CUDA_TYPES if pattern.search(name)), UNKNOWN)
    # A result's type may stand before the name as `std::enable_if<...>::type`, and CUTLASS 2 wraps
    # every kernel in one of a common name.
    short = re.sub(r"^void cutlass::Kernel2?<", "", name.rpartition(">::type ")[2])
    short = re.split("[<>(]", short.removeprefix("void "), maxsplit=1)[0][:80]
    return Product(f"CUDA {short}", kind, UNKNOWN if kind == UNKNOWN else NATIVE)
