"""Whether a device's arithmetic units compute in a number type, with the reason in words.

Facts of the silicon only: what a library makes of it, a dry run tells (`formats.support`).

Sources. NVIDIA: CUDA C++ Programming Guide, section "Compute Capabilities", tables "Feature
Support per Compute Capability" and "Throughput of Native Arithmetic Instructions". x86: Intel 64
and IA-32 Architectures Software Developer's Manual, volume 1, "Detection" of AVX512_VNNI,
AVX-VNNI, AVX512_BF16, AVX512_FP16, AMX; AMD64 Architecture Programmer's Manual, volume 4. Arm:
Linux kernel documentation, "ARM64 ELF hwcaps".
"""

from __future__ import annotations

from precision_explorer.hardware.profile import DeviceFacts

Answer = tuple[bool, str]

_BLACKWELL = "NVIDIA B200, GB200 (compute capability 10.0 or higher)"
NEEDS: dict[str, str] = {
    "tf32": "needs tf32 tensor cores: NVIDIA A100, A10, L4, L40S, H100, H200, B200 (compute "
    "capability 8.0 or higher)",
    "bfloat16": "needs bf16 units: NVIDIA A100, L4, H100 or later (compute capability 8.0 or "
    "higher), or a CPU with AVX512_BF16, AMX-BF16 or Arm BF16",
    "float16": "needs fp16 units: NVIDIA V100, T4 or later (compute capability 7.0 or higher), or "
    "a CPU with AVX512_FP16, AMX-FP16 or Arm half-precision SIMD",
    "float8_e4m3fn": "needs fp8 tensor cores: NVIDIA L4, L40S, H100, H200, B200 (compute "
    "capability 8.9 or higher)",
    "int8": "needs int8 units: NVIDIA T4, A100 or later (compute capability 7.2 or higher), or a "
    "CPU with VNNI, AMX-INT8 or Arm dot products",
    "mxfp8": f"needs microscaling fp8 tensor cores: {_BLACKWELL}",
    "nvfp4": f"needs fp4 tensor cores: {_BLACKWELL}",
}
"""{number type or format: which devices compute in it}, in one phrase."""


def _cuda(facts: DeviceFacts, needed: tuple[int, int], unit: str) -> Answer:
    have = facts.compute_capability
    if have is None:
        return False, f"the compute capability of {facts.name} is unknown"
    text = f"compute capability {have[0]}.{have[1]}"
    if have >= needed:
        return True, f"{text} has {unit}"
    return False, f"{text} has no {unit}, which come with {needed[0]}.{needed[1]}"


def _cpu(facts: DeviceFacts, flags: tuple[str, ...], what: str) -> Answer:
    found = [flag for flag in flags if flag in facts.cpu_flags]
    if found:
        return True, f"the CPU has {what} instructions ({', '.join(found)})"
    caps = " and ".join(f"{name}={value}" for name, value in facts.capped.items())
    allowed = f" within {caps}" if caps else ""
    return False, f"the CPU has no {what} instructions{allowed}"


def int8_native(facts: DeviceFacts) -> Answer:
    """8-bit integer products with 32-bit sums.

    CUDA: tensor cores from compute capability 7.2, the dp4a instruction from 6.1. CPU: VNNI
    (AVX-512 or AVX), AMX-INT8; Arm's dot product or int8 matrix instructions.
    """
    if facts.kind == "cpu":
        flags = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
        return _cpu(facts, flags, "int8 dot-product")
    have = facts.compute_capability
    if have is not None and (6, 1) <= have < (7, 2):
        return True, f"compute capability {have[0]}.{have[1]} has dp4a, but no int8 tensor cores"
    return _cuda(facts, (7, 2), "int8 tensor cores")


def bf16_native(facts: DeviceFacts) -> Answer:
    """bfloat16 products. CUDA: from compute capability 8.0. CPU: AVX512_BF16, AMX, Arm BF16."""
    if facts.kind == "cpu":
        return _cpu(facts, ("avx512_bf16", "amx_bf16", "bf16"), "bf16")
    return _cuda(facts, (8, 0), "bf16 tensor cores")


def fp16_native(facts: DeviceFacts) -> Answer:
    """float16 arithmetic, not just storage (F16C only converts).

    CUDA: arithmetic from compute capability 5.3 (on 6.1 at 1/64 of float32's rate), tensor cores
    from 7.0. CPU: AVX512_FP16, AMX-FP16, Arm's half-precision SIMD (asimdhp).
    """
    if facts.kind == "cpu":
        return _cpu(facts, ("avx512_fp16", "amx_fp16", "asimdhp"), "fp16 arithmetic")
    have = facts.compute_capability
    if have is not None and (5, 3) <= have < (7, 0):
        slow = ", at 1/64 of fp32's rate" if have == (6, 1) else ""
        text = f"compute capability {have[0]}.{have[1]} has fp16 arithmetic{slow}"
        return True, f"{text}, but no tensor cores"
    return _cuda(facts, (7, 0), "fp16 tensor cores")


def fp8_native(facts: DeviceFacts) -> Answer:
    """FP8 (e4m3, e5m2) products: CUDA from compute capability 8.9 (Ada, Hopper)."""
    if facts.kind == "cpu":
        return False, "no CPU known here multiplies fp8"
    return _cuda(facts, (8, 9), "fp8 tensor cores")


def microscaling_native(facts: DeviceFacts) -> Answer:
    """Products of blocks with their own scales, of MXFP8 and NVFP4: CUDA from compute capability
    10.0 (Blackwell; PTX ISA, "tcgen05.mma", kinds mxf8f6f4 and mxf4nvf4)."""
    if facts.kind == "cpu":
        return (
            False,
            "no CPU known here multiplies scaled blocks; NVIDIA does from 10.0 (Blackwell)",
        )
    return _cuda(facts, (10, 0), "tensor cores for scaled blocks")


def tf32_native(facts: DeviceFacts) -> Answer:
    """TF32 products: CUDA from compute capability 8.0 (Ampere)."""
    if facts.kind == "cpu":
        return False, "tf32 is an NVIDIA tensor-core mode"
    return _cuda(facts, (8, 0), "tf32 tensor cores")
