"""What libraries say of the products that they made: number type, kernel and size, read from
oneDNN's and MKL's verbose lines and from the names of CUDA kernels. Pure text, no torch.

A line or name that is not understood is ``unknown``, never a match for any format.

Sources: oneDNN Developer Guide, "Verbose Mode" (fields of a line) and "CPU Dispatcher Control"
(names of instruction sets); oneMKL Developer Guide, "Using oneMKL Verbose Mode"; CUTLASS, "CUTLASS
Profiler" (procedural names of kernels).
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
    """

    kernel: str
    number_type: str
    unit: str
    flops: int | None = None


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


def _onednn_flops(problem: str) -> int | None:
    sizes = _SIZES.match(problem)
    if sizes:
        left, right = ([int(n) for n in side.split("x")] for side in sizes.groups())
        return 2 * math.prod(left) * right[-1]
    inner = _INNER.search(problem)
    if inner:
        spatial = [int(n) for n in re.findall(r"\d+", inner[3])]
        return 2 * int(inner[1]) * int(inner[2]) * math.prod(spatial) * int(inner[4])
    return None


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
    return Product(name, number_type, unit, _onednn_flops(problem))


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
    flops = _mkl_flops(routine, [a.strip() for a in found[2].split(",")])
    return Product(f"MKL {routine}", number_type, unit, flops)


def _mkl_flops(routine: str, arguments: list[str]) -> int | None:
    """Sizes stand behind the letters that say how factors are laid out: M, N, K of GEMM."""
    sizes = [a for a in arguments if a.isdigit()]
    if "BATCH" in routine:
        return None
    if "GEMV" in routine and len(sizes) >= 2:
        return 2 * int(sizes[0]) * int(sizes[1])
    return 2 * math.prod(int(s) for s in sizes[:3]) if len(sizes) >= 3 else None


def products_of(text: str) -> list[Product]:
    """All products that verbose output `text` tells of, in its order."""
    found = (onednn_product(line) or mkl_product(line) for line in text.splitlines())
    return [product for product in found if product is not None]


# -- CUDA -------------------------------------------------------------------------------------

_IS_PRODUCT = re.compile(r"gemm|gemv|nvjet|xmma|cutlass|wgmma|scaled_mm|matmul", re.IGNORECASE)
_NO_PRODUCT = re.compile(r"splitk_?reduce|reduce_?splitk|memset|memcpy|quantiz", re.IGNORECASE)
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
        (r"xmma_gemm_e4m3", "float8_e4m3fn"),
        (r"xmma_gemm_i8", "int8"),
        # cuBLAS of Hopper and later; the letters are A, sum and C: t is bfloat16, h float16.
        (r"nvjet_(?:sm\d+_)?tst_", "bfloat16"),
        (r"nvjet_(?:sm\d+_)?hsh_", "float16"),
        # CUTLASS 2 and cuBLAS of Ampere: <sum letter><instruction shape>gemm_<factors>.
        (r"i\d+gemm_(?:s8|u8|int8)", "int8"),
        (r"s\d+tf32gemm|s\d+gemm_tf32", "tf32"),
        (r"[sh]\d+gemm_(?:\w+_)?bf16", "bfloat16"),
        (r"[sh]\d+gemm_(?:\w+_)?(?:f16|fp16)", "float16"),
        # cuBLAS gives tensor-core products of float32 without a factor's name: TF32.
        (r"s1688gemm_\d", "tf32"),
        # CUTLASS 3, as torch compiles it: the factors are template parameters.
        (r"cutlass::.*float_e4m3.*float_e4m3", "float8_e4m3fn"),
        # Simple kernels without tensor cores.
        (r"(?:^|_)(?:ampere|volta|maxwell|turing|hopper)_sgemm|simt_sgemm", "float32"),
        (r"(?:ampere|volta|maxwell|turing|hopper)_hgemm|simt_hgemm", "float16"),
        (r"gemv\w*<[^>]*__nv_bfloat16", "bfloat16"),
        (r"gemv\w*<[^>]*__half", "float16"),
        (r"gemv\w*<(?:int, )+float, float", "float32"),
        (r"gemmSN\w*<float|gemmk1\w*<[^>]*float, ", "float32"),
    )
)


def cuda_product(name: str) -> Product | None:
    """The product that a CUDA kernel makes, by its name; None if it makes none."""
    if not _IS_PRODUCT.search(name) or _NO_PRODUCT.search(name):
        return None
    kind = next((t for pattern, t in _CUDA_TYPES if pattern.search(name)), UNKNOWN)
    short = name.split("<", 1)[0].removeprefix("void ")[:80]
    return Product(f"CUDA {short}", kind, UNKNOWN if kind == UNKNOWN else NATIVE)
