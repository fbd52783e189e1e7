"""The matrix of all formats on one device, as one document: what `formats --json` prints.

The keys are part of the command line's contract (docs/commands.md): they are added to, never
renamed.
"""

from __future__ import annotations

from typing import Any

from precision_explorer.formats.catalog import CATALOG, spec_of
from precision_explorer.formats.support import Support, promise
from precision_explorer.hardware import DeviceFacts, DeviceProfile

SCHEMA_VERSION = 1


def promises(profile: DeviceProfile) -> dict[str, Support]:
    """What the device of `profile` promises for every format; nothing is asked of a device."""
    facts = profile.facts()
    return {format_id: promise(format_id, facts) for format_id in CATALOG}


def probed_document(
    facts: DeviceFacts, supports: dict[str, Support], versions: dict[str, str]
) -> dict[str, Any]:
    """The document of a device at hand, from its facts and the dry runs' answers. Sizes are bytes,
    times seconds."""
    capability = facts.compute_capability
    device = {
        "name": facts.name,
        "kind": facts.kind,
        "device": facts.device,
        "profile": None,
        "compute_capability": _dotted(capability),
        "cpu_model": facts.cpu_model,
        "cpu_flags": list(facts.cpu_flags),
        "capped": facts.capped,
        "cores": facts.cores,
        "memory_bytes": facts.memory_bytes,
        "device_memory_bytes": facts.device_memory_bytes,
        "driver": facts.driver,
        "source": None,
    }
    return _document(device, True, versions, supports)


def profile_document(profile: DeviceProfile, supports: dict[str, Support]) -> dict[str, Any]:
    """The document of a device that is not at hand: what is not known of it is null."""
    on_cpu = profile.kind == "cpu"
    device: dict[str, Any] = {
        "name": profile.name,
        "kind": profile.kind,
        "device": None,
        "profile": profile.id,
        "compute_capability": _dotted(profile.compute_capability),
        "cpu_model": None,
        "cpu_flags": list(profile.cpu_flags) if on_cpu else None,
        "capped": {},
        "cores": None,
        "memory_bytes": None,
        "device_memory_bytes": profile.memory_bytes,
        "driver": None,
        "source": profile.source,
    }
    return _document(device, False, None, supports)


def _dotted(capability: tuple[int, int] | None) -> str | None:
    return None if capability is None else f"{capability[0]}.{capability[1]}"


def _document(
    device: dict[str, Any],
    probed: bool,
    versions: dict[str, str] | None,
    supports: dict[str, Support],
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "device": device,
        "libraries": versions,
        "probed": probed,
        "formats": {name: _format(support) for name, support in supports.items()},
    }


def _format(support: Support) -> dict[str, Any]:
    spec, answer = spec_of(support.format), support.answer
    candidates = (answer or {}).get("candidates")
    return {
        "weights": spec.weights,
        "activations": spec.activations,
        "execution": support.execution,
        "reason": support.reason,
        "remedy": support.remedy,
        "probed": answer is not None,
        "kernel": support.recipe.get("kernel"),
        "library": support.recipe.get("library"),
        "compute_dtype": support.recipe.get("compute_dtype"),
        "dry_run": None if answer is None else _tried(answer),
        "candidates": None if candidates is None else [_tried(one) for one in candidates],
    }


def _tried(answer: dict[str, Any]) -> dict[str, Any]:
    """One kernel's dry run. `relative_error` is the worst of all inputs (Frobenius norm)."""
    return {
        "kernel": answer.get("kernel"),
        "compute_dtype": (answer.get("recipe") or {}).get("compute_dtype"),
        "ok": answer["ok"],
        "why": answer.get("why"),
        "relative_error": answer.get("error"),
        "seconds": answer.get("seconds"),
        "rate_over_fp32": answer.get("speed_ratio"),
    }
