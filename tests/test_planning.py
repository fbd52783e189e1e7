"""Plans for models and devices that are not here: bytes from a config.json alone, held to sums by
hand and to models that transformers builds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from precision_explorer.errors import UsageError
from precision_explorer.formats.architectures import (
    LLAMA_LIKE,
    cache_token_bytes,
    decoder_sizes,
)
from precision_explorer.models.shapes import by_config_alone
from precision_explorer.plan.fit import Cache, Fit
from precision_explorer.runner.elsewhere import declared, target_of
from precision_explorer.units import parse_size
from tests.command import run


def llama(hidden, inside, layers, heads, shared, words, **more) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inside, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": shared, "vocab_size": words, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


# Configurations of public model cards: Llama 2 7B (Touvron et al. 2023), Llama 3 70B, Llama 3.1
# 405B (Grattafiori et al. 2024, arXiv 2407.21783, table 3).
SIZES = {
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "70b": (8192, 28672, 80, 64, 8, 128256),
    "405b": (16384, 53248, 126, 128, 8, 128256),
}


def by_hand(size: str, format_id: str) -> float:
    """Bytes of all weights: of each layer its values, and what its format adds."""
    hidden, inside, layers, heads, shared, words = SIZES[size]
    narrow = hidden // heads * shared
    block = [
        (hidden, hidden), (narrow, hidden), (narrow, hidden), (hidden, hidden),  # q, k, v, o
        (inside, hidden), (inside, hidden), (hidden, inside),  # gate, up, down
    ]  # fmt: skip
    # Embedding and head, and norms: two of each block and a last one.
    rest = 2 * words * hidden + (2 * layers + 1) * hidden
    if format_id == "fp32":
        return 4 * (rest + layers * sum(out * inner for out, inner in block))
    if format_id in ("bf16", "fp16"):
        return 2 * (rest + layers * sum(out * inner for out, inner in block))
    added = {
        # A byte a value, and a float32 scale per output.
        "int8-llm": lambda out, inner: out * inner + 4 * out,
        "fp8-dynamic": lambda out, inner: out * inner + 4 * out,
        # The same and a byte of zero point.
        "int8-weight-only": lambda out, inner: out * inner + 5 * out,
        # Half a byte, a byte of scale per 64 values, a float32 per 256 of these.
        "nf4": lambda out, inner: out * inner * (1 / 2 + 1 / 64 + 4 / 64 / 256),
        # Half a byte, a 16-bit scale and offset per 128.
        "int4-weight-only": lambda out, inner: out * inner * (1 / 2 + 4 / 128),
        # A byte and a byte of scale per 32; half a byte and one per 16.
        "mxfp8": lambda out, inner: out * inner * (1 + 1 / 32),
        "nvfp4": lambda out, inner: out * inner * (1 / 2 + 1 / 16),
    }[format_id]
    return 2 * rest + layers * sum(added(out, inner) for out, inner in block)


FORMATS = (
    "fp32", "bf16", "fp16", "fp8-dynamic", "int8-llm", "int8-weight-only", "nf4",
    "int4-weight-only", "mxfp8", "nvfp4",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Each with a config.json and nothing else."""
    root = tmp_path_factory.mktemp("configs")
    for name, sizes in SIZES.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(llama(*sizes)))
    return {name: root / name for name in SIZES}


@pytest.fixture(scope="module")
def on_b200(folders) -> dict[tuple[str, str], str]:
    """{(model, format): line} of a plan for a device that no machine here has, by the command."""
    models = [part for path in folders.values() for part in ("--model", path)]
    done = run(
        "plan", *models, "--task", "news-perplexity", "--limit", 2, "--formats",
        ",".join(FORMATS), "--target", "b200",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert "NVIDIA B200 with 180 GB" in last
    assert "nothing was probed there" in last
    found = {}
    for line in lines:
        words = line.split()
        found[words[1].removeprefix("synthetic:"), words[4]] = line
    return found


def shown(line: str, what: str) -> int:
    size, unit = re.search(rf"{what} ([\d.,]+) (\w+)", line).groups()
    return parse_size(size.replace(",", "") + unit)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_a_config_alone_agree_with_sums_by_hand(on_b200, size):
    for format_id in FORMATS:
        line = on_b200[size, format_id]
        assert shown(line, "weights") == pytest.approx(by_hand(size, format_id), rel=0.01), line


def test_what_fits_is_said_and_what_does_not_is_skipped_with_the_number_of_devices(on_b200):
    fits = on_b200["7b", "bf16"]
    assert fits.startswith("fits ")
    assert "declared, not probed" in fits
    assert "such devices" not in fits
    # 141 GB in 180; in fp32 282 GB, so two of them.
    assert on_b200["70b", "bf16"].startswith("fits ")
    wide = on_b200["70b", "fp32"]
    assert wide.startswith("skip ")
    assert "together 2 such devices" in wide
    assert "its weights take 282 GB in float32 while they are loaded" in wide
    assert "together 5 such devices" in on_b200["405b", "bf16"]  # 812 GB in fives of 180.


def test_the_cache_of_the_workload_is_counted_by_key_value_heads(on_b200):
    """Keys and values of 144 tokens of 8 requests, in 16 bits."""
    for size, (hidden, _, layers, heads, shared, _) in SIZES.items():
        token = 2 * layers * shared * (hidden // heads) * 2
        assert shown(on_b200[size, "bf16"], "cache") == pytest.approx(8 * 144 * token, rel=0.01)


@pytest.mark.parametrize("kind", LLAMA_LIKE)
@pytest.mark.parametrize("tied", [False, True])
def test_sizes_by_arithmetic_are_those_of_the_model_that_is_built(tmp_path, kind, tied):
    from precision_explorer.runner.sensitivity import list_layers

    config = llama(64, 96, 3, 4, 2, 512, tie_word_embeddings=tied, head_dim=24)
    config |= {"model_type": kind, "architectures": [LLAMA_LIKE[kind]]}
    config |= {"attention_bias": tied, "mlp_bias": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    request = {"path": str(tmp_path), "kind": "language-modeling", "trust_remote_code": False}
    built, _ = list_layers(request, lambda *told: None)
    found = decoder_sizes(config)
    counts: dict[tuple[int, int], int] = {}
    for out, inner, count in found.linear:
        counts[out, inner] = counts.get((out, inner), 0) + count
    assert counts == {(out, inner): count for out, inner, count in built["linear"]}
    assert found.elements == built["elements"]


def test_what_arithmetic_does_not_know_is_left_to_a_worker():
    known = llama(64, 96, 2, 4, 2, 512)
    assert decoder_sizes(known) is not None
    assert decoder_sizes(known | {"model_type": "mixtral"}) is None
    assert decoder_sizes(known | {"architectures": ["LlamaForSequenceClassification"]}) is None
    assert decoder_sizes({k: v for k, v in known.items() if k != "vocab_size"}) is None
    assert decoder_sizes(known | {"hidden_size": 66}) is None  # No whole head.
    assert cache_token_bytes({"d_model": 4}, 2) is None


def test_a_folder_is_taken_by_its_config_alone_only_where_it_holds_no_weights(folders, tmp_path):
    alone = str(folders["7b"])
    assert by_config_alone(alone) == f"synthetic:{alone}"
    assert by_config_alone("demo") == "demo"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert by_config_alone(str(tmp_path)) == str(tmp_path)


def test_a_device_with_so_much_memory_tells_what_fits_and_nothing_of_formats():
    target = target_of(None, 24_000_000_000)
    support = declared("nvfp4", target)
    assert support.execution == "unknown"
    assert "--target NAME" in support.reason
    named = declared("nvfp4", target_of("l4", None))
    assert named.execution == "emulated"
    assert named.reason.startswith("declared, not probed: ")
    assert target_of("a100", 40_000_000_000).facts.device_memory_bytes == 40_000_000_000
    with pytest.raises(UsageError, match="--target x86-amx is a processor"):
        target_of("x86-amx", None)


def test_weights_that_fit_beside_a_cache_that_does_not_take_two_devices():
    assert Fit(20, Cache(1, 5, 1), 24).devices == 2
    assert Fit(20, None, 24).devices == 1
    assert Fit(None, None, 24).devices is None
