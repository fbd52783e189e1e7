"""Checkpoints that come quantized, before anything is loaded: scheme, library, device, plan."""

import json
import shutil

import pytest

from precision_explorer.errors import ModelError
from precision_explorer.formats import AS_SHIPPED, Support
from precision_explorer.hardware import PROFILES
from precision_explorer.models import resolve
from precision_explorer.models.reference import DEMO
from precision_explorer.models.shipped import (
    LOADERS,
    check_library,
    not_shipped,
    scheme_of,
    shipped_support,
)
from precision_explorer.plan.expand import formats_of, reference_of
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import sweep
from tests.test_formats_support import A100, AVX2, H100, L4, VNNI  # fmt: skip

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}
NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "llm_int8_skip_modules": ["lm_head"],
}  # fmt: skip
FP8 = {
    "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "a", "b", "c"],
}  # fmt: skip
W8A8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "strategy": "channel"},
            "input_activations": {
                "num_bits": 8, "type": "int", "strategy": "token", "dynamic": True
            },
        }
    },
}  # fmt: skip
W4 = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
            "input_activations": None,
        }
    },
}  # fmt: skip


def torchao(kind):
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": {}}}}


def scheme(config):
    return scheme_of("m", {"quantization_config": config})


@pytest.mark.parametrize(
    ("config", "bits", "arithmetic", "words"),
    [
        (GPTQ, 4, "compute", ["gptq", "int4 in groups of 128", "symmetric", "order of activation"]),
        (GPTQ | {"group_size": -1}, 4, "compute", ["int4 per channel"]),
        (AWQ, 4, "compute", ["awq", "int4 in groups of 64", "zero points"]),
        (BNB8, 8, "int8", ["LLM.int8()", "threshold 6.0"]),
        (NF4, 4, "compute", ["nf4 in blocks of 64", "scales quantized again", "lm_head"]),
        (FP8, 8, "float8_e4m3fn", ["e4m3 in blocks of 128x128", "at run time", "and 1 more"]),
        (FP8 | {"activation_scheme": "static"}, 8, "float8_e4m3fn", ["scales fixed"]),
        (W8A8, 8, "compute", ["int8 per channel", "int8 per token, scales at run time"]),
        (W4, 4, "compute", ["int4 in groups of 32 (pack-quantized)", "activations as they come"]),
        (torchao("Int8WeightOnlyConfig"), 8, "compute", ["Int8WeightOnlyConfig"]),
        (torchao("Int8DynamicActivationInt8WeightConfig"), 8, "int8", ["scales at run time"]),
        (
            torchao("Float8DynamicActivationFloat8WeightConfig"), 8, "float8_e4m3fn",
            ["scales at run time"],
        ),
        (torchao("Int8DynamicActivationInt4WeightConfig"), 4, "int8", ["scales at run time"]),
        ({"quant_method": "hqq", "bits": 3}, 3, None, ["hqq", "3 bits"]),
        ({"quant_method": "spqr"}, None, None, ["spqr", "as its library says"]),
    ],
)  # fmt: skip
def test_the_scheme_is_read_from_the_config(config, bits, arithmetic, words):
    found = scheme(config)
    assert (found.weight_bits, found.arithmetic) == (bits, arithmetic)
    for word in words:
        assert word in found.words
    assert found.method in found.short


def test_a_model_without_quantization_has_no_scheme():
    assert scheme_of("m", {}) is None
    assert scheme_of("m", {"quantization_config": None}) is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "telepathy"}, ["'telepathy'", "does not read", "made from"]),
        ({"bits": 4}, ["does not name", "made from"]),
        (["gptq"], ["no object"]),
        (W4 | {"config_groups": [1]}, ["not as compressed-tensors writes it"]),
        (FP8 | {"weight_block_size": 3}, ["not as fp8 writes it"]),
    ],
)
def test_a_config_that_is_none_is_one_line(config, words):
    with pytest.raises(ModelError) as error:
        scheme(config)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


def test_every_method_that_transformers_reads_is_known():
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    methods = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZER_MAPPING}
    assert set(LOADERS) == methods


@pytest.fixture
def without(monkeypatch):
    """A machine on which none of these modules is installed; versions are what is given."""

    def change(missing=(), versions=()):
        def find(name):
            return None if name.split(".")[0] in missing else object()

        monkeypatch.setattr("precision_explorer.models.shipped.find_spec", find)
        monkeypatch.setattr(
            "precision_explorer.models.shipped.version", lambda n: dict(versions).get(n, "99.0")
        )

    return change


@pytest.mark.parametrize(
    ("config", "facts", "missing", "line"),
    [
        (GPTQ, VNNI, {"gptqmodel"}, "pip install 'optimum>=1.24' 'gptqmodel>=1.4.3'"),
        (AWQ, VNNI, {"gptqmodel"}, "pip install gptqmodel"),
        (W4, VNNI, {"compressed_tensors"}, "pip install 'compressed-tensors>=0.15'"),
        (BNB8, VNNI, {"bitsandbytes"}, "pip install 'bitsandbytes>=0.46.1'"),
        (FP8, L4, {"kernels"}, "pip install 'kernels>=0.18.2'"),
    ],
)
def test_a_missing_library_comes_with_the_line_that_installs_it(
    without, config, facts, missing, line
):
    without(missing)
    with pytest.raises(ModelError) as error:
        check_library("m", scheme(config), facts, True)
    assert str(error.value).endswith(line)
    assert "\n" not in str(error.value)
    without()
    check_library("m", scheme(config), facts, True)


def test_a_kernel_of_the_hub_is_code_that_must_be_trusted(without):
    without()
    with pytest.raises(ModelError, match="give --trust-remote-code") as error:
        check_library("m", scheme(FP8), L4)
    assert "\n" not in str(error.value)
    check_library("m", scheme(GPTQ), L4)


def test_too_old_a_library_is_a_missing_one(without):
    without(versions={"gptqmodel": "1.4.3.dev1"})
    check_library("m", scheme(GPTQ), VNNI)
    without(versions={"gptqmodel": "1.4.2"})
    with pytest.raises(ModelError, match=r"gptqmodel>=1\.4\.3"):
        check_library("m", scheme(GPTQ), VNNI)


def test_fp8_takes_its_kernel_only_where_there_are_units_for_it(without):
    without({"kernels"})
    check_library("m", scheme(FP8), A100)
    check_library("m", scheme(FP8), VNNI)


T4 = PROFILES["t4"].facts()


@pytest.mark.parametrize(
    ("config", "facts", "execution", "words"),
    [
        (BNB8, VNNI, "native", "avx512_vnni"),
        (BNB8, AVX2, "dequantized", "without AVX-512"),
        (NF4, H100, "dequantized", "widened before each product"),
        (GPTQ, H100, "dequantized", "widened before each product"),
        (AWQ, AVX2, "dequantized", "widened before each product"),
        (W8A8, H100, "emulated", "when they are first used"),
        # The trap: transformers widens fp8 in silence where there are no units for it.
        (FP8, A100, "emulated", "no fp8 tensor cores"),
        (FP8, VNNI, "emulated", "no CPU known here"),
        (FP8, H100, "unverified", "kernel from the hub"),
        (torchao("Int8WeightOnlyConfig"), H100, "dequantized", "widened"),
        (torchao("Int8DynamicActivationInt8WeightConfig"), AVX2, "emulated", "no int8"),
        (torchao("Int8DynamicActivationInt8WeightConfig"), VNNI, "native", "avx512_vnni"),
        (torchao("Float8DynamicActivationFloat8WeightConfig"), T4, "unsupported", "no fp8"),
        (torchao("Float8DynamicActivationFloat8WeightConfig"), H100, "native", "fp8 tensor"),
        ({"quant_method": "spqr"}, VNNI, "unsupported", "on a GPU only"),
        ({"quant_method": "spqr"}, H100, "unverified", "not known here"),
        ({"quant_method": "nvfp4"}, H100, "unsupported", "does not load"),
    ],
)
def test_what_a_device_makes_of_a_scheme(config, facts, execution, words):
    found = shipped_support(scheme(config), {}, facts)
    assert (found.format, found.execution) == (AS_SHIPPED, execution)
    assert words in found.reason
    assert scheme(config).words in found.reason
    if found.supported:
        widened = "while it loads them" in found.reason or "first used" in found.reason
        assert found.recipe["widened"] == widened
        assert found.recipe["scheme"] == scheme(config).words
        assert {"kernel", "library", "compute_dtype"} <= set(found.recipe)
    else:
        assert found.remedy


@pytest.mark.parametrize(
    ("config", "model", "facts", "dtype"),
    [
        (GPTQ, {"dtype": "float16"}, H100, "float16"),
        (GPTQ, {"torch_dtype": "bfloat16"}, H100, "bfloat16"),
        (GPTQ, {}, H100, "bfloat16"),
        (GPTQ, {"dtype": "float16"}, VNNI, "float32"),
        (torchao("Int8WeightOnlyConfig"), {"dtype": "bfloat16"}, VNNI, "bfloat16"),
        (torchao("Int8WeightOnlyConfig"), {"dtype": "int8"}, VNNI, "float32"),
    ],
)
def test_what_is_not_quantized_computes_in(config, model, facts, dtype):
    assert shipped_support(scheme(config), model, facts).recipe["compute_dtype"] == dtype


# -- plan ------------------------------------------------------------------------------------


@pytest.fixture
def quantized(tmp_path):
    """The demo model with the marks of GPTQ: a checkpoint whose library is not here."""
    folder = tmp_path / "quantized"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": GPTQ}))
    return folder


def test_formats_and_reference_are_each_model_s_own(quantized):
    ours, demo = resolve(str(quantized)), resolve("demo")
    default, named = make_spec({}), make_spec({"formats": "bf16,as-shipped", "reference": "bf16"})
    assert formats_of(default, ours) == [AS_SHIPPED]
    assert formats_of(named, ours) == [AS_SHIPPED, "bf16"]
    assert formats_of(default, demo) == list(default.formats)
    assert formats_of(named, demo) == ["bf16", AS_SHIPPED]
    assert [reference_of(named, ref) for ref in (ours, demo)] == [AS_SHIPPED, "bf16"]


def test_what_a_model_can_t_be_had_in_says_why(quantized):
    ours = resolve(str(quantized)).scheme
    assert "does not come quantized" in not_shipped(None, AS_SHIPPED).reason
    assert "quantized by gptq" in not_shipped(ours, "fp32").reason
    assert "made from" in not_shipped(ours, "fp32").reason
    assert not_shipped(ours, AS_SHIPPED) is not_shipped(None, "fp32") is None


@pytest.fixture
def prepare(monkeypatch, without):
    """Plan on a machine whose device was asked already; answers with the events too."""
    recipe = {"kernel": "torch", "library": "torch", "compute_dtype": "float32"}
    asked = []

    def probe(facts, formats, versions, threads, on_event):
        asked.append(formats)
        return {f: Support(f, "native", "a unit for it", recipe) for f in formats}

    monkeypatch.setattr(sweep, "probe", probe)
    monkeypatch.setattr(sweep, "prepare_environment", lambda *asked: None)

    def run(**options):
        events = []
        spec = make_spec({"limit": 4, "device": "cpu"} | options)
        return sweep.prepare_sweep(spec, events.append), events, asked

    return run


def test_a_quantized_checkpoint_without_its_library_is_one_line(prepare, quantized):
    with pytest.raises(ModelError, match=r"quantized is quantized .*pip install 'optimum>=1.24' "):
        prepare(model=(str(quantized),))


def test_a_quantized_model_alone_is_its_own_reference(prepare, without, quantized):
    without()
    prepared, events, asked = prepare(model=(str(quantized),))
    (cell,) = prepared.plan.cells
    assert (cell.cell.format, cell.skip) == (AS_SHIPPED, None)
    assert cell.cell.recipe["scheme"].startswith("gptq: weights int4 in groups of 128")
    assert "gptq" in cell.support.reason
    # No format is asked of the device that no model needs.
    assert asked == []
    (note,) = [event.data["text"] for event in events if event.name == "note"]
    assert "comes quantized" in note
    assert "own reference" in note
    assert sweep.sweep_document(prepared, "r")["reader"]["reference"] == AS_SHIPPED


def test_originals_and_quantized_ones_in_one_sweep(prepare, without, quantized):
    without()
    prepared, _, asked = prepare(
        model=(str(quantized), "demo"), formats=("fp32", "bf16", "as-shipped")
    )
    found = [(c.ref.name, c.cell.format, c.skip is None) for c in prepared.plan.cells]
    assert found == [
        ("quantized", AS_SHIPPED, True),
        ("quantized", "fp32", False),
        ("quantized", "bf16", False),
        ("demo", "fp32", True),
        ("demo", "bf16", True),
        ("demo", AS_SHIPPED, False),
    ]
    assert asked == [["fp32", "bf16", AS_SHIPPED]]
    assert sweep.sweep_document(prepared, "r")["reader"]["reference"] == "fp32"


def test_another_scheme_is_another_cell(prepare, without, quantized):
    without()
    first, _, _ = prepare(model=(str(quantized),))
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"]["group_size"] = 64
    (quantized / "config.json").write_text(json.dumps(config))
    second, _, _ = prepare(model=(str(quantized),))
    recipes = [p.plan.cells[0].cell.recipe for p in (first, second)]
    assert recipes[0] != recipes[1]
    assert first.plan.cells[0].cell_id != second.plan.cells[0].cell_id


def test_the_memory_that_loading_takes(quantized, tmp_path):
    """10 float values, and 24 bytes of packed int4: 48 weights."""
    import numpy as np
    from safetensors.numpy import save_file

    for file in quantized.glob("*.safetensors"):
        file.unlink()
    tensors = {"a": np.zeros(10, np.float32), "b": np.zeros((2, 3), np.int32)}
    save_file(tensors, quantized / "model.safetensors")
    ref = resolve(str(quantized))
    assert (ref.elements, ref.packed_elements, ref.packed_bytes) == (16, 6, 24)
    assert ref.load_bytes(4, widened=False) == 10 * 4 + 24
    assert ref.load_bytes(2, widened=True) == 10 * 2 + 48 * 2
    assert resolve("demo").load_bytes(2, widened=True) == resolve("demo").elements * 2
