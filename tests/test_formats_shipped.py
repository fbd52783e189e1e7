"""Real quantized checkpoints, made here and loaded as they come: what is counted is what serves."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from precision_explorer.errors import ModelError
from precision_explorer.formats import AS_SHIPPED, spec_of
from precision_explorer.formats.apply import apply_format, compute_dtype
from precision_explorer.formats.execution import judge
from precision_explorer.formats.recipe import spec_in
from precision_explorer.formats.verify import is_held, shipped_layout
from precision_explorer.models.loading import load
from precision_explorer.models.shipped import scheme_of, shipped_support
from precision_explorer.records import Certificate, Executed
from tests import checkpoints
from tests.checkpoints import BODY, HEAD, HIDDEN, LAYERS, WORDS
from tests.test_formats_support import VNNI

NORMS = (2 * LAYERS + 1) * HIDDEN
OUTPUTS = LAYERS * (4 * HIDDEN + 2 * checkpoints.INNER + HIDDEN)
needs_compressed_tensors = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None,
    reason="needs compressed-tensors: pip install precision-explorer[compressed-tensors]",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where each checkpoint is made once."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def original(folder):
    return checkpoints.original(folder / "original")


def as_shipped(path: Path):
    """(model, outcome) of the checkpoint at `path` on a CPU."""
    config = json.loads((path / "config.json").read_text())
    support = shipped_support(scheme_of("m", config), config, VNNI)
    dtype = compute_dtype(support.recipe)
    model = load(path, "language-modeling", dtype, "cpu", False, shipped=True)
    outcome = apply_format(model, AS_SHIPPED, support.recipe, support.execution, support.reason)
    return model, outcome


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(16)[None] % WORDS).logits.float()


def relative_error(model, exact):
    return float((logits(model) - exact).norm() / exact.norm())


def bitsandbytes(**options):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**options)


def test_bitsandbytes_int8_is_counted_by_hand(folder, original):
    config = bitsandbytes(load_in_8bit=True)
    path = checkpoints.requantized(original, folder / "int8", config)
    model, outcome = as_shipped(path)
    applied = outcome.applied
    assert (applied.linear_elements, applied.converted_elements) == (BODY + HEAD, BODY)
    assert applied.converted_share == pytest.approx(BODY / (BODY + HEAD))
    assert [layer.name for layer in applied.left_behind] == ["lm_head"]
    assert applied.left_behind[0].elements == HEAD
    # One float32 scale per output channel beside each weight.
    wide = 2 * HEAD + NORMS + OUTPUTS
    assert applied.elements_by_dtype == {"int8": BODY, "float32": wide}
    assert applied.weight_bytes == BODY + 4 * wide
    assert (applied.execution, applied.library) == ("native", "bitsandbytes")
    assert applied.kernel == "bitsandbytes int8"
    assert "LLM.int8()" in applied.reason
    # The head is left by custom, which surprises nobody.
    assert outcome.cautions == []
    assert 0 < relative_error(model, logits(checkpoints.llama())) < 0.05


def test_nf4_counts_two_weights_a_byte(folder, original):
    config = bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    path = checkpoints.requantized(original, folder / "nf4", config)
    model, outcome = as_shipped(path)
    applied = outcome.applied
    assert (applied.linear_elements, applied.converted_elements) == (BODY + HEAD, BODY)
    assert [layer.name for layer in applied.left_behind] == ["lm_head"]
    assert sum(applied.bytes_by_dtype.values()) == applied.weight_bytes
    # Half a byte a weight, and a float32 scale per block of 64 at the most.
    packed = applied.weight_bytes - 4 * (2 * HEAD + NORMS)
    assert BODY / 2 <= packed <= BODY / 2 + 4 * BODY / 64 + 16 * 4 * 7 * LAYERS
    assert applied.execution == "dequantized"
    assert outcome.cautions == []
    assert 0.01 < relative_error(model, logits(checkpoints.llama())) < 0.3


@pytest.mark.parametrize(
    ("name", "execution"),
    [
        ("Int8WeightOnlyConfig", "dequantized"),
        ("Int8DynamicActivationInt8WeightConfig", "native"),
    ],
)
def test_torchao(folder, original, name, execution):
    import torchao.quantization
    from transformers import TorchAoConfig

    config = TorchAoConfig(getattr(torchao.quantization, name)())
    model, outcome = as_shipped(checkpoints.requantized(original, folder / name, config))
    applied = outcome.applied
    assert (applied.linear_elements, applied.converted_elements) == (BODY + HEAD, BODY)
    # A float32 scale and an int8 zero point per output channel.
    wide = 2 * HEAD + NORMS + OUTPUTS
    assert applied.elements_by_dtype == {"int8": BODY + OUTPUTS, "float32": wide}
    assert applied.weight_bytes == BODY + OUTPUTS + 4 * wide
    assert (applied.execution, applied.library) == (execution, "torchao")
    assert 0 < relative_error(model, logits(checkpoints.llama())) < 0.05


def test_a_tied_head_counts_as_embedding(folder):
    source = checkpoints.original(folder / "tied-original", tied=True)
    config = bitsandbytes(load_in_8bit=True)
    _, outcome = as_shipped(checkpoints.requantized(source, folder / "tied", config))
    applied = outcome.applied
    assert applied.linear_elements == applied.converted_elements == BODY
    assert applied.left_behind == []


def test_fp8_without_units_for_it_is_not_labelled_fp8(folder, original):
    """transformers widens it with only a warning."""
    path = checkpoints.fine_grained_fp8(original, folder / "fp8")
    model, outcome = as_shipped(path)
    applied = outcome.applied
    assert (applied.execution, applied.converted_share) == ("emulated", 0.0)
    assert "transformers widens" in applied.reason
    assert [caution.id for caution in outcome.cautions] == ["shipped-widened"]
    assert not any("float8" in dtype for dtype in applied.elements_by_dtype)
    assert {layer.name for layer in applied.left_behind} >= {
        "lm_head", "model.layers.1.mlp.down_proj",
    }  # fmt: skip
    # The checkpoint's weights, not the original's.
    assert 0.001 < relative_error(model, logits(checkpoints.llama())) < 0.1


@needs_compressed_tensors
def test_compressed_tensors_is_counted_after_it_was_used(folder, original):
    """Packed when loaded, widened when first called: storage counted before would be untrue."""
    path = checkpoints.compressed(original, folder / "compressed")
    model, outcome = as_shipped(path)
    applied = outcome.applied
    assert applied.linear_elements == BODY + HEAD
    assert (applied.execution, applied.converted_share) == ("emulated", 0.0)
    assert [caution.id for caution in outcome.cautions] == ["shipped-widened"]
    assert applied.weight_bytes > 4 * (BODY + 2 * HEAD)
    assert "int4 in groups of 32 (pack-quantized)" in applied.reason
    assert 0.01 < relative_error(model, logits(checkpoints.llama())) < 0.5


def test_layers_that_the_config_leaves_are_named_with_the_reason(folder, original):
    config = bitsandbytes(load_in_8bit=True, llm_int8_skip_modules=["lm_head", "down_proj"])
    _, outcome = as_shipped(checkpoints.requantized(original, folder / "skipped", config))
    down = LAYERS * HIDDEN * checkpoints.INNER
    assert outcome.applied.converted_elements == BODY - down
    left = {layer.name: layer.reason for layer in outcome.applied.left_behind}
    assert set(left) == {"lm_head", *(f"model.layers.{i}.mlp.down_proj" for i in range(LAYERS))}
    assert all("config leaves it" in reason for reason in left.values())
    assert [caution.id for caution in outcome.cautions] == ["partly-converted"]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("lm_head", {"lm_head"}),
        ("model.layers.1.mlp", {f"model.layers.1.mlp.{n}_proj" for n in ("gate", "up", "down")}),
        ("re:.*layers.0.*[qk]_proj", {f"model.layers.0.self_attn.{n}_proj" for n in "qk"}),
        ("mlp.up_proj", {f"model.layers.{i}.mlp.up_proj" for i in range(LAYERS)}),
        ("up", set()),
    ],
)
def test_a_config_names_modules_in_several_ways(pattern, left):
    found = shipped_layout(checkpoints.llama(), [pattern], 4)
    assert {name for name, why in found.kept.items() if "config leaves" in why} == left
    assert found.linear_elements == BODY + HEAD


def test_experts_in_one_packed_tensor_are_counted_by_their_bits():
    model = checkpoints.llama()
    packed = torch.zeros(4, HIDDEN, HIDDEN // 2, dtype=torch.uint8)
    model.model.layers[0].mlp.experts = torch.nn.Parameter(packed, requires_grad=False)
    found = shipped_layout(model, [], 4)
    assert found.elements["model.layers.0.mlp.experts"] == 4 * HIDDEN * HIDDEN


class Packed(torch.nn.Module):
    """A kernel's layer as GPTQ's are: no nn.Linear, no `weight`, eight int4 in an int32."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer(
            "qweight", torch.zeros(linear.in_features // 8, linear.out_features, dtype=torch.int32)
        )
        self.register_buffer("scales", torch.ones(1, linear.out_features, dtype=torch.float16))

    def forward(self, x):
        return x.new_zeros(*x.shape[:-1], self.out_features)


def test_packed_kernels_that_are_no_linear_layers_are_counted():
    model = checkpoints.llama()
    for layer in model.model.layers:
        layer.mlp.up_proj = Packed(layer.mlp.up_proj)
    recipe = {"kernel": "k", "library": "gptqmodel", "compute_dtype": "float32"}
    outcome = apply_format(model, AS_SHIPPED, recipe, "dequantized", "a test")
    applied = outcome.applied
    packed = LAYERS * HIDDEN * checkpoints.INNER
    assert (applied.linear_elements, applied.converted_elements) == (BODY + HEAD, packed)
    assert applied.bytes_by_dtype["int32"] == packed // 2
    assert applied.execution == "dequantized"


def test_weights_that_are_missing_are_not_made_up(folder, original):
    from safetensors.torch import load_file, save_file

    path = checkpoints.fine_grained_fp8(original, folder / "cut")
    tensors = load_file(path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="up_proj"):
        as_shipped(path)


@pytest.mark.parametrize("promised", ["native", "dequantized", "unverified"])
def test_nothing_left_in_the_scheme_is_never_called_more_than_emulated(promised):
    recipe = {"kernel": "k", "library": "l", "compute_dtype": "float32"}
    outcome = apply_format(checkpoints.llama(), AS_SHIPPED, recipe, promised, "a promise")
    assert (outcome.applied.execution, outcome.applied.converted_elements) == ("emulated", 0)
    assert [caution.id for caution in outcome.cautions] == ["shipped-widened"]


@pytest.mark.parametrize("shipped", [True, False])
def test_a_quantized_checkpoint_is_placed_by_its_library(monkeypatch, shipped):
    """Packed weights can't always be moved once they are there."""
    asked, moved = {}, []

    class Auto:
        @staticmethod
        def from_pretrained(path, **options):
            asked.update(options)
            model = torch.nn.Linear(2, 2)
            model.to = lambda device: moved.append(device) or model
            return model, {"missing_keys": []}

    monkeypatch.setattr("precision_explorer.models.loading.auto_class", lambda kind: Auto)
    load(Path("x"), "language-modeling", torch.float32, "cpu", False, shipped=shipped)
    assert asked.get("device_map") == ({"": "cpu"} if shipped else None)
    assert moved == ([] if shipped else ["cpu"])
    assert asked["local_files_only"] is True
    assert asked["trust_remote_code"] is False


@pytest.mark.parametrize(
    ("found", "held"),
    [
        ("int8", True), ("int32", True), ("uint8", True), ("nf4", True), ("float8_e4m3fn", True),
        ("float32", False), ("bfloat16", False), ("float16", False), ("nowhere", False),
        (None, False),
    ],
)  # fmt: skip
def test_whatever_is_no_wide_float_is_held_as_shipped(found, held):
    assert is_held(found, AS_SHIPPED) is held
    assert is_held(found, "int8") is (found == "int8")


@pytest.mark.parametrize("promised", ["emulated", "unverified"])
def test_what_was_widened_stays_emulated_when_its_products_are_seen(promised):
    """Products in float32 prove nothing of a scheme that no layer is held in any more."""
    seen = Executed(
        kernel="SGEMM", number_type="float32", unit="native", converted=False, flops=1e6
    )
    certificate = Certificate(
        evidence="lines", work="some", linear_flops=1e6, executed_flops=0.0, executed_share=0.0,
        executed=[seen],
    )  # fmt: skip
    found = judge(spec_of(AS_SHIPPED), "float32", promised, "a reason", certificate)
    assert found.execution == promised


@pytest.mark.parametrize(
    ("arithmetic", "expected"), [("int8", "int8"), ("compute", "compute"), (None, "compute")]
)
def test_the_products_of_a_scheme_are_looked_for_in_its_own_type(arithmetic, expected):
    found = spec_in(AS_SHIPPED, {"arithmetic": arithmetic})
    assert found.arithmetic == expected
    assert spec_in("int8-llm", {}) == spec_of("int8-llm")


@pytest.mark.slow
def test_a_sweep_of_a_quantized_checkpoint_beside_its_original(folder, quick_workload):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, TorchAoConfig

    from precision_explorer.models.reference import DEMO
    from precision_explorer.plan.spec import make_spec
    from precision_explorer.runner.sweep import prepare_sweep, run_sweep
    from precision_explorer.table import build

    path = folder / "demo-int8"
    AutoModelForSequenceClassification.from_pretrained(
        DEMO, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    ).save_pretrained(path)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(path)
    spec = make_spec(
        {
            "model": (str(path), "demo"), "formats": ("fp32",), "limit": 24, "device": "cpu",
            "threads": 1, "batch_size": (1,), "workload": str(quick_workload),
            "out": str(folder / "run"),
        }
    )  # fmt: skip
    prepared = prepare_sweep(spec, lambda event: None)
    run, tally = run_sweep(prepared, lambda event: None)
    assert (tally.ran, tally.skipped, tally.failed) == (2, 1, 0)
    rows = {(row["model"], row["format"]): row for row in build([run.path]).rows}
    ours, skipped, demo = (
        rows[key] for key in (("demo-int8", AS_SHIPPED), ("demo-int8", "fp32"), ("demo", "fp32"))
    )
    assert (ours["status"], ours["execution"], ours["kernel"]) == (
        "ok", "dequantized", "torchao Int8WeightOnlyConfig",
    )  # fmt: skip
    assert ours["converted_share"] > 0.9
    # What multiplied was seen, in the type to which the scheme widens.
    assert ours["executed_share"] > 0.9
    assert ours["weight_bytes"] < demo["weight_bytes"] / 1.5
    assert ours["quality"] > 0.7
    assert ours["quality_delta"] is ours["verdict"] is None
    assert (skipped["status"], skipped["execution"]) == ("skipped", "unsupported")
    assert "made from" in skipped["reason"]
