"""Random weights in the shape of a config, made where they are used. Runs in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.models.loading import auto_class


def make(
    path: Path,
    kind: str,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    seed: int,
    device_map: Mapping[str, str] | None = None,
) -> nn.Module:
    """The model of the config.json in `path` with the head of a task kind, in `dtype` and eval mode
    on `device`, its weights drawn there by the architecture's own initialisation.

    Nothing is made on the host for another device, and nothing in a wider type: 8 billion
    values would take 32 GB and minutes. One seed gives one model per device and type; those of two
    types are not each other's rounding. `device_map`: {module: device} of a model that is spread
    over several; its blocks are then drawn on their own devices, one after the other. Raises
    ModelError where the config makes no model.
    """
    import transformers

    common = {"trust_remote_code": trust_remote_code}
    torch.manual_seed(seed)
    try:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, **common)
        # Weights in `dtype`; buffers that the architecture wants wider, as rotary frequencies, stay
        # so, since it asks for their type by name.
        with torch.device("meta" if device_map else device):
            model = auto_class(kind).from_config(config, dtype=dtype, **common)
        if device_map:
            _draw(model, device_map, device)
    except Exception as error:
        if isinstance(error, (RuntimeError, MemoryError)):
            raise  # The device's, which may be short of memory; not the config's.
        raise ModelError(_no_model(error)) from error
    return model.eval()


def _draw(model: nn.Module, device_map: Mapping[str, str], first: str) -> None:
    """Give a model that was built without weights random ones, each block's on its own device."""
    from precision_explorer.models.aligned import attach

    for name, device in device_map.items():
        held = model.get_submodule(name)
        held.to_empty(device=device)
    model.tie_weights()  # type: ignore[operator]
    model.init_weights()  # type: ignore[operator]
    attach(model, device_map, first)


def tokenizer_for(folder: Path, path: Path, config: Any, trust_remote_code: bool) -> Any:
    """The tokenizer in `folder`: the shape's own (`path`), or one that is lent, which then cuts no
    text before the shape's positions end, and has its first and last signs for BOS and EOS."""
    import transformers

    made = transformers.AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    if folder == path:
        return made
    inner = config.get_text_config()
    made.model_max_length = getattr(inner, "max_position_embeddings", None) or 1 << 30
    made.bos_token, made.eos_token = made.cls_token, made.sep_token
    return made


def _no_model(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"the config.json makes no model ({type(error).__name__}: {text[:200]}); correct it"
