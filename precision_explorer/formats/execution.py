"""From a certificate to the row's `execution`: what may be said of a format after its products were
seen. Rules only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats.catalog import AS_SHIPPED, MIXED, FormatSpec
from precision_explorer.formats.evidence import CUDA_NAMES, NATIVE, SOFTWARE, UNKNOWN
from precision_explorer.records import Caution, Certificate, OffLabel
from precision_explorer.units import share

# Bits of precision that the factors keep: what multiplies in fewer than the label's is no such row.
_PRECISION = {
    "float64": 53, "float32": 24, "tf32": 11, "float16": 11, "bfloat16": 8, "int8": 8,
    "float8_e4m3fn": 4,
}  # fmt: skip
# What a row is called by the unit that made its products.
_SAYS = {NATIVE: "native", SOFTWARE: "emulated"}
# Below this share of FLOPs, a difference is a rounding of the count.
_NOTHING = 0.001


@dataclass(frozen=True)
class Judgement:
    """`execution` for the row, why, and what its reader must be told."""

    execution: str
    reason: str
    cautions: list[Caution]


def judge(
    spec: FormatSpec, wanted: str, promised: str, reason: str, certificate: Certificate
) -> Judgement:
    """What the row may say. `wanted` is the number type of the format's products here, `promised`
    and `reason` are what device facts and dry run gave.

    Raises FormatNotApplied where products were made in a type of fewer bits than the format's.
    """
    _refuse_narrower(spec, wanted, certificate)
    seen = _shares(certificate)
    if certificate.executed_share is None:
        text = f"{reason}; no product of a linear layer was seen"
        return Judgement("unverified", text, [_unknown(1.0, certificate)])
    execution = _execution(spec, promised, certificate)
    cautions = []
    if seen.get(UNKNOWN, 0.0) > _NOTHING:
        cautions.append(_unknown(seen[UNKNOWN], certificate))
    if _otherwise(certificate):
        cautions.append(_off(spec, wanted, certificate))
    return Judgement(execution, f"{_in_words(certificate)}; {reason}", cautions)


def _shares(certificate: Certificate) -> dict[str, float]:
    """{number type: share of the counted layers' FLOPs}."""
    shares: dict[str, float] = {}
    for part in certificate.executed:
        found = part.flops / certificate.linear_flops if certificate.linear_flops else 0.0
        shares[part.number_type] = shares.get(part.number_type, 0.0) + found
    return shares


def _refuse_narrower(spec: FormatSpec, wanted: str, certificate: Certificate) -> None:
    if spec.quantizes or wanted not in _PRECISION:
        return
    for part in certificate.executed:
        bits = _PRECISION.get(part.number_type)
        if bits is not None and bits < _PRECISION[wanted] and part.flops:
            raise FormatNotApplied(
                f"{spec.id} was multiplied in {part.number_type} by {part.kernel}; unset what "
                "allows it (NVIDIA_TF32_OVERRIDE, ONEDNN_DEFAULT_FPMATH_MODE, "
                "torch.set_float32_matmul_precision)"
            )


def _execution(spec: FormatSpec, promised: str, certificate: Certificate) -> str:
    """By what made most of the converted layers' FLOPs, as far as it was seen."""
    bearing = [p for p in certificate.executed if p.converted and p.number_type != UNKNOWN]
    labelled = sum(part.flops for part in bearing)
    if not labelled:
        # A checkpoint whose library widened all of it: no layer is left that could bear the label.
        widened = spec.id == AS_SHIPPED and promised == "emulated"
        return "emulated" if widened else "unverified"
    if spec.arithmetic == "compute":
        # Most of it in another type is neither what the label says nor what it denies.
        return "dequantized" if certificate.executed_flops >= 0.5 * labelled else "unverified"
    if spec.arithmetic == MIXED:
        # The weakest of its formats, as promised, unless most of it ran wider than they name.
        return promised if certificate.executed_flops >= 0.5 * labelled else "dequantized"
    if certificate.executed_flops >= 0.5 * labelled:
        units = {kind: sum(p.flops for p in bearing if p.unit == kind) for kind in _SAYS}
        said = max(units, key=units.__getitem__)
        # Of a kernel that does not name its unit, only the worse promise is believed.
        return _SAYS[said] if units[said] >= 0.5 * labelled else _doubted(promised)
    # Wider arithmetic: weights that are widened for it, or software that stands in for the format.
    if promised in ("emulated", "dequantized"):
        return promised
    return "dequantized" if spec.quantizes else "emulated"


def _doubted(promised: str) -> str:
    return "emulated" if promised == "emulated" else "unverified"


def _in_words(certificate: Certificate) -> str:
    largest = max(certificate.executed, key=lambda part: part.flops)
    part = share(largest.flops / certificate.linear_flops, 0)
    return f"{part} of the linear layers' FLOPs seen in {largest.number_type} by {largest.kernel}"


def _unknown(part: float, certificate: Certificate) -> Caution:
    kernels = [p.kernel for p in certificate.executed if p.number_type == UNKNOWN]
    names = ", ".join(dict.fromkeys(kernels)) or "none seen"
    return Caution(
        id="execution-unknown",
        message=f"what made {share(part)} of the linear layers' FLOPs could not be told (kernels: "
        f"{names}); they are counted as not executed in the format",
    )


def _otherwise(certificate: Certificate) -> list[OffLabel]:
    """Layers that were seen to run in another type than the label's."""
    return [layer for layer in certificate.off_label if not layer.found.startswith(UNKNOWN)]


def _off(spec: FormatSpec, wanted: str, certificate: Certificate) -> Caution:
    off = _otherwise(certificate)
    names, found = [layer.name for layer in off], off[0].found
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    meant = "the types that its formats stand for" if spec.arithmetic == MIXED else wanted
    which = "" if spec.arithmetic == MIXED else f", which {spec.id} stands for"
    return Caution(
        id="partly-executed",
        message=f"{share(certificate.executed_share)} of the linear layers' FLOPs ran in "
        f"{meant}{which}: {', '.join(names[:3])}{more} ran in {found}"
        f"{_outliers(spec, certificate)}",
    )


def _outliers(spec: FormatSpec, certificate: Certificate) -> str:
    """LLM.int8() multiplies a layer's outlier columns apart, so such a layer makes two products."""
    if spec.id != "int8-llm" or certificate.evidence != CUDA_NAMES:
        return ""
    return (
        "; it may be their outlier columns, which LLM.int8() multiplies in the wider type: a "
        "layer's FLOPs are shared by the time that its products took"
    )
