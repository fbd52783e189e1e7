"""What a device makes of a format: native, dequantized, emulated or unsupported, and why.

Decided from the device's facts and the answer of a tiny dry run on it, never from a version table
alone. For a device that one does not have, `promise` says what the facts alone promise, by the same
rules. No torch here: the parent plans from stored answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from precision_explorer.formats.catalog import AS_SHIPPED, spec_of
from precision_explorer.hardware import (
    NEEDS,
    DeviceFacts,
    bf16_native,
    fp8_native,
    fp16_native,
    int8_native,
    microscaling_native,
    tf32_native,
)

# Formats whose weights are widened before each product, on every device.
_WIDENED = ("fp8-weight-only", "int8-weight-only", "nf4", "int4-weight-only")
_FP8 = ("fp8-dynamic", "fp8-dynamic-per-tensor")
_MICROSCALING = ("mxfp8", "nvfp4")
# An arithmetic unit that is there but is used at less than this share of fp32's rate is not
# computing in the format: emulation costs 3 to 10 times (measured: 4.7 to 8.7 on AVX2).
_USED = 0.6


@dataclass(frozen=True)
class Support:
    """`execution` with the reason in words; `recipe` says how the format is made here.

    `remedy`: what to install or which device would do better; None where nothing is missing, or
    nobody knows. `answer`: the dry run's; None where there was none.
    """

    format: str
    execution: str
    reason: str
    recipe: dict[str, Any] = field(default_factory=dict)
    remedy: str | None = None
    answer: dict[str, Any] | None = None

    @property
    def supported(self) -> bool:
        """Whether the format can be run at all here."""
        return self.execution != "unsupported"

    @property
    def why(self) -> str:
        """The reason, and what to do about it where that is known."""
        return self.reason if self.remedy is None else f"{self.reason}; {self.remedy}"


def _unsupported_by_facts(format_id: str, facts: DeviceFacts) -> str | None:
    """Why the device can't run the format whatever the libraries say; None if it might."""
    if format_id == "tf32":
        ok, reason = tf32_native(facts)
        return None if ok else reason
    if format_id in _FP8:
        ok, reason = fp8_native(facts)
        return None if ok else reason
    return None


def candidates(facts: DeviceFacts, formats: list[str]) -> list[str]:
    """The formats worth a dry run: those that the facts alone do not rule out."""
    tried = (f for f in formats if f != AS_SHIPPED)
    return [f for f in tried if _unsupported_by_facts(f, facts) is None]


# A checkpoint that comes quantized is decided with its config at hand (`models.shipped`).
_BY_CHECKPOINT = Support(
    AS_SHIPPED,
    "unverified",
    "decided by the checkpoint's own scheme: plan --model says how it runs",
)


# Below, an `answer` of None is a device that was not probed: what the facts promise.


def _cast(format_id: str, facts: DeviceFacts, answer: dict[str, Any] | None) -> tuple[str, str]:
    if format_id == "fp32":
        return "native", "float32 arithmetic"
    if format_id == "tf32":
        return "native", tf32_native(facts)[1]
    native, reason = (fp16_native if format_id == "fp16" else bf16_native)(facts)
    ratio = answer.get("speed_ratio") if answer else None
    measured = f"; measured {ratio:.2g} x fp32's matmul rate here" if ratio else ""
    if native and ratio is not None and ratio < _USED:
        return "emulated", f"{reason}, but the library does not use it{measured}"
    return ("native" if native else "emulated"), reason + measured


def _int8(format_id: str, facts: DeviceFacts, answer: dict[str, Any] | None) -> tuple[str, str]:
    native, reason = int8_native(facts)
    if format_id == "int8-llm":
        rounded = "inputs are rounded to float16 before they are quantized"
        if facts.kind == "cpu" and "avx512f" not in facts.cpu_flags:
            text = f"bitsandbytes multiplies in fp32 on a CPU without AVX-512; {rounded}"
            return "dequantized", text
        return (
            "native" if native else "emulated"
        ), f"bitsandbytes' int8 matmul; {rounded}; {reason}"
    # Not probed: fbgemm's and oneDNN's paired kernels are sound on every x86 processor.
    expected = "fbgemm or onednn" if facts.kind == "cpu" else "int-mm"
    kernel = answer["kernel"] if answer else expected
    chosen = (
        f"kernel {kernel}, the most exact of the fastest that do not saturate here"
        if answer
        else "which kernel is fastest and does not saturate, a dry run there must tell"
    )
    detail = f"{chosen}; {reason}"
    if native:
        return "native", detail
    # Without VNNI the u8 x s8 products are still made and added in integer units (vpmaddubsw).
    if kernel.startswith(("fbgemm", "onednn")) and "avx2" in facts.cpu_flags:
        return "native", f"{detail}, but AVX2 multiplies int8 in integer units, in more steps"
    return "emulated", detail


def _microscaling(facts: DeviceFacts, answer: dict[str, Any] | None) -> tuple[str, str]:
    native, reason = microscaling_native(facts)
    emulated = answer["kernel"] == "emulated" if answer else not native
    if not emulated:
        return "native", reason
    wide = answer["recipe"]["compute_dtype"] if answer else "bfloat16"
    return "emulated", f"{reason}; values are rounded as there and multiplied in {wide}"


def _execution(
    format_id: str, facts: DeviceFacts, answer: dict[str, Any] | None
) -> tuple[str, str]:
    """Execution and reason of a format that the facts do not rule out."""
    spec = spec_of(format_id)
    if format_id in ("int8-llm", "int8-dynamic", "int8-static"):
        return _int8(format_id, facts, answer)
    if format_id in _WIDENED:
        wide = answer["recipe"]["compute_dtype"] if answer else "16 or 32 bits"
        return "dequantized", f"weights are stored as {spec.storage} and widened to {wide}"
    if format_id in _MICROSCALING:
        return _microscaling(facts, answer)
    if format_id in _FP8:
        return "native", fp8_native(facts)[1]
    return _cast(format_id, facts, answer)


def _device_needed(format_id: str) -> str | None:
    """Which devices have the units of the format."""
    return NEEDS.get(format_id) or NEEDS.get(spec_of(format_id).arithmetic)


def _missing_library(format_id: str, why: str) -> str | None:
    """The line that installs what a dry run could not import; None for any other failure."""
    found = re.match(r"(?:ModuleNotFoundError: No module named '(\w+)|ImportError)", why)
    if found is None:
        return None
    return f"pip install {found.group(1) or spec_of(format_id).library}"


def _better(format_id: str, execution: str) -> str | None:
    """The remedy where a device makes less of a format than it is meant for."""
    meant = "dequantized" if spec_of(format_id).arithmetic == "compute" else "native"
    return None if execution in (meant, "native") else _device_needed(format_id)


def promise(format_id: str, facts: DeviceFacts) -> Support:
    """What the device of `facts` promises for `format_id`: the rules of `decide` without a dry run,
    for a device that is not at hand. No cell is ever run on a promise."""
    if format_id == AS_SHIPPED:
        return _BY_CHECKPOINT
    ruled_out = _unsupported_by_facts(format_id, facts)
    if ruled_out:
        return Support(format_id, "unsupported", ruled_out, remedy=_device_needed(format_id))
    execution, reason = _execution(format_id, facts, None)
    return Support(format_id, execution, reason, remedy=_better(format_id, execution))


def decide(format_id: str, facts: DeviceFacts, answer: dict[str, Any] | None) -> Support:
    """Support of `format_id` on the device of `facts`, given the dry run's `answer` there.

    Without an answer (not probed) whatever the facts do not rule out is ``unsupported`` with the
    reason that it was not tried: a label is never given on faith.
    """
    if format_id == AS_SHIPPED:
        return _BY_CHECKPOINT
    ruled_out = _unsupported_by_facts(format_id, facts)
    if ruled_out:
        return Support(format_id, "unsupported", ruled_out, remedy=_device_needed(format_id))
    if answer is None:
        return Support(format_id, "unsupported", "no dry run was made on this device")
    if not answer["ok"]:
        why = answer["why"]
        remedy = _missing_library(format_id, why)
        text = f"the dry run failed: {why}"
        return Support(format_id, "unsupported", text, remedy=remedy, answer=answer)
    execution, reason = _execution(format_id, facts, answer)
    remedy = _better(format_id, execution)
    return Support(format_id, execution, reason, answer["recipe"], remedy, answer)
