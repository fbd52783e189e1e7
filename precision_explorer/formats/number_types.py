"""Number types and their ranges, as data with sources, and which of them each format uses for the
weights and inputs of a converted layer. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class NumberType:
    """A number type by its range.

    `largest`: the largest finite magnitude. `smallest_normal`: the smallest positive value held at
    full precision. `smallest`: the smallest positive value at all, a subnormal where the type has
    subnormals. `clamps`: values beyond `largest` stop there rather than become infinite, as in
    integers; `saturates_from`: the magnitude from which the largest code is taken.
    """

    name: str
    largest: float
    smallest_normal: float
    smallest: float
    source: str
    clamps: bool = False
    saturates_from: float | None = None


def _binary(name: str, exponent_bits: int, fraction_bits: int, source: str) -> NumberType:
    """A binary interchange format in IEEE 754's sense (section 3.3): infinities take the highest
    exponent, subnormals the lowest."""
    highest = 2 ** (exponent_bits - 1) - 1
    lowest = 1 - highest
    return NumberType(
        name,
        largest=(2 - 2.0**-fraction_bits) * 2.0**highest,
        smallest_normal=2.0**lowest,
        smallest=2.0 ** (lowest - fraction_bits),
        source=source,
    )


_OFP8 = "OCP 8-bit Floating Point Specification (OFP8) v1.0, table 2"
_OCP_MX = "OCP Microscaling Formats (MX) v1.0, section 5.3"
_SYMMETRIC = "two's complement without its lowest value, so that both signs reach as far"

NUMBER_TYPES: dict[str, NumberType] = {
    t.name: t
    for t in [
        _binary("float32", 8, 23, "IEEE 754-2019, binary32"),
        _binary("tf32", 8, 10, "NVIDIA A100 architecture whitepaper: float32's exponent, 10 bits"),
        _binary("bfloat16", 8, 7, "Intel BFLOAT16 Hardware Numerics Definition, 2018"),
        _binary("float16", 5, 10, "IEEE 754-2019, binary16"),
        _binary("float8_e5m2", 5, 2, _OFP8),
        # Without infinities: the highest exponent holds numbers too, all but the code of NaN.
        NumberType("float8_e4m3fn", 448.0, 2.0**-6, 2.0**-9, _OFP8),
        NumberType("float4_e2m1", 6.0, 1.0, 0.5, _OCP_MX),
        NumberType("int8", 127.0, 1.0, 1.0, _SYMMETRIC, clamps=True, saturates_from=126.5),
        # 16 quantiles of a normal distribution within -1 to 1. Its two sides differ a little: the
        # smallest of the positive ones stands for both.
        NumberType(
            "nf4", 1.0, 0.07958029955625534, 0.07958029955625534,
            "QLoRA (Dettmers et al. 2023), appendix E", clamps=True,
        ),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class Held:
    """A number type with its scale: ``none``; ``row``: the largest magnitude of each row (output
    channel of a weight, token of an input) becomes the type's largest value; ``block``: the same
    for each `block` values in a row."""

    type: NumberType
    scale: str = "none"
    block: int | None = None

    @property
    def scale_name(self) -> str:
        """``none``, ``row`` or ``block-64``."""
        return f"block-{self.block}" if self.block else self.scale


@dataclass(frozen=True)
class Uses:
    """What a converted layer holds its weights in and rounds its inputs to; None: the compute type
    of the recipe."""

    weights: Held | None
    inputs: Held | None


def _by_row(name: str) -> Held:
    return Held(NUMBER_TYPES[name], "row")


_USES: dict[str, Uses] = {
    "tf32": Uses(None, Held(NUMBER_TYPES["tf32"])),
    # Autocast rounds weights too, at each call; what is held stays float32.
    "bf16-autocast": Uses(None, Held(NUMBER_TYPES["bfloat16"])),
    "fp8-dynamic": Uses(_by_row("float8_e4m3fn"), _by_row("float8_e4m3fn")),
    "fp8-weight-only": Uses(_by_row("float8_e4m3fn"), None),
    # LLM.int8() rounds inputs to float16 first; its int8 rows leave the outlier columns out.
    "int8-llm": Uses(_by_row("int8"), Held(NUMBER_TYPES["float16"])),
    "int8-weight-only": Uses(_by_row("int8"), None),
    "int8-dynamic": Uses(_by_row("int8"), _by_row("int8")),
    "nf4": Uses(Held(NUMBER_TYPES["nf4"], "block", 64), None),
}


def uses(format_id: str, kernel: str) -> Uses | None:
    """What a layer converted to `format_id` by `kernel` uses; None where that is not known here."""
    found = _USES.get(format_id)
    if found and found.weights and kernel.endswith("-paired"):
        # Its scales follow pairs of weights, so that no single largest value says how far they go.
        found = replace(found, weights=None)
    return found


def plain(dtype: str) -> Held | None:
    """An unscaled number type by torch's name of it; None for types whose scale is elsewhere."""
    known = NUMBER_TYPES.get(dtype)
    return Held(known) if known is not None and not known.clamps else None
