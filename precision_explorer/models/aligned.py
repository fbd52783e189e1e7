"""The hooks that carry activations of a spread model from one device to the next, accelerate's.
Runs in a worker, and is imported for a model that is spread alone: what accelerate asks of a GPU
when it is imported may not be asked in the fork server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, add_hook_to_module
from torch import nn

from precision_explorer.errors import DoesNotFit
from precision_explorer.models.dispatch import found_in, tensors_of


class _Aligned(AlignDevicesHook):  # type: ignore[misc]
    """Moves what a module is given to its device, and nothing else: weights are there already.
    The module's device is the current one meanwhile, as kernels that are launched from Python go
    there."""

    def init_hook(self, module: nn.Module) -> nn.Module:
        """No weight is moved."""
        return module

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the base class; makes the device the current one."""
        device = torch.device(self.execution_device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return super().pre_forward(module, *args, **kwargs)


class _Back(_Aligned):
    """Of the whole model: its output comes back to where its input was, the cache apart."""

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        """As the base class; the first device is the current one again."""
        device = torch.device(self.execution_device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return super().post_forward(module, output)


def attach(model: nn.Module, device_map: Mapping[str, str], first: str) -> None:
    """Put what is not there yet on the devices of `device_map` {module: device}, and add the hooks:
    each block's input comes to its device, and the model's output to that of its input. `first`:
    the device of the inputs. DoesNotFit where a weight is on none of the devices."""
    skip = getattr(model, "_skip_keys_device_placement", None)
    for name, device in device_map.items():
        held = found_in(model, name)
        if not isinstance(held, nn.Module):
            continue
        if any(not _is_on(tensor, device) for tensor in tensors_of(held)):
            held.to(device)
        add_hook_to_module(held, _Aligned(execution_device=device, skip_keys=skip))
    back = _Back(execution_device=first, io_same_device=True, skip_keys=skip)
    add_hook_to_module(model, back)
    model.hf_device_map = dict(device_map)  # type: ignore[assignment]
    kinds = {torch.device(device).type for device in device_map.values()}
    stray = [name for name, p in model.named_parameters() if p.device.type not in kinds]
    if stray:
        raise DoesNotFit(
            f"{stray[0]} was left on none of the devices; use --devices with more of them, or a "
            "smaller model"
        )


def _is_on(tensor: torch.Tensor, device: str) -> bool:
    wanted = torch.device(device)
    # A processor's tensors carry no number.
    return tensor.device.type == wanted.type and (
        wanted.type == "cpu" or tensor.device.index == wanted.index
    )


def hooks_of(model: nn.Module) -> dict[str, str]:
    """{module: device} of the hooks that are in place; the model itself is ``""``."""
    found = {}
    for name, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
            if isinstance(one, _Aligned):
                found[name] = str(one.execution_device)
    return found
