"""Loading a checkpoint of several files: how much memory it takes beside the model, as the system
counts it, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# In a fresh process: what the load adds to the largest resident set (VmHWM, file pages included).
# Once before on a tiny model, so that what a first load imports is not counted.
LOAD = """
import json, sys
from pathlib import Path
import torch
from precision_explorer.models.loading import load
def kilobytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))
path, tiny, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
load(tiny, "language-modeling", dtype, "cpu", False)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = kilobytes("VmRSS")
model = load(path, "language-modeling", dtype, "cpu", False)
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(json.dumps({"added": 1024 * (kilobytes("VmHWM") - before), "weights": weights}))
"""


def save(folder: Path, hidden: int, layers: int, shard: str) -> None:
    import torch
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, vocab_size=1000,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size=shard)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    """(one of 140 MB in files of at most 25 MB, a tiny one)."""
    root = tmp_path_factory.mktemp("sharded")
    save(root / "large", 512, 8, "25MB")
    save(root / "tiny", 16, 1, "25MB")
    return root / "large", root / "tiny"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's own reading")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_takes_the_model_and_at_most_its_largest_file_beside_it(checkpoints, dtype):
    large, tiny = checkpoints
    files = [file.stat().st_size for file in large.glob("*.safetensors")]
    assert len(files) >= 5
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(large), str(tiny), dtype],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(files) / found["weights"] == pytest.approx(1 if dtype == "float32" else 2, rel=0.01)
    # A second copy would be five times that.
    beside = found["added"] - found["weights"]
    assert beside <= 1.1 * max(files), (beside, max(files))


def test_files_are_mapped_again_once_a_model_is_loaded(checkpoints):
    import torch
    from transformers import modeling_utils

    from precision_explorer.models.loading import load

    opened = modeling_utils.safe_open
    model = load(checkpoints[1], "language-modeling", torch.float32, "cpu", False)
    assert modeling_utils.safe_open is opened
    assert not model.training
