"""Layers and cache of a decoder from its config.json alone, by arithmetic: no model is built, so a
plan for hundreds of billions of weights takes no longer than one for a thousand. No torch.

Of the architectures below every layer is known by its name in transformers; tests hold the sums to
models that it builds. All others are counted by a worker, which builds them without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precision_explorer.formats.footprint import LayerSizes

# Llama's block: attention of four projections (two narrower where key-value heads are shared), a
# gated feed-forward layer of three, two norms.
LLAMA_LIKE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""{`model_type`: the architecture whose layers are known}."""
_SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
)  # fmt: skip


def decoder_sizes(config: Mapping[str, Any]) -> LayerSizes | None:
    """The layers of a causal language model whose config.json is `config`, tied weights once; None
    for an architecture that is not among `LLAMA_LIKE`, and where a size is missing."""
    kind = config.get("model_type")
    if kind not in LLAMA_LIKE or config.get("architectures") != [LLAMA_LIKE[kind]]:
        return None
    sizes = [_whole(config.get(name)) for name in _SIZES]
    shape = _attention(config)
    if shape is None or None in sizes:
        return None
    hidden, inside, layers, _, words = (size or 0 for size in sizes)
    _, heads, shared, width = shape
    wide, narrow = heads * width, shared * width
    linear = (
        (wide, hidden, layers),
        (narrow, hidden, 2 * layers),
        (hidden, wide, layers),
        (inside, hidden, 2 * layers),
        (hidden, inside, layers),
    )
    tables = words * hidden * (1 if config.get("tie_word_embeddings") else 2)
    norms = (2 * layers + 1) * hidden + (2 * width * layers if kind == "qwen3" else 0)
    other = tables + norms + layers * _biases(config, kind, hidden, inside, wide, narrow)
    return LayerSizes(linear, other)


def _biases(
    config: Mapping[str, Any], kind: str, hidden: int, inside: int, wide: int, narrow: int
) -> int:
    """Of one block."""
    if kind == "qwen2":
        return wide + 2 * narrow  # Always there, and none in the output projection.
    switch = kind in ("llama", "qwen3") and config.get("attention_bias")
    attention = wide + 2 * narrow + hidden if switch else 0
    inner = 2 * inside + hidden if kind == "llama" and config.get("mlp_bias") else 0
    return attention + inner


def cache_token_bytes(config: Mapping[str, Any], element_bytes: int) -> int | None:
    """Bytes of a decoder's key-value cache per token of one sequence: a key and a value of each
    key-value head in every layer, in the compute type of `element_bytes`. An upper bound where
    layers look back over a window alone. None where the config does not name its attention."""
    inner = config.get("text_config")
    shape = _attention(inner if isinstance(inner, Mapping) else config)
    if shape is None:
        return None
    layers, _, shared, width = shape
    return 2 * layers * shared * width * element_bytes


def _attention(config: Mapping[str, Any]) -> tuple[int, int, int, int] | None:
    """(layers, heads, key-value heads, head size) by the usual names."""
    layers, heads, hidden = (
        _whole(config.get(name))
        for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if layers is None or heads is None or hidden is None:
        return None
    width = _whole(config.get("head_dim"))
    if width is None and hidden % heads:
        return None  # No model is made of that, which a worker says better.
    shared = _whole(config.get("num_key_value_heads")) or heads
    return layers, heads, shared, width or hidden // heads


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
