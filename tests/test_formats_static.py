"""int8-static: SmoothQuant by hand, its kernels against exact integer arithmetic, calibration."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from precision_explorer.errors import FormatNotApplied, InvalidNumerics
from precision_explorer.formats import apply, dryrun, static
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.static import (
    CPU_STATIC_KERNELS,
    CUDA_STATIC_KERNELS,
    SMOOTHING_ALPHA,
    IntMatmulStatic,
    observe,
    smoothing,
    static_linear,
)
from tests.test_formats_kernels import pair_sums

X86 = platform.machine().lower() in ("x86_64", "amd64")
KERNELS = CPU_STATIC_KERNELS if X86 else ("int-mm",)
SHAPES = [(5, 48, 32), (1, 64, 16), (3, 36, 20), (2, 7, 5)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def need_sound(kernel):
    """8-bit weights saturate where there is no VNNI; see test_formats_kernels."""
    recipe = _default_recipe("int8-static", "cpu") | {"kernel": kernel}
    answer = dryrun._try("int8-static", recipe, "cpu")
    if not answer["ok"]:
        assert "wrong results" in answer["why"], answer
        pytest.skip(f"{kernel} saturates here")


def made(rows, inner, outer, bias=True, seed=0):
    """A layer and an input of which two channels hold outliers."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inner, outer, bias=bias)
    x = torch.randn(rows, inner, generator=generator)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outer, inner, generator=generator))
        if bias:
            linear.bias.copy_(torch.randn(outer, generator=generator))
        x[:, 1] *= 40.0
        x[:, inner // 2] *= 25.0
    return linear, x


def run(model, x):
    with torch.inference_mode():
        return model(x).clone()


def channels(x):
    return x.reshape(-1, x.shape[-1]).abs().amax(0).float()


def by_hand(linear, x, peak, kernel, alpha):
    """The scheme in float64, its products in int32, s from equation 4 of the paper."""
    weight, peak = linear.weight.detach().double(), peak.double()
    s = torch.ones_like(peak)
    if alpha is not None:
        s = peak**alpha / weight.abs().amax(0) ** (1 - alpha)
    weight, x = weight * s, x.double() / s
    step = float((peak / s).max()) / 127
    reach = pair_sums(weight) if kernel.endswith("paired") else weight
    weight_scale = reach.abs().amax(1) / 127
    q_weight = (weight / weight_scale[:, None]).round().to(torch.int32)
    q_x = (x / step).round().clamp(-128, 127).to(torch.int32)
    y = (q_x @ q_weight.t()).double() * step * weight_scale
    return y if linear.bias is None else y + linear.bias.detach().double()


def apart(y, exact):
    return float((y.double() - exact).norm().detach() / exact.norm())


# -- smoothing ---------------------------------------------------------------------------------


def test_the_factors_by_hand():
    weight = torch.tensor([[1.0, -2.0], [-4.0, 8.0]])
    peak = torch.tensor([9.0, 2.0])
    # sqrt(9) / sqrt(4) and sqrt(2) / sqrt(8)
    torch.testing.assert_close(smoothing(peak, weight, 0.5).tolist(), [1.5, 0.5])
    # 9^1 / 4^0: all of the difficulty moves to the weights, all inputs reach 1.
    torch.testing.assert_close(smoothing(peak, weight, 1.0).tolist(), [9.0, 2.0])
    torch.testing.assert_close(smoothing(peak, weight, 0.0).tolist(), [0.25, 0.125])
    assert SMOOTHING_ALPHA == 0.5


def test_a_channel_without_values_or_weights_is_not_smoothed():
    weight = torch.tensor([[1.0, 0.0, 4.0], [2.0, 0.0, 1.0]])
    factors = smoothing(torch.tensor([0.0, 3.0, 4.0]), weight, 0.5).tolist()
    assert factors == [1.0, 1.0, 1.0]  # the last is sqrt(4) / sqrt(4)
    # Such a channel may hold values in use all the same: they are multiplied, not lost.
    linear = nn.Linear(3, 2, bias=False)
    linear.weight.data.copy_(weight)
    y = run(static_linear(linear, "int-mm", torch.tensor([0.0, 3.0, 4.0]), 0.5), torch.ones(1, 3))
    assert apart(y, torch.tensor([[5.0, 3.0]]).double()) < 0.05


def test_smoothing_is_exact_before_anything_is_rounded():
    linear, x = made(6, 24, 10)
    factors = smoothing(channels(x), linear.weight, 0.5)
    smoothed = static._smoothed(linear, factors)
    exact = x.double() @ linear.weight.detach().double().t() + linear.bias.detach().double()
    y = (x.double() / factors) @ smoothed.weight.double().t() + smoothed.bias.detach().double()
    assert apart(y, exact) < 1e-6
    assert not torch.allclose(smoothed.weight, linear.weight)
    assert static._smoothed(linear, None) is linear


def test_outliers_in_channels_cost_less_when_smoothed():
    linear, x = made(40, 64, 32)
    exact = x.double() @ linear.weight.detach().double().t() + linear.bias.detach().double()
    errors = {
        alpha: apart(run(static_linear(linear, "int-mm", channels(x), alpha), x), exact)
        for alpha in (0.5, None)
    }
    assert errors[0.5] < errors[None] / 1.5


# -- the kernels -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.5, 0.8, None])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_each_kernel_computes_the_scheme(kernel, shape, bias, alpha):
    need_sound(kernel)
    linear, x = made(*shape, bias)
    peak = channels(made(*shape, bias, seed=1)[1]) + 0.1
    y = run(static_linear(linear, kernel, peak, alpha), x)
    # A value at a tie may go either way; 128 for 127 levels would be 8e-3 off.
    assert apart(y, by_hand(linear, x, peak, kernel, alpha)) < 2e-3


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_int8_can_hold_is_multiplied_exactly(kernel):
    need_sound(kernel)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (24, 40), generator=generator)
    if kernel.endswith("paired"):
        weight[:, 1::2] = 0  # Pairs of one sign may sum to as much as one weight alone.
    values = torch.randint(-127, 128, (6, 40), generator=generator)
    weight[:, 4] = 127
    linear = nn.Linear(40, 24, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight.float() / 64)
    y = run(static_linear(linear, kernel, torch.full((40,), 127 / 8), None), values.float() / 8)
    exact = (values @ weight.t()).double() / 512
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_exceeds_the_calibrated_range_is_clipped(kernel):
    linear = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(8))
    new = static_linear(linear, kernel, torch.full((8,), 2.0), None)
    y = run(new, torch.tensor([[1.0, 2.0, 3.0, 1000.0, -2.0, -3.0, -1e6, 0.0]]))
    low = -2.0 * 128 / 127
    expected = torch.tensor([[1.0, 2.0, 2.0, 2.0, -2.0, low, low, 0.0]])
    torch.testing.assert_close(y, expected, rtol=0, atol=0.6 * 2 / 127)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_scale_does_not_follow_the_input(kernel):
    """Which is what makes it static: small inputs lose their steps."""
    linear, x = made(4, 64, 32, bias=False)
    new = static_linear(linear, kernel, channels(x), 0.5)
    assert not run(new, 1e-4 * x).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_shapes_dtypes_and_inputs_are_kept(kernel):
    linear, x = made(6, 64, 48)
    new, before = static_linear(linear, kernel, channels(x), 0.5), x.clone()
    y = run(new, x.reshape(2, 3, 64))
    assert y.shape == (2, 3, 48)
    torch.testing.assert_close(y.reshape(6, 48), run(new, x))
    assert torch.equal(x, before)
    narrow = static_linear(linear.bfloat16(), kernel, channels(x), 0.5)
    assert run(narrow, x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_input_of_zeros_in_calibration_leaves_a_scale(kernel):
    need_sound(kernel)
    linear, x = made(3, 16, 8)
    new, x = static_linear(linear, kernel, torch.zeros(16), 0.5), x.clamp(-1, 1)
    y = run(new, torch.zeros_like(x))
    torch.testing.assert_close(y, linear.bias.detach().expand(3, -1), rtol=0, atol=1e-6)
    assert apart(run(new, x), linear.double()(x.double())) < 0.05


def test_int_mm_leaves_sizes_alone_that_cuda_refuses(monkeypatch):
    class Cuda(nn.Linear):
        weight = type("Weight", (), {"is_cuda": True})()

    monkeypatch.setattr(static, "_smoothed", lambda linear, factors: linear)
    for inner, outer in [(20, 32), (32, 36)]:
        layer = Cuda.__new__(Cuda)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = inner, outer
        assert static_linear(layer, "int-mm", torch.ones(inner), None) is layer
    kept = static_linear(nn.Linear(20, 36), "int-mm", torch.ones(20), None)
    assert isinstance(kept, IntMatmulStatic)
    assert set(CUDA_STATIC_KERNELS) == {"int-mm"}


# -- observing ---------------------------------------------------------------------------------


class Two(nn.Module):
    """Two layers, of which an input reaches the second only if it is asked for."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, both=True):
        y = self.a(input=x)
        return self.b(y) if both else y


def test_the_largest_magnitude_of_each_channel_over_all_texts():
    model = Two()
    first = torch.tensor([[[1.0, -5.0, 0.0, 2.0], [0.5, 1.0, 0.0, -3.0]]])
    second = torch.tensor([[[-2.0, 4.0, 0.0, 1.0]]])

    def calibrate():
        for x in (first, second, torch.zeros(1, 0, 4)):
            model(x, both=False)

    peaks = observe(model, ["a", "b"], calibrate)
    assert list(peaks) == [model.a]
    assert peaks[model.a].tolist() == [2.0, 5.0, 0.0, 3.0]
    assert not model.a._forward_pre_hooks


def test_the_hooks_go_even_if_the_run_fails():
    model = Two()
    with pytest.raises(ZeroDivisionError):
        observe(model, ["a", "b"], lambda: 1 / 0)
    assert not model.a._forward_pre_hooks


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_give_no_range(bad):
    model = Two()
    x = torch.tensor([[1.0, bad, 0.0, 2.0]])
    with pytest.raises(InvalidNumerics, match="goes into a before") as caught:
        observe(model, ["a", "b"], lambda: model(x))
    assert "\n" not in str(caught.value)


def test_without_texts_nothing_is_calibrated():
    with pytest.raises(FormatNotApplied, match="name a calibration set"):
        observe(Two(), ["a"], None)


# -- applied to models -------------------------------------------------------------------------


def static_recipe(kernel="int-mm", **more):
    return _default_recipe("int8-static", "cpu") | {"kernel": kernel} | more


def llama():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


BODY = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
HEAD = 40 * 32
ROWS = 2 * (32 + 16 + 16 + 32 + 48 + 48 + 32)
# Four projections and the MLP's first two read 32 channels, its last 48.
INPUTS = 2 * (6 * 32 + 48)
OTHER = 40 * 32 + 5 * 32


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_model_is_converted_but_for_its_head_and_answers_nearly_the_same(kernel):
    need_sound(kernel)
    model = llama()
    ids = torch.randint(1, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    before = model(ids).logits.detach()
    outcome = apply.apply_format(
        model, "int8-static", static_recipe(kernel), "native", "why", lambda: model(ids)
    )
    found = outcome.applied
    assert found.linear_elements == BODY + HEAD
    assert found.converted_elements == BODY
    assert outcome.cautions == []
    assert [layer.name for layer in found.left_behind] == ["lm_head"]
    assert found.kernel == kernel
    if kernel == "int-mm":
        # int8 values; a float32 scale per row; a float32 factor per input channel.
        expected = BODY + 4 * ROWS + 4 * INPUTS + 4 * (HEAD + OTHER)
        assert found.weight_bytes == expected
    after = model(ids).logits.detach()
    assert 0 < float((after - before).norm() / before.norm()) < 0.1


def test_a_layer_that_no_text_reaches_stays_and_is_named():
    model = Two()
    x = torch.ones(1, 4)
    outcome = apply.apply_format(
        model, "int8-static", static_recipe(), "native", "", lambda: model(x, both=False)
    )
    (left,) = outcome.applied.left_behind
    assert (left.name, left.elements) == ("b", 16)
    assert "no calibration text reached it" in left.reason
    assert type(model.b) is nn.Linear
    assert [c.id for c in outcome.cautions] == ["partly-converted"]


def test_other_formats_never_run_the_calibration():
    def never():
        raise AssertionError

    recipe = _default_recipe("int8-dynamic", "cpu") | {"kernel": "int-mm"}
    apply.apply_format(Two(), "int8-dynamic", recipe, "native", "", never)
    with pytest.raises(FormatNotApplied, match="name a calibration set"):
        apply.apply_format(Two(), "int8-static", static_recipe(), "native", "")


# -- the dry run -------------------------------------------------------------------------------


def test_the_dry_run_tries_every_kernel_and_says_how_it_smooths():
    answer = dryrun.dry_run("cpu", ["int8-static"])["int8-static"]
    assert answer["ok"]
    assert [c["kernel"] for c in answer["candidates"]] == list(CPU_STATIC_KERNELS)
    assert answer["recipe"] == {
        "kernel": answer["kernel"],
        "library": "torch",
        "compute_dtype": "float32",
        "smoothing_alpha": 0.5,
    }
    assert answer["kernel"] in KERNELS


_CAPPED = """
import json, torch
torch.set_num_threads(1)
from precision_explorer.formats import dryrun
dryrun.CPU_STATIC_KERNELS = tuple(k for k in dryrun.CPU_STATIC_KERNELS if "per-tensor" in k)
print(json.dumps(dryrun.dry_run("cpu", ["int8-static"])["int8-static"]))
"""


@pytest.mark.skipif(not X86, reason="the kernels that saturate are those of x86")
def test_without_vnni_the_8_bit_kernels_saturate_and_are_refused():
    caps = {
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CAPPED],
        env=os.environ | caps,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    found = {c["kernel"]: c for c in answer["candidates"]}
    for engine in ("fbgemm", "onednn"):
        wide, narrow = found[f"{engine}-per-tensor"], found[f"{engine}-per-tensor-paired"]
        assert not wide["ok"]
        assert "wrong results" in wide["why"]
        assert narrow["ok"], narrow
    assert answer["kernel"].endswith("paired")
