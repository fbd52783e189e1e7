"""One forward pass of a causal language model: only the logits that are asked for, and after a
cache where one is given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precision_explorer.models.adapter import pad_right
from precision_explorer.models.dispatch import is_spread
from precision_explorer.models.greedy import cache_arguments

Place = tuple[int, int]
"""(row, position in the row): the logits after that token."""

# Their frequencies depend on the longest position of a call, so a call in parts is another one.
_MOVING_ROPE = {"dynamic", "longrope"}
# Logits whose log-sum-exp is taken at a time: bounds the float32 copy, and on a CPU keeps it in the
# cache, which is 2.4 x faster (49,152 words, 2 MB of cache a core).
_CHUNK = {"cpu": 1 << 20, "cuda": 1 << 24}


@dataclass(frozen=True)
class Past:
    """What rows have seen so far: `cache`, `mask` (rows, slots) with 0 where a slot of the cache is
    padding, `lengths` (rows,) the tokens seen."""

    cache: Any
    mask: torch.Tensor
    lengths: torch.Tensor

    def take(self, rows: Sequence[int]) -> Past:
        """The past of `rows`, each as often as it is named; this one stays as it is."""
        cache = copy.copy(self.cache)
        held = {
            k.device for layer in cache.layers if (k := getattr(layer, "keys", None)) is not None
        }
        # Layers on several devices are indexed from the host.
        index = torch.tensor(rows, device=self.mask.device if len(held) < 2 else "cpu")
        # Layers put new tensors in the place of theirs and change none.
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        cache.batch_select_indices(index)
        return Past(cache, self.mask[index], self.lengths[index])


class CausalForward:
    """Calls `model` on lists of token ids."""

    def __init__(self, model: nn.Module, device: str, pad: int) -> None:
        self.model, self.device, self.pad = model, device, pad
        taken = inspect.signature(model.forward).parameters
        self.keeps, self.cache_name = cache_arguments(model)
        self._positions = "position_ids" in taken and self.cache_name in taken
        # transformers' own helper takes a mask of the places to keep, other code takes positions.
        plain = inspect.unwrap(model.forward)
        self._masks = self.keeps and "slice_logits_to_keep" in getattr(plain, "__globals__", {})

    @property
    def pads(self) -> bool:
        """Whether the model is compiled for few shapes: then it is given a mask, and positions to
        keep that are the same for all rows, and no cache."""
        return getattr(self.model.forward, "pads", False)

    @property
    def picks(self) -> bool:
        """Whether a call makes logits of the places that it is asked for and of no others."""
        return self._masks and not self.pads

    def can_go_on(self, slots: int) -> bool:
        """Whether a call after a cache of up to `slots` tokens, some of them padding, gives what
        one call on all tokens gives. Told from the model's kind alone, so that all formats agree.
        """
        config = self.model.config.get_text_config()
        if self.pads or not self._positions or _rope_types(config) & _MOVING_ROPE:
            return False
        try:
            from transformers import DynamicCache
            from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

            layers = DynamicCache(config=self.model.config).layers
        except (ImportError, TypeError, AttributeError, KeyError, ValueError):
            return False
        return bool(layers) and all(
            type(layer) is DynamicLayer
            or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > slots)
            for layer in layers
        )

    def logits(
        self,
        rows: Sequence[Sequence[int]],
        places: Sequence[Place],
        past: Past | None = None,
        goes_on: bool = False,
    ) -> tuple[torch.Tensor, Past | None]:
        """((len(places), vocabulary) logits, the rows' past where it `goes_on`).

        `places` ascend and are distinct; rows may differ in length. Positions count from the first
        token of `rows`, not from that of `past`.
        """
        ids, mask = pad_right(rows, self.pad, self.device)
        given: dict[str, Any] = {"input_ids": ids, "use_cache": goes_on or past is not None}
        lengths = mask.sum(-1)
        if past is not None:
            # Padding stays within the model's positions.
            steps = torch.minimum(mask.cumsum(-1), lengths[:, None]) - 1
            given["position_ids"] = past.lengths[:, None] + steps
            given[self.cache_name] = past.cache
            mask, lengths = torch.cat([past.mask, mask], -1), past.lengths + lengths
            given["attention_mask"] = mask
        elif self.pads:
            given["attention_mask"] = mask
        # Else no mask: no token sees the padding on its right, and causal kernels are faster.
        out, logits = self._call(given, places)
        if not goes_on:
            return logits, None
        return logits, Past(getattr(out, self.cache_name), mask, lengths)

    def _kept_on(self) -> str:
        """Where the positions to keep must be: of a model that is spread over several devices on
        the host, since they index what the last of these holds."""
        return "cpu" if is_spread(self.model) else self.device

    def _call(self, given: dict[str, Any], places: Sequence[Place]) -> tuple[Any, torch.Tensor]:
        """(the model's output, its logits at `places`)."""
        if not places:
            out = self.model(**given, **({"logits_to_keep": 1} if self.keeps else {}))
            return out, out.logits[:0, 0]
        rows, positions = torch.tensor(places).T
        if self.picks:
            wanted = torch.zeros(given["input_ids"].shape, dtype=torch.bool)
            wanted[rows, positions] = True
            out = self.model(**given, logits_to_keep=wanted.to(self._kept_on()))
            return out, out.logits
        if not self.keeps:
            out = self.model(**given)
            return out, out.logits[rows.to(self.device), positions.to(self.device)]
        union, index = positions.unique(return_inverse=True)
        out = self.model(**given, logits_to_keep=union.to(self._kept_on()))
        return out, out.logits[rows.to(self.device), index.to(self.device)]


def _rope_types(config: Any) -> set[str]:
    """The kinds of rotary embedding that `config` names, of whole models or by layer type."""
    found: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        named = getattr(config, name, None)
        if isinstance(named, dict):
            every = [named, *(v for v in named.values() if isinstance(v, dict))]
            found |= {str(v.get("rope_type", v.get("type"))) for v in every}
    return found


def token_logprobs(
    logits: torch.Tensor, index: Sequence[int], tokens: Sequence[int]
) -> torch.Tensor:
    """(len(index),) log softmax(logits[index])[token], in float32, on the logits' device."""
    chunk = _CHUNK["cpu" if logits.device.type == "cpu" else "cuda"]
    rows = max(chunk // logits.shape[-1], 1)
    norms = torch.cat([part.float().logsumexp(-1) for part in logits.split(rows)])
    where = torch.as_tensor(index, device=logits.device)
    which = torch.as_tensor(tokens, device=logits.device)
    return logits[where, which].float() - norms[where]
