"""Our own 8-bit layers for CUDA, run here by torch's CPU kernels of the same operators."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from precision_explorer.formats import dryrun, reference
from precision_explorer.formats.apply import apply_format
from precision_explorer.formats.catalog import OWN_ON_CUDA
from precision_explorer.formats.fp8 import E4M3_MAX, Float8Linear
from precision_explorer.formats.held import held_weight
from precision_explorer.formats.verify import census

OWN = OWN_ON_CUDA
STORAGE = {f: "int8" if f.startswith("int8") else "float8_e4m3fn" for f in OWN}


class Model(nn.Module):
    def __init__(self, odd: int = 48) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Linear(64, 96), nn.Linear(96, odd, bias=False)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
        self.bfloat16().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def applied(format_id: str, model: nn.Module):
    recipe = dryrun._default_recipe(format_id, "cuda:0")
    recipe |= {"kernel": OWN[format_id], "library": "torch"}
    return apply_format(model, format_id, recipe, "native", "test").applied


@pytest.mark.parametrize("format_id", OWN)
def test_layers_are_held_in_the_format_and_answer_as_it_rounds(format_id):
    model, x = Model(), torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = model(x).float()
    outcome = applied(format_id, model)
    assert outcome.converted_share == 1.0
    assert outcome.kernel == OWN[format_id]
    assert census(model).held_in == {"first": STORAGE[format_id], "second": STORAGE[format_id]}
    with torch.inference_mode():
        error = ((model(x).float() - exact).norm() / exact.norm()).item()
    # e4m3 has 3 bits of mantissa, int8 up to 7: rounding shows, and no more than it.
    low, high = (0.002, 0.02) if format_id == "int8-weight-only" else (0.01, 0.08)
    assert low < error < high


@pytest.mark.parametrize("format_id", OWN)
def test_the_weight_can_be_read_back(format_id):
    model = Model()
    before = model.first.weight.detach().float()
    applied(format_id, model)
    held = held_weight(model.first)
    step = 1 / 127 if format_id == "int8-weight-only" else 2**-4
    assert held.shape == before.shape
    assert ((held - before).abs() <= step * before.abs().amax() + 1e-6).all()
    assert not torch.equal(held, before)


def test_sizes_that_the_kernel_does_not_take_stay_with_the_reason():
    outcome = applied("fp8-dynamic", Model(odd=24))
    (left,) = outcome.left_behind
    assert left.name == "second"
    assert "multiples of 16" in left.reason


def test_each_row_has_its_own_scale_and_an_outlier_elsewhere_changes_nothing():
    layer = Float8Linear(Model().first, by_row=True)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    alone = layer(x[:1])
    x[1] *= 1000
    assert torch.equal(layer(x)[:1], alone)
    shared = Float8Linear(Model().first, by_row=False)
    assert not torch.equal(shared(x)[:1], shared(x[:1]))


def test_zeros_stay_zeros_and_nan_stays_nan():
    layer = Float8Linear(nn.Linear(64, 32, bias=False).bfloat16(), by_row=True)
    assert torch.equal(layer(torch.zeros(1, 64).bfloat16()), torch.zeros(1, 32).bfloat16())
    assert layer(torch.full((1, 64), float("nan")).bfloat16()).isnan().all()
    assert layer.weight_8bit.float().abs().max() == E4M3_MAX


def test_one_scale_is_the_format_s_exact_emulation():
    """torchao's scale, rounded to bfloat16, moves values on the border of two steps."""
    model = Model()
    weight, x = model.first.weight.detach(), torch.randn(7, 64).bfloat16()
    expected = reference.product("fp8-dynamic-per-tensor", {}, x, weight)
    layer = Float8Linear(model.first, by_row=False)
    layer.bias = None
    difference = (layer(x).double() - expected).norm() / expected.norm()
    assert difference < reference.tolerance(torch.bfloat16)


def test_on_cuda_both_ways_are_tried_and_on_a_cpu_the_library_s():
    for format_id, kernel in OWN.items():
        tried = [recipe["kernel"] for recipe in dryrun._recipes(format_id, "cuda:0")]
        assert tried == [kernel, "torchao"]
        assert [r["kernel"] for r in dryrun._recipes(format_id, "cpu")] == ["torchao"]
