"""Values against the range of a number type: how many are beyond it, at its end, or too small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from precision_explorer.formats.number_types import Held

_TINY = torch.finfo(torch.float32).tiny


@dataclass
class RangeSums:
    """Running counts over tensors of values; `held` None counts nothing but the values' own range.

    - `overflow`: magnitudes beyond the largest finite value, which an unscaled floating type turns
      into infinity. A scale taken from the data leaves none.
    - `saturated`: magnitudes that an integer type holds by its largest code, the clamp. With a
      scale taken from the data nothing is cut off by it: the largest value of each row is there.
    - `subnormal`: held at less than full precision. `flushed`: not zero, but rounded to zero, as it
      lies within half of the smallest value (to nearest, ties to even: IEEE 754-2019, 4.3.1).
    """

    held: Held | None
    count: int = 0
    overflow: int = 0
    saturated: int = 0
    subnormal: int = 0
    flushed: int = 0
    max_abs: float = 0.0
    min_abs: float = math.inf

    def add(self, values: torch.Tensor) -> None:
        """Count `values`, of any shape whose last dimension runs along a row."""
        magnitudes = values.detach().float().abs()
        if magnitudes.numel() == 0:
            return
        largest = float(magnitudes.max())
        if math.isnan(largest):  # Beyond everything.
            magnitudes, largest = magnitudes.nan_to_num(nan=math.inf, posinf=math.inf), math.inf
        zeros = magnitudes.numel() - int(magnitudes.count_nonzero())
        nonzero = torch.where(magnitudes > 0, magnitudes, math.inf) if zeros else magnitudes
        smallest = float(nonzero.min())
        self.count += magnitudes.numel()
        self.max_abs, self.min_abs = max(self.max_abs, largest), min(self.min_abs, smallest)
        if self.held is not None:
            self._against(self.held, magnitudes, zeros, largest, smallest)

    def _against(
        self, held: Held, magnitudes: torch.Tensor, zeros: int, largest: float, smallest: float
    ) -> None:
        kind, scaled = held.type, _scaled(magnitudes, held)
        if kind.saturates_from is not None:
            self.saturated += _count(scaled >= kind.saturates_from)
        elif held.scale == "none" and largest > kind.largest:
            self.overflow += _count(magnitudes > kind.largest)
        if held.scale == "none" and smallest >= kind.smallest_normal:
            return
        # Zeros are below both bounds and are neither.
        flushed = _count(scaled <= kind.smallest / 2) - zeros
        self.flushed += flushed
        self.subnormal += _count(scaled < kind.smallest_normal) - zeros - flushed

    def shares(self) -> dict[str, float | None]:
        """overflow, saturated, subnormal and flushed shares; None where they have no meaning."""
        if self.held is None or self.count == 0:
            return dict.fromkeys(("overflow", "saturated", "subnormal", "flushed"))
        kind = self.held.type
        has_top = kind.saturates_from is not None
        return {
            "overflow": None if kind.clamps else self.overflow / self.count,
            "saturated": self.saturated / self.count if has_top else None,
            "subnormal": None if kind.clamps else self.subnormal / self.count,
            "flushed": self.flushed / self.count,
        }

    def ends(self) -> tuple[float | None, float | None]:
        """(largest, smallest nonzero) magnitude; None where there is none, or it is not finite."""
        largest = self.max_abs if self.count and math.isfinite(self.max_abs) else None
        return largest, self.min_abs if math.isfinite(self.min_abs) else None


def _count(mask: torch.Tensor) -> int:
    return int(mask.count_nonzero())


def _scaled(magnitudes: torch.Tensor, held: Held) -> torch.Tensor:
    """`magnitudes` in the units of the type's own values, by the scale of `held`."""
    if held.scale == "none":
        return magnitudes
    grouped = magnitudes
    if held.block is not None:
        # The weight as one row of blocks, as bitsandbytes cuts it; the last may be shorter.
        flat = magnitudes.reshape(-1)
        grouped = torch.nn.functional.pad(flat, (0, -len(flat) % held.block))
        grouped = grouped.reshape(-1, held.block)
    peak = grouped.amax(dim=-1, keepdim=True).clamp_min(_TINY)
    units = grouped / peak * held.type.largest
    return units.reshape(-1)[: magnitudes.numel()].reshape(magnitudes.shape)
