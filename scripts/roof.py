"""The device's own limits, held against its data sheet.

    python scripts/roof.py [--device cuda:0] [--json FILE]

Prints per number type the best rate of matrix products, at which shape, and its share of the dense
peak that the vendor publishes; and memory bandwidth and launch time. Measured once and cached, as a
sweep does; see docs/diagnose.md for how.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from precision_explorer.hardware import device_facts, library_versions
from precision_explorer.hardware.device_profiles import PROFILES
from precision_explorer.runner.manager import Event, prepare_environment
from precision_explorer.runner.roof import device_roof


def say(event: Event) -> None:
    """Notes alone."""
    if event.name == "note":
        print(event.data["text"], file=sys.stderr)


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    facts = device_facts(asked.device)
    threads = facts.cores
    prepare_environment(threads)
    roof = device_roof(facts, library_versions(), threads, say)
    if roof is None:
        return 1
    known = [p for p in PROFILES.values() if facts.name in p.nvml_names]
    peaks = known[0].peak_per_s if known else {}
    print(f"{facts.name}, {threads} threads")
    for rate in roof.matmul:
        if rate.flops_per_s is None:
            print(f"{rate.type:14} {rate.kernel:24} {rate.note}")
            continue
        share = f"{rate.flops_per_s / peaks[rate.type]:.0%}" if rate.type in peaks else "-"
        shape = "x".join(map(str, rate.shape or ()))
        tera = rate.flops_per_s / 1e12
        print(f"{rate.type:14} {rate.kernel:24} {tera:8.4g} T/s {share:>5} of peak  {shape}")
    for name, found in (("read", roof.read), ("cache", roof.cache), ("copy", roof.copied)):
        if found is not None:
            print(
                f"{name:14} {found.bytes_per_s / 1e9:8.0f} GB/s over {found.working_set_bytes:,} B"
            )
    waiting = (
        "" if roof.launch.sync_s is None else f", waited for {roof.launch.sync_s * 1e6:.1f} us"
    )
    print(f"launch         {roof.launch.operator_s * 1e6:.1f} us{waiting}")
    if asked.json:
        asked.json.write_text(roof.model_dump_json(indent=1) + "\n", encoding="utf8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
