"""The tiny dry runs: what they answer, and that no failure of a library gets past them."""

import json
import math

import pytest
import torch

from precision_explorer.formats import DEFAULT_FORMATS, apply, decide, dryrun, reference
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.formats.support import candidates
from precision_explorer.hardware import device_facts

FACTS = device_facts("cpu")
# Formats with an exact emulation that a CPU can run.
EMULATED = ["nf4", "int4-weight-only", "mxfp8", "nvfp4"]
TRIED = candidates(FACTS, list(DEFAULT_FORMATS))


@pytest.fixture(scope="module")
def answers():
    """Of all default formats that the facts allow, once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # A product in emulated 16-bit arithmetic takes a second.
        patch.setattr(dryrun, "_REPEATS", 1)
        found = dryrun.dry_run("cpu", TRIED)
    torch.set_num_threads(threads)
    return found


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(dryrun, "_SHAPES", ((4, 32, 16),))
    monkeypatch.setattr(dryrun, "_compute_rate", lambda dtype, device: 1.0)


@pytest.mark.parametrize(("call_s", "calls"), [(0.001, 9), (0.1, 6), (0.4, 3), (30.0, 3)])
def test_a_slow_call_is_timed_less_often(monkeypatch, call_s, calls):
    """Twice to warm up and at least once, until half a second is spent."""
    clock, made = [0.0], []

    def call() -> None:
        made.append(1)
        clock[0] += call_s

    monkeypatch.setattr(dryrun.time, "perf_counter", lambda: clock[0])
    assert dryrun._timed(call, "cpu") == pytest.approx(call_s)
    assert len(made) == calls


def test_every_format_that_the_facts_allow_is_answered(answers):
    assert list(answers) == TRIED
    assert "tf32" not in answers
    for format_id in ("fp32", "bf16", "fp16", "int8-weight-only", "fp8-weight-only"):
        assert answers[format_id]["ok"], answers[format_id]


def test_answers_travel_as_json(answers):
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers


def test_each_right_answer_has_its_recipe_error_and_times(answers):
    for format_id, answer in answers.items():
        if not answer["ok"]:
            assert answer["why"], format_id
            continue
        assert set(answer["recipe"]) == {"kernel", "library", "compute_dtype"}
        assert answer["kernel"] == answer["recipe"]["kernel"]
        assert 0 < answer["error"] <= dryrun.WRONG
        assert len(answer["seconds"]) == len(dryrun._SHAPES)
        assert all(0 < s < 60 for s in answer["seconds"])
    expected = {"bf16": "bfloat16", "fp16": "float16"}
    for format_id, answer in answers.items():
        dtype = expected.get(format_id, "float32")
        assert not answer["ok"] or answer["recipe"]["compute_dtype"] == dtype


def test_errors_are_of_the_formats_size(answers):
    assert answers["fp32"]["error"] < 1e-5
    assert 1e-4 < answers["fp16"]["error"] < 1e-3
    assert 1e-3 < answers["bf16"]["error"] < 1e-2
    assert 3e-3 < answers["int8-weight-only"]["error"] < 0.02
    assert 0.015 < answers["fp8-weight-only"]["error"] < 0.04


def test_16_bit_formats_are_timed_against_fp32(answers):
    for format_id in ("bf16", "fp16"):
        assert 1e-4 < answers[format_id]["speed_ratio"] < 1e3


def test_int8_dynamic_names_the_kernel_chosen_and_all_that_were_tried(answers):
    answer = answers["int8-dynamic"]
    assert [c["kernel"] for c in answer["candidates"]] == list(dryrun.CPU_KERNELS)
    assert answer["ok"], answer
    chosen = dryrun.best_kernel(answer["candidates"])
    assert answer["recipe"] == chosen["recipe"]
    assert answer["recipe"]["library"] == ("torchao" if answer["kernel"] == "torchao" else "torch")


def test_decisions_carry_the_recipe_of_the_dry_run(answers):
    for format_id, answer in answers.items():
        found = decide(format_id, FACTS, answer)
        assert found.supported is answer["ok"]
        assert not found.supported or found.recipe == answer["recipe"]


def test_the_switch_for_tf32_is_off_afterwards(answers):
    assert torch.get_float32_matmul_precision() == "highest"


def poisoned(value):
    def handler(model, plan, recipe):
        with torch.no_grad():
            model.body.weight[0, 0] = value

    return handler


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_wrong_and_still_json(monkeypatch, small, value):
    monkeypatch.setitem(apply._HANDLERS, "fp32", poisoned(value))
    answer = dryrun.dry_run("cpu", ["fp32"])["fp32"]
    assert answer["ok"] is False
    assert "NaN or infinity" in answer["why"]
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert decide("fp32", FACTS, answer).execution == "unsupported"


def test_an_error_that_is_no_number_is_infinite():
    exact = torch.ones(2, dtype=torch.float64)
    assert dryrun._error(torch.tensor([1.0, math.nan]), exact) == math.inf
    assert dryrun._error(torch.ones(2), exact) == 0


def test_a_wrong_result_is_refused_with_its_error(monkeypatch, small):
    monkeypatch.setitem(apply._HANDLERS, "fp32", poisoned(40.0))
    answer = dryrun.dry_run("cpu", ["fp32"])["fp32"]
    assert not answer["ok"]
    assert answer["error"] > dryrun.WRONG
    assert answer["why"].startswith("wrong results: relative error")


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (ImportError("no such library\nlong explanation"), "ImportError: no such library"),
        (AssertionError(), "AssertionError: no message"),
        (RuntimeError("x" * 999), "RuntimeError: " + "x" * 200),
    ],
)
def test_a_library_that_fails_is_told_in_one_line(monkeypatch, small, failure, why):
    def failing(model, plan, recipe):
        raise failure

    monkeypatch.setitem(apply._HANDLERS, "bf16", failing)
    answers = dryrun.dry_run("cpu", ["fp32", "bf16"])
    assert answers["fp32"]["ok"]
    assert not answers["bf16"]["ok"]
    assert answers["bf16"]["why"] == why
    assert "speed_ratio" not in answers["bf16"]


def test_a_library_that_converts_nothing_fails_the_dry_run(monkeypatch, small):
    monkeypatch.setitem(apply._HANDLERS, "int8-llm", lambda model, plan, recipe: None)
    answer = dryrun.dry_run("cpu", ["int8-llm"])["int8-llm"]
    assert not answer["ok"]
    assert answer["why"].startswith("FormatNotApplied: int8-llm converted none")


# -- held against an exact emulation -----------------------------------------------------------


def test_nf4_values_and_tables_are_those_of_the_library():
    functional = pytest.importorskip("bitsandbytes").functional
    values = functional.get_4bit_type("nf4", device="cpu")
    assert torch.allclose(values, torch.tensor(reference.NF4_VALUES))
    table = functional.create_dynamic_map()
    assert torch.allclose(table.double(), reference.dynamic_codebook(), atol=1e-7)


def test_rounding_goes_to_the_nearest_value():
    codebook = torch.tensor([-1.0, 0.0, 0.5])
    values = torch.tensor([[-9.0, -0.6, -0.4], [0.2, 0.3, 9.0]])
    expected = torch.tensor([[-1.0, -1.0, 0.0], [0.0, 0.5, 0.5]])
    assert torch.equal(reference._nearest(values, codebook), expected)


@pytest.fixture
def blocks(monkeypatch):
    monkeypatch.setattr(dryrun, "_SHAPES", ((4, 64, 32),))


@pytest.mark.parametrize("format_id", EMULATED)
def test_a_right_kernel_is_as_close_as_its_compute_type_allows(blocks, format_id):
    answer = dryrun.dry_run("cpu", [format_id])[format_id]
    assert answer["ok"], answer
    allowed = reference.tolerance(getattr(torch, answer["recipe"]["compute_dtype"]))
    assert 0 <= answer["deviation"] <= allowed < answer["error"]


@pytest.mark.parametrize("format_id", EMULATED)
def test_a_kernel_that_adds_to_the_format_s_rounding_is_refused(monkeypatch, blocks, format_id):
    original = apply._HANDLERS[format_id]

    def coarser(model, plan, recipe):
        original(model, plan, recipe)
        model.body.register_forward_hook(lambda module, args, y: y * 1.03)

    monkeypatch.setitem(apply._HANDLERS, format_id, coarser)
    answer = dryrun.dry_run("cpu", [format_id])[format_id]
    assert not answer["ok"]
    assert "exact emulation" in answer["why"]
    assert answer["deviation"] == pytest.approx(0.03, abs=0.01)


def test_ties_of_fp4_go_to_the_even_mantissa():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
    assert reference._e2m1(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    near = torch.tensor([0.24, 0.26, 2.6, 9.0], dtype=torch.float64)
    assert reference._e2m1(near).tolist() == [0.0, 0.5, 3.0, 6.0]


@pytest.mark.parametrize("name", ["mxfp8_tensor", "nvfp4_tensor"])
def test_the_emulations_round_as_torchao_does(name):
    from torchao.prototype.mx_formats.mx_tensor import MXTensor, ScaleCalculationMode

    from precision_explorer.formats.microscaling import _nvfp4

    torch.manual_seed(0)
    tensor = (torch.randn(48, 128) * torch.logspace(-6, 3, 48)[:, None]).bfloat16()
    if name == "nvfp4_tensor":
        found = _nvfp4(tensor)
    else:
        mode = ScaleCalculationMode.RCEIL
        found = MXTensor.to_mx(tensor, torch.float8_e4m3fn, 32, scaling_mode=mode)
    expected = getattr(reference, name)(tensor)
    difference = (found.dequantize(torch.float32).double() - expected).norm() / expected.norm()
    assert float(difference) < 1e-6


def test_fp8_per_tensor_is_rounded_by_its_definition():
    tensor = torch.tensor([[448.0, -17.0, 0.3]])
    assert reference.fp8_tensor(tensor).tolist() == [[448.0, -16.0, 0.3125]]
    assert torch.allclose(reference.fp8_tensor(tensor / 7), reference.fp8_tensor(tensor) / 7)


def test_autocast_that_does_not_cast_is_refused(monkeypatch, small):
    assert dryrun.dry_run("cpu", ["bf16-autocast"])["bf16-autocast"]["ok"]
    monkeypatch.setitem(apply._HANDLERS, "bf16-autocast", lambda model, plan, recipe: None)
    answer = dryrun.dry_run("cpu", ["bf16-autocast"])["bf16-autocast"]
    assert not answer["ok"]
    assert "not bfloat16's" in answer["why"]


@pytest.mark.parametrize(
    ("capability", "kernel"), [((9, 0), "emulated"), ((10, 0), "scaled-mm"), ((12, 0), "scaled-mm")]
)
@pytest.mark.parametrize("format_id", ["mxfp8", "nvfp4"])
def test_scaled_blocks_are_emulated_below_blackwell(monkeypatch, capability, kernel, format_id):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dryrun._default_recipe(format_id, "cuda:0")["kernel"] == kernel
    assert dryrun._default_recipe(format_id, "cpu")["kernel"] == "emulated"


def test_the_recipe_of_int4_says_groups_and_packing():
    recipe = dryrun._default_recipe("int4-weight-only", "cpu")
    assert recipe["group_size"] == [128, 64, 32]
    assert (recipe["packing"], recipe["compute_dtype"]) == ("cpu", "float32")
    recipe = dryrun._default_recipe("int4-weight-only", "cuda:0")
    assert (recipe["packing"], recipe["compute_dtype"]) == ("tile_packed_to_4d", "bfloat16")


@pytest.mark.parametrize("fast", ["float32", "bfloat16"])
def test_int4_on_a_cpu_computes_in_the_type_that_its_kernel_is_fast_in(monkeypatch, fast):
    def tried(format_id, recipe, device, runtime):
        seconds = [1.0 if recipe["compute_dtype"] == fast else 30.0]
        return {"ok": True, "error": 0.09, "seconds": seconds, "recipe": recipe}

    monkeypatch.setattr(dryrun, "_try", tried)
    answer = dryrun.dry_run("cpu", ["int4-weight-only"])["int4-weight-only"]
    assert answer["recipe"]["compute_dtype"] == fast
    assert len(answer["candidates"]) == 2
    # A GPU's kernel has one type.
    monkeypatch.setattr(dryrun, "_default_recipe", lambda *_: {"compute_dtype": "bfloat16"})
    assert len(dryrun._recipes("int4-weight-only", "cuda:0")) == 1


def test_code_compiled_for_many_rows_must_serve_few(monkeypatch):
    """torch.compile may choose a kernel at 128 rows that refuses 16 or fewer."""

    def refusing(model, runtime, kind):
        def call(x):
            if 1 < len(x) <= 16:
                raise RuntimeError(f"self.size(0) needs to be greater than 16, but got {len(x)}")
            return model(x)

        return call

    monkeypatch.setattr(dryrun, "compiled", refusing)
    recipe = dryrun._default_recipe("fp32", "cpu")
    answer = dryrun._try("fp32", recipe, "cpu", RUNTIMES["compile"])
    assert not answer["ok"]
    assert "needs to be greater than 16, but got 8" in answer["why"]
    # Fixed shapes are compiled one by one.
    assert dryrun._try("fp32", recipe, "cpu", RUNTIMES["compile-fixed"])["ok"]
