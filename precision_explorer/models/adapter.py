"""What the worker asks of a model, whatever its head: score items in batches, serve requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

from precision_explorer.measure import NullPhases, Phases
from precision_explorer.models.item import Item
from precision_explorer.models.partition import partition

__all__ = ["Adapter", "Item", "other_batches", "pad_left", "pad_right", "plan_batches"]


class Adapter(Protocol):
    """One task on one loaded model."""

    generates: bool
    """Whether answers are generated; then `new_tokens` says how many tokens one has at most."""
    max_length: int
    """Most tokens of an input."""
    pad: int
    """The token to pad with."""

    def items(self) -> list[Item]:
        """All rows of the quality pass, in the order of the examples."""

    def scores(self, batch: Sequence[Item]) -> torch.Tensor:
        """(rows, classes): the logits of every distribution that `score` reads, on the device."""

    def score(self, batch: Sequence[Item]) -> list[Any]:
        """One answer per item, moved off the device once."""

    def rows(self, items: Sequence[Item], answers: Sequence[Any]) -> list[dict[str, Any]]:
        """One sample row per example, from all items' answers; None where not finite."""

    def request(self, index: int, phases: Phases | NullPhases) -> dict[str, Any]:
        """Serve example `index` as a user would send it; extra numbers of the request."""

    def offline(self, indices: Sequence[int]) -> dict[str, Any]:
        """Serve a batch of examples at once."""


def pad_right(
    rows: Sequence[Sequence[int]], pad: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, longest) ids and attention mask, padded on the right, on `device`."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids.to(device), mask.to(device)


def pad_left(
    rows: Sequence[Sequence[int]], pad: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, padded on the left: what is generated then follows each row at once."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def plan_batches(
    lengths: Sequence[int], max_tokens: int, max_items: int, call_tokens: int | None = None
) -> list[list[int]]:
    """The frozen batch plan: indices sorted by length (longest first, ties by index), cut into
    batches whose padded size stays within `max_tokens` and `max_items`. The same for all formats,
    since scores move with the shape of the batch.

    Each batch is as large as it may be; with `call_tokens`, cuts are where padded tokens and
    `call_tokens` for each batch together are least.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if call_tokens is not None:

        def costs(end: int) -> Iterable[float]:
            for size in range(1, min(end, max_items) + 1):
                padded = size * lengths[order[end - size]]
                if size > 1 and padded > max_tokens:
                    return
                yield padded + call_tokens

        return [[order[k] for k in run] for run in partition(len(order), costs)]
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        full = batches and (
            len(batches[-1]) >= max_items or (len(batches[-1]) + 1) * longest > max_tokens
        )
        if not batches or full:
            batches.append([])
        batches[-1].append(index)
    return batches


def other_batches(
    items: Sequence[Item], frozen: Sequence[Sequence[int]], seed: int
) -> list[list[int]]:
    """A second plan for the noise floor: longest example first, ties in a seeded random order, and
    about half as many rows at a time as an item had in `frozen`; two where it was alone, since a
    smaller budget would leave it alone in a batch of the same shape. The items of an example stay
    together, as what they begin with may be computed once."""
    import numpy as np

    rows = {index: len(batch) for batch in frozen for index in batch}
    longest: dict[int, int] = {}
    for item in items:
        longest[item.example] = max(longest.get(item.example, 0), len(item.ids))
    shuffled = np.random.default_rng(seed).permutation(list(longest)).tolist()
    place = {example: k for k, example in enumerate(shuffled)}
    order = sorted(
        range(len(items)), key=lambda i: (-longest[items[i].example], place[items[i].example], i)
    )
    batches: list[list[int]] = []
    while order:
        before = rows[order[0]]
        count = before // 2 if before > 1 else 2
        batches.append(order[:count])
        order = order[count:]
    return batches
