"""Loading a model and its tokenizer in a dtype, from local files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError

_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "multiple-choice": "AutoModelForCausalLM",
    "language-modeling": "AutoModelForCausalLM",
}


def load(
    path: Path, kind: str, dtype: torch.dtype, device: str, trust_remote_code: bool
) -> tuple[nn.Module, Any]:
    """(model in eval mode on `device`, tokenizer), from `path` alone: nothing is fetched.

    Raises ModelError when weights are missing (transformers would fill them at random).
    """
    import transformers

    auto = getattr(transformers, _AUTO[kind])
    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    model, info = auto.from_pretrained(
        path, dtype=dtype, use_safetensors=True, output_loading_info=True, **common
    )
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"the model's files lack {names}; they would be random: get it complete")
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **common)
    return model.to(device).eval(), tokenizer
