"""Formats on chosen layers of a model only, and back again: what a search tries out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.apply import convert
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.verify import Layout, census


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _stand_in(module: nn.Module) -> nn.Module:
    """A module of the same tensors in dicts of its own: handlers replace a layer's weight as well
    as the layer, and neither may reach the original."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = dict(module._modules)
    return twin


@contextmanager
def held_in(
    model: nn.Module,
    plan: Layout,
    layers: Mapping[str, Sequence[str]],
    recipes: Mapping[str, dict[str, Any]],
) -> Iterator[None]:
    """`model` with ``layers[format]`` converted to each format while the block runs, and its own
    layers again afterwards. `plan` is the model's layout as loaded."""
    names = [name for held in layers.values() for name in held]
    originals = {name: model.get_submodule(name) for name in names}
    try:
        for name, module in originals.items():
            _put(model, name, _stand_in(module))
        with torch.no_grad():
            for format_id, held in layers.items():
                convert(model, format_id, replace(plan, targets=tuple(held)), recipes[format_id])
        yield
    finally:
        for name, module in originals.items():
            _put(model, name, module)


def is_held(model: nn.Module, name: str, format_id: str) -> bool:
    """Whether the layer `name` is held in the format now: handlers leave layers whose sizes their
    kernels don't take."""
    found = census(nn.ModuleList([model.get_submodule(name)])).held_in
    return found.get("0") == spec_of(format_id).storage


def stored_bytes(model: nn.Module, name: str) -> int:
    """Bytes that the layer `name` stores now: weight, scales, bias."""
    return census(nn.ModuleList([model.get_submodule(name)])).weight_bytes
