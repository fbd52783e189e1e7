"""Loading: whole files only, from the disk only, and no code of the model's unless asked for."""

import inspect
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from precision_explorer.errors import ModelError
from precision_explorer.models import resolve
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.reference import DEMO

KIND = "text-classification"
MAPS = Path("/proc/self/maps")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def copy(tmp_path):
    """A copy of the demo model, to be changed."""
    return shutil.copytree(DEMO, tmp_path / "copy")


def drop(folder, *names):
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_is_loaded_in_the_dtype_and_ready_to_serve(dtype):
    model = load(DEMO, KIND, dtype, "cpu", False)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert not model.training
    stored = load_file(DEMO / "model.safetensors")
    weight = model.get_submodule("classifier").weight
    assert torch.equal(weight.detach(), stored["classifier.weight"].to(dtype))


def test_the_tokenizer_comes_from_the_folder(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 77}))
    tokenizer = prepare(copy, KIND, False)
    assert tokenizer.model_max_length == 77
    assert len(tokenizer("good")["input_ids"]) == 3


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of mapped files")
def test_no_weight_is_a_view_of_the_mapped_file(copy):
    model = load(copy, KIND, torch.float32, "cpu", False)
    assert str(copy / "model.safetensors") not in MAPS.read_text()
    assert sum(p.numel() for p in model.parameters()) == resolve(str(copy)).elements


@pytest.mark.parametrize(
    "names",
    [
        ("classifier.weight",),
        ("classifier.weight", "classifier.bias"),
        ("bert.encoder.layer.1.output.dense.weight",),
    ],
)
def test_a_missing_weight_is_refused_and_named(copy, names):
    drop(copy, *names)
    with pytest.raises(ModelError) as caught:
        load(copy, KIND, torch.float32, "cpu", False)
    for name in names:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_head_that_was_never_saved_is_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    drop(copy, "classifier.weight", "classifier.bias")
    with pytest.raises(ModelError, match="would be random"):
        load(copy, KIND, torch.float32, "cpu", False)


def test_pickled_weights_are_not_loaded(copy):
    tensors = load_file(copy / "model.safetensors")
    torch.save(tensors, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        load(copy, KIND, torch.float32, "cpu", False)


_CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path(r"{marker}").write_text("ran")

class OwnConfig(BertConfig):
    model_type = "own"

class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_models_code_runs_only_when_it_is_trusted(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "c"))
    marker = tmp_path / "marker"
    (copy / "modeling_own.py").write_text(_CODE.format(marker=marker))
    config = json.loads((copy / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {
        "AutoConfig": "modeling_own.OwnConfig",
        "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    }
    (copy / "config.json").write_text(json.dumps(config))
    for function in (
        lambda trust: load(copy, KIND, torch.float32, "cpu", trust),
        lambda trust: prepare(copy, KIND, trust),
    ):
        with pytest.raises(ValueError, match="trust_remote_code"):
            function(False)
        assert not marker.exists()
    assert type(load(copy, KIND, torch.float32, "cpu", True)).__name__.startswith("Own")
    assert marker.read_text() == "ran"


def test_code_is_not_trusted_unless_it_is_said():
    assert inspect.signature(resolve).parameters["trust_remote_code"].default is False
    for function in (load, prepare):
        assert function.__annotations__["trust_remote_code"] == "bool"
        parameter = inspect.signature(function).parameters["trust_remote_code"]
        assert parameter.default is inspect.Parameter.empty


def test_a_tied_head_is_loaded_once(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path, "language-modeling", torch.bfloat16, "cpu", False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # Rotary frequencies stay as wide as transformers makes them.
    assert {b.dtype for b in model.buffers()} == {torch.float32}
