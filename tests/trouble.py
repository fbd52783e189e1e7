"""Model folders that really go wrong in a worker: the demo model with code or weights changed."""

import json
import shutil
from pathlib import Path

from precision_explorer.models.reference import DEMO

_CODE = """
import ctypes, os, sys, time
import torch
from transformers import BertConfig, BertForSequenceClassification


class TroubleConfig(BertConfig):
    model_type = "trouble"


class TroubleForSequenceClassification(BertForSequenceClassification):
    config_class = TroubleConfig

    def forward(self, *args, **kwargs):
        if self.dtype == torch.bfloat16:
            {statement}
        return super().forward(*args, **kwargs)
"""

# What each does in bfloat16; in other formats the model is the demo.
STATEMENTS = {
    "segfault": "ctypes.string_at(0)",
    "exit-without-answer": "os._exit(0)",
    "hang": "time.sleep(3600)",
    "allocation": "torch.empty(1 << 50)",
    "exception": "raise KeyError('no such thing')",
    "flood": "print('x' * 5_000_000)",
}


def troubled_model(folder: Path, trouble: str) -> Path:
    """A folder whose model does `STATEMENTS[trouble]` when run in bfloat16 (needs
    trust_remote_code)."""
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "trouble",
        "architectures": ["TroubleForSequenceClassification"],
        "auto_map": {
            "AutoConfig": "modeling_trouble.TroubleConfig",
            "AutoModelForSequenceClassification": (
                "modeling_trouble.TroubleForSequenceClassification"
            ),
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    code = _CODE.format(statement=STATEMENTS[trouble])
    (folder / "modeling_trouble.py").write_text(code)
    return folder


def overflowing_model(folder: Path) -> Path:
    """The demo with a bias of 1e6: finite in float32 and bfloat16, beyond float16's 65,504."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(DEMO, folder)
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.bias"
    weights[name] = weights[name].copy()
    weights[name][0] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
