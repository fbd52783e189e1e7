"""The reference's next-token distributions, kept so that other formats can be held against them.

A distribution over the vocabulary is a linear map of a hidden state (Finlayson, Ren & Swayamdipta
2024, arXiv 2403.09539): keeping the states that enter the output head, and which tensor of the
checkpoint the head is, keeps every log-probability exactly at a hundredth of the bytes. Where the
head is not plain (soft-capped logits, weights held in a format, a checkpoint that lacks it) the
log-probabilities themselves are kept, rounded to 16 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from precision_explorer.errors import InvalidNumerics, ModelError
from precision_explorer.models.adapter import Item
from precision_explorer.models.states import EXACT, Source, output_head, positions_of
from precision_explorer.records import canonical_hash

# 4,096 positions are asked for; the items that hold them are kept whole.
POSITIONS = 4096
# Bytes that the kept rows of one task may take.
MOST_BYTES = 1 << 31
# Positions whose distributions over the vocabulary are held in float64 at a time: 64 of 50,000
# words are 26 MB each for the reference and the format.
_CHUNK = 64
# Bytes of one batch's float32 logits.
_BATCH_BYTES = 256_000_000

Batches = Sequence[Sequence[int]]
Tell = Callable[[int, int], None]
"""Told of the positions that are done, and of how many there are."""


def _silent(done: int, total: int) -> None:
    return None


@dataclass(frozen=True)
class Head:
    """An output head as its checkpoint has it: `file` and `key` of the weight, `bias` of the bias,
    relative to the model's folder; `dtype` is what it was multiplied in."""

    file: str
    key: str
    dtype: str
    bias: str | None = None


@dataclass(frozen=True)
class Kept:
    """`rows` (positions of `items`, hidden or vocabulary): states where `head` is given, else
    log-probabilities in float16. `why`: what stood against states; `error`: the largest difference
    (nats) between the log-probabilities that the states gave back and the model's own."""

    items: list[Item]
    rows: np.ndarray
    head: Head | None
    why: str | None
    error: float | None


def first_items(items: Sequence[Item], most: int = POSITIONS) -> list[Item]:
    """The first of `items` that together hold `most` scored positions, or all."""
    taken, held = [], 0
    for item in items:
        if held >= most:
            break
        if item.targets:
            taken.append(item)
            held += len(positions_of(item))
    return taken


def items_hash(items: Sequence[Item]) -> str:
    """16 hex digits of tokens and positions: rows of two formats are paired only if it agrees."""
    return canonical_hash([[list(item.ids), positions_of(item)] for item in items])


def narrower(batches: Batches, items: Sequence[Item], vocabulary: int) -> list[list[int]]:
    """`batches` cut so that the logits of none take more than 256 MB in float32, one item's
    apart."""
    most = _BATCH_BYTES // (4 * vocabulary)
    cut: list[list[int]] = []
    for batch in batches:
        held = most + 1
        for index in batch:
            count = len(positions_of(items[index]))
            if held + count > most:
                cut.append([])
                held = 0
            cut[-1].append(index)
            held += count
    return cut


# -- keeping ----------------------------------------------------------------------------------


def keep(
    model: nn.Module,
    source: Source,
    items: Sequence[Item],
    plan: Callable[[Sequence[Item]], Batches],
    folder: Path,
    tell: Tell = _silent,
) -> Kept:
    """The distributions that `source` gives of the first of `items` that fit in `MOST_BYTES`, in
    their order, in the batches that `plan` makes. `folder`: the model's checkpoint.

    As states where these give back the log-probabilities of the first batch within `EXACT` nats,
    else rounded. Raises InvalidNumerics for NaN.
    """
    first = [items[i] for i in plan(items)[0]]
    own = source.scores(first)
    head, why = _plain_head(model, folder)
    error = None
    if head is not None:
        weight, bias = _weights(head, folder, str(own.device))
        states = source.states(first)
        error = _error(own, states, weight, bias)
        # NaN is no agreement either.
        if not error <= EXACT:
            why, head = "its states don't give back its own log-probabilities", None
    width, each = (states.shape[-1], 4) if head is not None else (own.shape[-1], 2)
    taken = fitting(items, width, each)
    if not taken:
        raise ModelError(
            "the first text alone has more distributions than fit in the run's folder; lower "
            "max_length in the card"
        )

    def rows_of(chosen: Sequence[Item]) -> torch.Tensor:
        again = list(chosen) != first
        if head is None:
            return _log_probabilities(source.scores(chosen) if again else own).half()
        return (source.states(chosen) if again else states).float()

    rows = _in_order(taken, plan(taken), rows_of, tell)
    # A log-probability may be minus infinity, a state may not.
    if np.isnan(rows).any() or (head is not None and not np.isfinite(rows).all()):
        raise InvalidNumerics("the reference's outputs hold NaN; nothing can be compared with it")
    return Kept(taken, rows, head, why, error)


def _in_order(
    items: Sequence[Item],
    batches: Batches,
    rows_of: Callable[[Sequence[Item]], torch.Tensor],
    tell: Tell,
) -> np.ndarray:
    """(positions, width): the rows that `rows_of` gives for each of `batches`, by item."""
    made: list[np.ndarray] = [np.empty(0)] * len(items)
    done, total = 0, _places(items)[-1]
    for batch in batches:
        rows = rows_of([items[i] for i in batch]).cpu().numpy()
        counts = [len(positions_of(items[i])) for i in batch]
        for index, part in zip(batch, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            made[index] = part
        done += len(rows)
        tell(done, total)
    return np.concatenate(made)


def fitting(items: Sequence[Item], width: int, bytes_each: int) -> list[Item]:
    """The first of `items` whose rows of `width` values stay within `MOST_BYTES`."""
    most = MOST_BYTES // (width * bytes_each)
    taken, held = [], 0
    for item in items:
        held += len(positions_of(item))
        if held > most:
            break
        taken.append(item)
    return taken


def _places(items: Sequence[Item]) -> list[int]:
    """Where each item's positions begin among those of all, and where the last end."""
    return [0, *np.cumsum([len(positions_of(item)) for item in items]).tolist()]


def _plain_head(model: nn.Module, folder: Path) -> tuple[Head | None, str | None]:
    """The head as the checkpoint has it, or why it can't be named: it must be one linear layer
    whose weights are those of a file, cast at most."""
    module = output_head(model)
    if module is None or type(module) is not nn.Linear:
        return None, "the output head is no plain linear layer"
    if type(module.weight.data) is not torch.Tensor:
        return None, "the output head is no plain linear layer"
    found = _find(module.weight, folder)
    if found is None:
        return None, "the output head's weight stands in no safetensors file of the model"
    bias = None
    if module.bias is not None:
        place = _find(module.bias, folder, found[0])
        if place is None:
            return None, "the output head's bias stands in no safetensors file of the model"
        bias = place[1]
    dtype = str(module.weight.dtype).removeprefix("torch.")
    return Head(found[0], found[1], dtype, bias), None


def _find(wanted: torch.Tensor, folder: Path, only: str | None = None) -> tuple[str, str] | None:
    """(file, key) of the tensor that is `wanted` once it is cast; tied weights stand under the name
    of the embedding, so it is found by what it holds."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        if only is not None and path.name != only:
            continue
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no dict
                if tuple(file.get_slice(key).get_shape()) != tuple(wanted.shape):
                    continue
                tensor = file.get_tensor(key)
                if tensor.is_floating_point() and torch.equal(
                    tensor.to(wanted.dtype), wanted.detach().cpu()
                ):
                    return path.name, key
    return None


def _weights(head: Head, folder: Path, device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    from safetensors import safe_open

    dtype = getattr(torch, head.dtype)
    try:
        with safe_open(folder / head.file, framework="pt") as file:
            weight = file.get_tensor(head.key).to(device, dtype)
            bias = file.get_tensor(head.bias).to(device, dtype) if head.bias else None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{head.file} no longer holds the output head {head.key}; restore the model's files"
        ) from error
    return weight, bias


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """Meanwhile float32 products are made in float32, whatever the format allows itself."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """log softmax over the vocabulary in float64, in which normalising rounds nothing away."""
    return logits.double().log_softmax(-1)


def _from_states(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    with _full_float32():
        return nn.functional.linear(states.to(weight.dtype), weight, bias)


def _error(
    own: torch.Tensor, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> float:
    """Largest difference in nats between the log-probabilities of the logits `own` and those made
    of `states`; infinity where they are not of the head's sizes."""
    if states.shape[-1] != weight.shape[-1] or own.shape[-1] != weight.shape[0]:
        return float("inf")
    worst = []
    for start in range(0, len(own), _CHUNK):
        part = slice(start, start + _CHUNK)
        made = _log_probabilities(_from_states(states[part], weight, bias))
        worst.append((made - _log_probabilities(own[part])).abs().max())
    return float(torch.stack(worst).max())


# -- comparing --------------------------------------------------------------------------------


def compare(
    source: Source,
    items: Sequence[Item],
    batches: Batches,
    rows: np.ndarray,
    head: Head | None,
    folder: Path,
    device: str,
    tell: Tell = _silent,
) -> list[dict[str, Any]]:
    """One dict per position, in the order of the items: `example` (index), `kl` (nats), `same_top`.

    KL(reference || format) = sum p (log p - log q), `rows` and `head` being what `keep` kept of the
    reference for the same items. Raises InvalidNumerics where the format's logits are not finite.
    """
    places = _places(items)
    if len(rows) != places[-1]:
        raise ModelError("the kept positions are not these examples'; remove the run's parts")
    weight, bias = _weights(head, folder, device) if head is not None else (None, None)
    found: list[list[dict[str, Any]]] = [[] for _ in items]
    done = 0
    for batch in batches:
        logits = source.scores([items[i] for i in batch])
        wanted = np.concatenate([np.arange(places[i], places[i + 1]) for i in batch])
        values = _divergences(logits, rows[wanted], weight, bias)
        done += len(wanted)
        tell(done, len(rows))
        step = iter(values)
        for index in batch:
            example = items[index].example
            for _ in range(places[index + 1] - places[index]):
                kl, same = next(step)
                found[index].append({"example": example, "kl": kl, "same_top": same})
    return [row for item in found for row in item]


def _divergences(
    logits: torch.Tensor,
    rows: np.ndarray,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> list[tuple[float, bool]]:
    parts = []
    for start in range(0, len(logits), _CHUNK):
        part = slice(start, start + _CHUNK)
        kept = torch.tensor(rows[part]).to(logits.device)
        if weight is not None:
            reference = _log_probabilities(_from_states(kept, weight, bias))
        else:
            # Rounded, they no longer sum to exactly one.
            reference = _log_probabilities(kept)
        if bool(reference.isnan().any()):
            raise InvalidNumerics("the reference's distributions hold NaN; measure it again")
        own = _log_probabilities(logits[part])
        # What the reference holds impossible adds nothing, whatever the format makes of it.
        terms = torch.where(reference > -torch.inf, reference.exp() * (reference - own), 0.0)
        same = reference.argmax(-1) == own.argmax(-1)
        parts.append(torch.stack([terms.sum(-1), same.double()], dim=-1))
    values = torch.cat(parts).cpu()
    if not bool(torch.isfinite(values).all()):
        raise InvalidNumerics("the format's logits are not finite where the reference's were")
    return [(max(kl, 0.0), bool(same)) for kl, same in values.tolist()]
