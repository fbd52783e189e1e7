"""A model whose blocks are on several devices: what its blocks are, and what is where; `aligned`
has the hooks. Runs in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from precision_explorer.formats.verify import census
from precision_explorer.models.splitting import Block, in_short

Json = dict[str, Any]


def blocks(model: nn.Module) -> list[Block] | None:
    """What of `model`, built without weights, stays on one device each, in the order in which it
    was registered; None where its class does not say which of its layers must not be cut
    (transformers' `_no_split_modules`)."""
    uncut = getattr(model, "_no_split_modules", None)
    if not uncut:
        return None
    found = list(_units(model, "", set(uncut)))
    return _joined(model, found, set(uncut))


def _units(module: nn.Module, name: str, uncut: set[str]) -> Iterator[str]:
    own = [*module._parameters.values(), *module._buffers.values()]
    children = list(module.named_children())
    whole = type(module).__name__ in uncut or not children
    if name and (whole or any(tensor is not None for tensor in own)):
        if any(True for _ in tensors_of(module)):
            yield name
        return
    if not name:  # Tensors of the model itself are with its first block.
        yield from (key for key, tensor in _direct(module) if tensor is not None)
    for child, inner in children:
        yield from _units(inner, f"{name}.{child}" if name else child, uncut)


def _direct(module: nn.Module) -> Iterator[tuple[str, torch.Tensor | None]]:
    yield from module._parameters.items()
    yield from module._buffers.items()


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()


def _joined(model: nn.Module, names: Sequence[str], uncut: set[str]) -> list[Block]:
    """Blocks of `names`: those that share a tensor are one, at the place of the first; those that
    hold no parameter (rotary frequencies) go with the first block, where their input is."""
    groups: list[tuple[list[str], dict[int, int], bool]] = []
    loose: list[str] = []
    for name in names:
        module = found_in(model, name)
        if isinstance(module, torch.Tensor):
            loose.append(name)
            continue
        held = {id(tensor): tensor.numel() for tensor in tensors_of(module)}
        if not any(True for _ in module.parameters()):
            loose.append(name)
            continue
        layer = type(module).__name__ in uncut
        shared = next((group for group in groups if group[1].keys() & held.keys()), None)
        if shared is None:
            groups.append(([name], held, layer))
        else:
            shared[0].append(name)
            shared[1].update(held)
    return [
        Block((*own, *(loose if k == 0 else ())), sum(held.values()), layer)
        for k, (own, held, layer) in enumerate(groups)
    ]


def found_in(model: nn.Module, name: str) -> nn.Module | torch.Tensor:
    """What `name` stands for in `model`."""
    parent, _, last = name.rpartition(".")
    found = getattr(model.get_submodule(parent), last)
    assert isinstance(found, (nn.Module, torch.Tensor))
    return found


def list_blocks(request: Json, progress: Callable[[str, int, int], None]) -> tuple[Json, bytes]:
    """The job: ``blocks`` of the model in ``path`` with the head of ``kind``, as [names, elements,
    layer]; None where it can't be cut."""
    found = blocks(without_weights(request))
    listed = None if found is None else [[list(b.names), b.elements, b.layer] for b in found]
    return {"blocks": listed}, b""


def without_weights(request: Json) -> Any:
    """The model in ``path`` with the head of ``kind``, built on the device ``meta``."""
    import transformers

    from precision_explorer.models.loading import auto_class

    common = {"trust_remote_code": request["trust_remote_code"]}
    config = transformers.AutoConfig.from_pretrained(
        request["path"], local_files_only=True, **common
    )
    with torch.device("meta"):
        model = auto_class(request["kind"]).from_config(config, **common)
        model.tie_weights()
    return model


@contextmanager
def no_hooks_of_its_own() -> Iterator[None]:
    """While it lasts transformers loads onto several devices without adding accelerate's hooks. It
    names no first device, so that accelerate takes any of them to be where inputs and outputs are
    (`dispatch_model` takes the first of a set)."""
    from transformers import modeling_utils

    usual = modeling_utils.accelerate_dispatch
    modeling_utils.accelerate_dispatch = lambda *given, **named: None  # type: ignore[assignment]
    try:
        yield
    finally:
        modeling_utils.accelerate_dispatch = usual


def is_spread(model: nn.Module) -> bool:
    """Whether the model's blocks are on more than one device."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def parts_of_model(
    model: nn.Module, device_map: Mapping[str, str], devices: Sequence[str]
) -> list[Json]:
    """[{device, modules, weight_bytes}] of `devices`: which modules each holds, in short, and their
    bytes as they are stored now, shared weights once."""
    parts = []
    for device in devices:
        names = [name for name, there in device_map.items() if there == device]
        held = nn.ModuleList(m for n in names if isinstance(m := found_in(model, n), nn.Module))
        bytes_ = census(held).weight_bytes
        parts.append({"device": device, "modules": in_short(names), "weight_bytes": bytes_})
    return parts
