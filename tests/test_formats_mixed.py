"""Recipes applied to small models, counted by hand; and layers given back as they were."""

import pytest
import torch
import transformers

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import apply
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.certificate import wanted_in
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.execution import judge
from precision_explorer.formats.partly import held_in, is_held, stored_bytes
from precision_explorer.formats.recipe import spec_in
from precision_explorer.formats.verify import census, layout
from precision_explorer.hardware import device_facts
from precision_explorer.records import Certificate, Executed
from tests.test_formats_apply import llama

# Of LLAMA_BODY's shapes: up and down project 48 x 32, q and o 32 x 32, k and v 16 x 32.
UP = [f"model.layers.{i}.mlp.up_proj" for i in (0, 1)]
DOWN = ["model.layers.0.mlp.down_proj"]
ALL = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_matmul_precision("fp32")


def recipe(**layers):
    named = {name.replace("_", "-"): held for name, held in layers.items()}
    return {
        "library": "mixed",
        "kernel": "several",
        "compute_dtype": "float32",
        "base": "fp32",
        "layers": named,
        "parts": {name: _default_recipe(name, "cpu") for name in named},
    }


def applied(model, made):
    return apply_format(model.eval(), "mixed:r", made, "dequantized", "a test")


def test_each_layer_is_held_in_the_format_named_for_it():
    made = recipe(int8_weight_only=UP, fp8_weight_only=DOWN)
    outcome = applied(llama(True), made)
    found = outcome.applied
    assert found.linear_elements == ALL
    assert found.converted_elements == 3 * 48 * 32
    assert found.converted_share == pytest.approx(3 * 48 * 32 / ALL)
    assert {outcome.held_in[name] for name in UP} == {"int8"}
    assert outcome.held_in[DOWN[0]] == "float8_e4m3fn"
    assert found.elements_by_dtype["int8"] in (2 * 48 * 32, 2 * 48 * 32 + 2 * 48)
    assert found.elements_by_dtype["float8_e4m3fn"] == 48 * 32
    left = {layer.name: layer.reason for layer in found.left_behind}
    assert len(left) == 14 - 3
    assert set(left.values()) == {"the recipe leaves it in fp32"}
    assert outcome.cautions == []


def test_bytes_are_those_of_the_parts():
    made = recipe(int8_weight_only=UP)
    whole = census(llama(True)).weight_bytes
    found = applied(llama(True), made).applied.weight_bytes
    # Two layers from 4 bytes a value to 1 and a float32 scale per row (an int8 zero point in some).
    saved = 2 * (48 * 32 * 3 - 48 * 4)
    assert whole - found in (saved, saved - 2 * 48)


def test_an_untied_head_stays_and_does_not_count_as_the_recipe_s():
    made = recipe(int8_weight_only=UP)
    outcome = applied(llama(False), made)
    reasons = {layer.name: layer.reason for layer in outcome.applied.left_behind}
    assert "output head" in reasons["lm_head"]
    assert outcome.cautions == []


def test_a_layer_that_its_format_left_is_named_as_a_caution(monkeypatch):
    monkeypatch.setitem(apply._HANDLERS, "fp8-weight-only", lambda model, plan, made: None)
    outcome = applied(llama(True), recipe(int8_weight_only=UP, fp8_weight_only=DOWN))
    assert outcome.applied.converted_elements == 2 * 48 * 32
    (caution,) = outcome.cautions
    assert caution.id == "partly-converted"
    assert DOWN[0] in caution.message
    assert "k_proj" not in caution.message


def test_a_layer_held_in_another_part_s_format_does_not_count(monkeypatch):
    wrong = apply._HANDLERS["int8-weight-only"]
    monkeypatch.setitem(apply._HANDLERS, "fp8-weight-only", wrong)
    outcome = applied(llama(True), recipe(int8_weight_only=UP, fp8_weight_only=DOWN))
    assert outcome.held_in[DOWN[0]] == "int8"
    assert outcome.applied.converted_elements == 2 * 48 * 32


def test_nothing_converted_fails(monkeypatch):
    monkeypatch.setitem(apply._HANDLERS, "int8-weight-only", lambda model, plan, made: None)
    with pytest.raises(FormatNotApplied, match="converted none"):
        applied(llama(True), recipe(int8_weight_only=UP))


@pytest.mark.parametrize("name", ["model.layers.7.mlp.up_proj", "lm_head", "model.norm"])
def test_a_layer_that_is_none_of_the_model_s_is_refused_before_anything_is_changed(name):
    model = llama(False).eval()
    with pytest.raises(FormatNotApplied, match="the recipe names") as error:
        applied(model, recipe(int8_weight_only=[*UP, name]))
    assert name in str(error.value)
    assert census(model).elements_by_dtype.keys() == {"float32"}


def test_the_certificate_is_asked_for_each_layer_s_own_type():
    made = recipe(int8_dynamic=UP, fp8_weight_only=DOWN)
    made["parts"]["int8-dynamic"]["kernel"] = "int-mm"
    outcome = applied(llama(True), made)
    wanted = wanted_in(outcome.layout, outcome.held_in, "mixed:r", made)
    assert {wanted[name] for name in UP} == {"int8"}
    assert wanted[DOWN[0]] == "float32"
    assert sum(found is None for found in wanted.values()) == 14 - 3


def certificate(executed, off=0.0):
    parts = [
        Executed(kernel="k", number_type="int8", unit="native", converted=True, flops=executed),
        Executed(kernel="k", number_type="float32", unit="native", converted=True, flops=off),
    ]
    return Certificate(
        evidence="e", work="w", linear_flops=executed + off, executed_flops=executed,
        executed_share=executed / (executed + off), executed=parts, other=[], off_label=[],
        not_called=[],
    )  # fmt: skip


def test_a_mixed_row_is_what_its_weakest_part_is_however_native_the_rest():
    spec = spec_in("mixed:r", recipe(int8_dynamic=UP, fp8_weight_only=DOWN))
    judged = judge(spec, spec.arithmetic, "dequantized", "why", certificate(9.0, 1.0))
    assert judged.execution == "dequantized"
    assert judge(spec, "mixed", "native", "why", certificate(9.0, 1.0)).execution == "native"
    assert judge(spec, "mixed", "native", "why", certificate(1.0, 9.0)).execution == "dequantized"


def wide():
    """A model with inputs of 64, the block of nf4's scales."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# -- held in a format for a while --------------------------------------------------------------


@pytest.mark.parametrize("format_id", ["int8-weight-only", "fp8-weight-only", "int8-llm", "nf4"])
def test_layers_are_given_back_as_they_were(format_id):
    model = wide().eval()
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        before, size = model(ids).logits, stored_bytes(model, UP[0])
        own = model.get_submodule(UP[0])
        made = {format_id: _default_recipe(format_id, "cpu")}
        with held_in(model, layout(model), {format_id: UP}, made):
            inside = model(ids).logits
            smaller = stored_bytes(model, UP[0])
            assert is_held(model, UP[0], format_id)
            assert not is_held(model, DOWN[0], format_id)
        assert not torch.equal(inside, before)
        assert smaller < size / 2
        assert model.get_submodule(UP[0]) is own
        assert torch.equal(model(ids).logits, before)
        assert stored_bytes(model, UP[0]) == size == 48 * 64 * 4


def test_a_layer_that_a_format_leaves_is_known():
    # It is bitsandbytes' kernel for AVX-512 that can't take these sizes.
    left = "avx512f" in device_facts("cpu").cpu_flags
    model = llama(True).eval()
    made = {"nf4": _default_recipe("nf4", "cpu")}
    with held_in(model, layout(model), {"nf4": UP}, made):
        assert is_held(model, UP[0], "nf4") == (not left)


def test_layers_are_given_back_after_an_error():
    model = llama(True).eval()
    made = {"int8-weight-only": _default_recipe("int8-weight-only", "cpu")}
    with (
        pytest.raises(RuntimeError, match="boom"),
        held_in(model, layout(model), {"int8-weight-only": UP}, made),
    ):
        raise RuntimeError("boom")
    assert census(model).elements_by_dtype.keys() == {"float32"}
