"""Model folders that really go wrong in a worker: a small demo with code or weights changed."""

import json
import shutil
from pathlib import Path

import numpy as np

from precision_explorer.models.reference import DEMO

_CODE = """
import ctypes, os, sys, time
import torch
from transformers import BertConfig, BertForSequenceClassification


class TroubleConfig(BertConfig):
    model_type = "trouble"


class TroubleForSequenceClassification(BertForSequenceClassification):
    config_class = TroubleConfig

    def __init__(self, config):
        super().__init__(config)
        dtype = torch.get_default_dtype()
        if dtype == torch.bfloat16:
            {bf16_load}
        if dtype == torch.float16:
            {fp16_load}

    def forward(self, *args, **kwargs):
        if self.dtype == torch.bfloat16:
            {bf16}
        if self.dtype == torch.float16:
            {fp16}
        return super().forward(*args, **kwargs)


def poison(model):
    if not hasattr(model, "poisoned"):
        model.poisoned = True
        layer = model.bert.encoder.layer[0].output.LayerNorm
        layer.register_forward_hook(lambda m, i, out: out * float("nan"))


def refuse_batches_of(count, ids):
    if ids.shape[0] == count:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def step_the_clock():
    # Hours to and fro, at each reading.
    hours = [0, 5, -3, 1]
    real = step_the_clock.real

    def stepped():
        hours.append(hours.pop(0))
        return real() + 3600 * hours[0]

    time.time = stepped


step_the_clock.real = time.time


class DyingMeter:
    source, boundary, min_window_s = "measured:rapl", "CPU packages", 0.0
    reads = 0

    def supported(self):
        return True

    def energy_j(self):
        DyingMeter.reads += 1
        if DyingMeter.reads > 3:
            raise FileNotFoundError(2, "No such file or directory", "energy_uj")
        return float(DyingMeter.reads)


def take_the_meter_away():
    from precision_explorer.runner import session

    session.open_sensor = lambda facts: DyingMeter()


def flood():
    if hasattr(flood, "done"):
        return
    flood.done = True
    libc, lines = ctypes.CDLL(None), b"c" * 1_000_000
    for _ in range(150):
        libc.write(1, lines, len(lines))
        libc.write(2, lines, len(lines))
        print("p" * 1_000_000)
    print("the last words", flush=True)
"""

# What each does in bfloat16, or in float16; in other formats the model is `small_demo`.
STATEMENTS = {
    "segfault": "ctypes.string_at(0)",
    "exit-without-answer": "os._exit(0)",
    "hang": "time.sleep(3600)",
    "allocation": "torch.empty(1 << 50)",
    "exception": "raise KeyError('no such thing')",
    "flood": "flood()",
    "cuda-out-of-memory": (
        "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')"
    ),
    "no-batch-of-3": (
        "refuse_batches_of(3, kwargs['input_ids'] if 'input_ids' in kwargs else args[0])"
    ),
    "device-lost": "raise RuntimeError('CUDA error: unspecified launch failure')",
    "nan": "poison(self)",
    "clock-stepped": "step_the_clock()",
    "meter-gone": "take_the_meter_away()",
}
# The same while the model is loaded.
LOADING = {"exit-in-load": "os._exit(0)"}


# Sizes of the demo, and those of the corner of its weights that is kept.
_KEPT = {384: 48, 1536: 192}


def small_demo(folder: Path) -> Path:
    """The demo with an eighth of its width, in `folder`: its 16-bit passes take moments also where
    a processor has no units for them. What it answers is no sense."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        name: np.ascontiguousarray(w[tuple(slice(_KEPT.get(size, size)) for size in w.shape)])
        for name, w in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def troubled_model(folder: Path, trouble: str | None, half: str | None = None) -> Path:
    """A folder whose model does `trouble` of `STATEMENTS` or `LOADING` in bfloat16, and `half` in
    float16 (needs trust_remote_code)."""
    small_demo(folder)
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
    code = _CODE
    for dtype, name in (("bf16", trouble), ("fp16", half)):
        code = code.replace(f"{{{dtype}}}", STATEMENTS.get(name or "", "pass"))
        code = code.replace(f"{{{dtype}_load}}", LOADING.get(name or "", "pass"))
    (folder / "modeling_trouble.py").write_text(code)
    return folder


def overflowing_model(folder: Path) -> Path:
    """`small_demo` with a bias of 1e6: finite in float32 and bfloat16, beyond float16's 65,504."""
    from safetensors.numpy import load_file, save_file

    small_demo(folder)
    weights = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.bias"
    weights[name] = weights[name].copy()
    weights[name][0] = 1e6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
