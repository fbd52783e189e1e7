"""The processor's last-level caches, which decide what a bandwidth says."""

from __future__ import annotations

import os
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


def last_level_cache_bytes(root: Path = _CACHES) -> int | None:
    """Bytes of the largest-level data or unified cache that core 0 uses; None where the system
    tells neither by sysfs (Linux kernel documentation, "sysfs-devices-system-cpu") nor by the C
    library's `sysconf`."""
    found: dict[int, int] = {}
    for folder in sorted(root.glob("index*")):
        try:
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
            if kind in ("Data", "Unified"):
                found[int(level)] = int(size[:-1]) * _UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    if found:
        return found[max(found)]
    return _by_sysconf() if root == _CACHES else None


def last_level_cache_count(root: Path = _CACHES.parent.parent) -> int:
    """How many last-level caches the processors have among them: several sockets, or several groups
    of cores on one chip, each have their own. 1 where the system does not tell."""
    shared: dict[int, set[str]] = {}
    for folder in root.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((folder / "level").read_text(encoding="ascii"))
            users = (folder / "shared_cpu_list").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        shared.setdefault(level, set()).add(users)
    return len(shared[max(shared)]) if shared else 1


def _by_sysconf() -> int | None:
    for name in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (ValueError, OSError):
            continue
        if size > 0:
            return size
    return None
