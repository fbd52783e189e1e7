"""What ran, against hand counts: FLOPs of each layer by its sizes and rows, in the type that the
libraries say. Every way in which a label can be untrue is built, and must be seen."""

import contextlib
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import certificate, products
from precision_explorer.formats.apply import apply_format
from precision_explorer.formats.catalog import CATALOG
from precision_explorer.formats.certificate import certify, wanted_types
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.execution import judge
from precision_explorer.formats.kernels import FbgemmLinear, quantize_rows
from precision_explorer.formats.static import static_linear
from precision_explorer.formats.verify import layout
from precision_explorer.hardware import device_facts
from precision_explorer.records import Certificate, Executed, OffLabel
from tests.test_formats_apply import LLAMA_BODY, LLAMA_HEAD, llama

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="elsewhere the libraries print other lines, which are unknown",
)

TOKENS = 7
BODY = sum(outer * inner for outer, inner in LLAMA_BODY)
FLAGS = device_facts("cpu").cpu_flags


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def certified(model, format_id, kernel=None, run=None):
    """The certificate of `format_id` applied to `model`, and what the row may say."""
    recipe = _default_recipe(format_id, "cpu") | ({"kernel": kernel} if kernel else {})
    spec = CATALOG[format_id]
    model = model.to(getattr(torch, recipe["compute_dtype"])).eval()
    outcome = apply_format(model, format_id, recipe, "native", "a test")
    number_type = recipe["compute_dtype"] if spec.arithmetic == "compute" else spec.arithmetic
    ids = torch.arange(TOKENS)[None]
    found = certify(
        model,
        outcome.layout,
        wanted_types(outcome.layout, outcome.held_in, spec.storage, number_type),
        run or (lambda: model(input_ids=ids, use_cache=False)),
        "a test",
        integer_units=True,
    )
    return found, judge(spec, number_type, "native", "as promised", found)


def small(tied=False):
    torch.manual_seed(0)
    return llama(tied)


# -- hand counts ------------------------------------------------------------------------------


def test_flops_of_float32_by_hand():
    found, verdict = certified(small(), "fp32")
    assert found.linear_flops == 2 * TOKENS * (BODY + LLAMA_HEAD)
    assert found.executed_share == 1.0
    assert [(e.number_type, e.unit) for e in found.executed] == [("float32", "native")]
    assert verdict.execution == "native"
    assert verdict.cautions == []
    assert (found.off_label, found.not_called) == ([], [])


def test_a_tied_head_is_other_work():
    found, _ = certified(small(tied=True), "fp32")
    assert found.linear_flops == 2 * TOKENS * BODY
    assert sum(e.flops for e in found.other) >= 2 * TOKENS * LLAMA_HEAD


@pytest.mark.parametrize(
    ("format_id", "kernel", "number_type"),
    [
        ("int8-weight-only", None, "float32"),
        ("fp8-weight-only", None, "float32"),
        ("int8-dynamic", "fbgemm-per-token", "int8"),
        ("int8-dynamic", "fbgemm-per-token-paired", "int8"),
        ("int8-dynamic", "onednn-per-token", "int8"),
        ("int8-dynamic", "int-mm", "int8"),
        ("int8-dynamic", "torchao", "int8"),
    ],
)
def test_converted_layers_by_hand(format_id, kernel, number_type):
    """All but the head is held in the format, and all of that runs as the label says."""
    if kernel == "fbgemm-per-token" and "avx512_vnni" not in FLAGS:
        pytest.skip("saturates without VNNI, which the next test is about")
    found, verdict = certified(small(), format_id, kernel)
    assert found.executed_flops == pytest.approx(2 * TOKENS * BODY)
    assert found.executed_share == pytest.approx(BODY / (BODY + LLAMA_HEAD))
    assert {e.number_type for e in found.executed if e.converted} == {number_type}
    assert [e.flops for e in found.executed if not e.converted] == [2 * TOKENS * LLAMA_HEAD]
    # Without integer units torch adds these products in a loop of its own.
    software = any(e.unit == "software" for e in found.executed if e.converted)
    assert software == (kernel in ("int-mm", "torchao") and "avx512_vnni" not in FLAGS)
    native = "emulated" if software else "native"
    assert verdict.execution == (native if number_type == "int8" else "dequantized")
    assert verdict.cautions == []


def test_llm_int8_shows_its_outliers():
    """A column of large inputs is multiplied apart, in float32; without VNNI everything is."""
    model = small()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 100.0
    found, verdict = certified(model, "int8-llm")
    types = {e.number_type for e in found.executed if e.converted}
    if "avx512_vnni" in FLAGS:
        assert types == {"int8", "float32"}
        assert 0 < found.executed_share < BODY / (BODY + LLAMA_HEAD)
    elif "avx_vnni" not in FLAGS:
        assert types == {"float32"}
        assert (found.executed_share, verdict.execution) == (0.0, "dequantized")


def test_16_bit_arithmetic_is_native_only_with_its_unit():
    for format_id, flags in (
        ("bf16", {"avx512_bf16", "amx_bf16"}),
        ("fp16", {"avx512_fp16", "amx_fp16"}),
    ):
        found, verdict = certified(small(), format_id)
        assert verdict.execution == ("native" if flags & set(FLAGS) else "emulated"), found
        assert found.executed_share == 1.0


def test_rows_of_every_call_count():
    model = small()
    ids = torch.arange(TOKENS)[None]

    def run():
        model(input_ids=ids, use_cache=False)
        model(input_ids=ids[:, :1], use_cache=False)

    found, _ = certified(model, "fp32", run=run)
    assert found.linear_flops == 2 * (TOKENS + 1) * (BODY + LLAMA_HEAD)


def test_a_layer_that_never_ran_is_named():
    model = small()
    model.unused = nn.Linear(4, 4)
    found, _ = certified(model, "fp32")
    assert found.not_called == ["unused"]


class Stack(nn.Module):
    """Two layers of one size, one of another and a head: few kernels for a compiler to make."""

    def __init__(self):
        super().__init__()
        sizes = [(32, 32), (32, 32), (32, 48)]
        self.body = nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes))
        self.head = nn.Linear(48, 40, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format_id", "kernel", "number_type"),
    [
        ("fp32", None, "float32"),
        ("int8-weight-only", None, "float32"),
        ("int8-dynamic", "torchao", "int8"),
        ("int8-dynamic", "fbgemm-per-token-paired", "int8"),
    ],
)
def test_compiled_code_is_watched_too(format_id, kernel, number_type):
    """FLOPs by hand, as eager; and no hook of an eager pass may tell of the compiled one."""
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(1, TOKENS, 32)
    body, head = 2 * 32 * 32 + 32 * 48, 48 * 40
    recipe = _default_recipe(format_id, "cpu") | ({"kernel": kernel} if kernel else {})
    outcome = apply_format(model.eval(), format_id, recipe, "native", "a test")
    eager, compiled = model.forward, torch.compile(model.forward, dynamic=True)
    with torch.inference_mode():
        compiled(x)
    forward = [compiled]

    @contextlib.contextmanager
    def eagerly():
        forward[0] = eager
        yield
        forward[0] = compiled

    wanted = wanted_types(outcome.layout, outcome.held_in, CATALOG[format_id].storage, number_type)
    found = certify(
        model, outcome.layout, wanted, lambda: forward[0](x), "a test", True, eagerly,
    )  # fmt: skip
    held = body + (head if format_id == "fp32" else 0)
    assert found.linear_flops == 2 * TOKENS * (body + head)
    if kernel == "torchao" and "avx512_vnni" not in FLAGS:
        # No library prints a line then, and what is not known is no match.
        assert found.executed_flops == 0
        assert {e.number_type for e in found.executed if e.converted} == {"unknown"}
        return
    assert found.executed_flops == pytest.approx(2 * TOKENS * held)


def test_products_of_compiled_code_go_to_layers_of_their_size():
    calls = [
        products.Call("a", 60.0, "float32", (5, 3)),
        products.Call("b", 60.0, "float32", (5, 3)),
        products.Call("c", 40.0, "float32", (4, 5)),
    ]
    line = "MKL_VERBOSE SGEMM(N,N,3,2,5,0x1) 1us"
    whole = products.Call("", 0.0, "", text=f"{line}\n{line}\n")
    parts = products._as_compiled(calls, whole, False, {})
    found = {}
    for call, product, flops in parts:
        found.setdefault(call.layer, {}).setdefault(product.number_type, 0.0)
        found[call.layer][product.number_type] += flops
    # Two products of 60 FLOPs each for the first size, none for the other.
    assert found == {"a": {"float32": 60.0}, "b": {"float32": 60.0}, "c": {"unknown": 40.0}}
    whole.text = f"{line}\n"
    (a, *_) = [
        (p.number_type, f)
        for c, p, f in products._as_compiled(calls, whole, False, {})
        if c.layer == "a" and p.number_type == "unknown"
    ]
    assert a == ("unknown", 30.0)


def types_of(parts):
    """{layer: {number type: FLOPs}}"""
    found = {}
    for call, product, flops in parts:
        own = found.setdefault(call.layer, {})
        own[product.number_type] = own.get(product.number_type, 0.0) + flops
    return found


def test_compiled_layers_of_one_size_in_two_formats_are_told_apart():
    """A mixed recipe's: an int8 layer that ran so is not charged with its neighbour's float32, nor
    is one that fell back given the other's int8."""
    calls = [products.Call(name, 60.0, "float32", (5, 3)) for name in "abc"]
    made = {
        "int8": "MKL_VERBOSE GEMM_S8S8S32(N,N,3,2,5,0x1) 1us\n",
        "float32": "MKL_VERBOSE SGEMM(N,N,3,2,5,0x1) 1us\n",
    }

    def shared(*kinds, padded=1):
        whole = products.Call("", 0.0, "", text="".join(made[kind] for kind in kinds) * padded)
        parts = products._as_compiled(calls, whole, False, {"a": "int8", "b": "int8"})
        return types_of(parts)

    wide = {"float32": 60.0}
    assert shared("int8", "int8", "float32") == {
        "a": {"int8": 60.0},
        "b": {"int8": 60.0},
        "c": wide,
    }
    assert shared("float32", "float32", "float32") == {"a": wide, "b": wide, "c": wide}
    half = {"int8": 30.0, "float32": 30.0}
    assert shared("int8", "float32", "float32") == {"a": half, "b": half, "c": wide}
    assert shared("int8", "float32", "float32", padded=4) == {"a": half, "b": half, "c": wide}
    half = {"int8": 30.0, "unknown": 30.0}
    assert shared("int8", "float32") == {"a": half, "b": half, "c": wide}


def test_a_compiled_layer_whose_library_prints_nothing_takes_no_line_of_its_size():
    """FBGEMM's beside a float32 layer of the same size, whose padded products would do for both."""
    torch.manual_seed(0)
    layer, x = FbgemmLinear(nn.Linear(5, 3), True), torch.randn(2, 5)
    with torch.inference_mode():
        quiet = products.Call("a", 60.0, "float32", (5, 3), checked=(layer, x, layer(x)))
    quiet.operators = {products._FBGEMM}
    calls = [quiet, products.Call("b", 60.0, "float32", (5, 3))]
    line = "MKL_VERBOSE SGEMM(N,N,3,2,5,0x1) 1us\n"
    whole = products.Call("", 0.0, "", text=line * 2, operators={products._FBGEMM})
    found = types_of(products._as_compiled(calls, whole, False, {"a": "int8"}))
    assert found == {"a": {"int8": 60.0}, "b": {"float32": 60.0}}
    # The compiled pass called no such operator: then it is no proof of anything.
    whole.operators = set()
    found = types_of(products._as_compiled(calls, whole, False, {"a": "int8"}))
    assert found["a"] == {"float32": 60.0}


# -- untrue labels ----------------------------------------------------------------------------


class _Sequence(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x):
        return self.body(x)


class Pretender(nn.Module):
    """Holds int8, as its label says, and multiplies in float32."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        values, scale = quantize_rows(linear.weight)
        self.register_buffer("weight_int8", values)
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x @ (self.weight_int8.float() * self.scale[:, None]).t()


class Unheard(Pretender):
    """Multiplies by an operator that no library tells of."""

    def forward(self, x):
        weight = self.weight_int8.float() * self.scale[:, None]
        return (x[..., None, :] * weight).sum(-1)


def watched(model, plan, storage="int8", number_type="int8"):
    held_in = dict.fromkeys(plan.elements, storage)
    x = torch.randn(3, 16)
    wanted = wanted_types(plan, held_in, storage, number_type)
    return certify(model, plan, wanted, lambda: model(x), "a test", integer_units=True)


def replaced(kind):
    """A model of two layers as loaded, one of them then replaced by `kind`, the other by FBGEMM."""
    model = _Sequence(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    plan = layout(model)
    model.body[0] = FbgemmLinear(model.body[0], True)
    model.body[1] = kind(model.body[1])
    return model, plan


def test_a_fallback_to_float_is_seen_though_the_weights_are_int8():
    found = watched(*replaced(Pretender))
    assert found.executed_share == 0.5
    assert [(off.name, off.found) for off in found.off_label] == [
        ("body.1", "float32 by MKL SGEMM")
    ]
    verdict = judge(CATALOG["int8-dynamic"], "int8", "native", "", found)
    (caution,) = verdict.cautions
    assert caution.id == "partly-executed"
    assert "50.0 %" in caution.message
    assert "body.1" in caution.message


def test_all_in_float_is_no_native_int8():
    model = _Sequence(nn.Linear(16, 16)).eval()
    plan = layout(model)
    model.body[0] = Pretender(model.body[0])
    found = watched(model, plan)
    assert found.executed_share == 0.0
    verdict = judge(CATALOG["int8-dynamic"], "int8", "native", "", found)
    assert verdict.execution == "dequantized"


def test_what_is_not_understood_is_unknown_and_no_match():
    found = watched(*replaced(Unheard))
    assert found.executed_share == 0.5
    assert {e.number_type for e in found.executed} == {"int8", "unknown"}
    verdict = judge(CATALOG["int8-dynamic"], "int8", "native", "", found)
    assert [c.id for c in verdict.cautions] == ["execution-unknown"]


def test_fbgemm_counts_only_where_its_result_is_exact(monkeypatch):
    """Its operator's name alone proves nothing: a saturated sum has the same name."""
    model, plan = replaced(lambda linear: FbgemmLinear(linear, True))
    assert watched(model, plan).executed_share == 1.0
    exact = FbgemmLinear.exact
    monkeypatch.setattr(FbgemmLinear, "exact", lambda self, x: exact(self, x) * 1.01)
    found = watched(model, plan)
    assert found.executed_share == 0.0
    assert {e.number_type for e in found.executed} == {"unknown"}


def test_exact_results_of_static_scales():
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 10), torch.randn(5, 24)
    layer = static_linear(linear, "fbgemm-per-tensor-paired", x.abs().amax(dim=0), 0.5)
    with torch.inference_mode():
        y = layer(2 * x)  # Beyond the calibrated range, where the input is clipped.
    assert torch.allclose(y.double(), layer.exact(2 * x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(y, linear(2 * x), rtol=0.1)


CAPPED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
}


def test_sums_that_saturate_are_no_int8_arithmetic():
    """Without VNNI, 8-bit FBGEMM adds pairs of products in 16 bits: the operator runs, and is not
    believed. The instruction set is capped before the libraries load, so in another process."""
    script = (
        "import tests.test_formats_certificate as t\n"
        "for paired in (True, False):\n"
        "    t.torch.manual_seed(0)\n"
        "    model = t._Sequence(t.nn.Linear(16, 16)); plan = t.layout(model)\n"
        "    model.body[0] = t.FbgemmLinear(model.body[0], paired)\n"
        "    print('SHARE', paired, t.watched(model.eval(), plan).executed_share)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | CAPPED, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    shares = [line for line in done.stdout.splitlines() if line.startswith("SHARE")]
    assert shares == ["SHARE True 1.0", "SHARE False 0.0"]


@pytest.mark.parametrize("paired", [True, False] if "avx512_vnni" in FLAGS else [True])
def test_fbgemms_exact_result_is_what_it_computes(paired):
    """Where nothing saturates, the operator and exact arithmetic agree; the weights are small."""
    torch.manual_seed(0)
    layer = FbgemmLinear(nn.Linear(24, 10), paired)
    x = torch.randn(5, 24) * torch.tensor([1.0, 5.0, 0.1, 100.0, 0.0])[:, None]
    with torch.inference_mode():
        y = layer(x)
    assert torch.allclose(y.double(), layer.exact(x), rtol=1e-4, atol=1e-5)


def test_float32_made_in_fewer_bits_is_refused():
    found = Certificate(
        evidence="", work="", linear_flops=100, executed_flops=0, executed_share=0.0,
        executed=[Executed(kernel="K", number_type="bfloat16", unit="native", flops=100)],
    )  # fmt: skip
    with pytest.raises(FormatNotApplied, match="fp32 was multiplied in bfloat16 by K; unset"):
        judge(CATALOG["fp32"], "float32", "native", "", found)
    # A wider type is no lie, but no native bf16 either.
    found.executed[0].number_type = "float32"
    found.executed[0].converted = True
    assert judge(CATALOG["bf16"], "bfloat16", "native", "", found).execution == "emulated"


def test_a_pass_without_any_layer_proves_nothing():
    found = Certificate(evidence="", work="", linear_flops=0, executed_flops=0, executed_share=None)
    verdict = judge(CATALOG["fp32"], "float32", "native", "why", found)
    assert verdict.execution == "unverified"
    assert [c.id for c in verdict.cautions] == ["execution-unknown"]


@pytest.mark.parametrize(
    ("promised", "expected"), [("emulated", "emulated"), ("native", "dequantized")]
)
def test_wider_arithmetic_is_what_was_promised_or_widened(promised, expected):
    found = Certificate(
        evidence="", work="", linear_flops=10, executed_flops=0, executed_share=0.0,
        executed=[
            Executed(kernel="K", number_type="float32", unit="native", flops=10, converted=True)
        ],
        off_label=[OffLabel(name="a", flops=10, found="float32 by K")],
    )  # fmt: skip
    verdict = judge(CATALOG["fp8-dynamic"], "float8_e4m3fn", promised, "", found)
    assert verdict.execution == expected
    assert [c.id for c in verdict.cautions] == ["partly-executed"]


def bearing(*parts, converted=True, wanted="int8"):
    """A certificate of converted layers from (number type, unit, FLOPs)."""
    executed = [
        Executed(kernel="K", number_type=kind, unit=unit, flops=flops, converted=converted)
        for kind, unit, flops in parts
    ]
    whole = sum(flops for _, _, flops in parts)
    right = sum(flops for kind, _, flops in parts if kind == wanted)
    return Certificate(
        evidence="", work="", linear_flops=whole, executed_flops=right,
        executed_share=right / whole, executed=executed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "promised", "expected"),
    [
        ([("int8", "native", 100)], "emulated", "native"),
        ([("int8", "software", 60), ("int8", "native", 40)], "native", "emulated"),
        ([("int8", "unknown", 100)], "native", "unverified"),
        ([("int8", "unknown", 100)], "emulated", "emulated"),
        ([("unknown", "unknown", 100)], "native", "unverified"),
        ([("unknown", "unknown", 90), ("int8", "native", 10)], "native", "native"),
        ([("unknown", "unknown", 50), ("float32", "native", 50)], "native", "dequantized"),
    ],
)
def test_the_word_follows_from_the_units_seen_and_never_from_the_promise(parts, promised, expected):
    verdict = judge(CATALOG["int8-dynamic"], "int8", promised, "", bearing(*parts))
    assert verdict.execution == expected
    unknown = any(kind == "unknown" for kind, _, _ in parts)
    assert ("execution-unknown" in [c.id for c in verdict.cautions]) == unknown


def test_weights_that_are_not_widened_are_not_called_so():
    spec = CATALOG["int8-weight-only"]

    def word(*parts):
        return judge(
            spec, "float32", "dequantized", "", bearing(*parts, wanted="float32")
        ).execution

    assert word(("float32", "native", 9), ("int8", "native", 1)) == "dequantized"
    assert word(("float32", "native", 1), ("int8", "native", 9)) == "unverified"
    assert word(("unknown", "unknown", 9)) == "unverified"


def test_int8_without_integer_units_is_not_native():
    """A kernel that does not name its unit is not believed to have one that the device has not."""
    product = products.Product("K", "int8", "unknown")
    assert certificate._with_unit(product, False).unit == "unknown"
    assert certificate._with_unit(product, True).unit == "native"


def test_an_operator_that_prints_nothing_multiplies_in_its_inputs_type():
    """int4's kernel for CPUs sums in the type of its input; only float32's unit is sure."""
    call = products.Call("a", 60.0, "bfloat16", operators={"aten::_weight_int4pack_mm_for_cpu"})
    found = products._silent(call)
    assert (found.number_type, found.unit) == ("bfloat16", "unknown")
    found = products._silent(replace(call, input_type="float32"))
    assert (found.number_type, found.unit) == ("float32", "native")


def test_a_tied_head_s_products_are_watched_with_their_size():
    """Also where the library prints no line for it, as ATen's loops do in bfloat16."""
    found, _ = certified(small(tied=True), "bf16")
    assert sum(e.flops for e in found.other if e.number_type == "bfloat16") >= (
        2 * TOKENS * LLAMA_HEAD
    )


def test_what_lines_do_not_cover_stays_unknown():
    line = "MKL_VERBOSE SGEMM(N,N,3,2,5,0x1) 1us\n"
    call = products.Call("a", 240.0, "float32", (5, 3), text=line)
    found = [(p.number_type, flops) for p, flops in products._of_cpu(call)]
    assert found == [("float32", 60.0), ("unknown", 180.0)]
    call.text = line * 4
    assert {p.number_type for p, _ in products._of_cpu(call)} == {"float32"}


# -- the watch itself -------------------------------------------------------------------------


def test_the_watch_leaves_no_hook_and_the_output_as_it_was(capfd):
    model, plan = replaced(Pretender)
    watched(model, plan)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    print("after")
    torch.randn(8, 8) @ torch.randn(8, 8)
    printed = capfd.readouterr().out
    assert printed == "after\n"


def test_a_layer_that_fails_leaves_no_hook():
    model, plan = replaced(Pretender)
    with pytest.raises(RuntimeError):
        certify(
            model, plan, dict.fromkeys(plan.elements, "int8"), lambda: model(torch.randn(3, 17)),
            "a test", integer_units=True,
        )  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_kernels_of_a_gpu_share_a_calls_flops_by_their_time():
    call = products.Call("a", 90.0, "float16")
    call.kernels = [
        ("cutlass_80_tensorop_i16832gemm_s8_256x128", 2e-6),
        ("ampere_fp16_s16816gemm_fp16_64x64", 1e-6),
        ("vectorized_elementwise_kernel", 5e-6),
    ]
    parts = [(p.number_type, flops) for p, flops in products._of_cuda(call)]
    assert parts == [("int8", pytest.approx(60.0)), ("float16", pytest.approx(30.0))]
    call.kernels = call.kernels[2:]
    ((product, flops),) = products._of_cuda(call)
    assert (product.number_type, flops) == ("unknown", 90.0)


def test_kernels_and_operators_are_collected_through_the_tree():
    kernel = SimpleNamespace(name="nvjet_tst_1", duration=3.0)
    inner = SimpleNamespace(name="aten::mm", kernels=[kernel], cpu_children=[])
    outer = SimpleNamespace(name="aten::linear", kernels=[], cpu_children=[inner])
    call = products.Call("a", 1.0, "bfloat16")
    products._collect(SimpleNamespace(cpu_children=[outer]), call)
    assert call.operators == {"aten::linear", "aten::mm"}
    assert call.kernels == [("nvjet_tst_1", pytest.approx(3e-6))]


def test_the_device_s_events_tell_of_kernels_that_no_operator_started():
    span = SimpleNamespace(start=10.0, end=13.0)
    kernel = SimpleNamespace(
        device_type="DeviceType.CUDA", name="nvjet_tst_1", is_user_annotation=False, time_range=span
    )
    assert products.is_of_device(kernel)
    assert not products.is_annotation(kernel)
    for name, marked in (("x", True), ("precision-explorer-call 0", False)):
        mark = SimpleNamespace(name=name, is_user_annotation=marked)
        assert products.is_annotation(mark)
    own = SimpleNamespace(
        kernels=[
            SimpleNamespace(name="precision-explorer-call 3", duration=9.0),
            SimpleNamespace(name="gemm_4bit_simt<__half, 1>", duration=2.0),
        ]
    )
    assert products._kernels(own) == [("gemm_4bit_simt<__half, 1>", pytest.approx(2e-6))]


FP8, HEAD, ROTARY = "nvjet_sm90_qqtst_128", "nvjet_sm90_tst_64", "gemmk1_kernel<int, float, 256>"


def compiled_on_cuda(eager_names, compiled_names):
    """The certificate's parts of two fp8 layers and a head in bfloat16: the head's kernel is slow
    for its FLOPs, as on a GPU where it is bound by memory."""
    calls = [
        products.Call("a", 40.0, "bfloat16", kernels=[(FP8, 1e-6)]),
        products.Call("b", 40.0, "bfloat16", kernels=[(FP8, 1e-6)]),
        products.Call("head", 20.0, "bfloat16", kernels=[(HEAD, 4e-6)]),
    ]
    times = {FP8: 1e-6, HEAD: 4e-6, ROTARY: 3e-6, "triton_poi_fused_add_0": 2e-6}
    eager = products.Call("", 0.0, "", kernels=[(n, times[n]) for n in eager_names])
    whole = products.Call("", 0.0, "", kernels=[(n, times[n]) for n in compiled_names])
    expected = {"a": "float8_e4m3fn", "b": "float8_e4m3fn"}
    return types_of(products._as_compiled(calls, whole, True, expected, eager))


@pytest.mark.parametrize("rotary_is_compiled", [False, True])
def test_compiled_kernels_of_a_gpu_are_told_apart_by_their_order(rotary_is_compiled):
    """Whether a product outside of all layers stayed one or was fused into other code."""
    eager = [ROTARY, FP8, FP8, HEAD]
    own = ["triton_poi_fused_add_0", FP8, FP8, HEAD]
    found = compiled_on_cuda(eager, own if rotary_is_compiled else [ROTARY, *own])
    right = {"float8_e4m3fn": 40.0}
    assert found == {"a": right, "b": right, "head": {"bfloat16": 20.0}}


def test_a_product_of_no_layer_may_have_been_moved_between_those_of_layers():
    found = compiled_on_cuda([ROTARY, FP8, FP8, HEAD], [FP8, ROTARY, FP8, HEAD])
    right = {"float8_e4m3fn": 40.0}
    assert found == {"a": right, "b": right, "head": {"bfloat16": 20.0}}


def test_compiled_kernels_of_another_number_share_the_flops_by_time():
    found = compiled_on_cuda([FP8, FP8, HEAD], [FP8, HEAD])
    assert found["a"]["float8_e4m3fn"] == pytest.approx(10.0)
    assert found["a"]["bfloat16"] == pytest.approx(30.0)
    nothing = compiled_on_cuda([FP8, FP8, HEAD], ["triton_poi_fused_add_0"])
    assert nothing == {"a": {"unknown": 40.0}, "b": {"unknown": 40.0}, "head": {"unknown": 20.0}}


def test_an_eager_fallback_inside_compiled_code_is_seen_in_its_place():
    found = compiled_on_cuda([FP8, FP8, HEAD], [HEAD, FP8, HEAD])
    assert found["a"] == {"bfloat16": 40.0}
    assert found["b"] == {"float8_e4m3fn": 40.0}


@pytest.mark.parametrize(
    ("format_id", "evidence", "named"),
    [
        ("int8-llm", "CUDA kernel names", True),
        ("int8-llm", "oneDNN and MKL verbose lines", False),
        ("int8-dynamic", "CUDA kernel names", False),
    ],
)
def test_the_outlier_columns_of_llm_int8_are_named_where_they_were_seen(format_id, evidence, named):
    made = [("int8", 7), ("bfloat16", 3)]
    found = Certificate(
        evidence=evidence, work="", linear_flops=10, executed_flops=7, executed_share=0.7,
        executed=[
            Executed(kernel="K", number_type=kind, unit="native", flops=flops, converted=True)
            for kind, flops in made
        ],
        off_label=[OffLabel(name="a", flops=3, found="bfloat16 by K")],
    )  # fmt: skip
    (caution,) = judge(CATALOG[format_id], "int8", "native", "", found).cautions
    assert ("outlier columns" in caution.message) == named
