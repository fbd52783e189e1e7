"""The work of one pass, counted from the model's layers as they are held: operations of the matrix
products by number type, and bytes.

A linear layer of `in` to `out` makes 2 x rows x in x out operations (a multiplication and an
addition each); attention makes 4 x pairs x heads x head size (scores and their sum over the
values), where a causal prompt of n tokens has n (n + 1) / 2 pairs of positions per sequence.
Normalisation, activation functions and the softmax are not counted: they are no matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.catalog import FormatSpec
from precision_explorer.formats.verify import census, is_held, plain_tensors
from precision_explorer.models.passes import Pass
from precision_explorer.records import Work


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer as it is held: sizes, the number type of its products, and whether the format
    converted it."""

    module: nn.Module
    inner: int
    outer: int
    number_type: str
    converted: bool

    @property
    def elements(self) -> int:
        """Weight elements."""
        return self.inner * self.outer


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear layer of whatever class; None for anything else."""
    inner, outer = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inner, int) and isinstance(outer, int):
        return inner, outer
    if type(module).__name__ == "Conv1D":  # GPT-2's: a linear layer with its weight transposed.
        return tuple(module.weight.shape)  # type: ignore[return-value]
    return None


def arithmetic_of(spec: FormatSpec, compute_dtype: str) -> str:
    """The number type in which a converted layer's products are made."""
    return compute_dtype if spec.arithmetic == "compute" else spec.arithmetic


def linear_layers(
    model: nn.Module,
    spec: FormatSpec,
    compute_dtype: str,
    by_layer: Mapping[str, FormatSpec] | None = None,
) -> dict[str, LinearLayer]:
    """Every linear layer by name after the format was applied, also those that a library replaced
    by a class of its own (the outermost where one holds another). `by_layer`: the formats of a
    mixed recipe's layers."""
    held = census(model).held_in
    found: dict[str, LinearLayer] = {}
    for name, module in model.named_modules():
        sizes = _sizes(module)
        if sizes is None or any(name.startswith(f"{outer}.") for outer in found):
            continue
        own = (by_layer or {}).get(name, spec)
        # A format of arithmetic only reaches every layer.
        reached = own.storage is None or is_held(held.get(name), own.storage)
        number_type = arithmetic_of(own, compute_dtype) if reached else compute_dtype
        found[name] = LinearLayer(module, *sizes, number_type, reached and own.quantizes)
    return found


@contextmanager
def counted_rows(layers: dict[str, LinearLayer]) -> Iterator[dict[str, int]]:
    """{layer: rows it was given} of the passes run inside, filled as they run. A compiled
    model must run uncompiled for that."""
    rows: dict[str, int] = dict.fromkeys(layers, 0)

    def counter(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
            given = next((a for a in (*arguments, *named.values()) if torch.is_tensor(a)), None)
            if given is not None:
                rows[name] += given.numel() // given.shape[-1]

        return hook

    handles = [
        layer.module.register_forward_pre_hook(counter(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _attention_sizes(config: Any) -> tuple[int, int, int, int] | None:
    """(layers, heads, key-value heads, head size) by the configuration's usual names."""
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    if not layers or not heads or not hidden:
        return None
    size = getattr(config, "head_dim", None) or hidden // heads
    return layers, heads, getattr(config, "num_key_value_heads", None) or heads, size


def _pairs(run: Pass) -> int:
    """Pairs of positions that attend to each other in one sequence of the pass."""
    if run.causal:
        return run.tokens * run.cached + run.tokens * (run.tokens + 1) // 2
    return run.tokens * (run.cached + run.tokens)


def _embeddings(model: nn.Module, tokens: int) -> tuple[int, int]:
    """(bytes of embedding tables that a pass does not read whole, bytes gathered from them for
    `tokens`). A table tied to the output head is read whole by it."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    tables = gathered = 0
    for module in model.modules():
        if not isinstance(module, nn.Embedding):
            continue
        pieces = list(plain_tensors(module.weight))
        size = sum(piece.numel() * piece.element_size() for piece in pieces)
        gathered += tokens * size // module.num_embeddings
        if head is None or getattr(head, "weight", None) is not module.weight:
            tables += size
    return tables, gathered


def request_work(
    model: nn.Module, layers: dict[str, LinearLayer], rows: dict[str, int]
) -> tuple[dict[str, int], int]:
    """(operations by number type of linear layers that were given `rows` in all, bytes of the
    weights that a pass reads). Attention, activations and gathered embeddings are left out."""
    flops: dict[str, int] = {}
    for name, layer in layers.items():
        if rows[name]:
            made = 2 * rows[name] * layer.elements
            flops[layer.number_type] = flops.get(layer.number_type, 0) + made
    return flops, census(model).weight_bytes - _embeddings(model, 0)[0]


def pass_work(
    model: nn.Module,
    layers: dict[str, LinearLayer],
    rows: dict[str, int],
    run: Pass,
    spec: FormatSpec,
    compute_dtype: str,
    widened: set[str],
) -> Work:
    """`Work` of one request of `run`, whose linear layers were given `rows` in all.

    `widened`: layers whose stored weight was seen to be written in the compute type and read
    again. Activations and cache are counted in the compute type: each product reads its input and
    writes its output once.
    """
    item = getattr(torch, compute_dtype).itemsize
    flops: dict[str, int] = {}
    moved = 0
    for name, layer in layers.items():
        flops.setdefault(layer.number_type, 0)
        flops[layer.number_type] += 2 * rows[name] * layer.elements
        moved += rows[name] * (layer.inner + layer.outer) * item
    attention = _attention_sizes(model.config.get_text_config())
    if attention is not None:
        depth, heads, key_heads, size = attention
        kind = arithmetic_of(spec, compute_dtype) if spec.storage is None else compute_dtype
        pairs = _pairs(run)
        flops[kind] = flops.get(kind, 0) + 4 * run.batch * depth * heads * size * pairs
        seen = run.cached + run.tokens
        per_layer = 2 * run.tokens * heads * size + 2 * seen * key_heads * size
        moved += run.batch * depth * per_layer * item
    tables, gathered = _embeddings(model, run.batch * run.tokens)
    copies = [2 * layers[name].elements * item for name in widened]
    return Work(
        flops_by_type={kind: count // run.batch for kind, count in flops.items() if count},
        fixed_bytes=census(model).weight_bytes - tables,
        request_bytes=(moved + gathered) // run.batch,
        widened_bytes=sum(copies),
        largest_widened_bytes=max(copies, default=0),
    )
