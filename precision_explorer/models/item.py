"""One row of a batch, whatever computes it. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One row of a batch: token `ids`, and what to read from the model's output for it.

    `example` is the index of the example it belongs to. `room`: tokens that may be generated after
    `ids`. For language models `targets[t]` lists
    (slot, position, token): add the log-probability of `token` after `position` to `slot`.
    """

    example: int
    ids: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...] = ()
    cut: bool = False
    room: int = 0

    @property
    def size(self) -> int:
        """Tokens that the row may come to: what a batch must have room for."""
        return len(self.ids) + self.room
