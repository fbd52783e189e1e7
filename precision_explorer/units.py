"""The one place where a number becomes text, and text a number. Inside, all units are SI.

Missing (``None``) is shown as an em dash, never as 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal

MISSING = "—"


def _rounded(value: float, digits: int) -> float:
    """The magnitude as it will be shown: 999.9 ms is taken for the 1 s that it rounds to."""
    return abs(float(f"{value:.{digits - 1}e}"))


def _scaled(value: float, steps: list[tuple[float, str]], digits: int = 3) -> str:
    magnitude = _rounded(value, digits)
    factor, unit = next((s for s in steps if magnitude >= s[0]), steps[-1])
    return f"{significant(value / factor, digits)} {unit}"


def significant(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent between 1e-9 and 1e7. Digits before
    the point are never rounded away."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if not 1e-9 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    exponent = math.floor(math.log10(_rounded(value, digits)))
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}"


def count(value: float | None) -> str:
    """How many, in words from a million on: ``3,088``, ``12.3 million``."""
    if value is None:
        return MISSING
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if _rounded(value, 3) >= size:
            return f"{significant(value / size)} {word}"
    return significant(value)


def signed(value: float, text: str) -> str:
    """`text`, the formatted `value`, with its sign also where it is positive."""
    return f"+{text}" if value > 0 else text


def seconds(value: float | None) -> str:
    """A duration: ``1.23 ms``, ``45.6 s``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0 s"
    return _scaled(value, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])


def clock(value: float | None) -> str:
    """A longer duration as ``1:05`` or ``2:03:04`` (hours)."""
    if value is None:
        return MISSING
    whole = round(value)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def bytes_(value: float | None) -> str:
    """A size in decimal units: ``538 MB`` is 538,000,000 bytes."""
    if value is None:
        return MISSING
    return _scaled(value, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")])


def rate(value: float | None, what: str = "/s") -> str:
    """Things per second: ``123 /s``."""
    return MISSING if value is None else f"{significant(value)} {what}"


def usd(value: float | None) -> str:
    """Dollars: ``$0.00123``, a loss ``-$0.00123``."""
    if value is None:
        return MISSING
    return f"-${significant(-value)}" if value < 0 else f"${significant(value)}"


def joules(value: float | None) -> str:
    """An energy: ``1.2 mJ``, ``3.4 J``."""
    if value is None:
        return MISSING
    return _scaled(value, [(1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")])


def watts(value: float | None) -> str:
    """A power: ``65.0 W``."""
    return MISSING if value is None else f"{significant(value)} W"


def hertz(value: float | None) -> str:
    """A frequency: ``1.98 GHz``."""
    if value is None:
        return MISSING
    return _scaled(value, [(1e9, "GHz"), (1e6, "MHz"), (1.0, "Hz")])


def celsius(value: float | None) -> str:
    """A temperature: ``71 °C``."""
    return MISSING if value is None else f"{value:.0f} °C"


def share(value: float | None, digits: int = 1) -> str:
    """A share as percent: ``97.9 %``."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None, digits: int = 2) -> str:
    """A signed difference of shares, in percentage points: ``-0.25 pp``."""
    return MISSING if value is None else f"{100 * value:+.{digits}f} pp"


_DURATION = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZE = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_SIZE |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_ENERGY = {"mj": 1e-3, "j": 1.0, "kj": 1e3}
_NUMBER = re.compile(r"^\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([a-zA-Zµ%]*)\s*$")


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _NUMBER.match(text)
    if not match or math.isinf(float(match.group(1))):
        raise ValueError(f"'{text}' is no {what}; write it as {example}")
    return float(match.group(1)), match.group(2)


def parse_duration(text: str) -> float:
    """Seconds from ``200ms``, ``1.5s``, ``2m``; ValueError without a known unit."""
    value, unit = _split(text, "duration", "200ms or 1.5s")
    if unit not in _DURATION:
        raise ValueError(f"'{text}' has no known unit of time; write it as 200ms or 1.5s")
    return value * _DURATION[unit]


def parse_size(text: str) -> int:
    """Bytes from ``8GB`` (decimal), ``8GiB`` (binary) or a bare number of bytes."""
    value, unit = _split(text, "size", "8GB or 512MiB")
    if unit.lower() not in _SIZE:
        raise ValueError(f"'{text}' has no known unit of size; write it as 8GB or 512MiB")
    size = value * _SIZE[unit.lower()]
    if math.isinf(size):
        raise ValueError(f"'{text}' is no size; write it as 8GB or 512MiB")
    return int(size)


def _upwards(value: float, steps: list[tuple[float, str]], parse: Callable[[str], float]) -> str:
    """`value` to 3 digits in the largest unit it fills, never less than it once it is parsed."""
    factor, unit = next((s for s in steps if value >= s[0]), steps[-1])
    amount = Decimal(repr(float(value))) / Decimal(repr(factor))
    step = Decimal(1).scaleb(amount.adjusted() - 2)
    amount = amount.quantize(step, ROUND_CEILING)
    while parse(f"{amount:f}{unit}") < value:
        amount += step
    return f"{amount:f}{unit}"


def size_option(value: float) -> str:
    """A number of bytes rounded up, as `parse_size` reads it: ``448MB``."""
    return _upwards(
        value, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")], parse_size
    )


def duration_option(value: float) -> str:
    """Seconds above 0 rounded up, as `parse_duration` reads them: ``58.4ms``."""
    return _upwards(value, [(1.0, "s"), (1e-3, "ms"), (1e-6, "us")], parse_duration)


def share_option(value: float) -> str:
    """A share above 0 rounded up, as `parse_share` reads it: ``7.31%``."""
    return _upwards(value, [(0.01, "%")], parse_share)


def number_option(value: float) -> str:
    """A number above 0 rounded up, without a unit: ``0.000543``."""
    return _upwards(value, [(1.0, "")], float)


_PER = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_rate(text: str) -> float:
    """Things per second from ``200/s``, ``12000/min``, ``5e5/h``, ``1e7/d`` or a bare number, which
    is per second."""
    amount, slash, per = (part.strip() for part in text.partition("/"))
    match = _NUMBER.match(amount)
    known = per in _PER if slash else True
    if not match or match.group(2) or not known or math.isinf(float(match.group(1))):
        raise ValueError(f"'{text}' is no rate; write it as 200/s or 12000/min")
    return float(match.group(1)) / _PER[per or "s"]


def parse_energy(text: str) -> float:
    """Joules from ``2J``, ``500mJ``, ``1.2kJ``; ValueError without a known unit."""
    value, unit = _split(text, "energy", "2J or 500mJ")
    if unit.lower() not in _ENERGY:
        raise ValueError(f"'{text}' has no known unit of energy; write it as 2J or 500mJ")
    return value * _ENERGY[unit.lower()]


def parse_share(text: str) -> float:
    """A share from ``1%`` (0.01) or ``0.01``."""
    value, unit = _split(text, "share", "1% or 0.01")
    if unit not in ("", "%"):
        raise ValueError(f"'{text}' is no share; write it as 1% or 0.01")
    return value / 100 if unit else value
