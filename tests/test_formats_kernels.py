"""The int8 kernels against exact integer arithmetic, and the trap of 16-bit sums."""

import functools
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from precision_explorer.formats import apply, dryrun
from precision_explorer.formats.dryrun import _default_recipe, best_kernel
from precision_explorer.formats.kernels import CPU_KERNELS, IntMatmulLinear, int8_linear

X86 = platform.machine().lower() in ("x86_64", "amd64")
# FBGEMM and oneDNN's quantized layers are for x86 only; torchao's is torch's own code.
KERNELS = CPU_KERNELS if X86 else ("int-mm", "torchao")
SHAPES = [(5, 48, 32), (1, 64, 16), (3, 36, 20), (2, 7, 5)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def dry_run_of(kernel):
    recipe = _default_recipe("int8-dynamic", "cpu") | {"kernel": kernel}
    return dryrun._try("int8-dynamic", recipe, "cpu")


def need_sound(kernel):
    """Skip where the dry run says that the kernel saturates on this processor."""
    answer = dry_run_of(kernel)
    if not answer["ok"]:
        assert "wrong results" in answer["why"], answer
        pytest.skip(f"{kernel} saturates here")


class Holder(nn.Module):
    """One layer under a name, which is what a handler takes."""

    def __init__(self, linear):
        super().__init__()
        self.body = linear

    def forward(self, x):
        return self.body(x)


def converted(linear, kernel):
    model = Holder(linear)
    recipe = _default_recipe("int8-dynamic", "cpu") | {"kernel": kernel}
    apply.apply_format(model, "int8-dynamic", recipe, "unverified", "")
    return model


def made(rows, inner, outer, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(inner, outer, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(outer, inner, generator=generator))
        if bias:
            linear.bias.copy_(torch.randn(outer, generator=generator))
    return linear, 3.0 * torch.randn(rows, inner, generator=generator)


def run(model, x):
    with torch.inference_mode():
        return model(x).clone()


def pair_sums(weight):
    """Of columns 0 and 1, 2 and 3, ...: the sums of what is positive, and of what is negative."""
    even = torch.cat([weight, weight.new_zeros(len(weight), weight.shape[1] % 2)], dim=1)
    first, second = even[:, ::2], even[:, 1::2]
    signs = [first.clamp_min(0) + second.clamp_min(0), first.clamp_max(0) + second.clamp_max(0)]
    return torch.cat(signs, dim=1)


def by_hand(linear, x, kernel):
    """The scheme in float64, its products in int32: torchao's scales span 255 steps, ours 254."""
    span = 127.5 if kernel == "torchao" else 127.0
    lowest = -128 if kernel == "torchao" else -127

    def quantized(values, steps, reach):
        scale = reach.abs().amax(-1, keepdim=True) / steps
        return (values / scale).round().clamp(lowest, 127).to(torch.int32), scale

    weight = linear.weight.detach().double()
    reach = pair_sums(weight) if kernel.endswith("paired") else weight
    weight, weight_scale = quantized(weight, span, reach)
    values, scale = quantized(x.double(), span, x.double())
    y = (values @ weight.t()).double() * scale * weight_scale.t()
    return y if linear.bias is None else y + linear.bias.detach().double()


def apart(y, exact):
    return float((y.double() - exact).norm().detach() / exact.norm())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_each_kernel_computes_the_scheme(kernel, shape, bias):
    need_sound(kernel)
    linear, x = made(*shape, bias)
    exact = by_hand(linear, x, kernel)
    # Our scheme with 127.5 for 127 would be 4e-3 off. torchao's puts the largest value of each row
    # on a tie, so that either of two neighbours is right.
    limit = 5e-3 if kernel == "torchao" else 1e-3
    assert apart(run(converted(linear, kernel), x), exact) < limit


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "torchao"])
def test_what_int8_can_hold_is_multiplied_exactly(kernel):
    need_sound(kernel)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-127, 128, (24, 40), generator=generator)
    if kernel.endswith("paired"):
        weight[:, 1::2] = 0  # Pairs of one sign may sum to as much as one weight alone.
    values = torch.randint(-127, 128, (6, 40), generator=generator)
    weight[:, 4], values[:, 5] = 127, -127
    linear = nn.Linear(40, 24, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight.float() / 64)
    y = run(int8_linear(linear, kernel), values.float() / 8)
    exact = (values @ weight.t()).double() / 512
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rows_answer_does_not_depend_on_the_batch(kernel):
    linear, x = made(1, 64, 48, seed=2)
    # Its values have one sign, so a range shared with rows of both signs would be a wider one.
    x = x.abs()
    others = torch.cat([1000 * made(4, 64, 48, seed=3)[1], torch.zeros(1, 64)])
    model = converted(linear, kernel)
    alone = run(model, x)
    among = run(model, torch.cat([others, x, -others]))[len(others)]
    torch.testing.assert_close(among, alone[0], rtol=0, atol=1e-6 * float(alone.abs().max()))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_of_zeros_gives_the_bias(kernel):
    linear, x = made(3, 64, 48)
    x[1] = 0.0
    y = run(converted(linear, kernel), x)
    torch.testing.assert_close(y[1], linear.bias.detach(), rtol=0, atol=1e-6)
    only = run(converted(made(3, 64, 48)[0], kernel), torch.zeros(2, 64))
    torch.testing.assert_close(only, linear.bias.detach().expand(2, -1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_weight_row_of_zeros_gives_zero(kernel):
    linear, x = made(3, 64, 48, bias=False)
    with torch.no_grad():
        linear.weight[7] = 0.0
    y = run(converted(linear, kernel), x)
    assert y.isfinite().all()
    assert (y[:, 7] == 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_inputs_of_three_sizes_keep_them(kernel):
    linear, x = made(6, 64, 48)
    model = converted(linear, kernel)
    y = run(model, x.reshape(2, 3, 64))
    assert y.shape == (2, 3, 48)
    torch.testing.assert_close(y.reshape(6, 48), run(model, x))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_input_is_left_as_it_was(kernel):
    linear, x = made(3, 64, 48)
    before = x.clone()
    run(converted(linear, kernel), x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "torchao"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other(kernel, bad):
    linear, x = made(3, 64, 48)
    model = converted(linear, kernel)
    clean = run(model, x)
    x[1, 9] = bad
    y = run(model, x)
    assert not y[1].isfinite().any()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "torchao"])
def test_bf16_inputs_give_bf16_outputs(kernel):
    need_sound(kernel)
    linear, x = made(4, 64, 48)
    exact = by_hand(linear, x.bfloat16().float(), kernel)
    y = run(int8_linear(linear.bfloat16(), kernel), x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert apart(y, exact) < 0.02


def test_int_mm_leaves_sizes_alone_that_cuda_refuses():
    class OnCuda:
        def __init__(self, inner, outer):
            self.in_features, self.out_features = inner, outer
            self.weight = type("Weight", (), {"is_cuda": True})()

    for sizes in [(20, 32), (32, 36)]:
        layer = OnCuda(*sizes)
        assert int8_linear(layer, "int-mm") is layer
    assert isinstance(int8_linear(nn.Linear(20, 36), "int-mm"), IntMatmulLinear)


# -- LLM.int8() --------------------------------------------------------------------------------


def llm_int8(linear, x):
    recipe = _default_recipe("int8-llm", "cpu")
    model = Holder(linear)
    apply.apply_format(model, "int8-llm", recipe, "unverified", "")
    return run(model, x)


def llm_by_hand(linear, x):
    """Columns with a value of 6 or more in the input's own precision, the others in int8; the
    library rounds weight and input to float16 first."""
    weight = linear.weight.detach().half().double()
    weight_scale = weight.abs().amax(1, keepdim=True) / 127
    weight = (weight / weight_scale).round()
    half = x.half().double()
    outliers = (half.abs() >= 6).any(0)
    rest = half * ~outliers if len(x) > 1 else half * (half.abs() < 6)
    scale = rest.abs().amax(1, keepdim=True) / 127
    y = ((rest / scale).round() @ weight.t()) * scale * weight_scale.t()
    y = y + (x.double() * outliers) @ (weight * weight_scale).t()
    return y + linear.bias.detach().double()


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("outliers", [False, True])
def test_llm_int8_keeps_outlier_columns_wide(rows, outliers):
    linear, x = made(rows, 64, 48)
    x = x.clamp(-5.5, 5.5)
    if outliers:
        # Rows whose largest value is an outlier would differ in scale by how it is left out.
        x[:, 11] = 60.0
        x[:, 30] = -7.5
    exact = llm_by_hand(linear, x)
    assert apart(llm_int8(linear, x), exact) < 2e-3


# -- the trap ----------------------------------------------------------------------------------

_CAPPED = """
import json, sys, torch
torch.set_num_threads(1)
from precision_explorer.formats import dryrun
kernels = [k for k in dryrun.CPU_KERNELS if "per-token" in k]
dryrun.CPU_KERNELS = tuple(kernels)
print(json.dumps(dryrun.dry_run("cpu", ["int8-dynamic"])["int8-dynamic"]))
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
    assert set(found) == {k for k in CPU_KERNELS if "per-token" in k}
    for engine in ("fbgemm", "onednn"):
        wide, narrow = found[f"{engine}-per-token"], found[f"{engine}-per-token-paired"]
        assert not wide["ok"]
        assert "wrong results" in wide["why"]
        assert wide["error"] > 0.1
        assert narrow["ok"], narrow
        assert narrow["error"] < 0.03
    assert answer["ok"]
    assert answer["kernel"].endswith("paired")


class Saturating(nn.Module):
    """The int-mm scheme with pairs of u8 x s8 products added in 16 bits, as vpmaddubsw does."""

    def __init__(self, linear):
        super().__init__()
        self.inner = IntMatmulLinear(linear)
        self.register_buffer("weight_int8", self.inner.weight_int8)

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        values = (x / scale).round().int() + 128
        weight = self.inner.weight_int8.int()
        products = values[:, None, :] * weight[None]
        pairs = (products[..., ::2] + products[..., 1::2]).clamp(-32768, 32767)
        sums = pairs.sum(-1) - 128 * weight.sum(-1)
        return sums.float() * scale * self.inner.scale + self.inner.bias


def test_a_kernel_that_saturates_is_refused_and_never_chosen(monkeypatch):
    def substitute(linear, kernel):
        return Saturating(linear) if kernel == "saturating" else int8_linear(linear, kernel)

    monkeypatch.setattr(apply, "int8_linear", substitute)
    sound = next(k for k in KERNELS if dry_run_of(k)["ok"])
    monkeypatch.setattr(dryrun, "CPU_KERNELS", ("saturating", sound))
    monkeypatch.setattr(dryrun, "_SHAPES", ((8, 64, 32), (1, 64, 32)))
    answer = dryrun.dry_run("cpu", ["int8-dynamic"])["int8-dynamic"]
    refused, kept = answer["candidates"]
    assert refused["kernel"] == "saturating"
    assert not refused["ok"]
    assert "wrong results" in refused["why"]
    assert kept["ok"]
    assert answer["kernel"] == sound
    monkeypatch.setattr(dryrun, "CPU_KERNELS", ("saturating",))
    none = dryrun.dry_run("cpu", ["int8-dynamic"])["int8-dynamic"]
    assert not none["ok"]
    assert "wrong results" in none["why"]


# -- the choice --------------------------------------------------------------------------------


def candidate(kernel, *seconds, ok=True, error=0.01):
    return {"kernel": kernel, "ok": ok, "seconds": list(seconds), "error": error}


def test_the_fastest_right_kernel_is_chosen():
    wrong = candidate("wrong", 1e-6, 1e-6, ok=False, error=0.4)
    slow, fast = candidate("slow", 2e-3, 2e-4), candidate("fast", 1e-3, 2e-4)
    assert best_kernel([wrong, slow, fast]) == fast
    assert best_kernel([fast, slow, wrong]) == fast
    assert best_kernel([wrong]) is None
    assert best_kernel([]) is None


def test_no_shape_outweighs_another_in_the_choice():
    # The first is ahead in total seconds, the second by more in ratio.
    assert best_kernel([candidate("a", 1.0, 4e-3), candidate("b", 1.5, 1e-3)])["kernel"] == "b"


def test_of_equally_fast_kernels_the_most_exact_is_chosen():
    coarse, exact = candidate("paired", 1.0, 1.0, error=0.018), candidate("8bit", 1.05, 1.05)
    assert best_kernel([coarse, exact])["kernel"] == "8bit"
    assert best_kernel([coarse, candidate("8bit", 1.2, 1.2)])["kernel"] == "paired"


def test_a_candidate_that_failed_has_no_seconds_and_is_passed_over():
    failed = {"kernel": "failed", "ok": False, "why": "no such operator"}
    assert best_kernel([failed, candidate("a", 1.0)])["kernel"] == "a"


@pytest.mark.parametrize("kernel", [k for k in CPU_KERNELS if k != "torchao"])
def test_a_kernel_stays_within_one_graph_of_torch_compile(kernel):
    """With shapes of any size; a packed weight that the tracer can't hold would break the graph."""
    torch.manual_seed(0)
    linear = int8_linear(torch.nn.Linear(64, 32), kernel)
    traced = torch.compile(linear, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for rows in (3, 5, 1):
            x = torch.randn(rows, 7, 64)
            torch.testing.assert_close(traced(x), linear(x), rtol=0, atol=1e-6)
