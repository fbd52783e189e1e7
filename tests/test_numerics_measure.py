"""Errors and ranges of layers: by hand on small tensors, and on models made to go wrong."""

import math

import pytest
import torch
import transformers
from torch import nn

from precision_explorer.errors import TaskError
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.held import held_weight
from precision_explorer.formats.kernels import CPU_KERNELS, FbgemmLinear
from precision_explorer.formats.number_types import NUMBER_TYPES, Held, plain, uses
from precision_explorer.formats.ranges import RangeSums
from precision_explorer.formats.static import CPU_STATIC_KERNELS, static_linear
from precision_explorer.formats.verify import layout
from precision_explorer.formats.watch import FormatWatch, ReferenceWatch, Sums, watched
from precision_explorer.models.reference import DEMO
from precision_explorer.records.numerics import LayerNumerics, NonFinite
from precision_explorer.runner import numerics_job
from precision_explorer.stats import relative_error, sqnr
from tests.trouble import overflowing_model


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_matmul_precision("fp32")


class Body(nn.Module):
    """One linear layer under a name, as in a model."""

    def __init__(self, rows_in: int, rows_out: int) -> None:
        super().__init__()
        self.body = nn.Linear(rows_in, rows_out)

    def forward(self, x):
        return self.body(x)


def convert(model, format_id, kernel=None):
    recipe = _default_recipe(format_id, "cpu")
    if kernel is not None:
        recipe |= {"kernel": kernel}
    apply_format(model.eval(), format_id, recipe, "unverified", "a test")
    return model


# -- the formula ---------------------------------------------------------------------------------


def test_sqnr_by_hand():
    state, value = sqnr(1000.0, 10.0)
    assert state == "measured"
    assert value == pytest.approx(20.0)
    assert relative_error(20.0) == pytest.approx(0.1)
    assert sqnr(1e300, 1e-300)[1] == pytest.approx(6000.0)


@pytest.mark.parametrize(
    ("signal", "noise", "state"),
    [
        (1.0, 0.0, "exact"),
        (0.0, 0.0, "exact"),
        (0.0, 1.0, "no-signal"),
        (1.0, math.inf, "not-finite"),
        (1.0, math.nan, "not-finite"),
    ],
)
def test_sqnr_has_a_state_where_it_has_no_number(signal, noise, state):
    assert sqnr(signal, noise) == (state, None)


def test_sums_are_of_squares_and_count_what_is_not_finite():
    sums = Sums()
    assert sums.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert (sums.signal, sums.noise, sums.non_finite) == (25.0, 0.25, 0)
    assert not sums.add(torch.ones(3), torch.ones(2))
    assert sums.compared == 1
    # What the reference holds as infinite is no fault of the format.
    sums.add(torch.tensor([1.0, math.inf]), torch.tensor([math.nan, math.inf]))
    assert sums.non_finite == 1


def test_sums_of_large_values_stay_finite():
    sums = Sums()
    sums.add(torch.full((4,), 1e30), torch.zeros(4))
    assert sqnr(sums.signal, sums.noise) == ("measured", pytest.approx(0.0))


# -- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_ranges_are_those_of_torch(name):
    dtype, known = getattr(torch, name), NUMBER_TYPES[name]
    assert known.largest == torch.finfo(dtype).max
    assert known.smallest_normal == torch.finfo(dtype).smallest_normal
    if name != "float32":  # Of which half the smallest is no float32.
        smallest = torch.tensor([known.smallest, known.smallest / 2])
        assert smallest.to(dtype).float().tolist() == [known.smallest, 0.0]


def test_the_range_of_nf4_is_that_of_its_code():
    bnb = pytest.importorskip("bitsandbytes")
    code = bnb.functional.get_4bit_type("nf4", device="cpu")
    assert NUMBER_TYPES["nf4"].largest == float(code.abs().max())
    assert NUMBER_TYPES["nf4"].smallest == pytest.approx(float(code[code > 0].min()), rel=1e-6)


def test_shares_of_float16_by_hand():
    sums = RangeSums(plain("float16"))
    # Beyond; the largest; normal; subnormal; rounded to zero (half the smallest, and less); zero.
    sums.add(torch.tensor([-7e4, 65504.0, 1.0, 2.0**-15, 2.0**-25, 1e-9, 0.0, 1.0]))
    assert sums.shares() == {
        "overflow": 1 / 8, "saturated": None, "subnormal": 1 / 8, "flushed": 2 / 8,
    }  # fmt: skip
    assert sums.ends() == (7e4, pytest.approx(1e-9))


@pytest.mark.parametrize("name", ["float16", "float8_e5m2"])
def test_shares_agree_with_a_cast(name):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, generator=generator) * 10 ** (
        16 * torch.rand(4000, generator=generator) - 10
    )
    dtype = getattr(torch, name)
    sums = RangeSums(plain(name))
    sums.add(values)
    cast = values.to(dtype).float()
    assert sums.flushed == int((cast == 0).sum()) > 0
    assert sums.overflow >= int(cast.isinf().sum()) > 0
    normal = torch.finfo(dtype).smallest_normal
    rounded_up = int(((values.abs() < normal) & (cast.abs() == normal)).sum())
    assert sums.subnormal == int(((cast != 0) & (cast.abs() < normal)).sum()) + rounded_up


def test_int8_rows_have_their_own_scale():
    sums = RangeSums(uses("int8-dynamic", "int-mm").inputs)
    # Steps of 1 and of 100: in both rows the largest is at the clamp and two of four become zero.
    row = torch.tensor([127.0, 1.0, 0.4, -0.3])
    sums.add(torch.stack([row, 100 * row]))
    assert sums.shares() == {
        "overflow": None, "saturated": 2 / 8, "subnormal": None, "flushed": 4 / 8,
    }  # fmt: skip


def test_a_block_has_its_own_scale_and_the_last_may_be_short():
    held = Held(NUMBER_TYPES["nf4"], "block", 4)
    assert held.scale_name == "block-4"
    sums = RangeSums(held)
    # Blocks (1, .01, 1, 1) and (.01, .01): only the first holds a value too small for its scale.
    sums.add(torch.tensor([[1.0, 0.01, 1.0], [1.0, 0.01, 0.01]]))
    assert sums.flushed == 1
    assert sums.shares()["saturated"] is None


def test_a_type_that_is_not_known_counts_only_the_ends():
    sums = RangeSums(None)
    sums.add(torch.tensor([2.0, 0.0, -3.0]))
    assert set(sums.shares().values()) == {None}
    assert sums.ends() == (3.0, 2.0)


def test_nan_and_nothing_are_no_magnitudes():
    sums = RangeSums(plain("bfloat16"))
    sums.add(torch.empty(0))
    assert sums.ends() == (None, None)
    sums.add(torch.tensor([math.nan, 1.0]))
    assert sums.ends() == (None, 1.0)
    assert sums.shares()["overflow"] == 0.5


def test_scales_of_pairs_say_nothing_of_single_weights():
    assert uses("int8-dynamic", "fbgemm-per-token-paired").weights is None
    assert uses("int8-dynamic", "fbgemm-per-token-paired").inputs.type.largest == 127
    assert uses("no-such", "torch") is None
    assert plain("int8") is None  # Its scale is not in its name.


# -- weights read back ---------------------------------------------------------------------------

CONVERTERS = [
    ("int8-weight-only", None),
    ("int8-llm", None),
    *(("int8-dynamic", kernel) for kernel in CPU_KERNELS),
]


def uniform(rows: int = 96, columns: int = 512) -> Body:
    generator = torch.Generator().manual_seed(0)
    model = Body(columns, rows)
    with torch.no_grad():
        model.body.weight.copy_(2 * torch.rand(rows, columns, generator=generator) - 1)
    return model


@pytest.mark.parametrize(("format_id", "kernel"), CONVERTERS)
def test_int8_weights_have_the_sqnr_of_theory(format_id, kernel):
    """Uniform values over the whole range: signal 1/3 and noise step^2 / 12 of a step 1 / levels
    (Widrow & Kollar), so 10 log10(4 levels^2): 48.1 dB with 127 levels, 6.02 dB less a bit."""
    model = uniform()
    weight = model.body.weight.detach().clone()
    convert(model, format_id, kernel)
    with torch.no_grad():
        held = held_weight(model.body)
    sums = Sums()
    assert sums.add(weight, held)
    found = sqnr(sums.signal, sums.noise)[1]
    whole = 20 * math.log10(2 * 127)
    if kernel and kernel.endswith("paired"):
        # A row's largest pair sums to between one and two of its largest weights.
        assert whole - 6.02 - 0.15 < found < whole
    else:
        assert found == pytest.approx(whole, abs=0.15)


@pytest.mark.parametrize("kernel", CPU_STATIC_KERNELS)
def test_smoothed_weights_are_read_back_as_what_multiplies_the_inputs(kernel):
    model = uniform()
    weight = model.body.weight.detach().clone()
    peak = torch.linspace(0.1, 50, 512)
    layer = static_linear(model.body, kernel, peak, 0.5)
    sums = Sums()
    assert sums.add(weight, held_weight(layer))
    # Smoothing makes the columns' ranges differ, which costs some of int8's 48 dB.
    assert 30 < sqnr(sums.signal, sums.noise)[1] < 48


def test_the_weight_read_back_is_what_multiplies():
    # A kernel that is sound on every CPU.
    model = convert(uniform(), "int8-dynamic", "fbgemm-per-token-paired")
    assert isinstance(model.body, FbgemmLinear)
    x = torch.eye(512)[:8]
    held = held_weight(model.body)
    assert torch.allclose(model(x) - model.body.bias, x @ held.t(), atol=1e-5)


def test_e4m3_and_casts_are_read_back():
    weight = uniform().body.weight.detach()
    for format_id, low, high in (("fp8-weight-only", 30, 34), ("bf16", 50, 58), ("fp32", 0, 0)):
        model = convert(uniform(), format_id)
        sums = Sums()
        sums.add(weight, held_weight(model.body))
        value = sqnr(sums.signal, sums.noise)[1] or 0
        assert low <= value <= high, format_id


def test_llm_int8_is_read_back_after_it_has_run_too():
    model = convert(uniform(), "int8-llm")
    before = held_weight(model.body)
    with torch.inference_mode():
        model(torch.ones(2, 512))
    assert torch.equal(held_weight(model.body), before)


def test_four_bits_are_read_back_unless_packed_for_a_kernel():
    bnb = pytest.importorskip("bitsandbytes")
    weight = uniform().body.weight.detach()
    layer = bnb.nn.Linear4bit(512, 96, bias=False, quant_type="nf4", compute_dtype=torch.float32)
    layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4").to(
        "cpu"
    )
    sums = Sums()
    sums.add(weight, held_weight(layer))
    assert 18 < sqnr(sums.signal, sums.noise)[1] < 24
    layer.weight.quant_state.packing_format_for_cpu = True
    assert held_weight(layer) is None


def test_int4_is_read_back_as_its_kernel_multiplies():
    model = convert(uniform(128), "int4-weight-only")
    held = held_weight(model.body)
    sums = Sums()
    assert sums.add(uniform(128).body.weight.detach(), held)
    # 16 levels over the range of each group: 10 log10(1/3 / (step^2 / 12)) of a step of 2/15.
    assert sqnr(sums.signal, sums.noise)[1] == pytest.approx(23.5, abs=0.5)
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(model(x) - model.body.bias, x @ held.t(), atol=1e-3)


def test_a_weight_that_can_t_be_read_is_none():
    layer = nn.Linear(4, 4)
    layer._parameters["weight"] = nn.Parameter(torch.zeros(8, dtype=torch.uint8), False)
    assert held_weight(layer) is None
    assert held_weight(nn.ReLU()) is None

    class Unknown(torch.Tensor):
        pass

    layer._parameters["weight"] = torch.ones(4, 4).as_subclass(Unknown)
    assert held_weight(layer) is None


def test_a_layer_may_say_itself_what_it_holds():
    layer = nn.Linear(2, 2)
    layer.dequantized_weight = lambda: torch.eye(2, dtype=torch.float16)
    assert torch.equal(held_weight(layer), torch.eye(2))


# -- hooks ---------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Two layers, a sum between them that is no layer, and a head."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.act = nn.ReLU()
        self.second = nn.Linear(2, 2, bias=False)
        self.config = None
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(2))
            self.second.weight.copy_(torch.eye(2))

    def forward(self, x):
        x = self.act(self.first(x))
        return self.second(x + x)


def compared(reference, model, x, of=torch.float32):
    kinds = watched(reference, layout(reference))
    watch = ReferenceWatch(reference, kinds)
    watch.types = {name: (plain("float16"), plain("float16")) for name in kinds}
    found = FormatWatch(model, watch)
    watch.begin()
    found.begin()
    with torch.inference_mode():
        reference(x)
        model(x.to(of))
    return watch, found


def test_errors_build_up_and_each_layer_has_its_own():
    changed = Chain()
    with torch.no_grad():
        changed.first.weight.mul_(1.1)
    watch, found = compared(Chain(), changed, torch.tensor([[3.0, 4.0]]))
    first, second = found.layers["first"], found.layers["second"]
    assert list(watch.layers) == ["first", "second"]
    # 10 % off is 20 dB, whatever the values.
    assert sqnr(first.output.signal, first.output.noise)[1] == pytest.approx(20, abs=1e-4)
    assert sqnr(first.local.signal, first.local.noise)[1] == pytest.approx(20, abs=1e-4)
    assert sqnr(second.output.signal, second.output.noise)[1] == pytest.approx(20, abs=1e-4)
    assert sqnr(second.local.signal, second.local.noise) == ("exact", None)


def test_a_model_that_writes_into_its_activations_does_not_fool_the_watch():
    class InPlace(Chain):
        def forward(self, x):
            y = self.first(x)
            y.mul_(100)
            return self.second(y)

    watch, found = compared(InPlace(), InPlace(), torch.tensor([[3.0, 4.0]]))
    assert watch.calls["first"][0].output.tolist() == [[3.0, 4.0]]
    assert found.layers["first"].output.noise == 0


def test_a_module_that_is_called_twice_is_compared_call_by_call():
    class Twice(Chain):
        def forward(self, x):
            return self.second(self.first(self.first(x)))

    reference, changed = Twice(), Twice()
    with torch.no_grad():
        reference.first.weight.mul_(2)
        changed.first.weight.mul_(3)
    watch, found = compared(reference, changed, torch.ones(1, 2))
    assert len(watch.calls["first"]) == found.layers["first"].output.compared == 2
    # First 3 against 2, then 9 against 4; alone 3 against 2, then 6 against 4. Two values each.
    assert found.layers["first"].output.noise == pytest.approx(2 * (1 + 25))
    assert found.layers["first"].local.noise == pytest.approx(2 * (1 + 4))


def test_other_shapes_are_not_compared():
    class Longer(Chain):
        def forward(self, x):
            return super().forward(torch.cat([x, x]))

    _, found = compared(Chain(), Longer(), torch.ones(1, 2))
    assert found.layers["first"].mismatched
    assert numerics_job._state(found.layers["first"].output, True) == ("unavailable", None)


def test_the_planted_outlier_and_the_range_are_found():
    x = torch.full((5, 8), 0.5)
    x[2, 3] = 50.0
    x[4, 0] = 1e-9
    watch, _ = compared(Body(8, 2), Body(8, 2), x)
    layer = watch.layers["body"]
    assert layer.outlier_ratio() == pytest.approx(100)
    assert layer.inputs.ends() == (50.0, pytest.approx(1e-9))
    assert layer.inputs.shares()["flushed"] == 1 / 40
    assert layer.rows == 5


def test_overflow_in_a_layer_is_found_with_its_inputs():
    big = Chain().half()
    with torch.no_grad():
        big.first.weight.mul_(30_000)
    reference = Chain()
    with torch.no_grad():
        reference.first.weight.mul_(30_000)
    _, found = compared(reference, big, torch.tensor([[4.0, 1.0]]), torch.float16)
    first = found.first
    assert (first.module, first.inputs_finite, first.input_peak) == ("first", True, 4.0)
    assert first.reference_peak == 120_000
    assert first.after is None


def test_overflow_between_layers_is_told_from_one_in_a_layer():
    reference = Chain()
    with torch.no_grad():
        reference.first.weight.mul_(20_000)
    half = Chain().half()
    with torch.no_grad():
        half.first.weight.mul_(20_000)
    _, found = compared(reference, half, torch.tensor([[3.0, 1.0]]), torch.float16)
    assert (found.first.module, found.first.inputs_finite) == ("second", False)
    assert found.first.after == "act"


def test_a_reference_that_is_not_finite_itself_is_no_fault_of_the_format():
    _, found = compared(Chain(), Chain(), torch.tensor([[math.inf, 1.0]]))
    assert found.first is None
    assert numerics_job._state(found.layers["first"].output, False) == ("unavailable", None)


def test_each_example_has_its_own_first():
    half, reference = Chain().half(), Chain()
    watch, found = compared(reference, half, torch.tensor([[4.0, 1.0]]), torch.float16)
    with torch.no_grad():
        half.first.weight.mul_(60_000)
        reference.first.weight.mul_(60_000)
    for value, first in ((4.0, "first"), (1e-3, None)):
        watch.begin()
        found.begin()
        with torch.inference_mode():
            reference(torch.full((1, 2), value))
            half(torch.full((1, 2), value).half())
        assert (found.first and found.first.module) == first


def test_kinds_of_modules():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    kinds = watched(model, layout(model))
    assert kinds["lm_head"] == "head"
    assert kinds["model.embed_tokens"] == "embedding"
    assert kinds["model.norm"] == "norm"
    assert kinds["model.layers.0.mlp.down_proj"] == "linear"
    assert kinds["model.layers.0.mlp.act_fn"] == "other"
    assert "model.layers.0" not in kinds


# -- the job -------------------------------------------------------------------------------------


def request(format_id, path=DEMO, **changes):
    return {
        "device": "cpu",
        "path": str(path),
        "trust_remote_code": False,
        "format": format_id,
        "recipe": _default_recipe(format_id, "cpu"),
        "execution": "native",
        "reason": "a test",
        "seed": 0,
        "card": {"kind": "text-classification", "metrics": ["accuracy"], "max_length": 32},
        "examples": [
            {"id": "a", "text": "a good film", "label": "positive"},
            {"id": "b", "text": "bad, bad, bad", "label": "negative"},
        ],
        "label_ids": {"positive": 1, "negative": 0},
        "workload": {"prompt_tokens": 8, "output_tokens": 2},
    } | changes


def by_name(answer):
    rows = [LayerNumerics.model_validate(row) for row in answer["layers"]]
    assert [row.order for row in rows] == list(range(len(rows)))
    return {row.layer: row for row in rows}


def test_the_reference_against_itself_is_exact():
    answer, _ = numerics_job.run(request("fp32"), lambda *_: None)
    states = {(r.output_state, r.weight_state) for r in by_name(answer).values()}
    assert states == {("exact", "exact")}
    assert answer["first_non_finite"] is None


def test_int8_rows_of_the_demo():
    answer, _ = numerics_job.run(request("int8-weight-only"), lambda *_: None)
    rows = by_name(answer)
    assert {row.kind for row in rows.values()} == {"linear", "head", "embedding", "norm"}
    linear = [row for row in rows.values() if row.kind == "linear"]
    assert {row.weight_type for row in linear} == {"int8"}
    assert {row.weight_scale for row in linear} == {"row"}
    assert {row.input_type for row in linear} == {"float32"}
    for row in linear:
        assert 30 < row.weight_sqnr_db < 50
        assert 20 < row.output_sqnr_db < 60
        assert 0 < row.weight_flushed_share < 0.2
        # Each row's largest value is at the clamp.
        assert row.weight_saturated_share > 0
    head = rows["classifier"]
    assert (head.converted, head.weight_type, head.local_state) == (False, "float32", "exact")
    assert head.rows == 2
    assert answer["tokens"] == sum(
        numerics_job.prepare(DEMO, "text-classification", False)(e["text"])["input_ids"].__len__()
        for e in request("fp32")["examples"]
    )


def test_a_recipe_s_layers_are_each_in_their_own_format():
    names = [f"bert.encoder.layer.0.attention.self.{n}" for n in ("query", "key", "value")]
    layers = {"int8-weight-only": names[:1], "nf4": names[1:2]}
    parts = {name: _default_recipe(name, "cpu") for name in layers}
    recipe = {
        "kernel": "mixed", "library": "mixed", "compute_dtype": "float32", "base": "fp32",
        "layers": layers, "parts": parts,
    }  # fmt: skip
    answer, _ = numerics_job.run(request("mixed:r", recipe=recipe), lambda *_: None)
    rows = by_name(answer)
    found = [(rows[n].converted, rows[n].weight_type, rows[n].weight_scale) for n in names]
    assert found == [(True, "int8", "row"), (True, "nf4", "block-64"), (False, "float32", "none")]
    assert rows[names[2]].weight_state == "exact"


def test_autocast_rounds_what_goes_in_and_out_to_bfloat16():
    answer, _ = numerics_job.run(request("bf16-autocast"), lambda *_: None)
    row = by_name(answer)["bert.encoder.layer.0.output.dense"]
    assert (row.weight_type, row.weight_state) == ("float32", "exact")
    assert (row.input_type, row.output_type) == ("bfloat16", "bfloat16")
    assert row.local_state == "measured"


def test_the_overflowing_model_is_caught_in_fp16(tmp_path):
    path = overflowing_model(tmp_path / "model")
    answer, _ = numerics_job.run(request("fp16", path), lambda *_: None)
    first = NonFinite.model_validate(answer["first_non_finite"])
    assert first.module == "bert.encoder.layer.0.output.dense"
    assert (first.example, first.examples, first.inputs_finite) == ("a", 2, True)
    assert first.reference_output_max_abs == pytest.approx(1e6, rel=0.01)
    assert first.type_largest == 65504
    rows = by_name(answer)
    row = rows[first.module]
    assert (row.output_state, row.output_sqnr_db, row.local_state) == (
        "not-finite", None, "not-finite",
    )  # fmt: skip
    assert row.output_overflow_share > 0
    assert row.non_finite_outputs > 0
    assert rows["bert.encoder.layer.0.intermediate.dense"].output_state == "measured"
    bf16, _ = numerics_job.run(request("bf16", path), lambda *_: None)
    assert bf16["first_non_finite"] is None


def test_a_layer_that_could_not_be_compared_has_no_number():
    sums = Sums()
    sums.add(torch.ones(2), torch.ones(2))
    assert numerics_job._state(sums, False) == ("exact", None)
    assert numerics_job._state(sums, True) == ("unavailable", None)
    assert numerics_job._state(Sums(), False) == ("unavailable", None)


def test_no_token_is_one_line():
    class Silent:
        def items(self):
            return []

    with pytest.raises(TaskError, match="no example has a token"):
        numerics_job._run_examples([Silent()], None, None, request("fp32"), lambda *_: None)
