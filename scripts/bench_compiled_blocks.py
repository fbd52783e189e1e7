"""What it does to `--runtime compile-fixed` that blocks share their code, and that calls whose like
has been compiled check no guards.

    python scripts/bench_compiled_blocks.py [--device cuda:0] [--shape FOLDER]

On a decoder with random weights in bfloat16 (by default 8 layers of Llama-3-8B's shape): requests
of 128 tokens in and 16 out, of one row and of eight, by code of each block's own with guards and
without, then by shared code without. A line of JSON each: seconds until the graphs are recorded,
medians of the first token and of the steps after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from precision_explorer.formats import compiling
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.models import compiled

SHAPE = Path(__file__).parent / "reference" / "llama-3-8b-8-layers"
PROMPT, NEW, WARM, TIMED = 128, 16, 3, 8


def random_model(shape: str, device: str) -> Any:
    """A decoder of this shape with random weights in bfloat16."""
    config = AutoConfig.from_pretrained(shape)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config).eval()


def request(model: Any, rows: int, device: str, sync: Callable[[], None]) -> tuple[float, list]:
    """(seconds to the first token, seconds of each step after it)."""
    ids = torch.randint(0, 1000, (rows, PROMPT), device=device)
    mask = torch.ones_like(ids)
    positions = torch.arange(PROMPT, device=device).expand(rows, -1)
    sync()
    begun = time.perf_counter()
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    name = "cache" if "cache" in out else "past_key_values"
    steps = []
    for step in range(NEW):
        token = out.logits[:, -1].argmax(-1)[:, None]
        sync()
        steps.append(time.perf_counter() - begun)
        if step + 1 == NEW:
            break
        begun = time.perf_counter()
        mask = torch.cat([mask, mask[:, :1]], 1)
        out = model(
            input_ids=token, attention_mask=mask, position_ids=mask.sum(-1, keepdim=True) - 1,
            use_cache=True, **{name: out[name]},
        )  # fmt: skip
    return steps[0], steps[1:]


def show(case: str, model: Any, device: str) -> None:
    """Print both sizes' figures."""
    sync = torch.cuda.synchronize if device != "cpu" else lambda: None
    for rows in (1, 8):
        begun = time.perf_counter()
        for _ in range(WARM):
            request(model, rows, device, sync)
        warm_s = time.perf_counter() - begun
        timed = [request(model, rows, device, sync) for _ in range(TIMED)]
        figures = {
            "case": case,
            "rows": rows,
            "warm_s": round(warm_s, 1),
            "first_ms": 1e3 * median(first for first, _ in timed),
            "step_ms": 1e3 * median(step for _, steps in timed for step in steps),
            "graphs": compiling.graphs(),
        }
        print(json.dumps(figures), flush=True)


def main() -> None:
    """Run the three cases."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", default=str(SHAPE))
    options = parser.parse_args()
    device, kind = options.device, torch.device(options.device).type
    compiling.configure(tempfile.mkdtemp(), kind)
    model = random_model(options.shape, device)
    share, without, eager = compiled.share_blocks, compiled.without_guards, model.forward

    def compile_model() -> compiled.CompiledModel:
        sizes = {"pad": 0, "longest": PROMPT + NEW, "new_tokens": NEW}
        return compiled.CompiledModel(model, RUNTIMES["compile-fixed"], device, **sizes)

    with torch.inference_mode():
        compiled.share_blocks = lambda model: 0
        compiled.without_guards = contextlib.nullcontext
        compile_model()
        show("whole, guards", model, device)
        compiled.without_guards = without
        show("whole, no guards", model, device)
        model.forward = eager
        torch.compiler.reset()
        compiled.share_blocks = share
        shared = compile_model().shared_blocks
        show(f"{shared} blocks shared, no guards", model, device)


if __name__ == "__main__":
    main()
