"""On which of several devices each part of a model is put: whole blocks in order, or a share of
every tensor on each. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROOM = 0.9
"""Share of each device's memory that weights and cache may take where a model is spread. A declared
choice: the rest is for the device's context, activations and logits."""


@dataclass(frozen=True)
class Block:
    """What stays on one device: a layer that its model says must not be cut, a module beside the
    layers, or all modules that share a tensor. `elements` of parameters and buffers, shared ones
    once; `layer`: whether it is one of the layers, which hold the cache."""

    names: tuple[str, ...]
    elements: int
    layer: bool


@dataclass(frozen=True)
class Split:
    """`device_map`: the place, among the devices used, of each module; None where each device holds
    a share of every tensor. `bytes_by_device`: what each holds, by the larger of loading and
    serving."""

    device_map: dict[str, int] | None
    bytes_by_device: tuple[int, ...]

    @property
    def by_tensors(self) -> bool:
        """Whether the model is split by tensors, not by layers."""
        return self.device_map is None

    @property
    def devices(self) -> int:
        """How many are used."""
        return len(self.bytes_by_device)

    @property
    def largest_share(self) -> float:
        """The part of the whole that the fullest device holds."""
        return max(self.bytes_by_device) / max(sum(self.bytes_by_device), 1)


@dataclass(frozen=True)
class TensorPlan:
    """What transformers' plan for a model's tensors comes to. `heads`: what the number of devices
    must divide (the greatest common divisor of its numbers of heads, key-value heads included);
    `split` and `whole`: elements of parameters that are split, and that each device holds."""

    heads: int
    split: int
    whole: int

    def bytes_of_each(self, bytes_: int, devices: int) -> int:
        """What each of `devices` holds of weights that take `bytes_` in all."""
        share = self.whole + -(-self.split // devices)
        return -(-bytes_ * share // max(self.split + self.whole, 1))


def split_tensors(
    plan: TensorPlan,
    load_bytes: int,
    held_bytes: int,
    cache_bytes: int,
    memory_bytes: int | None,
    devices: Sequence[int],
) -> Split | None:
    """A share of every tensor on each of the fewest of the numbers `devices` that divide the heads
    and that hold it; None where none do. Bytes as for `split`; the cache is shared out by heads.
    `memory_bytes`: of one device, None where that is not known, which then bounds nothing."""
    for count in (n for n in devices if n > 1 and plan.heads % n == 0):
        served = plan.bytes_of_each(held_bytes, count) + -(-cache_bytes // count)
        each = max(plan.bytes_of_each(load_bytes, count), served)
        if memory_bytes is None or each <= int(ROOM * memory_bytes):
            return Split(None, (each,) * count)
    return None


def split(
    blocks: Sequence[Block],
    load_bytes: int,
    held_bytes: int,
    cache_bytes: int,
    memory_bytes: int,
    most: int,
) -> Split | None:
    """`blocks` on the fewest devices of `memory_bytes` each, 2 at least and `most` at most, so that
    the fullest holds as little as can be; None where they don't fit.

    `load_bytes`: of all weights while they are loaded, `held_bytes` once the format is applied,
    shared out by elements; `cache_bytes`: of all layers. No block is cut and their order is kept,
    so that a pass goes from device to device once (and back for a head that is the embedding too).
    """
    sizes = _sizes(blocks, load_bytes, held_bytes, cache_bytes)
    room = int(ROOM * memory_bytes)
    if len(sizes) < 2 or max(sizes) > room or len(_filled(sizes, room)) > most:
        return None
    fewest = max(len(_filled(sizes, room)), 2)
    if fewest > most:
        return None
    low, high = max(sizes), max(room, max(sizes))
    while low < high:  # The least room in which the fewest devices suffice.
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(sizes, middle)) <= fewest else (middle + 1, high)
    parts = _filled(sizes, low)
    if len(parts) < 2:
        return None
    device_map = {
        name: place for place, part in enumerate(parts) for k in part for name in blocks[k].names
    }
    return Split(device_map, tuple(sum(sizes[k] for k in part) for part in parts))


def _sizes(
    blocks: Sequence[Block], load_bytes: int, held_bytes: int, cache_bytes: int
) -> list[int]:
    elements = max(sum(block.elements for block in blocks), 1)
    layers = sum(block.layer for block in blocks)
    cache = -(-cache_bytes // layers) if layers else 0
    return [
        max(
            -(-load_bytes * block.elements // elements),
            -(-held_bytes * block.elements // elements) + cache * block.layer,
        )
        for block in blocks
    ]


def _filled(sizes: Sequence[int], room: int) -> list[list[int]]:
    """The blocks of each device, one filled after the other: the fewest for blocks in order."""
    parts: list[list[int]] = [[]]
    held = 0
    for k, size in enumerate(sizes):
        if held + size > room and parts[-1]:
            parts.append([])
            held = 0
        parts[-1].append(k)
        held += size
    return parts


def in_short(names: Sequence[str]) -> str:
    """Names of modules in few words: ``model.layers.0 to 15`` for those numbered in a row."""
    found: list[list[str | int]] = []
    for name in names:
        stem, _, number = name.rpartition(".")
        if not number.isdigit():
            found.append([name])
        elif (
            found
            and len(found[-1]) == 3
            and found[-1][0] == stem
            and (int(found[-1][2]) + 1 == int(number))
        ):
            found[-1][2] = int(number)
        else:
            found.append([stem, int(number), int(number)])
    return ", ".join(
        str(f[0]) if len(f) == 1 else f"{f[0]}.{f[1]}" + (f" to {f[2]}" if f[1] != f[2] else "")
        for f in found
    )
