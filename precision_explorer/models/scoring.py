"""Log-likelihoods of many rows of a causal language model: in a frozen batch plan, with what rows
begin with in common computed once."""

from __future__ import annotations

from collections.abc import Sequence
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
)


@dataclass
class _Call:
    """One forward pass: its rows, and what is read: `keys[t]` is the sum to which the
    log-probability of `tokens[t]` after `places[t]` belongs."""

    rows: list[tuple[int, ...]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)

    def run(
        self, forward: CausalForward, past: Past | None, goes_on: bool
    ) -> tuple[torch.Tensor, Past | None]:
        """((targets,) log-probabilities on the device, the rows' past where it `goes_on`)."""
        # Choices of one token are read at one place, which is computed once.
        places, index = np.unique(
            np.array(self.places, dtype=np.int64).reshape(-1, 2), axis=0, return_inverse=True
        )
        logits, past = forward.logits(self.rows, places.tolist(), past, goes_on)
        return token_logprobs(logits, index.reshape(-1), self.tokens), past


class Scorer:
    """Scores items on one model. Rows are computed whole until `share` is called."""

    def __init__(self, forward: CausalForward) -> None:
        self.forward = forward
        self.header: tuple[int, ...] = ()
        self.shares = False
        self._past: Past | None = None

    def share(
        self, items: Sequence[Item], max_tokens: int, max_items: int, call_tokens: int
    ) -> list[list[int]]:
        """The batch plan of `items`; from now on `score` shares what the rows of a batch begin with
        in common. The plain plan where the model can't go on after a cache."""
        longest = max((len(item.ids) for item in items), default=0)
        # Stems and tails are padded each by itself: together that is less than twice a row.
        self.shares = self.forward.can_go_on(2 * longest)
        self.header, self._past = (), None
        if not self.shares:
            lengths = [len(item.ids) for item in items]
            return plan_batches(lengths, max_tokens, max_items, call_tokens)
        self.header = find_header(items)
        return plan_shared(items, self.header, max_tokens, max_items, call_tokens)

    def release(self) -> None:
        """Give the header's cache back; it is made again when it is needed."""
        self._past = None

    def whole(self, batch: Sequence[Item]) -> list[dict[int, float]]:
        """{slot: summed log-probability in nats} per item, each row computed whole."""
        stems = [Stem((i,), len(item.ids), len(item.ids)) for i, item in enumerate(batch)]
        return self._score(batch, stems, 0)

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
        first, then, parents = _calls(batch, stems, header, keys)
        past = self._header().take([0] * len(first.rows)) if header else None
        found, past = first.run(self.forward, past, goes_on=bool(then.rows))
        values = [found]
        if past is not None:
            values.append(then.run(self.forward, past.take(parents), goes_on=False)[0])
        # Off the device once. Summed on the host, where the order is always the same.
        sums = np.bincount(
            first.keys + then.keys,
            weights=torch.cat(values).double().cpu().numpy(),
            minlength=len(keys),
        )
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


def _calls(
    batch: Sequence[Item], stems: Sequence[Stem], header: int, keys: dict[tuple[int, int], int]
) -> tuple[_Call, _Call, list[int]]:
    """(the call of the stems, that of the tails, the stem of each tail's row). `keys` is filled
    with a number for each (item, slot)."""
    first, then, parents = _Call(), _Call(), []
    for row, stem in enumerate(stems):
        first.rows.append(batch[stem.items[0]].ids[header : stem.length])
        for i in stem.items:
            tail = batch[i].ids[stem.length :]
            if tail:
                then.rows.append(tail)
                parents.append(row)
            for slot, position, token in batch[i].targets:
                call, at = (
                    (first, (row, position - header))
                    if position < stem.length
                    else (then, (len(then.rows) - 1, position - stem.length))
                )
                call.places.append(at)
                call.tokens.append(token)
                call.keys.append(keys.setdefault((i, slot), len(keys)))
    return first, then, parents
