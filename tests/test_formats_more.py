"""4-bit formats and their kin: bytes counted by hand, sizes that blocks do not divide, libraries
that skip layers or widen them wrongly."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import apply, four_bit, reference
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.verify import census


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
    return apply_format(model.eval(), format_id, recipe(format_id), "unverified", "a test")


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


BYTES = {"nf4": nf4_bytes}
# The type of what is neither converted nor a scale.
WIDTH = {"nf4": 4}


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
    assert found.elements_by_dtype[format_id] == elements
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

    sizes = ((36, 20), (7, 5), (64, 1), (48, 64), (100, 32), (32, 17))

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
