"""Token ids of texts for causal language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from precision_explorer.errors import ModelError


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each of `texts` without any special token."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The same with the special tokens that the tokenizer adds of itself, without which a model
    that was trained behind a BOS scores badly; none where a text is empty or begins with the BOS.
    As lm-evaluation-harness 0.4.13 encodes prompts (``HFLM.tok_encode``)."""
    bos = getattr(tokenizer, "bos_token", None)
    bare = [not text or bool(bos and text.startswith(bos)) for text in texts]
    without = iter(plain_ids(tokenizer, [t for t, b in zip(texts, bare, strict=True) if b]))
    rest = [t for t, b in zip(texts, bare, strict=True) if not b]
    added = iter(tokenizer(rest, verbose=False)["input_ids"] if rest else [])
    return [next(without) if b else next(added) for b in bare]


def prefix_id(tokenizer: Any) -> int:
    """The token that a text without a context is conditioned on: BOS, else EOS; ModelError for a
    tokenizer with neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ModelError(
        "the model's tokenizer has neither a BOS nor an EOS token, on which a text's first "
        "token would be conditioned; name one in tokenizer_config.json or choose another model"
    )
