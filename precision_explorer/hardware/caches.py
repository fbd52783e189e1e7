"""The processor's last-level cache, which decides what a bandwidth says."""

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


def _by_sysconf() -> int | None:
    for name in ("SC_LEVEL4_CACHE_SIZE", "SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (ValueError, OSError):
            continue
        if size > 0:
            return size
    return None
