"""Signal-to-quantization-noise ratio: how far what a format holds or computes is from the
reference, relative to the reference's own size."""

from __future__ import annotations

import math

# What a comparison can come to. Only ``measured`` has a number.
SQNR_STATES: tuple[str, ...] = (
    "measured", "exact", "not-finite", "no-signal", "unavailable",
)  # fmt: skip


def sqnr(signal: float, noise: float) -> tuple[str, float | None]:
    """(state, decibels) of 10 log10(`signal` / `noise`), both sums of squares: of the reference's
    values, and of the differences to them (Widrow & Kollar, Quantization Noise, 2008, ch. 1).

    ``exact`` without any noise, whose ratio is infinite; ``no-signal`` where the reference is 0
    throughout and the format is not; ``not-finite`` where a sum is not.
    """
    if not (math.isfinite(signal) and math.isfinite(noise)):
        return "not-finite", None
    if noise == 0:
        return "exact", None
    if signal == 0:
        return "no-signal", None
    # As two logarithms: the quotient of two ordinary numbers may be beyond float's range.
    return "measured", 10 * (math.log10(signal) - math.log10(noise))


def relative_error(decibels: float) -> float:
    """The root-mean-square error as a share of the reference's root-mean-square, from an SQNR."""
    return 10 ** (-decibels / 20)
