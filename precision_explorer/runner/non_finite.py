"""Where in a model the first value comes about that is NaN or infinite. Runs in a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Floats = list[torch.Tensor]


def first_non_finite(model: nn.Module, run: Callable[[], Any]) -> str | None:
    """In words, by the module's name, of the first module call within `run()` whose output is not
    finite; None where all are, or none is called. A module is done after those that it holds: one
    of them is named if it is there that it begins."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if found or _finite(output):
                return
            where = "the output of" if _finite(given) else "what is given to"
            found.append(f"{where} {name or 'the model'}")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _finite(value: Any) -> bool:
    return all(bool(each.isfinite().all()) for each in _floats(value))


def _floats(value: Any) -> Floats:
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, (tuple, list)):
        return [each for one in value for each in _floats(one)]
    return []
