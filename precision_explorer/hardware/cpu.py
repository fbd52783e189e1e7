"""The processor: model, the flags that decide formats, schedulable cores, and cgroup limits."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_PROC_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
# A limit of this size is the kernel's way of saying none (cgroup v1: LONG_MAX down to a page).
_NO_LIMIT = 1 << 60

_AVX512 = ("avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16")
_AMX = ("amx_tile", "amx_int8", "amx_bf16", "amx_fp16")
_ARM = ("asimddp", "i8mm", "bf16", "fphp", "asimdhp")
FLAGS = ("f16c", "avx2", "avx_vnni", *_AVX512, *_AMX, *_ARM)
"""The flags that matter, in the order in which facts list them; names are the kernel's."""

_ABOVE_AVX2 = frozenset(_AVX512 + _AMX)
_ABOVE_SSE = _ABOVE_AVX2 | {"avx2", "avx_vnni", "f16c"}
# ATen's names are compared as written (PyTorch, aten/src/ATen/native/DispatchStub.cpp).
_ATEN_REMOVES = {
    "avx2": _ABOVE_AVX2,
    "default": _ABOVE_AVX2 | {"avx2", "avx_vnni"},
}
# oneDNN's names, in any case (oneDNN Developer Guide, "CPU Dispatcher Control").
_ONEDNN_REMOVES = {
    "SSE41": _ABOVE_SSE,
    "AVX": _ABOVE_SSE,
    "AVX2": _ABOVE_AVX2 | {"avx_vnni"},
    "AVX2_VNNI": _ABOVE_AVX2,
    "AVX2_VNNI_2": _ABOVE_AVX2,
    "AVX512_CORE": frozenset({"avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni", *_AMX}),
    "AVX512_CORE_VNNI": frozenset({"avx512_bf16", "avx512_fp16", *_AMX}),
    "AVX512_CORE_BF16": frozenset({"avx512_fp16", *_AMX}),
    "AVX512_CORE_FP16": frozenset(_AMX),
    "AVX512_CORE_AMX": frozenset({"amx_fp16"}),
}
CAPS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "FBGEMM_ENABLE_INSTRUCTIONS")

# Arm's part numbers: the kernel gives no model name there (Arm, "MIDR_EL1" of each core's manual).
_ARM_PARTS = {
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd84": "Neoverse-V3",
}


@dataclass(frozen=True)
class CpuInfo:
    """`core_of` maps each logical processor to (package, core), where the kernel tells."""

    model: str
    flags: tuple[str, ...]
    core_of: dict[int, tuple[str, str]]


def read_cpuinfo(path: Path = CPUINFO) -> str:
    """The text of /proc/cpuinfo; empty where the system has none."""
    try:
        return path.read_text(encoding="utf8", errors="replace")
    except OSError:
        return ""


def _blocks(text: str) -> list[dict[str, str]]:
    blocks = []
    for block in text.split("\n\n"):
        pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in pairs}
        if fields:
            blocks.append(fields)
    return blocks


def _model_name(fields: Mapping[str, str]) -> str:
    if "model name" in fields:
        return fields["model name"]
    part = fields.get("CPU part")
    if part is None:
        return platform.processor() or platform.machine() or "unknown processor"
    if fields.get("CPU implementer") == "0x41" and part in _ARM_PARTS:
        return f"Arm {_ARM_PARTS[part]}"
    return f"Arm implementer {fields.get('CPU implementer', '?')} part {part}"


def parse_cpuinfo(text: str) -> CpuInfo:
    """Model, flags (in the order of `FLAGS`) and topology from /proc/cpuinfo's text."""
    blocks = _blocks(text)
    first = next((b for b in blocks if "flags" in b or "Features" in b), {})
    # A hybrid processor's cores differ: only what all of them have may be used.
    sets = [set(b.get("flags", b.get("Features", "")).split()) for b in blocks if "processor" in b]
    sets = [s for s in sets if s]
    common = set.intersection(*sets) if sets else set()
    core_of = {
        int(b["processor"]): (b["physical id"], b["core id"])
        for b in blocks
        if b.get("processor", "").isdigit() and "physical id" in b and "core id" in b
    }
    return CpuInfo(_model_name(first), tuple(f for f in FLAGS if f in common), core_of)


def environment_caps(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that forbid libraries some instruction sets, where they are set."""
    return {name: variables[name] for name in CAPS if variables.get(name)}


def cap_flags(flags: tuple[str, ...], caps: Mapping[str, str]) -> tuple[str, ...]:
    """`flags` without those above a cap; a value that its library ignores removes nothing."""
    removed: frozenset[str] = frozenset()
    removed |= _ATEN_REMOVES.get(caps.get("ATEN_CPU_CAPABILITY", ""), frozenset())
    removed |= _ONEDNN_REMOVES.get(caps.get("ONEDNN_MAX_CPU_ISA", "").upper(), frozenset())
    return tuple(flag for flag in flags if flag not in removed)


def schedulable() -> set[int]:
    """Logical processors on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def count_cores(
    affinity: Collection[int], core_of: Mapping[int, tuple[str, str]], quota: float | None
) -> int:
    """Cores to compute on: physical ones where known, within the affinity mask and CPU quota.

    Hyper-threads share the units that matrix products use, so each pair counts once. A fractional
    quota counts its whole part (at least 1): one thread more would be throttled.
    """
    known = all(cpu in core_of for cpu in affinity)
    cores = len({core_of[cpu] for cpu in affinity}) if known else len(affinity)
    if quota is not None:
        cores = min(cores, int(quota))
    return max(cores, 1)


def cgroup_files(
    controller: str, name_v1: str, name_v2: str, proc: Path | None = None, root: Path | None = None
) -> list[Path]:
    """The limit's files of this process's group and all its ancestors, as far as they exist.

    A limit of an ancestor binds too (kernel documentation, "Control Group v2"). In a container
    the path may be the host's and the mount the container's own: the root's file then counts.
    """
    root = _CGROUP_ROOT if root is None else root
    try:
        lines = (_PROC_CGROUP if proc is None else proc).read_text(encoding="utf8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            base, name = root, name_v2
        elif controller in controllers.split(","):
            base, name = root / controller, name_v1
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        groups = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
        files += [group / name for group in groups if (group / name).is_file()]
    return files


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf8").strip()
    except OSError:
        return ""


def _quota_of(path: Path) -> float | None:
    if path.name == "cpu.max":
        quota, period = [*_read(path).split(), "", ""][:2]
    else:
        quota, period = _read(path), _read(path.with_name("cpu.cfs_period_us"))
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" and -1 are no limit.
    return int(quota) / int(period)


def cpu_quota(proc: Path | None = None, root: Path | None = None) -> float | None:
    """CPUs' worth of time that the cgroup allows; None without a limit."""
    files = cgroup_files("cpu", "cpu.cfs_quota_us", "cpu.max", proc, root)
    quotas = [q for q in map(_quota_of, files) if q is not None]
    return min(quotas, default=None)


def memory_limit(proc: Path | None = None, root: Path | None = None) -> int | None:
    """Bytes that the cgroup allows; None without a limit."""
    files = cgroup_files("memory", "memory.limit_in_bytes", "memory.max", proc, root)
    limits = [int(text) for text in map(_read, files) if text.isdigit()]
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None)
