"""4-bit formats and their kin: bytes counted by hand, sizes that blocks do not divide, libraries
that skip layers or widen them wrongly."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import apply, footprint, four_bit, reference, spec_of
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.microscaling import nvfp4_config
from precision_explorer.formats.verify import census, layout


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_matmul_precision("fp32")


def recipe(format_id):
    return _default_recipe(format_id, "cpu")


def applied(model, format_id):
    """`model` is loaded in the recipe's compute type, as a worker does."""
    model = model.to(getattr(torch, recipe(format_id)["compute_dtype"])).eval()
    return apply_format(model, format_id, recipe(format_id), "unverified", "a test")


def llama(tied):
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


# (outputs, inputs) of each linear layer but the head; everything else; the head.
BODY = 2 * [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
OTHER = 40 * 64 + (2 * 2 + 1) * 64
HEAD = 40 * 64


def nf4_bytes(outer, inner):
    """Half a byte an element, 8 bits a block of 64, for 256 of these a float32 scale, the mean of
    the blocks' scales, and the tables of the 16 4-bit and 256 8-bit values."""
    blocks = -(-outer * inner // 64)
    return -(-outer * inner // 2) + blocks + 4 * -(-blocks // 256) + 4 + 4 * (16 + 256)


def int4_bytes(outer, inner):
    """Half a byte an element, and a float32 scale and offset for each group: of 128 inputs where
    that divides them, else of 64."""
    return outer * inner // 2 + outer * (inner // (64 if inner % 128 else 128)) * 2 * 4


def tiled_scales(outer, inner, block):
    """One byte a block, in whole tiles of 128 rows and 4 blocks (cuBLAS's layout of scales)."""
    return -(-outer // 128) * 128 * -(-inner // (4 * block)) * 4


BYTES = {
    "nf4": nf4_bytes,
    "int4-weight-only": int4_bytes,
    "mxfp8": lambda outer, inner: outer * inner + tiled_scales(outer, inner, 32),
    # And one float32 scale a tensor.
    "nvfp4": lambda outer, inner: outer * inner // 2 + tiled_scales(outer, inner, 16) + 4,
}
# Bytes of what is neither converted nor a scale.
WIDTH = {"nf4": 4, "int4-weight-only": 4, "mxfp8": 2, "nvfp4": 2}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format_id", BYTES)
def test_bytes_and_share_are_those_of_a_hand_count(format_id, tied):
    outcome = applied(llama(tied), format_id)
    found = outcome.applied
    elements, head = sum(o * i for o, i in BODY), 0 if tied else HEAD
    assert found.linear_elements == elements + head
    assert found.converted_elements == elements
    assert found.converted_share == elements / (elements + head)
    rest = WIDTH[format_id] * (OTHER + head)
    assert found.weight_bytes - rest == sum(BYTES[format_id](o, i) for o, i in BODY)
    assert found.weight_bytes == sum(found.bytes_by_dtype.values())
    assert found.elements_by_dtype[spec_of(format_id).storage] == elements
    assert [layer.name for layer in found.left_behind] == ([] if tied else ["lm_head"])
    assert outcome.cautions == []


@pytest.mark.parametrize("format_id", BYTES)
def test_what_was_counted_is_still_there_after_the_first_call(format_id):
    # bitsandbytes packs 4-bit weights anew at the first call where the CPU has AVX512-BF16.
    model = llama(True)
    counted = applied(model, format_id).applied
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            assert layer.support_avx512bf16_for_cpu is False
    with torch.inference_mode():
        model(torch.arange(9)[None])
    assert census(model).bytes_by_dtype == counted.bytes_by_dtype


class Odd(nn.Module):
    """Layers of sizes that blocks of 64 do not divide."""

    sizes = ((36, 20), (7, 5), (64, 1), (48, 64), (100, 32), (32, 17), (64, 16))

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in self.sizes)


@pytest.mark.parametrize("format_id", BYTES)
def test_odd_sizes_are_right_or_named_with_the_reason(format_id):
    model, before = Odd(), Odd()
    outcome = applied(model, format_id)
    left = {layer.name: layer for layer in outcome.applied.left_behind}
    for place, (inner, outer) in enumerate(Odd.sizes):
        name = f"layers.{place}"
        dtype = model.layers[place].bias.dtype
        x = torch.randn(3, inner).to(dtype)
        weight = before.layers[place].weight.detach().to(dtype)
        with torch.inference_mode():
            y = model.layers[place](x).double() - model.layers[place].bias.double()
        if name in left:
            assert left[name].elements == inner * outer
            assert "without saying so" not in left[name].reason
            expected = x.double() @ weight.double().t()
        else:
            expected = reference.product(format_id, recipe(format_id), x, weight)
        assert float((y - expected).norm() / expected.norm()) <= 2 * reference.tolerance(dtype)
    assert bool(left) == ("partly-converted" in [c.id for c in outcome.cautions])
    total = sum(i * o for i, o in Odd.sizes)
    assert outcome.applied.converted_elements == total - sum(x.elements for x in left.values())


@pytest.mark.parametrize("format_id", BYTES)
def test_inputs_of_any_layout_are_taken(format_id):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32))
    applied(model, format_id)
    x = torch.randn(2, 3, 64).to(model[0].bias.dtype)
    with torch.inference_mode():
        for view in (x[:, 0], x.transpose(0, 1)):
            assert not view.is_contiguous()
            torch.testing.assert_close(model(view), model(view.contiguous()))


def test_a_size_that_the_library_widens_wrongly_is_left_and_named(monkeypatch):
    functional = pytest.importorskip("bitsandbytes").functional
    original = functional.dequantize_4bit

    def wrong(packed, state):
        return original(packed, state) * (1.1 if state.shape[1] == 128 else 1)

    monkeypatch.setattr(functional, "dequantize_4bit", wrong)
    four_bit._nf4_is_right.cache_clear()
    outcome = applied(llama(True), "nf4")
    four_bit._nf4_is_right.cache_clear()
    names = [f"model.layers.{place}.mlp.down_proj" for place in range(2)]
    assert [layer.name for layer in outcome.applied.left_behind] == names
    assert all("128 inputs wrongly" in layer.reason for layer in outcome.applied.left_behind)
    (caution,) = outcome.cautions
    assert caution.id == "partly-converted"
    assert names[0] in caution.message


@pytest.mark.parametrize("format_id", BYTES)
def test_a_library_that_skips_layers_silently_is_told_on(monkeypatch, format_id):
    original = apply._HANDLERS[format_id]
    first = "model.layers.0.self_attn.q_proj"

    def skipping(model, plan, recipe):
        return original(model, replace(plan, targets=(first,)), recipe)

    monkeypatch.setitem(apply._HANDLERS, format_id, skipping)
    outcome = applied(llama(True), format_id)
    assert outcome.applied.converted_elements == 64 * 64
    assert len(outcome.applied.left_behind) == len(BODY) - 1
    assert all("without saying so" in layer.reason for layer in outcome.applied.left_behind)
    assert [c.id for c in outcome.cautions] == ["partly-converted"]


@pytest.mark.parametrize("format_id", BYTES)
def test_a_library_that_converts_nothing_is_refused(monkeypatch, format_id):
    monkeypatch.setitem(apply._HANDLERS, format_id, lambda model, plan, recipe: None)
    with pytest.raises(FormatNotApplied, match=f"{format_id} converted none"):
        applied(llama(True), format_id)


@pytest.mark.parametrize(
    ("inner", "group"), [(1024, 128), (576, 64), (96, 32), (160, 32), (48, None), (100, None)]
)
def test_the_largest_group_that_divides_is_taken(inner, group):
    assert footprint.int4_group(inner) == group


def test_a_layer_is_named_with_the_size_that_rules_it_out():
    reasons = {x.name: x.reason for x in applied(Odd(), "int4-weight-only").applied.left_behind}
    assert "36 inputs" in reasons["layers.0"]
    assert "16 outputs, not 1" in reasons["layers.2"]
    assert "16 outputs, not 17" in reasons["layers.5"]
    reasons = {x.name: x.reason for x in applied(Odd(), "mxfp8").applied.left_behind}
    assert "blocks of 32 do not divide its 48 inputs" in reasons["layers.3"]
    assert "16 outputs, not 17" in reasons["layers.5"]
    reasons = {x.name: x.reason for x in applied(Odd(), "nvfp4").applied.left_behind}
    assert "layers.3" not in reasons
    assert "blocks of 16 do not divide its 100 inputs" in reasons["layers.4"]


@pytest.mark.parametrize("format_id", BYTES)
@pytest.mark.parametrize("other", ["int8-weight-only", "fp8-weight-only", "bf16"])
def test_another_format_under_the_name_is_refused(monkeypatch, format_id, other):
    monkeypatch.setitem(apply._HANDLERS, format_id, apply._HANDLERS[other])
    with pytest.raises(FormatNotApplied, match=f"{format_id} converted none"):
        applied(llama(True), format_id)


# -- what only a GPU runs ----------------------------------------------------------------------


def asked_of_torchao(monkeypatch, format_id, **more):
    """[(configuration, layers)] that the handler hands to torchao."""
    asked = []
    monkeypatch.setattr(apply, "_torchao", lambda model, plan, *rest: asked.append(rest))
    model = llama(True)
    apply._HANDLERS[format_id](model, layout(model), recipe(format_id) | more)
    return asked


def test_fp8_per_tensor_asks_for_one_scale_a_tensor(monkeypatch):
    ((config,),) = asked_of_torchao(monkeypatch, "fp8-dynamic-per-tensor")
    assert [type(g).__name__ for g in config.granularity] == ["PerTensor", "PerTensor"]
    assert config.weight_dtype == config.activation_dtype == torch.float8_e4m3fn


def test_int4_on_cuda_asks_for_the_packing_of_its_tensor_cores(monkeypatch):
    asked = asked_of_torchao(monkeypatch, "int4-weight-only", packing="tile_packed_to_4d")
    by_group = {config.group_size: set(names) for config, names in asked}
    assert by_group[128] == {f"model.layers.{n}.mlp.down_proj" for n in range(2)}
    assert len(by_group[64]) == len(BODY) - 2
    for config, _ in asked:
        assert config.int4_packing_format == "tile_packed_to_4d"
        assert config.set_inductor_config is False


def test_blackwell_is_asked_for_its_own_kernels(monkeypatch):
    ((config, names),) = asked_of_torchao(monkeypatch, "mxfp8", kernel="scaled-mm")
    assert config.kernel_preference.name == "AUTO"
    assert len(names) == len(BODY)
    ((config, names),) = asked_of_torchao(monkeypatch, "nvfp4", kernel="scaled-mm")
    assert type(config) is type(nvfp4_config())
    assert config.use_dynamic_per_tensor_scale
    assert config.use_triton_kernel is False
    assert len(names) == len(BODY)


def test_padding_of_packed_int4_counts_as_bytes_not_as_elements():
    from torchao.quantization import Int4TilePackedTo4dTensor

    # As torchao packs (outputs, inputs) = (20, 96) in groups of 32: to 24 x 1024.
    weight = Int4TilePackedTo4dTensor(
        torch.zeros(3, 8, 32, 4, dtype=torch.int32),
        torch.zeros(32, 24, 2, dtype=torch.bfloat16),
        [1, 32],
        torch.Size((20, 96)),
    )
    model = nn.Sequential(nn.Linear(96, 20, bias=False))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    found = census(model)
    assert found.held_in["0"] == "int4"
    assert found.elements_by_dtype["int4"] == 20 * 96
    assert found.bytes_by_dtype == {"int4": 24 * 1024 // 2, "bfloat16": 32 * 24 * 2 * 2}


# -- autocast ----------------------------------------------------------------------------------


def test_autocast_changes_no_weight_and_multiplies_in_bfloat16():
    torch.manual_seed(0)
    model = llama(True).eval()
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        exact = model(ids).logits
        outcome = applied(model, "bf16-autocast")
        seen = []
        layer = model.model.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda module, args, y: seen.append(y.dtype))
        rounded = model(ids).logits
        model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before
    assert 1e-4 < float((rounded - exact).norm() / exact.norm()) < 0.05
    # The forward and each of the two that generate.
    assert seen == 3 * [torch.bfloat16]
    assert not torch.is_autocast_enabled("cpu")
    assert outcome.applied.converted_share is None
    assert outcome.applied.weight_bytes == 4 * (OTHER + sum(o * i for o, i in BODY))
    assert outcome.cautions == []
