"""``python -m precision_explorer.models.convert_gguf FOLDER FILE TARGET``: GGUF to safetensors.

Runs in a process of its own, since it needs torch and a few hundred megabytes.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(folder: Path, file: str, target: Path) -> None:
    """Load `folder`/`file` with transformers and save it as float32 safetensors in `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # Without its marks the widened model is an ordinary one, which it is: they would make
    # `save_pretrained` refuse and a later load ask for the GGUF reader again.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.float32).save_pretrained(target, safe_serialization=True)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
