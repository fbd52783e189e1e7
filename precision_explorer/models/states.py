"""Where next-token distributions come from: a pass made for them, or what entered the output head
in a pass that was made anyway.

The second spares a forward pass over every position, which is most of a comparison's time. States
wait in a file without a name, since memory that is held would count as the model's.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from precision_explorer.models.adapter import Adapter, Item

# States stand for log-probabilities that they give back this closely (nats).
EXACT = 1e-4
# Rows of the first batch whose logits are made again, to see whether states and head are all; few,
# as the memory that this takes is taken in a pass whose memory is measured.
_CHECKED = 16

Eagerly = Callable[[], AbstractContextManager[Any]]


class Source(Protocol):
    """Gives the distributions of items' scored positions, in order, each once."""

    def scores(self, items: Sequence[Item]) -> torch.Tensor:
        """(positions, vocabulary) logits of the model in its format."""

    def states(self, items: Sequence[Item]) -> torch.Tensor:
        """(positions, hidden) what enters the output head."""


def positions_of(item: Item) -> list[int]:
    """The positions of `item` whose distributions are scored, each once, in order."""
    return sorted({position for _, position, _ in item.targets})


def output_head(model: nn.Module) -> nn.Module | None:
    """The model's output head as transformers names it; None where it has none."""
    found = getattr(model, "get_output_embeddings", lambda: None)()
    return found if isinstance(found, nn.Module) else None


class Passes:
    """A source that runs the model; `eagerly`: while it is entered, a compiled model runs as if it
    were not."""

    def __init__(
        self, model: nn.Module, adapter: Adapter, eagerly: Eagerly = contextlib.nullcontext
    ) -> None:
        self._model, self._adapter, self._eagerly = model, adapter, eagerly

    def scores(self, items: Sequence[Item]) -> torch.Tensor:
        """One forward pass over `items`."""
        return self._adapter.scores(items)

    def states(self, items: Sequence[Item]) -> torch.Tensor:
        """One forward pass over `items` that ends before the head."""
        with self._eagerly(), _bare(self._model):
            return self._adapter.scores(items)


@contextlib.contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """Meanwhile the output head hands on what it is given: logits are the states before it."""
    module = output_head(model)
    assert module is not None
    before = module.__dict__.get("forward")
    module.forward = lambda states: states  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.forward = before  # type: ignore[method-assign]


class InBatches:
    """A source that runs `batches` of `items` whole, and gives the rows of those asked for: for a
    model whose code is compiled for the shapes of these batches alone."""

    def __init__(self, source: Source, items: Sequence[Item], batches: Sequence[Sequence[int]]):
        self._source = source
        whole = [[items[k] for k in batch] for batch in batches]
        self._batch_of = {item: batch for batch in whole for item in batch}

    def plan(self, items: Sequence[Item]) -> list[list[int]]:
        """`items` by index, those of one batch together."""
        found: dict[int, list[int]] = {}
        for index, item in enumerate(items):
            found.setdefault(id(self._batch_of[item]), []).append(index)
        return list(found.values())

    def scores(self, items: Sequence[Item]) -> torch.Tensor:
        """The rows of `items`, which are of one batch, in their order."""
        batch = self._batch_of[items[0]]
        counts = [len(positions_of(item)) for item in batch]
        parts = self._source.scores(batch).split(counts)
        rows = dict(zip(batch, parts, strict=True))
        return torch.cat([rows[item] for item in items])

    def states(self, items: Sequence[Item]) -> torch.Tensor:
        """Eagerly, whatever the shape."""
        return self._source.states(items)


class Heard:
    """A source that heard what entered the output head at the positions of `items` while they were
    scored. Of use only where it `is_whole`."""

    def __init__(self, model: nn.Module, items: Sequence[Item]) -> None:
        self._head = output_head(model)
        self._begins: dict[Item, int] = {}
        self._ranks: dict[tuple[int, int], int] = {}
        for item in items:
            begin = self._begins.setdefault(item, len(self._ranks))
            for k, position in enumerate(positions_of(item)):
                self._ranks[begin, position] = begin + k
        self._missing = set(self._ranks.values())
        self._last: torch.Tensor | None = None
        self._agrees: bool | None = None
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this does
        self._width, self._dtype, self._device = 0, torch.float32, torch.device("cpu")

    def holds(self, items: Sequence[Item]) -> bool:
        """Whether the pass left everything that is needed of `items`."""
        return self.is_whole and all(item in self._begins for item in items)

    @property
    def is_whole(self) -> bool:
        """Whether every position was heard, and the head alone makes logits of the states."""
        return bool(self._agrees) and not self._missing

    @contextlib.contextmanager
    def listening(self, scorer: Any) -> Iterator[None]:
        """Hear the calls that `scorer` makes meanwhile; none where its calls give logits of more
        than the places that are asked for."""
        if self._head is None or not scorer.forward.picks or not self._ranks:
            yield
            return
        handle = self._head.register_forward_pre_hook(self._hear)
        scorer.heard = self
        try:
            yield
        finally:
            scorer.heard = None
            handle.remove()
            self._last = None

    def _hear(self, module: nn.Module, arguments: Any) -> None:
        self._last = arguments[0] if arguments else None

    def take(
        self,
        batch: Sequence[Item],
        places: Sequence[tuple[int, int]],
        rows: Sequence[int],
        logits: torch.Tensor,
    ) -> None:
        """Keep what the last call heard: ``places[t]`` (index in `batch`, position) is in row
        ``rows[t]`` of its `logits`."""
        states, self._last = self._last, None
        if not self._missing:
            return
        begins = [self._begins.get(item, -1) for item in batch]
        wanted = {
            rank: row
            for (index, position), row in zip(places, rows, strict=True)
            if (rank := self._ranks.get((begins[index], position), -1)) in self._missing
        }
        if not wanted or states is None or states.shape[:-1] != logits.shape[:-1]:
            return
        if self._agrees is None:
            self._agrees = self._gives(states[:_CHECKED], logits[:_CHECKED])
            self._width, self._dtype = states.shape[-1], states.dtype
            self._device = logits.device
        found = states[list(wanted.values())].float().cpu().numpy()
        for rank, values in zip(wanted, found, strict=True):
            self._file.seek(rank * values.nbytes)
            self._file.write(values.tobytes())
        self._missing -= wanted.keys()

    def _gives(self, states: torch.Tensor, logits: torch.Tensor) -> bool:
        """Whether the head makes the model's log-probabilities of `states`; a cap on logits or
        arithmetic that is changed around the whole model stand against it."""
        assert self._head is not None
        # Of a model that is spread over several devices the head is on the last one.
        made = self._head(states).to(logits.device)
        if made.shape != logits.shape:
            return False
        error = [
            (a.double().log_softmax(-1) - b.double().log_softmax(-1)).abs().max()
            for a, b in zip(made, logits, strict=True)
        ]
        return float(torch.stack(error).max()) <= EXACT

    def states(self, items: Sequence[Item]) -> torch.Tensor:
        """As they were heard."""
        parts = []
        for item in items:
            count = len(positions_of(item)) * self._width
            self._file.seek(self._begins[item] * self._width * 4)
            parts.append(np.frombuffer(self._file.read(4 * count), dtype=np.float32))
        rows = np.concatenate(parts).reshape(-1, self._width)
        return torch.from_numpy(rows).to(self._device, self._dtype)

    def scores(self, items: Sequence[Item]) -> torch.Tensor:
        """The head's answer to what was heard."""
        assert self._head is not None
        return self._head(self.states(items)).to(self._device)
