"""Bytes of weights predicted from sizes alone: against what stored runs counted in real tensors,
and against sums by hand for models that no machine here holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from precision_explorer.formats.catalog import CATALOG
from precision_explorer.formats.footprint import (
    LayerSizes,
    layer_sizes,
    usual_recipe,
    weight_bytes,
)
from precision_explorer.runner.jobs import run_job
from tests.command import run
from tests.test_table import rows_of

ROOT = Path(__file__).parents[1]


def llama(hidden, inside, layers, heads, key_heads, vocabulary, tied=False) -> LayerSizes:
    """The layers of Llama's architecture: four of attention, three of the feed-forward block, two
    norms; embedding, head and a last norm."""
    narrow = hidden // heads * key_heads
    linear = [
        (hidden, hidden, 2 * layers),
        (narrow, hidden, 2 * layers),
        (inside, hidden, 2 * layers),
        (hidden, inside, layers),
    ]
    other = vocabulary * hidden * (1 if tied else 2) + (2 * layers + 1) * hidden
    return LayerSizes(tuple(linear), other)


def bert(hidden, inside, layers, vocabulary, positions, labels=2) -> LayerSizes:
    linear = [
        (hidden, hidden, 4 * layers + 1), (inside, hidden, layers), (hidden, inside, layers),
    ]  # fmt: skip
    biases = layers * (5 * hidden + inside) + hidden
    norms = 2 * hidden * (2 * layers + 1)
    tables = (vocabulary + positions + 2) * hidden
    return LayerSizes(tuple(linear), tables + norms + biases + labels * (hidden + 1))


MODELS = {
    "smollm2-135m": llama(576, 1536, 30, 9, 3, 49152, tied=True),
    "synthetic:llama-3-8b": llama(4096, 14336, 32, 32, 8, 128256),
    "demo": bert(384, 1536, 2, 6400, 128),
}


def stored_rows() -> list[tuple[str, dict]]:
    found = []
    for path in sorted((ROOT / "results").glob("*/cells/*.json")):
        record = json.loads(path.read_text(encoding="utf8"))
        applied = record.get("applied")
        known = record["cell"]["model"]["name"] in MODELS
        if known and applied and applied["weight_bytes"] and applied["format"] in CATALOG:
            found.append((path.parents[1].name, record))
    return found


def test_stored_rows_weigh_what_their_sizes_say():
    """Of real tensors, packed and padded by the libraries, on two kinds of device."""
    seen, apart = set(), {}
    for run_name, record in stored_rows():
        cell, applied = record["cell"], record["applied"]
        predicted = weight_bytes(
            cell["format"], cell["recipe"], MODELS[cell["model"]["name"]], cell["device_flags"]
        )
        key = (run_name, cell["format"])
        seen.add((cell["device"], cell["format"]))
        assert predicted is not None, key
        if abs(predicted / applied["weight_bytes"] - 1) > 1e-3:
            apart[key] = (predicted, applied["weight_bytes"])
    assert apart == {}
    assert {f for d, f in seen if d == "cpu"} >= {
        "fp32", "bf16", "fp16", "fp8-weight-only", "int8-llm", "int8-weight-only", "int8-dynamic",
        "int8-static", "nf4", "int4-weight-only", "mxfp8", "nvfp4", "bf16-autocast",
    }  # fmt: skip
    assert {f for d, f in seen if d != "cpu"} >= {"tf32", "fp8-dynamic", "int4-weight-only"}


# Configurations of public model cards: Llama 2 7B (Touvron et al. 2023), Llama 3 70B, and Llama 3.1
# 405B (Grattafiori et al. 2024, arXiv 2407.21783, table 3).
LARGE = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000},
    "70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
    "405b": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
             "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
# By hand: weights of all linear layers, then all weights.
#   7B:   32 x (4 x 4096 x 4096 + 3 x 4096 x 11008) = 6,476,005,376; with two of 32,000 x
#         4096 and 65 norms of 4096: 6,738,415,616
#   70B:  80 x (2 x 8192 x 8192 + 2 x 1024 x 8192 + 3 x 8192 x 28672) = 68,451,041,280; with two of
#         128,256 x 8192 and 161 norms: 70,553,706,496
#   405B: 126 x (2 x 16384 x 16384 + 2 x 1024 x 16384 + 3 x 16384 x 53248) = 401,646,551,040; with
#         two of 128,256 x 16384 and 253 norms: 405,853,388,800
LINEAR = {"7b": 6_476_005_376, "70b": 68_451_041_280, "405b": 401_646_551_040}
ALL = {"7b": 6_738_415_616, "70b": 70_553_706_496, "405b": 405_853_388_800}
# Bytes of a linear weight with its share of scales, everything else in two: int8 and e4m3 have 4
# bytes per row (of 4096 inputs and more: below 0.1 %), nf4 a byte per 64, int4 4 bytes per 128,
# MX a byte per 32, NVFP4 a byte per 16.
BITS = {
    "int8-weight-only": 8, "fp8-dynamic": 8, "int8-llm": 8, "nf4": 4 + 8 / 64,
    "int4-weight-only": 4 + 32 / 128, "mxfp8": 8 + 8 / 32, "nvfp4": 4 + 8 / 16,
}  # fmt: skip


def by_hand(size: str, format_id: str) -> float:
    if format_id in ("fp32", "bf16"):
        return (4 if format_id == "fp32" else 2) * ALL[size]
    return LINEAR[size] * BITS[format_id] / 8 + 2 * (ALL[size] - LINEAR[size])


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("configs")
    for name, sizes in LARGE.items():
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | sizes
        config |= {"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    return {name: folder / name for name in LARGE}


@pytest.fixture(scope="module")
def sizes(configs) -> dict[str, LayerSizes]:
    """As a worker finds them by building the model without weights."""
    found = {}
    for name, path in configs.items():
        request = {
            "device": "cpu", "path": str(path), "kind": "language-modeling",
            "trust_remote_code": False,
        }  # fmt: skip
        answer, _ = run_job("layer-names", request, 1, lambda event: None, 300)
        found[name] = layer_sizes(answer["linear"], answer["elements"])
    return found


@pytest.mark.parametrize("size", LARGE)
def test_large_models_by_their_config_agree_with_sums_by_hand(sizes, size):
    assert sizes[size].elements == ALL[size]
    assert sizes[size].elements - sizes[size].other == LINEAR[size]
    for format_id in ("fp32", "bf16", *BITS):
        found = weight_bytes(format_id, usual_recipe(format_id), sizes[size])
        assert found == pytest.approx(by_hand(size, format_id), rel=0.01), format_id


def test_plan_shows_bytes_and_skips_what_does_not_fit(configs, tmp_path):
    """405 billion weights fit nowhere here, whatever the format."""
    options = ("--model", f"synthetic:{configs['405b']}", "--task", "news-perplexity", "--limit", 2)
    formats = "fp32,bf16,int8-weight-only,nf4"
    done = run("plan", *options, "--formats", formats, "--device", "cpu", "--out", tmp_path / "r")
    assert done.returncode == 0, done.stderr
    lines = {re.split(r" +", line)[4]: line for line in done.stdout.splitlines()[:-1]}
    assert [*lines] == formats.split(",")
    assert "weights 1.62 TB" in lines["fp32"]
    assert "weights 812 GB" in lines["bf16"]
    for format_id, line in lines.items():
        assert line.startswith("skip "), format_id
        assert "while they are loaded, and " in line
    assert "its weights take 1.62 TB in float32" in lines["fp32"]


def test_plan_of_a_model_at_hand_shows_what_its_rows_will_count(tmp_path):
    done = run("plan", "--formats", "fp32,bf16", "--device", "cpu", "--out", tmp_path / "r")
    demo = rows_of_stored()
    for format_id in ("fp32", "bf16"):
        (line,) = [li for li in done.stdout.splitlines() if f" {format_id} " in li]
        assert line.startswith("run ")
        assert f"weights {demo[format_id]}" in line


def rows_of_stored() -> dict[str, str]:
    from precision_explorer.table import build
    from precision_explorer.units import bytes_

    rows = rows_of(build([ROOT / "results" / "demo-sentiment-cpu"]))
    return {format_id: bytes_(row["weight_bytes"]) for format_id, row in rows.items()}
