"""What a format makes of a model, counted by hand on small models built from their configs."""

import ctypes
import gc
import platform
from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from precision_explorer import units
from precision_explorer.errors import FormatNotApplied
from precision_explorer.formats import apply, footprint, kernels
from precision_explorer.formats.apply import apply_format, set_matmul_precision
from precision_explorer.formats.dryrun import _default_recipe
from precision_explorer.formats.kernels import CPU_KERNELS
from precision_explorer.formats.verify import census, layout, plain_tensors

X86 = platform.machine().lower() in ("x86_64", "amd64")
KERNELS = CPU_KERNELS if X86 else ("int-mm", "torchao")
CASTS = {"fp32": 4, "bf16": 2, "fp16": 2}
# (format, kernel of int8-dynamic) of everything that rewrites layers on a CPU.
CONVERTERS = [
    ("int8-weight-only", None),
    ("fp8-weight-only", None),
    ("int8-llm", None),
    *(("int8-dynamic", kernel) for kernel in KERNELS),
]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    set_matmul_precision("fp32")


def applied(model, format_id, kernel=None):
    recipe = _default_recipe(format_id, "cpu")
    if kernel is not None:
        recipe |= {"kernel": kernel}
    return apply_format(model.eval(), format_id, recipe, "unverified", "a test")


# -- models and their sizes by hand ------------------------------------------------------------


def bert(**more):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, type_vocab_size=2, num_labels=3, **more,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config)


# (outputs, inputs) of each linear layer but the head.
BERT_BODY = 2 * [*(4 * [(32, 32)]), (64, 32), (32, 64)] + [(32, 32)]
BERT_HEAD = 3 * 32
# Embeddings and their norm; biases and norms of two layers; biases of pooler and classifier.
BERT_OTHER = 50 * 32 + 16 * 32 + 2 * 32 + 64 + 2 * (4 * 32 + 64 + 32 + 2 * 64) + 32 + 3


def llama(tied, **more):
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        tie_word_embeddings=tied, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


LLAMA_BODY = 2 * [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)]
LLAMA_OTHER = 40 * 32 + (2 * 2 + 1) * 32
LLAMA_HEAD = 40 * 32


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    )


GPT2_BODY = 2 * [(96, 32), (32, 32), (128, 32), (32, 128)]
GPT2_OTHER = 40 * 32 + 16 * 32 + 2 * (96 + 32 + 128 + 32 + 4 * 32) + 2 * 32

MODELS = {
    "bert": (bert, BERT_BODY, BERT_HEAD, BERT_OTHER),
    "llama-tied": (lambda: llama(True), LLAMA_BODY, 0, LLAMA_OTHER),
    "llama-untied": (lambda: llama(False), LLAMA_BODY, LLAMA_HEAD, LLAMA_OTHER),
    "gpt2": (gpt2, GPT2_BODY, 0, GPT2_OTHER),
}


def elements(shapes):
    return sum(outer * inner for outer, inner in shapes)


def rows(shapes):
    return sum(outer for outer, _ in shapes)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("format_id", CASTS)
def test_casting_formats_hold_every_weight(name, format_id):
    make, body, head, other = MODELS[name]
    outcome = applied(make(), format_id)
    found = outcome.applied
    assert found.linear_elements == elements(body) + head
    assert found.converted_elements == found.linear_elements
    assert found.converted_share == 1.0
    total = elements(body) + head + other
    assert found.weight_bytes == CASTS[format_id] * total
    assert sum(found.elements_by_dtype.values()) == total
    assert list(found.elements_by_dtype) == [found.compute_dtype]
    assert found.left_behind == []
    assert outcome.cautions == []


def stored_by_hand(shapes, format_id, kernel):
    """Bytes of converted layers' weights with their scales, as the set of what may be right."""
    values, scales = elements(shapes), 4 * rows(shapes)
    if kernel is not None and kernel.startswith("fbgemm"):
        outer, inner = footprint.fbgemm_block(kernels._cpu_flags())
        padded = sum(-(-o // outer) * outer * (-(-i // inner) * inner) for o, i in shapes)
        return {padded + 3 * scales}
    if kernel is not None and kernel.startswith("onednn"):
        # Blocks of at most 64 outputs and 64 inputs, and what corrects for the zero point.
        padded = sum((-(-o // 64) * 64) * (-(-i // 64) * 64 + 4) for o, i in shapes)
        return set(range(values + 2 * scales, padded + 2 * scales + 1))
    if format_id == "int8-weight-only" or kernel == "torchao":
        # torchao stores an int8 zero point per row in some versions, though it is always 0.
        return {values + scales, values + scales + rows(shapes)}
    return {values + scales}


@pytest.mark.parametrize("name", ["bert", "llama-tied", "llama-untied"])
@pytest.mark.parametrize(("format_id", "kernel"), CONVERTERS)
def test_converting_formats_hold_all_but_the_head(name, format_id, kernel):
    make, body, head, other = MODELS[name]
    outcome = applied(make(), format_id, kernel)
    found = outcome.applied
    assert found.linear_elements == elements(body) + head
    assert found.converted_elements == elements(body)
    assert found.converted_share == elements(body) / (elements(body) + head)
    assert found.weight_bytes - 4 * (head + other) in stored_by_hand(body, format_id, kernel)
    assert found.weight_bytes == sum(found.bytes_by_dtype.values())
    left = [layer for layer in found.left_behind if layer.elements == head]
    assert len(left) == len(found.left_behind) == bool(head)
    assert all("head" in layer.reason for layer in left)
    # A head that is kept by custom is no surprise.
    assert outcome.cautions == []
    assert found.kernel == (kernel or _default_recipe(format_id, "cpu")["kernel"])


def test_the_librarys_own_figure_is_not_taken():
    # `get_memory_footprint` counts torchao's weights as if they were still in float32.
    found = applied(llama(True), "int8-weight-only").applied
    assert found.weight_bytes < 4 * LLAMA_OTHER + 2 * elements(LLAMA_BODY)


@pytest.mark.parametrize(("format_id", "kernel"), CONVERTERS)
def test_a_converted_model_still_answers_nearly_the_same(format_id, kernel):
    torch.manual_seed(0)
    model = bert().eval()
    ids = torch.randint(1, 50, (3, 9))
    with torch.inference_mode():
        before = model(ids).logits
        applied(model, format_id, kernel)
        after = model(ids).logits
    assert float((after - before).norm() / before.norm()) < 0.1
    assert not torch.equal(after, before)


def test_tf32_has_no_share_and_sets_the_switch():
    found = applied(bert(), "tf32").applied
    assert found.converted_share is None
    assert found.converted_elements is None
    assert found.weight_bytes == 4 * (elements(BERT_BODY) + BERT_HEAD + BERT_OTHER)
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    applied(bert(), "fp32")
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32


def test_a_library_that_allows_tf32_on_its_way_is_overruled(monkeypatch):
    """torchao 0.17 does so with its settings for Inductor, for the whole process."""

    def convert(model, *rest):
        torch.set_float32_matmul_precision("high")
        return {}

    monkeypatch.setattr(apply, "convert", convert)
    apply_format(llama(False), "fp32", _default_recipe("fp32", "cpu"), "native", "a test")
    assert torch.get_float32_matmul_precision() == "highest"


# -- sizes that kernels don't like -------------------------------------------------------------


class Odd(nn.Module):
    """Layers whose sizes are no multiples of 16, or of 8, or of anything."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(36, 20)
        self.b = nn.Linear(7, 5, bias=False)
        self.c = nn.Linear(64, 1)


@pytest.mark.parametrize(("format_id", "kernel"), [*((f, None) for f in CASTS), *CONVERTERS])
def test_odd_sizes_are_converted_or_named(format_id, kernel):
    model = Odd()
    outcome = applied(model, format_id, kernel)
    found = outcome.applied
    by_name = {"a": 720, "b": 35, "c": 64}
    left = {layer.name: layer.elements for layer in found.left_behind}
    assert found.linear_elements == 819
    assert found.converted_elements == 819 - sum(left.values())
    assert left.items() <= by_name.items()
    assert bool(left) == ("partly-converted" in [c.id for c in outcome.cautions])
    for name, layer in model.named_children():
        weight = getattr(layer, "weight", None)
        inner = () if weight is None else plain_tensors(weight)
        wide = any(t.dtype == torch.float32 and t.numel() == by_name[name] for t in inner)
        assert (name in left) == (wide and format_id != "fp32")
    dtype = getattr(torch, found.compute_dtype)
    with torch.inference_mode():
        for shape in [(1, 36), (3, 36), (2, 3, 36)]:
            assert model.a(torch.randn(shape, dtype=dtype)).shape == (*shape[:-1], 20)


# -- libraries that skip -----------------------------------------------------------------------


def with_handler(monkeypatch, format_id, function):
    monkeypatch.setitem(apply._HANDLERS, format_id, function)


@pytest.mark.parametrize("format_id", ["int8-weight-only", "int8-dynamic", "bf16"])
def test_a_library_that_skips_layers_silently_is_told_on(monkeypatch, format_id):
    original = apply._HANDLERS[format_id]
    first = "bert.encoder.layer.0.attention.self.query"

    def skipping(model, plan, recipe):
        if format_id == "bf16":
            model.get_submodule(first).to(torch.bfloat16)
        else:
            original(model, replace(plan, targets=(first,)), recipe)

    with_handler(monkeypatch, format_id, skipping)
    outcome = applied(bert(), format_id, "int-mm" if format_id == "int8-dynamic" else None)
    found = outcome.applied
    assert found.converted_elements == 32 * 32
    assert found.converted_share == 1024 / (elements(BERT_BODY) + BERT_HEAD)
    assert first not in [layer.name for layer in found.left_behind]
    surprising = [layer for layer in found.left_behind if layer.name != "classifier"]
    assert len(surprising) == len(BERT_BODY) - 1
    assert all("float32" in layer.reason for layer in surprising)
    (caution,) = outcome.cautions
    assert caution.id == "partly-converted"
    assert "bert.encoder.layer.0.attention.self.key" in caution.message
    assert f"and {len(surprising) - 5} more" in caution.message
    assert units.share(found.converted_share) in caution.message


@pytest.mark.parametrize("format_id", ["fp8-dynamic", "fp8-dynamic-per-tensor"])
def test_sizes_that_torchao_leaves_out_of_fp8_are_told_on(monkeypatch, format_id):
    """torchao leaves weights whose sizes are no multiples of 16 without a word. Done by hand here,
    as its own conversion asks for a GPU."""
    weight_only = apply._HANDLERS["fp8-weight-only"]

    def as_torchao(model, plan, recipe):
        shapes = {name: model.get_submodule(name).weight.shape for name in plan.targets}
        fit = tuple(n for n, shape in shapes.items() if all(size % 16 == 0 for size in shape))
        weight_only(model, replace(plan, targets=fit), recipe)

    with_handler(monkeypatch, format_id, as_torchao)
    model = Odd()
    model.d = nn.Linear(32, 48)
    outcome = applied(model, format_id)
    assert outcome.applied.converted_elements == 32 * 48
    assert outcome.applied.converted_share == 1536 / (819 + 1536)
    assert {layer.name for layer in outcome.applied.left_behind} == {"a", "b", "c"}
    assert all("without saying so" in layer.reason for layer in outcome.applied.left_behind)
    assert [caution.id for caution in outcome.cautions] == ["partly-converted"]


@pytest.mark.parametrize("format_id", ["int8-weight-only", "int8-llm", "bf16", "fp8-weight-only"])
def test_a_library_that_converts_nothing_is_refused(monkeypatch, format_id):
    with_handler(monkeypatch, format_id, lambda model, plan, recipe: None)
    with pytest.raises(FormatNotApplied, match=f"{format_id} converted none") as caught:
        applied(bert(), format_id)
    assert "\n" not in str(caught.value)
    assert "bert.encoder.layer.0.attention.self.query" in str(caught.value)


@pytest.mark.parametrize(("format_id", "kernel"), CONVERTERS)
def test_a_model_without_anything_to_convert_is_refused(format_id, kernel):
    with pytest.raises(FormatNotApplied, match="Conv1D"):
        applied(gpt2(), format_id, kernel)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(FormatNotApplied, match="no linear layer"):
        applied(nn.Sequential(nn.Embedding(5, 4)), "int8-llm")


def test_experts_stacked_in_one_tensor_count_and_are_named():
    config = transformers.MixtralConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, tie_word_embeddings=True,
    )  # fmt: skip
    attention, experts = 2 * 32 * 32 + 2 * 16 * 32, 4 * 3 * 32 * 48
    outcome = applied(transformers.MixtralForCausalLM(config), "int8-weight-only")
    found = outcome.applied
    assert found.linear_elements == attention + experts
    assert found.converted_share == attention / (attention + experts)
    assert sum(layer.elements for layer in found.left_behind) == experts
    assert [c.id for c in outcome.cautions] == ["partly-converted"]
    assert "experts" in outcome.cautions[0].message
    whole = applied(transformers.MixtralForCausalLM(config), "bf16")
    assert whole.applied.converted_share == 1.0
    assert whole.cautions == []


# -- heads -------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "vocab_size": 50, "num_labels": 3, "pad_token_id": 0,
}  # fmt: skip
HEADS = {
    "Bert": (SMALL, "classifier"),
    "DistilBert": (
        {"dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 2, "num_labels": 3},
        "classifier",
    ),
    "Roberta": (SMALL, "classifier.out_proj"),
    "XLMRoberta": (SMALL, "classifier.out_proj"),
    "Electra": (SMALL, "classifier.out_proj"),
    "ModernBert": (SMALL, "classifier"),
    "Llama": (SMALL, "score"),
    "GPTNeoX": (SMALL, "score"),
    "GPT2": ({"n_embd": 32, "n_layer": 1, "n_head": 2, "num_labels": 3}, "score"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_classification_head_is_kept_and_nothing_else(name):
    arguments, head = HEADS[name]
    config = getattr(transformers, f"{name}Config")(**arguments)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    found = layout(model)
    assert found.heads == (head,)
    assert "head" in found.kept[head]
    assert head not in found.targets
    conv1d = [n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"]
    assert set(found.kept) == {head, *conv1d}
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert set(found.targets) == set(linear) - {head}


def test_a_layer_of_the_body_as_wide_as_the_labels_is_no_head():
    # XLM-Roberta makes its head before its body.
    config = transformers.XLMRobertaConfig(**SMALL | {"num_labels": 32})
    found = layout(transformers.XLMRobertaForSequenceClassification(config))
    assert found.heads == ("classifier.out_proj",)


def test_the_output_head_is_kept_unless_it_is_tied():
    assert layout(llama(False)).heads == ("lm_head",)
    tied = layout(llama(True))
    assert tied.heads == ()
    assert "lm_head" not in tied.elements


# -- the census --------------------------------------------------------------------------------


def test_tied_weights_are_stored_once():
    model = llama(True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert census(model).weight_bytes == 4 * (elements(LLAMA_BODY) + LLAMA_OTHER)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    assert census(model).weight_bytes == 4 * (elements(LLAMA_BODY) + LLAMA_OTHER + LLAMA_HEAD)


def test_persistent_buffers_count_and_others_do_not():
    model = nn.Module()
    model.register_buffer("kept", torch.zeros(10, dtype=torch.int64))
    model.register_buffer("made", torch.zeros(99), persistent=False)
    found = census(model)
    assert found.weight_bytes == 80
    assert found.elements_by_dtype == {"int64": 10}


@pytest.mark.parametrize(
    ("flags", "variable", "padded"),
    [
        ({"avx2"}, "", 576 * 1024),
        ({"avx2", "avx512f"}, "", 576 * 768),
        ({"avx2", "avx512f", "avx512_vnni"}, "", 576 * 1024),
        ({"avx2", "avx512f", "avx512_vnni"}, "AVX2", 576 * 1024),
        ({"avx2", "avx512f", "avx512_vnni"}, "avx512", 576 * 768),
    ],
)
def test_fbgemm_blocks_by_instruction_set(monkeypatch, flags, variable, padded):
    monkeypatch.setattr(kernels, "_cpu_flags", lambda: frozenset(flags))
    monkeypatch.setenv("FBGEMM_ENABLE_INSTRUCTIONS", variable)
    outer, inner = footprint.fbgemm_block(kernels._cpu_flags())
    assert -(-576 // outer) * outer * (-(-576 // inner) * inner) == padded


class MallInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


def allocated():
    """Bytes that the C library has handed out; the resident size would hold freed memory too."""
    gc.collect()
    function = ctypes.CDLL("libc.so.6").mallinfo2
    function.restype = MallInfo
    found = function()
    return found.uordblks + found.hblkhd


def has_mallinfo2():
    try:
        return hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2")
    except OSError:
        return False


@pytest.mark.skipif(not has_mallinfo2(), reason="needs glibc 2.33's mallinfo2")
@pytest.mark.parametrize("sizes", [(576, 576), (260, 1000)])
@pytest.mark.parametrize(("format_id", "kernel"), CONVERTERS)
def test_weight_bytes_are_what_the_process_holds(format_id, kernel, sizes):
    def build(count):
        model = nn.Sequential(*(nn.Linear(*sizes, bias=False) for _ in range(count)))
        with torch.inference_mode():
            found = applied(model, format_id, kernel).applied
            for layer in model:
                layer(torch.randn(4, sizes[0]))
        return model, found.weight_bytes

    build(1)  # Imports and first-call workspaces are no weights.
    before = allocated()
    model, counted = build(10)
    assert len(model) == 10
    assert counted == pytest.approx(allocated() - before, rel=0.03)


# -- casting -----------------------------------------------------------------------------------


def test_casting_a_model_loaded_in_the_dtype_changes_nothing(tmp_path):
    torch.manual_seed(0)
    llama(True).save_pretrained(tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.randint(0, 40, (1, 60))
    with torch.inference_mode():
        before = model(ids).logits
        frequencies = {name: b.clone() for name, b in model.named_buffers()}
        applied(model, "bf16")
        after = model(ids).logits
    # Rotary frequencies in bf16 would turn late positions by whole radians.
    assert frequencies
    for name, buffer in model.named_buffers():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, frequencies[name])
    assert torch.equal(after, before)


def test_casting_a_model_loaded_in_another_dtype_casts_its_weights_only():
    model = llama(True)
    found = applied(model, "fp16").applied
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
    assert found.converted_share == 1.0
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_modules_that_a_model_keeps_in_float32_are_named():
    model = bert().to(torch.bfloat16)
    model.bert.pooler.to(torch.float32)
    outcome = applied(model, "bf16")
    assert [layer.name for layer in outcome.applied.left_behind] == ["bert.pooler.dense"]
    assert [c.id for c in outcome.cautions] == ["partly-converted"]
