"""What a device makes of a format: native, dequantized, emulated or unsupported, and why.

Decided from the device's facts and the answer of a tiny dry run on it, never from a version table
alone. No torch here: the parent plans from stored answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from precision_explorer.formats.catalog import spec_of
from precision_explorer.hardware import (
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
    """`execution` with the reason in words; `recipe` says how the format is made here."""

    format: str
    execution: str
    reason: str
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def supported(self) -> bool:
        """Whether the format can be run at all here."""
        return self.execution != "unsupported"


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
    return [f for f in formats if _unsupported_by_facts(f, facts) is None]


def _cast(format_id: str, facts: DeviceFacts, answer: dict[str, Any]) -> tuple[str, str]:
    if format_id == "fp32":
        return "native", "float32 arithmetic"
    if format_id == "tf32":
        return "native", tf32_native(facts)[1]
    native, reason = (fp16_native if format_id == "fp16" else bf16_native)(facts)
    ratio = answer.get("speed_ratio")
    measured = f"; measured {ratio:.2g} x fp32's matmul rate here" if ratio else ""
    if native and ratio is not None and ratio < _USED:
        return "emulated", f"{reason}, but the library does not use it{measured}"
    return ("native" if native else "emulated"), reason + measured


def _int8(format_id: str, facts: DeviceFacts, answer: dict[str, Any]) -> tuple[str, str]:
    native, reason = int8_native(facts)
    kernel = answer["kernel"]
    if format_id == "int8-llm":
        rounded = "inputs are rounded to float16 before they are quantized"
        if facts.kind == "cpu" and "avx512f" not in facts.cpu_flags:
            text = f"bitsandbytes multiplies in fp32 on a CPU without AVX-512; {rounded}"
            return "dequantized", text
        return (
            "native" if native else "emulated"
        ), f"bitsandbytes' int8 matmul; {rounded}; {reason}"
    detail = f"kernel {kernel}, the most exact of the fastest that do not saturate here; {reason}"
    if native:
        return "native", detail
    # Without VNNI the u8 x s8 products are still made and added in integer units (vpmaddubsw).
    if kernel.startswith(("fbgemm", "onednn")) and "avx2" in facts.cpu_flags:
        return "native", f"{detail}, but AVX2 multiplies int8 in integer units, in more steps"
    return "emulated", detail


def _microscaling(facts: DeviceFacts, answer: dict[str, Any]) -> tuple[str, str]:
    native, reason = microscaling_native(facts)
    if answer["kernel"] != "emulated":
        return ("native" if native else "emulated"), reason
    wide = answer["recipe"]["compute_dtype"]
    return "emulated", f"{reason}; values are rounded as there and multiplied in {wide}"


def decide(format_id: str, facts: DeviceFacts, answer: dict[str, Any] | None) -> Support:
    """Support of `format_id` on the device of `facts`, given the dry run's `answer` there.

    Without an answer (not probed) whatever the facts do not rule out is ``unsupported`` with the
    reason that it was not tried: a label is never given on faith.
    """
    spec = spec_of(format_id)
    ruled_out = _unsupported_by_facts(format_id, facts)
    if ruled_out:
        return Support(format_id, "unsupported", ruled_out)
    if answer is None:
        return Support(format_id, "unsupported", "no dry run was made on this device")
    if not answer["ok"]:
        return Support(format_id, "unsupported", f"the dry run failed: {answer['why']}")
    recipe = answer["recipe"]
    if format_id in ("int8-llm", "int8-dynamic"):
        execution, reason = _int8(format_id, facts, answer)
    elif format_id in _WIDENED:
        execution = "dequantized"
        reason = f"weights are stored as {spec.storage} and widened to {recipe['compute_dtype']}"
    elif format_id in _MICROSCALING:
        execution, reason = _microscaling(facts, answer)
    elif format_id in _FP8:
        execution, reason = "native", fp8_native(facts)[1]
    else:
        execution, reason = _cast(format_id, facts, answer)
    return Support(format_id, execution, reason, recipe)
