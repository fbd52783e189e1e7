"""Forward passes on fixed inputs that begin at the first block that was changed: the blocks before
it answer with what they answered when nothing was changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def find_blocks(model: nn.Module, layers: Iterable[str]) -> tuple[str, nn.ModuleList] | None:
    """The model's stack of blocks, with its name: the outermost `nn.ModuleList` that holds the most
    of `layers`. None where none holds more than one block with any."""
    wanted = list(layers)
    best: tuple[int, str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            held = sum(layer.startswith(f"{name}.") for layer in wanted)
            if held and (best is None or held > best[0]):
                best = (held, name, module)
    return None if best is None else best[1:]


class Replay:
    """`passes` are calls of `model`, each on a batch of its own, that return its scores as a tensor
    (rows, classes). `reference` holds the log-probabilities of the model as it is now, per pass.

    `run(layers)` gives each pass's scores with whatever `layers` are now. Blocks before the first
    that holds one of them are not run again. That holds for stacks whose blocks see nothing of
    each other but through their outputs, which is tried out on the model itself; for others every
    pass is a whole one (`shortcut` is False).
    """

    def __init__(
        self,
        model: nn.Module,
        passes: Sequence[Callable[[], torch.Tensor]],
        layers: Sequence[str],
    ) -> None:
        self.model, self.passes = model, passes
        self._stack = find_blocks(model, layers)
        self._outputs: list[list[Any]] = []
        self.reference: list[torch.Tensor] = []
        for one in passes:
            with self._kept() as outputs:
                scores = one()
            self._outputs.append(outputs)
            self.reference.append(scores.float().log_softmax(-1))
        self.shortcut = self._stack is not None
        self.shortcut = self.shortcut and self._true()

    @contextmanager
    def _kept(self) -> Iterator[list[Any]]:
        """Every block's output of the pass made in the block."""
        outputs: list[Any] = []
        blocks = self._stack[1] if self._stack else []
        hooks = [b.register_forward_hook(lambda *given: outputs.append(given[-1])) for b in blocks]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()

    def _true(self) -> bool:
        """Whether a pass begun in the middle gives the scores of a whole one."""
        assert self._stack is not None
        if len(self._outputs[0]) != len(self._stack[1]):
            return False
        again = self._from(0, len(self._stack[1]) // 2)
        return bool(torch.equal(again.float().log_softmax(-1), self.reference[0]))

    def first_block(self, layers: Iterable[str]) -> int:
        """The index of the first block that holds one of `layers`; 0 where one lies elsewhere."""
        assert self._stack is not None
        prefix = f"{self._stack[0]}."
        indices = [
            int(layer.removeprefix(prefix).split(".")[0]) if layer.startswith(prefix) else 0
            for layer in layers
        ]
        return min(indices, default=0)

    def _from(self, index: int, first: int) -> torch.Tensor:
        assert self._stack is not None
        skipped = list(zip(self._stack[1], self._outputs[index], strict=True))[:first]
        try:
            for block, output in skipped:
                block.forward = lambda *given, _output=output, **named: _output
            return self.passes[index]()
        finally:
            for block, _ in skipped:
                block.__dict__.pop("forward", None)

    def run(self, layers: Iterable[str]) -> Iterator[torch.Tensor]:
        """(rows, classes) scores of each pass, given that only `layers` differ from the model that
        the reference was taken of."""
        first = self.first_block(layers) if self.shortcut else 0
        for index, one in enumerate(self.passes):
            yield self._from(index, first) if first else one()

    def kl(self, layers: Iterable[str]) -> float:
        """Mean KL(reference || model as it is now) over all rows, in nats; see `run`."""
        total, rows = 0.0, 0
        for reference, scores in zip(self.reference, self.run(layers), strict=True):
            total += float(kl_nats(reference, scores).sum())
            rows += len(scores)
        return total / rows


# Rows whose differences are taken at a time: bounds the copies beside two rows of logits.
_CHUNK = 64


def kl_nats(reference: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """(rows,) KL(p || q) in nats, float64: p by `reference`'s log-probabilities, q the softmax of
    `scores`; both (rows, classes).

    With d = log p - log q the sum is taken as p (d + exp(-d) - 1), whose terms are p d + q - p: the
    same sum, as p and q each add up to 1, but an error of rounding in a row's normalisation counts
    by its square only (the Bregman form of the divergence).
    """
    parts = []
    for start in range(0, len(reference), _CHUNK):
        logp = reference[start : start + _CHUNK]
        d = logp - scores[start : start + _CHUNK].float().log_softmax(-1)
        # Beyond 80 exp would overflow; a class with so much more mass in q has none in p.
        terms = logp.exp() * (d + torch.expm1(-d.clamp(min=-80.0)))
        parts.append(terms.sum(-1, dtype=torch.float64))
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
