"""Log-likelihoods of many rows of a causal language model: in a frozen batch plan, with what rows
begin with in common computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from precision_explorer.models.adapter import Item, plan_batches
from precision_explorer.models.causal_forward import CausalForward, Past, Place, token_logprobs
from precision_explorer.models.prefixes import (
    Stem,
    begins_with,
    find_header,
    find_stems,
    plan_shared,
    whole_row,
)
from precision_explorer.models.states import Heard


@dataclass
class _Call:
    """One forward pass: its rows, and what is read: `keys[t]` is the sum to which the
    log-probability of `tokens[t]` after `places[t]` belongs, `sources[t]` the item (by its index in
    the batch) and the position in it."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    sources: list[tuple[int, int]] = field(default_factory=list)

    def add(
        self, item: Item, index: int, begin: int, end: int, keys: dict[tuple[int, int], int]
    ) -> None:
        """Read what `item` wants from its positions `begin` to `end`, which are the last row.
        `keys` numbers each (item, slot)."""
        row = len(self.rows) - 1
        for slot, position, token in item.targets:
            if begin <= position < end:
                self.places.append((row, position - begin))
                self.tokens.append(token)
                self.keys.append(keys.setdefault((index, slot), len(keys)))
                self.sources.append((index, position))

    def run(
        self, scorer: Scorer, batch: Sequence[Item], past: Past | None, goes_on: bool
    ) -> tuple[torch.Tensor, Past | None]:
        """((targets,) log-probabilities on the device, the rows' past where it `goes_on`)."""
        # Choices of one token are read at one place, which is computed once.
        places, index = np.unique(
            np.array(self.places, dtype=np.int64).reshape(-1, 2), axis=0, return_inverse=True
        )
        logits, past = scorer.forward.logits(self.rows, places.tolist(), past, goes_on)
        if scorer.heard is not None:
            scorer.heard.take(batch, self.sources, index.reshape(-1).tolist(), logits)
        return token_logprobs(logits, index.reshape(-1), self.tokens), past


class Scorer:
    """Scores items on one model. Rows are computed whole until `share` is called."""

    def __init__(self, forward: CausalForward) -> None:
        self.forward = forward
        self.header: tuple[int, ...] = ()
        self.shares = False
        self.heard: Heard | None = None
        """Told of what every call reads, while one listens."""
        self._bounds = (0, 0, 0)
        self._past: Past | None = None

    def share(
        self, items: Sequence[Item], max_tokens: int, max_items: int, call_tokens: int
    ) -> list[list[int]]:
        """The batch plan of `items`; from now on `score` shares what the rows of a batch begin with
        in common. The plain plan where the model can't go on after a cache."""
        lengths = [len(item.ids) for item in items]
        # Stems and tails are padded each by itself: together that is less than twice a row.
        self.shares = self.forward.can_go_on(2 * max(lengths, default=0))
        self.header, self._past = (), None
        self._bounds = (max_tokens, max_items, call_tokens)
        if not self.shares:
            return plan_batches(lengths, *self._bounds)
        self.header = find_header(items)
        return plan_shared(items, self.header, *self._bounds)

    def release(self) -> None:
        """Give the header's cache back; it is made again when it is needed."""
        self._past = None

    def whole(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        """{slot: summed log-probability in nats} per item, each row computed whole."""
        return self._score(batch, [whole_row(i, len(item.ids)) for i, item in enumerate(batch)], 0)

    def score(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        """The same, with prefixes shared where `share` was called."""
        if not self.shares:
            return self.whole(batch)
        begins = bool(self.header) and all(begins_with(item, self.header) for item in batch)
        header = self.header if begins else ()
        return self._score(batch, find_stems(batch, header, len(batch)), len(header))

    def _score(
        self, batch: Sequence[Item], stems: Sequence[Stem], header: int
    ) -> list[dict[int, float]]:
        keys: dict[tuple[int, int], int] = {}
        first = _stems(batch, stems, header, keys)
        past = self._header().take([0] * len(stems)) if header else None
        forks = any(stem.forks for stem in stems)
        found, past = first.run(self, batch, past, goes_on=forks)
        order, values = list(first.keys), [found]
        for parents, call in self._tails(batch, stems, keys):
            assert past is not None
            values.append(call.run(self, batch, past.take(parents), goes_on=False)[0])
            order += call.keys
        # Off the device once. Summed on the host, where the order is always the same.
        weights = torch.cat(values).double().cpu().numpy()
        sums = np.bincount(order, weights=weights, minlength=len(keys))
        answers: list[dict[int, float]] = [{} for _ in batch]
        for (item, slot), key in keys.items():
            answers[item][slot] = float(sums[key])
        return answers

    def _header(self) -> Past:
        """The header's past, computed in the first batch that needs it."""
        if self._past is None:
            _, self._past = self.forward.logits([self.header], [], goes_on=True)
        assert self._past is not None
        return self._past

    def _tails(
        self, batch: Sequence[Item], stems: Sequence[Stem], keys: dict[tuple[int, int], int]
    ) -> Iterator[tuple[list[int], _Call]]:
        """(the stem of each row, the call) of the rows that go on, those of like length
        together."""
        rows = [
            (row, i, stem.length)
            for row, stem in enumerate(stems)
            for i, tail in zip(stem.items, stem.tails, strict=True)
            if tail
        ]
        lengths = [len(batch[i].ids) - begin for _, i, begin in rows]
        for chosen in plan_batches(lengths, *self._bounds):
            call = _Call()
            for _, i, begin in (rows[k] for k in chosen):
                call.rows.append(batch[i].ids[begin:])
                call.add(batch[i], i, begin, len(batch[i].ids), keys)
            yield [rows[k][0] for k in chosen], call


def _stems(
    batch: Sequence[Item], stems: Sequence[Stem], header: int, keys: dict[tuple[int, int], int]
) -> _Call:
    """The call of the stems after the header."""
    call = _Call()
    for stem in stems:
        call.rows.append(batch[stem.items[0]].ids[header : stem.length])
        for i in stem.items:
            call.add(batch[i], i, header, stem.length, keys)
    return call
