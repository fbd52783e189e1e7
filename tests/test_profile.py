"""A cell's profile: work counted by hand, operators' classes, repeats, and the device's roofs."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from precision_explorer.errors import StoreError
from precision_explorer.formats.apply import apply_format
from precision_explorer.formats.catalog import spec_of
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.hardware import device_facts, library_versions
from precision_explorer.hardware.caches import last_level_cache_bytes, last_level_cache_count
from precision_explorer.hardware.fakes import FakeClock
from precision_explorer.measure import roof as roof_module
from precision_explorer.measure.operators import classify, counts_as_started, kernel_class
from precision_explorer.measure.repeats import repeated
from precision_explorer.measure.timeline import Timeline, summed
from precision_explorer.measure.utilisation import Utilisation
from precision_explorer.models import compiled as compiled_module
from precision_explorer.models import passes
from precision_explorer.models.greedy import cache_arguments
from precision_explorer.models.passes import decode_pass, encode_pass, prefill_pass
from precision_explorer.models.work import counted_rows, linear_layers, pass_work
from precision_explorer.records import Bandwidth, Launch, MatmulRate, Roof
from precision_explorer.runner import profiling
from precision_explorer.runner import roof as runner_roof
from precision_explorer.runner.jobs import JobFailed
from precision_explorer.runner.local import Executor
from precision_explorer.runner.manager import WorkerGone
from precision_explorer.store import RunFolder

D, HEADS, KEY_HEADS, SIZE, WIDE, WORDS, DEPTH = 32, 4, 2, 8, 48, 100, 2
RECIPE = {"kernel": "torchao", "library": "torchao", "compute_dtype": "float32"}


@pytest.fixture
def llama():
    config = LlamaConfig(
        hidden_size=D, num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, head_dim=SIZE,
        intermediate_size=WIDE, vocab_size=WORDS, num_hidden_layers=DEPTH,
        max_position_embeddings=20, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return SimpleNamespace(
        model=model,
        pad=0,
        device="cpu",
        max_length=20,
        _keeps=True,
        _cache=cache_arguments(model)[1],
    )


@pytest.fixture
def bert():
    config = BertConfig(
        hidden_size=D, num_attention_heads=HEADS, intermediate_size=WIDE, vocab_size=WORDS,
        num_hidden_layers=DEPTH, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    return SimpleNamespace(model=model, pad=0, device="cpu", max_length=16)


def work_of(adapter, run, format_id="fp32", compute="float32", widened=frozenset()):
    spec = spec_of(format_id)
    layers = linear_layers(adapter.model, spec, compute)
    with torch.inference_mode(), counted_rows(layers) as rows:
        run.call()
    return pass_work(adapter.model, layers, rows, run, spec, compute, set(widened))


# Weight elements of one block's linear layers: query and output, key and value, the three wide.
BLOCK = D * HEADS * SIZE * 2 + D * KEY_HEADS * SIZE * 2 + 3 * D * WIDE
NORMS = (2 * DEPTH + 1) * D


def test_the_work_of_a_prompt_by_hand(llama):
    """19 tokens (a position is left to decode): all through the blocks, one through the head."""
    run = prefill_pass(llama, 1)
    assert (run.tokens, run.cached) == (19, 0)
    work = work_of(llama, run)
    linear = 2 * 19 * DEPTH * BLOCK + 2 * 1 * D * WORDS
    attention = 4 * DEPTH * HEADS * SIZE * (19 * 20 // 2)
    assert work.flops_by_type == {"float32": linear + attention}
    # The table is tied to the head, which reads all of it.
    assert work.fixed_bytes == 4 * (DEPTH * BLOCK + NORMS + D * WORDS)
    # Query and output, key and value, gate and up, down: inputs and outputs of each.
    per_token = 2 * (D + HEADS * SIZE) + 2 * (D + KEY_HEADS * SIZE) + 3 * (D + WIDE)
    seen = 2 * 19 * HEADS * SIZE + 2 * 19 * KEY_HEADS * SIZE
    head = D + WORDS
    assert work.request_bytes == 4 * (DEPTH * (19 * per_token + seen) + head + 19 * D)


def test_the_work_of_a_decode_step_is_one_token_over_the_cache(llama):
    run = decode_pass(llama, 3)
    assert (run.tokens, run.cached, run.batch) == (1, 19, 3)
    work = work_of(llama, run)
    linear = 2 * (DEPTH * BLOCK + D * WORDS)
    assert work.flops_by_type == {"float32": linear + 4 * DEPTH * HEADS * SIZE * 20}
    alone = work_of(llama, decode_pass(llama, 1))
    assert alone == work  # All of it is per request.


def test_a_decode_step_is_undone(llama):
    run = decode_pass(llama, 1)
    with torch.inference_mode():
        first = run.call()
        assert first.cache.get_seq_length() == 20
        run.reset()
        assert first.cache.get_seq_length() == 19
        assert torch.equal(run.call().logits, first.logits)


def test_an_encoder_attends_both_ways_and_gathers_its_tables(bert):
    run = encode_pass(bert, 2)
    assert (run.tokens, run.causal) == (16, False)
    work = work_of(bert, run)
    block = 4 * D * D + 2 * D * WIDE
    linear = 2 * (16 * DEPTH * block + D * D + 2 * D)  # Pooler and classifier see one row.
    assert work.flops_by_type == {"float32": linear + 4 * DEPTH * HEADS * SIZE * 16 * 16}
    tables = 4 * D * (WORDS + 16 + 2)
    whole = sum(p.numel() for p in bert.model.parameters()) * 4
    buffers = sum(b.numel() * b.element_size() for b in bert.model.buffers())
    assert whole - tables <= work.fixed_bytes <= whole - tables + buffers


def test_converted_layers_count_in_the_format_s_arithmetic_and_the_rest_does_not(bert):
    kernel = {"kernel": "int-mm", "library": "torch", "compute_dtype": "float32"}
    apply_format(bert.model, "int8-dynamic", kernel, "native", "")
    work = work_of(bert, encode_pass(bert, 1), "int8-dynamic")
    converted = 2 * (16 * DEPTH * (4 * D * D + 2 * D * WIDE) + D * D)
    assert work.flops_by_type["int8"] == converted
    assert work.flops_by_type["float32"] == 2 * 2 * D + 4 * DEPTH * HEADS * SIZE * 16 * 16


def test_weight_only_layers_compute_wide_and_are_seen_to_be_widened(bert):
    apply_format(bert.model, "int8-weight-only", RECIPE, "dequantized", "")
    spec = spec_of("int8-weight-only")
    request = {"format": spec.id, "recipe": RECIPE, "device": "cpu"}
    with torch.inference_mode():
        subject = profiling.make_subject(bert.model, bert, request, None, 0)
        profile = profiling.profile_cell(subject, "text-classification", None)
    phase = profile.prefill
    assert profile.note is None
    assert profile.decode is None
    assert set(phase.work.flops_by_type) == {"float32"}
    block = 4 * D * D + 2 * D * WIDE
    assert phase.work.widened_bytes == 2 * 4 * (DEPTH * block + D * D)
    assert phase.work.largest_widened_bytes == 2 * 4 * D * WIDE
    assert phase.spent.quantizing > 0
    assert phase.spent.matmul > 0
    total = sum(phase.spent.model_dump().values())
    assert total == pytest.approx(1.0)
    # Six layers a block, its attention, pooler and classifier.
    assert phase.matmuls == 7 * DEPTH + 2
    assert phase.operators > phase.matmuls


def test_a_plain_model_widens_nothing(llama):
    request = {"format": "fp32", "recipe": RECIPE, "device": "cpu"}
    with torch.inference_mode():
        subject = profiling.make_subject(llama.model, llama, request, None, 0)
        profile = profiling.profile_cell(subject, "language-modeling", None)
    assert profile.note is None
    for phase in (profile.prefill, profile.decode):
        assert phase.work.widened_bytes == 0
        assert phase.timings["1"].seconds
        assert set(phase.timings) == {"1", "8"}
        assert phase.timings["1"].utilisation is None
    assert not llama.model.model.layers[0].mlp.gate_proj._forward_pre_hooks


def test_a_compiled_model_s_work_is_the_eager_one_s(llama, monkeypatch):
    """Compiled code calls no hooks."""
    request = {"format": "fp32", "recipe": RECIPE, "device": "cpu"}

    def compiled(function, runtime, kind):
        def call(**inputs):
            kept = [(m, m._forward_pre_hooks) for m in llama.model.modules()]
            for module, _ in kept:
                module._forward_pre_hooks = OrderedDict()
            try:
                return function(**inputs)
            finally:
                for module, hooks in kept:
                    module._forward_pre_hooks = hooks

        return call

    monkeypatch.setattr(compiled_module, "compiled", compiled)
    with torch.inference_mode():
        subject = profiling.make_subject(llama.model, llama, request, None, 0)
        eager = profiling.profile_cell(subject, "language-modeling", None)
        model = compiled_module.CompiledModel(
            llama.model, RUNTIMES["compile-fixed"], "cpu", pad=0, longest=19, new_tokens=4
        )
        subject = profiling.make_subject(
            llama.model, llama, request | {"runtime": "compile-fixed"}, None, 0, (), model.eagerly
        )
        found = profiling.profile_cell(subject, "language-modeling", None)
    assert found.note is None
    assert found.prefill.work.flops_by_type == eager.prefill.work.flops_by_type
    assert found.decode.work.flops_by_type == eager.decode.work.flops_by_type


def test_a_phase_above_its_roof_is_measured_once_more(llama, monkeypatch):
    timed = []
    kept = profiling._timings
    monkeypatch.setattr(profiling, "_timings", lambda *a: timed.append(a[1]) or kept(*a))
    slow = Bandwidth(bytes_per_s=1.0, working_set_bytes=1, how="sum")
    roof = Roof(
        threads=1, matmul=[MatmulRate(type="float32", kernel="torch", flops_per_s=1.0)],
        read=slow, cache=None, copied=slow, launch=Launch(operator_s=0, matmul_s=0),
    )  # fmt: skip
    request = {"format": "fp32", "recipe": RECIPE, "device": "cpu"}
    with torch.inference_mode():
        subject = profiling.make_subject(llama.model, llama, request, None, 0)
        again = profiling.profile_cell(subject, "multiple-choice", roof).measured_again
        assert again == ["prefill", "decode"]
        assert timed == [prefill_pass, prefill_pass, decode_pass, decode_pass]
        fast = roof.peak("float32").model_copy(update={"flops_per_s": 1e18})
        high = roof.model_copy(
            update={"matmul": [fast], "read": slow.model_copy(update={"bytes_per_s": 1e18})}
        )
        timed.clear()
        assert profiling.profile_cell(subject, "multiple-choice", high).measured_again == []
        assert timed == [prefill_pass, decode_pass]


def test_a_model_that_can_t_be_profiled_costs_nothing_but_the_profile(bert):
    bert.max_length = 17  # One more position than there is.
    request = {"format": "fp32", "recipe": RECIPE, "device": "cpu"}
    with torch.inference_mode():
        subject = profiling.make_subject(bert.model, bert, request, None, 0)
        profile = profiling.profile_cell(subject, "text-classification", None)
    assert profile.prefill is None
    assert profile.note.startswith("prefill: ")


# -- operators ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "inside", "found"),
    [
        (["aten::addmm", "aten::linear"], False, "matmul"),
        (["aten::copy_", "aten::addmm"], False, "matmul"),
        (["aten::copy_", "aten::_to_copy", "aten::to"], False, "quantizing"),
        (["aten::copy_", "aten::clone"], False, "other"),
        (["aten::mul"], False, "other"),
        (["aten::mul"], True, "quantizing"),
        (["aten::mm"], True, "matmul"),
        (["aten::add_"], True, "other"),
        (["aten::view"], True, "other"),
        (["aten::linear"], True, "other"),
        (["mylib::frobnicate"], False, "other"),
        (["quantized::linear_with_input_q_dq_qweight_dq_output_fp32"], True, "matmul"),
        (["onednn::qlinear_pointwise"], True, "matmul"),
        (["bitsandbytes::int8_vectorwise_quant"], False, "quantizing"),
        (["bitsandbytes::dequantize_4bit"], False, "quantizing"),
        (["aten::_scaled_dot_product_flash_attention_for_cpu"], False, "matmul"),
        (["aten::_weight_int8pack_mm"], False, "matmul"),
        (["aten::softmax"], False, "other"),
    ],
)
def test_operators_are_classed_by_their_names(path, inside, found):
    assert classify(path, inside) == found


def test_kernels_are_classed_by_their_names():
    assert kernel_class("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64") == "matmul"
    assert kernel_class("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNT") == "matmul"
    assert kernel_class("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>") == "quantizing"
    assert kernel_class("vectorized_elementwise_kernel") is None


def test_views_start_nothing_and_composites_are_what_they_call():
    assert counts_as_started("aten::mm") is True
    assert counts_as_started("aten::view") is False
    assert counts_as_started("aten::linear") is None


def event(name, self_us=0.0, parent=None, shapes=(), kernels=(), mark=False):
    return SimpleNamespace(
        name=name, device_type="DeviceType.CPU", is_user_annotation=mark, cpu_parent=parent,
        self_cpu_time_total=self_us, input_shapes=[list(s) for s in shapes],
        kernels=[SimpleNamespace(name=n, duration=d) for n, d in kernels],
    )  # fmt: skip


def converted_layer(**of_product):
    mark = event("precision-explorer layer fc", mark=True)
    cast = event("aten::_to_copy", 1.0, mark, [(8, 4)])
    copy = event("aten::copy_", 300.0, cast, [(8, 4), (8, 4)])
    product = event("aten::mm", 500.0, mark, [(1, 4), (4, 8)], **of_product)
    inner = event("aten::copy_", 20.0, product)
    scale = event("aten::mul", 79.0, mark, [(1, 8), (8,)])
    outside = event("aten::mul", 50.0)
    return [mark, cast, copy, product, inner, scale, outside]


def test_the_timeline_of_a_converted_layer_by_hand():
    line = summed(converted_layer(), 1e-3, False, {"fc": 32})
    assert line.seconds == pytest.approx({"matmul": 520e-6, "quantizing": 380e-6, "other": 50e-6})
    assert (line.operators, line.matmuls) == (4, 1)  # cast, product, two scalings
    assert line.widened == {"fc"}
    assert line.shares()["outside"] == pytest.approx(0.05)
    assert summed(converted_layer(), 1e-3, False, {"fc": 33}).widened == set()


def test_on_cuda_kernels_count_for_the_operators_that_started_them():
    events = converted_layer(kernels=[("sm80_xmma_gemm", 10.0), ("splitKreduce_kernel", 2.0)])
    events[2].kernels = [SimpleNamespace(name="direct_copy_kernel", duration=5.0)]
    events += [event("cudaLaunchKernel", 3.0)] * 3
    line = summed(events, 1.0, True, {"fc": 32})
    assert line.seconds == pytest.approx({"matmul": 12e-6, "quantizing": 5e-6})
    assert line.operators == 3
    shares = line.shares(20e-6)
    assert shares["matmul"] == pytest.approx(0.6)
    assert shares["outside"] == pytest.approx(0.15)


def of_device(name, start_us, end_us, mark=False):
    span = SimpleNamespace(start=start_us, end=end_us)
    return SimpleNamespace(
        name=name, device_type="DeviceType.CUDA", is_user_annotation=mark, time_range=span
    )


def test_kernels_that_no_operator_started_count_by_their_own_names():
    """Of a replayed graph and of compiled code; the device's spans of marks are no work."""
    events = [
        event("aten::mm", kernels=[("nvjet_sm90_tst_64x8", 10.0)]),
        of_device("nvjet_sm90_tst_64x8", 0.0, 10.0),
        of_device("nvjet_sm90_tst_64x8", 10.0, 25.0),
        of_device("triton_poi_fused_add_0", 25.0, 29.0),
        of_device("## Call CompiledFxGraph abc ##", 0.0, 29.0),
        of_device("marked", 0.0, 29.0, mark=True),
        event("triton_poi_fused_add_0", kernels=[("triton_poi_fused_add_0", 4.0)]),
        event("cudaGraphLaunch"),
    ]
    line = summed(events, 1.0, True, {})
    assert line.seconds == pytest.approx({"matmul": 25e-6, "other": 4e-6})
    assert (line.operators, line.matmuls) == (1, 2)


def test_an_empty_pass_has_spent_all_outside():
    assert Timeline(0.0).shares()["outside"] == 1.0


def test_a_cache_of_fixed_size_is_cut_back_without_a_crop_too():
    """transformers before 5.18: a pass more than its room would write beyond its end."""
    layer = SimpleNamespace(cumulative_length=torch.tensor(5), cumulative_length_int=5)
    growing = SimpleNamespace(cumulative_length=5)
    passes._step_back(SimpleNamespace(layers=[layer, growing]))
    assert (int(layer.cumulative_length), layer.cumulative_length_int) == (4, 4)
    assert growing.cumulative_length == 5

    class Fixed:
        def __init__(self):
            self.layers = [SimpleNamespace(cumulative_length=torch.tensor(128))]

        def crop(self, count):
            raise AttributeError("'StaticLayer' object has no attribute 'crop'")

    cache = Fixed()

    def model(**given):
        cache.layers[0].cumulative_length.add_(0 if "cache" not in given else 1)
        return SimpleNamespace(cache=cache)

    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=9))
    adapter = SimpleNamespace(
        model=model, pad=0, device="cpu", max_length=256, _keeps=False, _cache="cache"
    )
    run = decode_pass(adapter, 1)
    for _ in range(3):
        run.call()
        assert int(cache.layers[0].cumulative_length) == 129
        run.reset()
    assert int(cache.layers[0].cumulative_length) == 128


# -- repeats and utilisation ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call_s", "budget_s", "count"),
    [(0.1, 1.0, 10), (0.001, 1.0, 30), (0.1, 0.0, 3), (0.75, 0.5, 1), (2.0, 0.5, 1)],
)
def test_a_call_is_repeated_within_its_budget(call_s, budget_s, count):
    clock, calls, resets = FakeClock(), [], []

    def call():
        calls.append(1)
        clock.sleep(call_s)

    def reset():
        resets.append(1)
        clock.sleep(50)

    taken = repeated(call, budget_s, reset=reset, clock=clock)
    assert taken == pytest.approx([call_s] * count)
    assert len(resets) == len(calls)
    assert len(calls) == {10: 12, 30: 32, 3: 5, 1: 2 if call_s < 1 else 1}[count]


def test_utilisation_is_nvml_s_largest_and_none_without_a_gpu():
    class Nvml:
        class NVMLError(Exception):
            pass

        def nvmlDeviceGetHandleByPciBusId(self, bus_id):
            if bus_id != "here":
                raise self.NVMLError
            return bus_id

        def nvmlDeviceGetUtilizationRates(self, handle):
            return SimpleNamespace(gpu=87)

    with Utilisation("here", Nvml()) as seen:
        pass
    assert seen.share == pytest.approx(0.87)
    for bus_id in (None, "elsewhere"):
        with Utilisation(bus_id, Nvml()) as seen:
            pass
        assert seen.share is None


# -- roofs ----------------------------------------------------------------------------------


def test_a_matmul_s_rate_is_operations_over_its_median(monkeypatch):
    monkeypatch.setattr(roof_module, "_SHAPES", {"cpu": ((2, 3, 4), (4, 4, 4))})
    monkeypatch.setattr(roof_module, "_once", lambda call, device: call())
    seconds = {(2, 3, 4): 1.0, (4, 4, 4): 0.01}
    found = roof_module.matmul_rate(
        "float32", "torch", lambda shape, device: lambda: seconds[shape], "cpu"
    )
    assert found.shape == (2, 3, 4)  # The larger one would take too long at its rate.
    assert found.flops_per_s == pytest.approx(48)
    seconds[2, 3, 4] = 0.01
    found = roof_module.matmul_rate(
        "float32", "torch", lambda shape, device: lambda: seconds[shape], "cpu"
    )
    assert found.shape == (4, 4, 4)
    assert found.flops_per_s == pytest.approx(12800)


def test_a_type_that_does_not_run_or_saturates_has_no_roof(monkeypatch):
    def fails(shape, device):
        raise RuntimeError("not on this device\nmore")

    found = roof_module.matmul_rate("float8_e4m3fn", "scaled-mm", fails, "cpu")
    assert found.flops_per_s is None
    assert found.note == "RuntimeError: not on this device"
    monkeypatch.setattr(roof_module, "int8_linear", lambda linear, kernel: lambda x: x.new_ones(1))
    found = roof_module.matmul_rate("int8", "int-mm", fails, "cpu")
    assert found.note == "its sums saturate here: wrong results"


def test_every_kernel_of_a_cpu_multiplies_and_says_so(monkeypatch):
    monkeypatch.setattr(roof_module, "_SHAPES", {"cpu": ((32, 64, 64),)})
    for number_type, kernel, make in roof_module._candidates("cpu"):
        found = roof_module.matmul_rate(number_type, kernel, make, "cpu")
        saturates = found.note == "its sums saturate here: wrong results"
        assert found.flops_per_s or saturates, (kernel, found.note)


def test_bandwidths_and_launches_are_measured_over_what_was_asked():
    read = roof_module.read_bandwidth("cpu", 1 << 20)
    assert read.bytes_per_s > 0
    assert read.working_set_bytes == 1 << 20
    assert roof_module.copy_bandwidth("cpu", 1 << 20).working_set_bytes == 1 << 20
    found = roof_module.launch("cpu")
    assert 0 < found.operator_s < 1
    assert 0 < found.matmul_s < 1


def test_the_array_is_four_times_the_cache_or_left_out():
    assert roof_module._stream_bytes("cpu", 32 << 20, 8 << 30) == 128 << 20
    assert roof_module._stream_bytes("cpu", None, 8 << 30) == 1 << 30
    assert roof_module._stream_bytes("cuda:0", 32 << 20, 16 << 30) == 4 << 30
    assert roof_module._stream_bytes("cpu", None, 1 << 30) is None


def test_a_gpu_is_warmed_up_and_short_calls_are_timed_in_a_row(monkeypatch):
    """A call of 50 us, and 10 us to wait for the device: 2 us of them are left in each."""
    clock, calls = FakeClock(), []

    def call():
        calls.append(1)
        clock.sleep(50e-6)

    monkeypatch.setattr(roof_module.time, "perf_counter", clock)
    monkeypatch.setattr(roof_module, "_sync", lambda device: clock.sleep(10e-6))
    taken = roof_module._repeats(call, "cuda:0", 0.0)
    row = 34  # 2 ms of calls that took 60 us when they were timed alone.
    assert taken == pytest.approx([(50e-6 * row + 10e-6) / row] * 15)
    assert len(calls) * 50e-6 > 0.08
    calls.clear()
    assert roof_module._repeats(lambda: clock.sleep(0.3), "cuda:0", 0.0) == pytest.approx(
        [0.3 + 10e-6] * 4
    )


def test_a_gpu_s_fp8_roof_is_asked_for_as_the_formats_multiply(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "_scaled_mm", lambda *a, **k: asked.append(k))
    for number_type, _, make in roof_module._candidates("cuda"):
        if number_type == "float8_e4m3fn":
            make((4, 16, 32), "cpu")()
    assert [tuple(k["scale_a"].shape) for k in asked] == [(), (4, 1)]
    assert [tuple(k["scale_b"].shape) for k in asked] == [(), (1, 32)]
    assert all(k["use_fast_accum"] for k in asked)


def test_a_gpu_is_profiled_at_a_large_batch_too_where_fixed_shapes_have_it(llama):
    request = {"format": "fp32", "recipe": RECIPE, "device": "cuda:0"}

    def batches(sizes=(), **more):
        return profiling.make_subject(llama.model, llama, request | more, None, 0, sizes).batches

    assert batches() == batches(runtime="compile") == (1, 8, 64)
    assert batches(runtime="compile-fixed") == batches(device="cpu") == (1, 8)
    assert batches((1, 64, 256), runtime="compile-fixed") == (1, 8, 64)
    assert batches((64,), device="cpu") == (1, 8)


def test_the_last_level_cache_is_the_largest_level_s_data(tmp_path):
    levels = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("3", "Unified", "16M")]
    for place, values in enumerate(levels):
        folder = tmp_path / f"index{place}"
        folder.mkdir()
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(f"{value}\n")
    assert last_level_cache_bytes(tmp_path) == 16 << 20
    assert last_level_cache_bytes(tmp_path / "none") is None


def test_each_group_of_cores_has_its_own_last_level_cache(tmp_path):
    """Four cores with a small cache each, and a large one for each pair."""
    for core, pair in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for place, (level, users) in enumerate((("2", str(core)), ("3", pair))):
            folder = tmp_path / f"cpu{core}" / "cache" / f"index{place}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "shared_cpu_list").write_text(f"{users}\n")
    assert last_level_cache_count(tmp_path) == 2
    assert last_level_cache_count(tmp_path / "none") == 1


def answer():
    found = {"bytes_per_s": 1.0, "working_set_bytes": 1, "how": "sum"}
    return {
        "threads": 1, "matmul": [], "read": found, "cache": None, "copied": None,
        "launch": {"operator_s": 1.0, "matmul_s": 1.0},
    }  # fmt: skip


def test_the_roof_is_measured_once_and_anew_for_another_stack(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path))
    asked = []
    monkeypatch.setattr(runner_roof, "run_job", lambda *a: asked.append(a[0]) or (answer(), b""))
    facts, notes = device_facts("cpu"), []
    first = runner_roof.device_roof(facts, {"torch": "1"}, 1, notes.append)
    assert runner_roof.device_roof(facts, {"torch": "1"}, 1, notes.append) == first
    assert (asked, len(notes)) == (["roof"], 1)
    for versions, threads in (({"torch": "2"}, 1), ({"torch": "1"}, 2)):
        runner_roof.device_roof(facts, versions, threads, notes.append)
    assert len(asked) == 3
    (tmp_path / "roof" / f"{first.key}.json").write_text("{")
    runner_roof.device_roof(facts, {"torch": "1"}, 1, notes.append)
    assert len(asked) == 4


def test_a_roof_that_fails_stops_no_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path))

    def fail(*arguments):
        raise JobFailed("roof: its worker did not start")

    monkeypatch.setattr(runner_roof, "run_job", fail)
    notes = []
    assert runner_roof.device_roof(device_facts("cpu"), {}, 1, notes.append) is None
    assert "its worker did not start" in notes[-1].data["text"]
    assert not list(tmp_path.rglob("*.json"))


def test_a_stored_run_s_roof_is_measured_on_its_own_device_only():
    facts = device_facts("cpu")
    sweep = {
        "run": "mine",
        "device": facts.model_dump(mode="json"),
        "environment": {"threads": 1},
    }
    known = runner_roof.roof_of_run(sweep, lambda event: None)
    assert known.key == runner_roof.roof_key(facts, library_versions(), 1)
    for change in ({"name": "another"}, {"kind": "cuda", "device": "cuda:7"}):
        elsewhere = sweep | {"device": sweep["device"] | change}
        with pytest.raises(StoreError, match="another device"):
            runner_roof.roof_of_run(elsewhere, lambda event: None)


def test_the_manifest_covers_the_roof(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open()
    folder.write_sweep({"run": "x"})
    without = folder.write_manifest()
    assert folder.read_roof() is None
    folder.write_roof(Roof.model_validate(answer()))
    assert folder.read_roof() == Roof.model_validate(answer())
    assert folder.write_manifest() != without
    folder.close()


def test_conv1d_counts_as_a_linear_layer():
    from transformers.pytorch_utils import Conv1D

    model = nn.Sequential(Conv1D(6, 4))
    (layer,) = linear_layers(model, spec_of("fp32"), "float32").values()
    assert (layer.inner, layer.outer, layer.number_type) == (4, 6, "float32")


def test_the_job_answers_with_every_roof_and_reports_progress(monkeypatch):
    monkeypatch.setattr(roof_module, "_SHAPES", {"cpu": ((32, 64, 64),)})
    monkeypatch.setattr(roof_module, "last_level_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(roof_module, "last_level_cache_count", lambda: 2)
    seen = []
    request = {"device": "cpu", "memory_bytes": 1 << 40, "threads": 1}
    document, arrow = roof_module.measure_roof(request, lambda *step: seen.append(step))
    found = Roof.model_validate(document)
    assert arrow == b""
    assert found.peak("float32").flops_per_s > 0
    assert found.peak("tf32") is None
    assert (found.read.working_set_bytes, found.cache.working_set_bytes) == (8 << 20, 1 << 19)
    assert seen[-1] == ("roof", len(found.matmul), len(found.matmul))
    small = roof_module.measure_roof(request | {"memory_bytes": 1 << 20}, lambda *step: None)[0]
    assert small["read"] is None


class DeadWorker:
    """A worker that dies of the profile."""

    def __init__(self):
        self.killed = False
        self.process = SimpleNamespace(is_alive=lambda: not self.killed)

    def ask(self, request, deadline):
        raise WorkerGone("failed", "WorkerCrashed", "the worker was ended by SIGSEGV", "SIGSEGV")

    def kill(self):
        self.killed = True


def test_a_worker_that_dies_of_the_profile_costs_no_cell():
    worker, events = DeadWorker(), []
    executor = SimpleNamespace(roof=None, _ledger=SimpleNamespace(note=events.append))
    why = "the worker was ended by SIGSEGV"
    assert Executor._profile(executor, worker, {}, 0.0) == {"why": why}
    assert worker.killed
    assert "SIGSEGV" in events[0]
