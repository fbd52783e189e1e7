"""Loading a model and its tokenizer in a dtype, from local files only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from precision_explorer.errors import ModelError
from precision_explorer.models.heads import HEADS
from precision_explorer.tasks import KINDS

# Whose tokenizers take words one by one only so (transformers' run_ner.py).
_SPACED = ("bloom", "deberta", "gpt2", "roberta")


def auto_class(kind: str) -> Any:
    """transformers' class that loads a model with the head of a task kind."""
    import transformers

    return getattr(transformers, HEADS[KINDS[kind].head].auto)


def prepare(path: Path, kind: str, trust_remote_code: bool, tokenizer: Path | None = None) -> Any:
    """The tokenizer (of models that see, the image processor), and the imports of the model's own
    code, so that these are not counted as memory of the weights: a model without weights is built
    for that. `tokenizer`: of a model with random weights, the folder of its tokenizer."""
    import transformers

    common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(path, **common)
    with torch.device("meta"):
        auto_class(kind).from_config(config, trust_remote_code=trust_remote_code)
    if tokenizer is not None:
        from precision_explorer.models.synthetic import tokenizer_for

        return tokenizer_for(tokenizer, path, config, trust_remote_code)
    head = HEADS[KINDS[kind].head]
    if head.sees:
        # Pillow's, which is the same on every machine, whether torchvision is there or not.
        return transformers.AutoImageProcessor.from_pretrained(path, backend="pil", **common)
    if head is HEADS["token-classification"] and config.model_type in _SPACED:
        common["add_prefix_space"] = True
    return transformers.AutoTokenizer.from_pretrained(path, **common)


def load(
    path: Path,
    kind: str,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool,
    *,
    shipped: bool = False,
) -> nn.Module:
    """The model in `dtype` and eval mode on `device`, from `path` alone: nothing is fetched.

    `shipped`: the checkpoint comes quantized. Its library then places the weights itself, as some
    can't be moved once they are packed. Raises ModelError when weights are missing (transformers
    would fill them at random).
    """
    placed = {"device_map": {"": device}} if shipped else {}
    model, info = auto_class(kind).from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        **placed,
    )
    missing = sorted(info["missing_keys"])
    if HEADS[KINDS[kind].head].embeds and all(name.startswith("pooler.") for name in missing):
        # Trained for a head of BERT that embeddings of tokens don't use, and often not saved.
        if missing:
            model.pooler = None
        missing = []
    if missing:
        names = ", ".join(missing[:3])
        raise ModelError(f"the model's files lack {names}; they would be random: get it complete")
    if device == "cpu":
        _leave_the_file(model)
    return model.eval() if shipped else model.to(device).eval()


def _leave_the_file(model: nn.Module) -> None:
    """Copy each weight out of the mapped file. As long as one tensor is a view of it the whole
    mapping stays, and weights that a format has replaced would go on counting as memory in use."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
