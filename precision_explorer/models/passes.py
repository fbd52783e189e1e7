"""The passes that a profile times: a prompt at once, and one token after a cached prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

PROMPT_TOKENS = 128


@dataclass(frozen=True)
class Pass:
    """`call` runs it, `reset` undoes what it left in the cache. `tokens` new ones per request of
    `batch`, after `cached` ones; `causal` where a token sees only those before it."""

    call: Callable[[], Any]
    reset: Callable[[], None]
    batch: int
    tokens: int
    cached: int
    causal: bool


def _ids(adapter: Any, batch: int, tokens: int) -> torch.Tensor:
    """Random token ids, never the padding's: the same for every format."""
    vocabulary = adapter.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (batch, tokens), generator=generator)
    ids[ids == adapter.pad] = (adapter.pad + 1) % vocabulary
    return ids.to(adapter.device)


def _nothing() -> None:
    return None


def encode_pass(adapter: Any, batch: int) -> Pass:
    """An encoder's pass over `batch` texts of 128 tokens, or as many as it takes; of a model that
    sees, over `batch` times its first image."""
    if hasattr(adapter, "pixels"):
        pixels = adapter.pixels([0] * batch)
        return Pass(
            lambda: adapter.model(pixel_values=pixels),
            _nothing,
            batch,
            adapter.max_length,
            0,
            causal=False,
        )
    tokens = min(PROMPT_TOKENS, adapter.max_length)
    ids = _ids(adapter, batch, tokens)
    mask = torch.ones_like(ids)

    def call() -> Any:
        return adapter.model(input_ids=ids, attention_mask=mask)

    return Pass(call, _nothing, batch, tokens, 0, causal=False)


def first_token_pass(adapter: Any, batch: int) -> Pass:
    """An encoder-decoder's pass over `batch` sources of 128 tokens, or as many as it takes, and
    over the first position of each answer."""
    tokens = min(PROMPT_TOKENS, adapter.max_length)
    ids = _ids(adapter, batch, tokens)
    mask, begin = torch.ones_like(ids), ids[:, :1].contiguous()

    def call() -> Any:
        return adapter.model(input_ids=ids, attention_mask=mask, decoder_input_ids=begin)

    return Pass(call, _nothing, batch, tokens, 0, causal=False)


def _prefill(adapter: Any, ids: torch.Tensor) -> Any:
    keep = {"logits_to_keep": 1} if adapter._keeps else {}
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    mask = torch.ones_like(ids)
    return adapter.model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **keep
    )


def _prompt(adapter: Any) -> int:
    # One position is left for the token to decode.
    return max(min(PROMPT_TOKENS, adapter.max_length - 1), 1)


def prefill_pass(adapter: Any, batch: int) -> Pass:
    """A language model's pass over `batch` prompts, as a request begins: one logit each."""
    ids = _ids(adapter, batch, _prompt(adapter))
    return Pass(lambda: _prefill(adapter, ids), _nothing, batch, ids.shape[1], 0, causal=True)


def decode_pass(adapter: Any, batch: int) -> Pass:
    """One token for each of `batch` requests after their cached prompts. The cache is cut back
    after each pass; one that can't be cut grows by a token. One of fixed size is always cut back: a
    token beyond its end is an error that on CUDA ends the process's use of the device."""
    ids = _ids(adapter, batch, _prompt(adapter))
    with torch.inference_mode():
        cache = getattr(_prefill(adapter, ids), adapter._cache)
    cached = ids.shape[1]
    token = ids[:, :1].contiguous()
    mask = ids.new_ones(batch, cached + 1)
    positions = ids.new_full((batch, 1), cached)

    def call() -> Any:
        return adapter.model(
            input_ids=token,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{adapter._cache: cache},
        )

    def reset() -> None:
        try:
            cache.crop(-1)
        except (AttributeError, NotImplementedError):
            _step_back(cache)

    return Pass(call, reset, batch, 1, cached, causal=True)


def _step_back(cache: Any) -> None:
    """Let caches of fixed size forget their last token: before 5.18 transformers can't crop them,
    but the next token is written where their length says."""
    for layer in getattr(cache, "layers", ()):
        length = getattr(layer, "cumulative_length", None)
        if isinstance(length, torch.Tensor):
            length.sub_(1)
        if isinstance(getattr(layer, "cumulative_length_int", None), int):
            layer.cumulative_length_int -= 1
