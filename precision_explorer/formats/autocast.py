"""float32 weights with bfloat16 arithmetic: torch's autocast around every forward."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn


def autocast_forward(model: nn.Module, dtype: torch.dtype) -> None:
    """Make each call of `model` run under `torch.autocast`. Weights and their dtypes stay.

    The forward itself is wrapped, so that whatever calls the model (generation, too) is covered.
    """
    inner = model.forward
    device = next(model.parameters()).device.type

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype=dtype):
            return inner(*args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]
