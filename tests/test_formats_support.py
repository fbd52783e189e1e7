"""What a device makes of each format, from faked facts and answers. No torch is imported."""

import subprocess
import sys

import pytest

from precision_explorer.formats import AS_SHIPPED, CATALOG, DEFAULT_FORMATS, decide
from precision_explorer.formats.catalog import MIXED
from precision_explorer.formats.support import candidates
from precision_explorer.hardware import device_facts
from precision_explorer.hardware.fakes import FakeGpu, FakeNvml

DEFAULT = [
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only", "int8-llm",
    "int8-weight-only", "int8-dynamic",
]  # fmt: skip
CONTRACT = [
    *DEFAULT, "int8-static",
    "nf4", "int4-weight-only", "fp8-dynamic-per-tensor", "mxfp8", "nvfp4", "bf16-autocast",
]  # fmt: skip


def cpu(flags=""):
    text = f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse2 f16c avx2 {flags}\n"
    return device_facts("cpu", cpuinfo=text, variables={})


def gpu(capability):
    nvml = FakeNvml([FakeGpu(capability=capability)])
    return device_facts("cuda:0", cpuinfo="", nvml=nvml, variables={})


AVX2 = cpu()
AVX512 = cpu("avx512f")
VNNI = cpu("avx512f avx512_vnni avx512_bf16")
H100, A100, T4, L4, B200 = gpu((9, 0)), gpu((8, 0)), gpu((7, 5)), gpu((8, 9)), gpu((10, 0))
DEVICES = [AVX2, AVX512, VNNI, H100, A100, T4, L4]


def answer(kernel="torch", dtype="float32", **more):
    recipe = {"kernel": kernel, "library": "some", "compute_dtype": dtype}
    return {"kernel": kernel, "recipe": recipe, "ok": True, **more}


def execution(format_id, facts, **more):
    return decide(format_id, facts, answer(**more)).execution


def test_the_ids_are_the_contracts_and_the_first_nine_are_default():
    assert list(CATALOG) == [*CONTRACT, AS_SHIPPED]
    assert list(DEFAULT_FORMATS) == DEFAULT
    assert all(spec.id == name for name, spec in CATALOG.items())


def test_every_format_has_a_handler_and_no_handler_is_without_format():
    from precision_explorer.formats.apply import _HANDLERS

    assert set(_HANDLERS) == {*CATALOG, MIXED}


def test_the_reading_wing_may_import_the_catalogue_without_torch():
    code = "import sys, precision_explorer.formats as f; f.decide; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("facts", "tf32", "fp8"),
    [
        (AVX2, False, False),
        (VNNI, False, False),
        (T4, False, False),
        (A100, True, False),
        (L4, True, True),
        (H100, True, True),
    ],
)
def test_tf32_and_fp8_dynamic_follow_the_facts(facts, tf32, fp8):
    for format_id, native in (
        ("tf32", tf32),
        ("fp8-dynamic", fp8),
        ("fp8-dynamic-per-tensor", fp8),
    ):
        found = decide(format_id, facts, answer())
        assert found.execution == ("native" if native else "unsupported")
        assert found.supported is native
        assert ("8.0" in found.why or "8.9" in found.why) or native
        assert found.reason


def test_what_the_facts_rule_out_is_not_tried():
    fp8 = ("fp8-dynamic", "fp8-dynamic-per-tensor")
    assert candidates(AVX2, CONTRACT) == [f for f in CONTRACT if f not in ("tf32", *fp8)]
    assert candidates(A100, CONTRACT) == [f for f in CONTRACT if f not in fp8]
    assert candidates(H100, CONTRACT) == CONTRACT


@pytest.mark.parametrize("facts", DEVICES)
@pytest.mark.parametrize(
    ("format_id", "storage"),
    [
        ("int8-weight-only", "int8"),
        ("fp8-weight-only", "float8_e4m3fn"),
        ("nf4", "nf4"),
        ("int4-weight-only", "int4"),
    ],
)
def test_weight_only_is_dequantized_everywhere(facts, format_id, storage):
    found = decide(format_id, facts, answer("torchao", "bfloat16"))
    assert found.execution == "dequantized"
    assert storage in found.reason
    assert "bfloat16" in found.reason


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (AVX2, "dequantized"),
        (AVX512, "emulated"),
        (VNNI, "native"),
        (T4, "native"),
        (H100, "native"),
    ],
)
def test_llm_int8_needs_avx512_and_vnni_on_a_processor(facts, expected):
    found = decide("int8-llm", facts, answer("bitsandbytes"))
    assert found.execution == expected
    assert "bitsandbytes" in found.reason


@pytest.mark.parametrize(
    ("facts", "kernel", "expected"),
    [
        (AVX2, "fbgemm-per-token-paired", "native"),
        (AVX2, "onednn-per-token-paired", "native"),
        (AVX2, "int-mm", "emulated"),
        (AVX2, "torchao", "emulated"),
        (VNNI, "fbgemm-per-token", "native"),
        (VNNI, "torchao", "native"),
        (A100, "int-mm", "native"),
        (gpu((6, 0)), "int-mm", "emulated"),
    ],
)
def test_int8_dynamic_is_as_native_as_its_kernel(facts, kernel, expected):
    found = decide("int8-dynamic", facts, answer(kernel))
    assert found.execution == expected
    assert kernel in found.reason


@pytest.mark.parametrize(
    ("facts", "ratio", "expected"),
    [
        (VNNI, 2.0, "native"),
        (VNNI, 0.61, "native"),
        (VNNI, 0.3, "emulated"),
        (VNNI, None, "native"),
        (AVX2, 0.2, "emulated"),
        (AVX2, None, "emulated"),
        (H100, 8.0, "native"),
        (H100, 0.5, "emulated"),
        (T4, 1.0, "emulated"),
    ],
)
def test_bf16_is_native_only_where_it_is_there_and_used(facts, ratio, expected):
    more = {} if ratio is None else {"speed_ratio": ratio}
    found = decide("bf16", facts, answer(dtype="bfloat16", **more))
    assert found.execution == expected
    assert (ratio is None) or f"{ratio:.2g} x fp32" in found.reason


def test_fp16_is_native_on_a_t4_and_emulated_without_its_instructions():
    assert execution("fp16", T4, dtype="float16") == "native"
    assert execution("fp16", VNNI, dtype="float16", speed_ratio=0.02) == "emulated"
    assert execution("fp16", cpu("avx512_fp16"), dtype="float16", speed_ratio=1.9) == "native"


@pytest.mark.parametrize("format_id", ["mxfp8", "nvfp4"])
def test_scaled_blocks_are_native_on_blackwell_and_emulated_elsewhere(format_id):
    assert execution(format_id, B200, kernel="scaled-mm") == "native"
    for facts in (VNNI, A100, H100):
        found = decide(format_id, facts, answer("emulated", "bfloat16"))
        assert found.execution == "emulated"
        assert "10.0" in found.reason
        assert "multiplied in bfloat16" in found.reason
    # Where the hardware has it but the library does not use it.
    assert execution(format_id, B200, kernel="emulated") == "emulated"


@pytest.mark.parametrize(
    ("facts", "ratio", "expected"),
    [(VNNI, 2.0, "native"), (VNNI, 0.3, "emulated"), (AVX2, 0.2, "emulated"), (T4, 1, "emulated")],
)
def test_autocast_is_as_native_as_bf16(facts, ratio, expected):
    found = decide("bf16-autocast", facts, answer(speed_ratio=ratio))
    assert found.execution == expected
    assert "bf16" in found.reason
    assert f"{ratio:.2g} x fp32" in found.reason


@pytest.mark.parametrize("facts", DEVICES)
def test_fp32_is_native_everywhere(facts):
    assert execution("fp32", facts) == "native"


@pytest.mark.parametrize("format_id", CONTRACT)
def test_no_format_is_supported_on_faith(format_id):
    found = decide(format_id, H100, None)
    assert found.execution == "unsupported"
    assert "dry run" in found.reason
    assert found.recipe == {}


@pytest.mark.parametrize("format_id", CONTRACT)
def test_a_failed_dry_run_makes_a_format_unsupported_and_says_why(format_id):
    failed = answer() | {"ok": False, "why": "ImportError: no such library"}
    found = decide(format_id, H100, failed)
    assert found.execution == "unsupported"
    assert "no such library" in found.reason


@pytest.mark.parametrize("format_id", CONTRACT)
def test_the_recipe_of_the_dry_run_is_carried(format_id):
    given = answer("some kernel", "bfloat16")
    assert decide(format_id, H100, given).recipe == given["recipe"]
