"""Tiny checkpoints that come quantized, made on the spot from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, WORDS = 64, 128, 2, 96
# q, k, v, o and the three of the MLP, per layer.
BODY = LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
HEAD = WORDS * HIDDEN


def llama(tied: bool = False) -> Any:
    """A causal model of `LAYERS` layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def original(folder: Path, tied: bool = False) -> Path:
    """An unquantized checkpoint."""
    llama(tied).save_pretrained(folder)
    return folder


def requantized(source: Path, folder: Path, config: Any) -> Path:
    """`source` quantized on loading and saved so, through transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return folder


def fine_grained_fp8(source: Path, folder: Path) -> Path:
    """A checkpoint as DeepSeek's are: e4m3 weights with a scale per block of 32 x 32."""
    import torch
    from safetensors.torch import load_file, save_file

    block, tensors = 32, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        rows, columns = tensor.shape
        blocks = tensor.view(rows // block, block, columns // block, block)
        scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name] = packed.view(rows, columns)
        tensors[f"{name}_scale_inv"] = scale
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = {
        "quant_method": "fp8", "activation_scheme": "dynamic",
        "weight_block_size": [block, block], "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip
    mark(source, folder, scheme)
    return folder


def mark(source: Path, folder: Path, scheme: dict[str, Any]) -> None:
    """Write `source`'s config into `folder` with `scheme` as its quantization."""
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": scheme}))


def compressed(source: Path, folder: Path) -> Path:
    """A compressed-tensors checkpoint with packed int4 weights in groups of 32."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from transformers import AutoModelForCausalLM

    weights = {
        "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True,
        "dynamic": False,
    }  # fmt: skip
    scheme = {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed", "ignore": ["lm_head"],
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(source)
    apply_quantization_config(model, QuantizationConfig.model_validate(scheme))
    for module in model.modules():
        if getattr(module, "weight_scale", None) is not None:
            grouped = module.weight.data.view(module.weight.shape[0], -1, 32)
            module.weight_scale.data = grouped.abs().amax(-1) / 7
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return folder
