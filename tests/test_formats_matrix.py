"""What recorded devices make of every format, and the matrix as a document."""

import json

import pytest

from precision_explorer.cli import main
from precision_explorer.formats import CATALOG, decide
from precision_explorer.formats.matrix import probed_document, profile_document, promises
from precision_explorer.formats.support import promise
from precision_explorer.hardware import PROFILES
from precision_explorer.runner import sweep
from tests.test_formats_support import AVX2, H100, T4, VNNI, answer

# Written down by hand: n native, d dequantized, e emulated, u unsupported. AVX2 and the V100 have
# no int8 units of their own; AVX2 adds products of paired weights soundly, the V100 has dp4a.
GOLDEN = {
    #                   fp32 tf32 bf16 fp16 fp8-d fp8-wo llm wo dynamic
    "x86-avx2":         "n u e e u d d d n",
    "x86-avx512-vnni":  "n u e e u d n d n",
    "x86-avx512-bf16":  "n u n e u d n d n",
    "x86-amx":          "n u n n u d n d n",
    "arm-neoverse-n1":  "n u e n u d d d n",
    "arm-neoverse-v2":  "n u n n u d d d n",
    "v100":             "n u e n u d n d n",
    "t4":               "n u e n u d n d n",
    "a10":              "n n n n u d n d n",
    "a100":             "n n n n u d n d n",
    "l4":               "n n n n n d n d n",
    "h100":             "n n n n n d n d n",
    "b200":             "n n n n n d n d n",
}  # fmt: skip
NINE = (
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only", "int8-llm",
    "int8-weight-only", "int8-dynamic",
)  # fmt: skip
WORDS = {"n": "native", "d": "dequantized", "e": "emulated", "u": "unsupported"}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_promises(name):
    found = [promise(f, PROFILES[name].facts()).execution for f in NINE]
    assert found == [WORDS[letter] for letter in GOLDEN[name].split()]


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_answers_for_every_format_and_never_says_measured(name):
    supports = promises(PROFILES[name])
    assert list(supports) == list(CATALOG)
    for support in supports.values():
        assert "measured" not in support.why
        assert support.answer is None
        assert support.recipe == {}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("format_id", NINE)
def test_a_dry_run_that_goes_well_keeps_the_promise(name, format_id):
    """The rules stand in one place: with an answer that adds nothing, the decision is the same."""
    facts = PROFILES[name].facts()
    kernel = "fbgemm-per-token-paired" if facts.kind == "cpu" else "int-mm"
    found = decide(format_id, facts, answer(kernel))
    assert found.execution == promise(format_id, facts).execution
    assert found.remedy == promise(format_id, facts).remedy


def test_a_promise_is_no_support_for_a_sweep():
    assert promise("bf16", H100).execution == "native"
    assert decide("bf16", H100, None).execution == "unsupported"


@pytest.mark.parametrize(
    ("format_id", "facts", "words"),
    [
        ("tf32", T4, ["tf32 tensor cores", "A100", "8.0 or higher"]),
        ("fp8-dynamic", AVX2, ["fp8 tensor cores", "L4, L40S, H100, H200, B200", "8.9 or higher"]),
        ("bf16", T4, ["bf16 units", "A100", "AVX512_BF16"]),
        ("fp16", VNNI, ["fp16 units", "T4", "AVX512_FP16"]),
        ("int8-llm", AVX2, ["int8 units", "VNNI"]),
    ],
)
def test_what_does_not_run_here_says_what_would_run_it(format_id, facts, words):
    found = decide(format_id, facts, answer("bitsandbytes"))
    assert all(word in found.remedy for word in words)
    assert found.why == f"{found.reason}; {found.remedy}"


@pytest.mark.parametrize("format_id", ["fp32", "bf16", "fp8-weight-only", "int8-dynamic"])
def test_what_runs_as_meant_needs_nothing(format_id):
    found = decide(format_id, H100, answer("int-mm"))
    assert found.remedy is None
    assert found.why == found.reason


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("ModuleNotFoundError: No module named 'torchao'", "pip install torchao"),
        ("ModuleNotFoundError: No module named 'mslk.kernels'", "pip install mslk"),
        ("ImportError: too old", "pip install torchao"),
        ("RuntimeError: No module named 'torchao'", None),
        ("wrong results: relative error 0.400 (saturation)", None),
    ],
)
def test_a_missing_library_comes_with_the_line_that_installs_it(why, remedy):
    failed = answer("torchao") | {"ok": False, "why": why}
    found = decide("int8-weight-only", H100, failed)
    assert found.execution == "unsupported"
    assert found.remedy == remedy
    assert found.answer == failed


KEYS = {
    "weights", "activations", "execution", "reason", "remedy", "probed", "kernel", "library",
    "compute_dtype", "dry_run", "candidates",
}  # fmt: skip


def test_the_document_of_a_probed_device_has_what_the_dry_runs_found():
    tried = {"error": 0.01, "seconds": [1e-3, 2e-5], "speed_ratio": 2.0}
    given = answer("int-mm") | tried
    given["candidates"] = [answer("torchao") | {"ok": False, "why": "slow"}, answer("int-mm")]
    supports = {
        "int8-dynamic": decide("int8-dynamic", VNNI, given),
        "tf32": decide("tf32", VNNI, None),
    }
    found = json.loads(json.dumps(probed_document(VNNI, supports, {"torch": "2.13"})))
    assert found["probed"] is True
    assert found["libraries"] == {"torch": "2.13"}
    assert found["device"]["cpu_flags"] == list(VNNI.cpu_flags)
    assert found["device"]["compute_capability"] is None
    ran, ruled_out = found["formats"]["int8-dynamic"], found["formats"]["tf32"]
    assert set(ran) == set(ruled_out) == KEYS
    assert (ran["kernel"], ran["library"], ran["probed"]) == ("int-mm", "some", True)
    assert ran["dry_run"] == {
        "kernel": "int-mm", "compute_dtype": "float32", "ok": True, "why": None,
        "relative_error": 0.01, "seconds": [1e-3, 2e-5], "rate_over_fp32": 2.0,
    }  # fmt: skip
    assert [one["why"] for one in ran["candidates"]] == ["slow", None]
    assert (ruled_out["probed"], ruled_out["dry_run"], ruled_out["kernel"]) == (False, None, None)
    assert found["device"].keys() == profile_document(PROFILES["h100"], {})["device"].keys()


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["formats", *arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.parametrize("name", PROFILES)
def test_json_of_a_profile_parses_and_has_every_format(capsys, name):
    code, out, err = call(capsys, "--device-profile", name, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["schema_version"] == 1
    assert found["probed"] is False
    assert found["libraries"] is None
    assert found["device"]["profile"] == name
    assert found["device"]["source"]
    # Placeholders of the facts that decide must not leave the house as numbers.
    assert found["device"]["cores"] is None
    assert found["device"]["memory_bytes"] is None
    assert list(found["formats"]) == list(CATALOG)
    assert all(set(entry) == KEYS for entry in found["formats"].values())
    assert not any(entry["probed"] for entry in found["formats"].values())


def test_text_of_a_profile_marks_each_row_as_not_probed(capsys):
    code, out, err = call(capsys, "--device-profile", "l4")
    assert (code, err) == (0, "")
    rows = [line.split("│") for line in out.splitlines() if line.startswith("│")]
    named = [row for row in rows if row[1].strip()]
    assert [row[1].strip() for row in named] == list(CATALOG)
    assert all(row[3].strip().endswith("not probed") for row in named)
    assert "datasheet" in out


def test_json_of_this_machine_asks_for_the_whole_catalogue(capsys, monkeypatch):
    asked = []

    def probe(facts, formats, versions, threads, on_event):
        asked.extend(formats)
        return {f: decide(f, facts, answer()) for f in formats}

    monkeypatch.setattr(sweep, "probe", probe)
    monkeypatch.setattr(sweep, "prepare_environment", lambda *asked: None)
    code, out, _ = call(capsys, "--device", "cpu", "--json")
    found = json.loads(out)
    assert code == 0
    assert asked == list(found["formats"]) == list(CATALOG)
    assert found["probed"] is True
    assert found["libraries"]["torch"]
    assert found["device"]["cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device-profile", "h10"], ["unknown device profile 'h10'", "did you mean h100"]),
        (["--device-profile", "h100", "--device", "cpu"], ["--device", "--device-profile"]),
    ],
)
def test_wrong_use_is_one_line(capsys, arguments, words):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert all(word in err for word in words)
