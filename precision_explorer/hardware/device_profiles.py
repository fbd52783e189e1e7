"""Devices that one does not have: facts and peak rates as their vendors publish them.

Peaks are dense (vendors print those of tensor cores with 2:4 sparsity, twice as high), in floating
or integer operations per second, two per product and sum, keyed by the number type that is
multiplied (`FormatSpec.arithmetic`; ``float4_e2m1fn`` for nvfp4). Those of ``float32`` are the
ordinary cores'; all others the tensor cores'. A figure that the vendor does not publish is left
out. The peaks are those of the boost clock: an upper bound that no program reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from precision_explorer.errors import UsageError, near_names
from precision_explorer.hardware.profile import DeviceFacts

_GB = 1_000_000_000
_T = 1e12


@dataclass(frozen=True)
class DeviceProfile:
    """Published facts of a device; `memory_bytes` and `memory_bytes_per_s` are the datasheet's
    (decimal), None for a processor, whose memory is the machine's.

    `nvml_names` are the names under which NVML reports the device, word for word. `source` names
    where the figures come from.
    """

    id: str
    name: str
    kind: Literal["cpu", "cuda"]
    source: str
    compute_capability: tuple[int, int] | None = None
    cpu_flags: tuple[str, ...] = ()
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    peak_per_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    nvml_names: tuple[str, ...] = ()

    def facts(self) -> DeviceFacts:
        """The profile as facts to decide formats from, for nothing else: of the processor beside a
        GPU, and of a processor's cores and memory, a profile knows nothing."""
        return DeviceFacts(
            kind=self.kind,
            device="cpu" if self.kind == "cpu" else "cuda:0",
            name=self.name,
            compute_capability=self.compute_capability,
            cpu_model=self.name if self.kind == "cpu" else "unknown",
            cpu_flags=self.cpu_flags,
            cores=1,
            memory_bytes=self.memory_bytes or 0,
            device_memory_bytes=self.memory_bytes,
        )


def _gpu(
    id: str,
    name: str,
    capability: tuple[int, int],
    memory_gb: int,
    gb_per_s: float,
    tera: dict[str, float],
    source: str,
    *nvml_names: str,
) -> DeviceProfile:
    peaks = MappingProxyType({kind: value * _T for kind, value in tera.items()})
    return DeviceProfile(
        id, name, "cuda", source, compute_capability=capability, memory_bytes=memory_gb * _GB,
        memory_bytes_per_s=gb_per_s * _GB, peak_per_s=peaks, nvml_names=nvml_names,
    )  # fmt: skip


def _tensor(
    fp32: float,
    half: float,
    *,
    tf32: float | None = None,
    bf16: bool = True,
    fp8: float | None = None,
    int8: float | None = None,
    fp4: float | None = None,
) -> dict[str, float]:
    """Peaks in 1e12 per second; bfloat16's is float16's where the device has it."""
    found = {
        "float32": fp32,
        "tf32": tf32,
        "bfloat16": half if bf16 else None,
        "float16": half,
        "float8_e4m3fn": fp8,
        "int8": int8,
        "float4_e2m1fn": fp4,
    }
    return {kind: value for kind, value in found.items() if value is not None}


_A100 = _tensor(19.5, 312, tf32=156, int8=624)
_A100_SOURCE = "NVIDIA A100 Tensor Core GPU datasheet (2021)"
_H100_SXM = _tensor(67, 989, tf32=494, fp8=1979, int8=1979)
_H100_NVL = _tensor(60, 835, tf32=417, fp8=1670, int8=1670)
_H100_SOURCE = "NVIDIA H100 Tensor Core GPU datasheet (2024), halved where it counts sparsity"
_H200_SOURCE = "NVIDIA H200 Tensor Core GPU datasheet (2024), halved where it counts sparsity"

_GPUS = [
    _gpu(
        "v100", "NVIDIA V100 SXM2", (7, 0), 32, 900, _tensor(15.7, 125, bf16=False),
        "NVIDIA V100 Tensor Core GPU datasheet (2020); 32 GB version",
        "Tesla V100-SXM2-32GB",
    ),
    _gpu(
        # The datasheet gives 65 with sums in float32.
        "t4", "NVIDIA T4", (7, 5), 16, 320, _tensor(8.1, 65, bf16=False, int8=130),
        "NVIDIA T4 Tensor Core GPU datasheet (2019); bandwidth: T4 product brief",
        "Tesla T4", "NVIDIA T4",
    ),
    _gpu(
        "a10", "NVIDIA A10", (8, 6), 24, 600, _tensor(31.2, 125, tf32=62.5, int8=250),
        "NVIDIA A10 Tensor Core GPU datasheet (2021)",
        "NVIDIA A10",
    ),
    _gpu(
        "a100", "NVIDIA A100 SXM 80GB", (8, 0), 80, 2039, _A100, _A100_SOURCE,
        "NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB",
    ),
    _gpu(
        "a100-40gb", "NVIDIA A100 40GB", (8, 0), 40, 1555, _A100,
        "NVIDIA A100 Tensor Core GPU datasheet (2020)",
        "NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB",
    ),
    _gpu(
        "a100-pcie-80gb", "NVIDIA A100 PCIe 80GB", (8, 0), 80, 1935, _A100, _A100_SOURCE,
        "NVIDIA A100 80GB PCIe",
    ),
    _gpu(
        "l4", "NVIDIA L4", (8, 9), 24, 300, _tensor(30.3, 121, tf32=60, fp8=242, int8=242),
        "NVIDIA L4 Tensor Core GPU datasheet (2023), halved where it counts sparsity",
        "NVIDIA L4",
    ),
    _gpu(
        "l40", "NVIDIA L40", (8, 9), 48, 864, _tensor(90.5, 181, tf32=90.5, fp8=362, int8=362),
        "NVIDIA L40 datasheet (2023)",
        "NVIDIA L40",
    ),
    _gpu(
        "l40s", "NVIDIA L40S", (8, 9), 48, 864, _tensor(91.6, 362, tf32=183, fp8=733, int8=733),
        "NVIDIA L40S datasheet (2023)",
        "NVIDIA L40S",
    ),
    _gpu(
        # Sums in float32, as libraries have them; with sums in float16 twice as much.
        "rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 24, 1008,
        _tensor(82.6, 165.2, tf32=82.6, fp8=330.3, int8=660.6),
        "NVIDIA Ada GPU Architecture whitepaper, version 2.02, appendix A",
        "NVIDIA GeForce RTX 4090",
    ),
    _gpu(
        "h100", "NVIDIA H100 SXM", (9, 0), 80, 3350, _H100_SXM, _H100_SOURCE,
        "NVIDIA H100 80GB HBM3",
    ),
    _gpu(
        "h100-pcie", "NVIDIA H100 PCIe", (9, 0), 80, 2000,
        _tensor(51, 756, tf32=378, fp8=1513, int8=1513),
        "NVIDIA H100 Tensor Core GPU datasheet (2023), halved where it counts sparsity",
        "NVIDIA H100 PCIe",
    ),
    _gpu(
        "h100-nvl", "NVIDIA H100 NVL", (9, 0), 94, 3900, _H100_NVL, _H100_SOURCE,
        "NVIDIA H100 NVL",
    ),
    _gpu(
        "h200", "NVIDIA H200 SXM", (9, 0), 141, 4800, _H100_SXM, _H200_SOURCE,
        "NVIDIA H200",
    ),
    _gpu(
        "h200-nvl", "NVIDIA H200 NVL", (9, 0), 141, 4800, _H100_NVL, _H200_SOURCE,
        "NVIDIA H200 NVL",
    ),
    _gpu(
        "b200", "NVIDIA B200", (10, 0), 180, 8000,
        _tensor(75, 2250, tf32=1100, fp8=4500, int8=4500, fp4=9000),
        "NVIDIA Blackwell datasheet (2025), HGX B200, halved where it counts sparsity; bandwidth: "
        "NVIDIA DGX B200 datasheet",
        "NVIDIA B200",
    ),
]  # fmt: skip

_AVX512 = ("f16c", "avx2", "avx512f", "avx512_vnni")
_INTEL = (
    "Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1: instruction sets "
    "only, since rates depend on cores and clock"
)
_ARM = "Arm Neoverse technical reference manual: instruction sets only"

_CPUS = [
    DeviceProfile(
        "x86-avx2", "x86 with AVX2 (Intel Haswell to Broadwell, AMD Zen 1 to 3)", "cpu", _INTEL,
        cpu_flags=("f16c", "avx2"),
    ),
    DeviceProfile(
        "x86-avx512-vnni", "x86 with AVX-512 VNNI (Intel Cascade Lake, Ice Lake)", "cpu", _INTEL,
        cpu_flags=_AVX512,
    ),
    DeviceProfile(
        "x86-avx512-bf16", "x86 with AVX-512 VNNI and BF16 (AMD Zen 4 and 5)", "cpu", _INTEL,
        cpu_flags=(*_AVX512, "avx512_bf16"),
    ),
    DeviceProfile(
        "x86-amx", "x86 with AMX (Intel Sapphire Rapids, Emerald Rapids)", "cpu", _INTEL,
        cpu_flags=(
            "f16c", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
            "amx_tile", "amx_int8", "amx_bf16",
        ),
    ),
    DeviceProfile(
        "arm-neoverse-n1", "Arm Neoverse N1 (AWS Graviton2, Ampere Altra)", "cpu", _ARM,
        cpu_flags=("asimddp", "fphp", "asimdhp"),
    ),
    DeviceProfile(
        "arm-neoverse-v2", "Arm Neoverse V2 (AWS Graviton4, NVIDIA Grace)", "cpu", _ARM,
        cpu_flags=("asimddp", "i8mm", "bf16", "fphp", "asimdhp"),
    ),
]  # fmt: skip

PROFILES: dict[str, DeviceProfile] = {profile.id: profile for profile in (*_GPUS, *_CPUS)}
"""{id: profile}: GPUs by compute capability, then processors."""

_BY_NVML_NAME = {name: profile for profile in PROFILES.values() for name in profile.nvml_names}


def profile_for(device_name: str) -> DeviceProfile | None:
    """The profile of the GPU that NVML calls `device_name`; None where there is none for exactly
    this one. A laptop's or PCIe variant, or a slice (MIG, vGPU), has other rates than the board
    whose name it carries, so nothing but the whole name counts."""
    return _BY_NVML_NAME.get(device_name.strip())


def named_profile(name: str) -> DeviceProfile:
    """The profile with the id `name`, in any case; UsageError with near names and all of them."""
    found = PROFILES.get(name.lower())
    if found is None:
        near = near_names(name.lower(), PROFILES)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"unknown device profile '{name}'; {hint}known: {', '.join(PROFILES)}")
    return found
