"""Profiles of devices that are not at hand: published facts, and never another device's."""

import pytest

from precision_explorer.errors import UsageError
from precision_explorer.hardware import (
    PROFILES,
    bf16_native,
    fp8_native,
    named_profile,
    profile_for,
    tf32_native,
)
from precision_explorer.hardware.cpu import FLAGS

GPUS = [p for p in PROFILES.values() if p.kind == "cuda"]
CPUS = [p for p in PROFILES.values() if p.kind == "cpu"]


@pytest.mark.parametrize("profile", GPUS, ids=lambda p: p.id)
def test_narrower_types_are_at_least_as_fast(profile):
    order = ("float32", "tf32", "bfloat16", "float8_e4m3fn", "float4_e2m1fn")
    peaks = [profile.peak_per_s[kind] for kind in order if kind in profile.peak_per_s]
    assert peaks == sorted(peaks)
    half = profile.peak_per_s["float16"]
    assert profile.peak_per_s.get("bfloat16", half) == half
    # Four times on the RTX 4090, whose 16-bit products with float32 sums run at half rate.
    ratio = profile.peak_per_s.get("int8", 2 * half) / half
    assert round(ratio, 1) == (4 if profile.id == "rtx4090" else 2)


@pytest.mark.parametrize("profile", GPUS, ids=lambda p: p.id)
def test_figures_are_in_si_units(profile):
    """A slip by a thousand, or TFLOP/s written as FLOP/s, is outside of what any device has."""
    assert 1e12 < profile.peak_per_s["float32"] < 1e14
    assert 5e13 < profile.peak_per_s["float16"] < 1e16
    assert 2e11 < profile.memory_bytes_per_s < 1e13
    assert 1e10 < profile.memory_bytes < 1e12


@pytest.mark.parametrize("profile", GPUS, ids=lambda p: p.id)
def test_a_type_has_a_peak_where_the_capability_has_its_units(profile):
    for kind, native in (
        ("tf32", tf32_native), ("bfloat16", bf16_native), ("float8_e4m3fn", fp8_native)
    ):  # fmt: skip
        assert (kind in profile.peak_per_s) == native(profile.facts())[0]


@pytest.mark.parametrize("profile", CPUS, ids=lambda p: p.id)
def test_a_processor_is_its_instruction_sets_and_no_figures(profile):
    assert set(profile.cpu_flags) <= set(FLAGS)
    assert (profile.memory_bytes, profile.memory_bytes_per_s, dict(profile.peak_per_s)) == (
        None, None, {},
    )  # fmt: skip
    assert profile.facts().cpu_flags == profile.cpu_flags


def test_every_profile_names_its_source_and_can_t_be_changed():
    for name, profile in PROFILES.items():
        assert profile.id == name
        assert len(profile.source) > 10
        with pytest.raises(TypeError):
            profile.peak_per_s["float32"] = 1.0


@pytest.mark.parametrize(
    ("name", "profile_id"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80gb"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_nvml_s_names_find_their_profile(name, profile_id):
    assert profile_for(name).id == profile_id


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA H100",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA A100-40C",
        "NVIDIA A100X",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GH200 480GB",
        "NVIDIA B300",
        "Tesla V100-SXM2-16GB-N",
        "AMD EPYC",
        "",
    ],
)
def test_what_is_not_exactly_the_device_has_no_profile(name):
    assert profile_for(name) is None


def test_no_two_profiles_claim_one_name():
    names = [name for profile in PROFILES.values() for name in profile.nvml_names]
    assert len(names) == len(set(names))


def test_a_profile_is_found_however_it_is_written():
    assert named_profile("H100-NVL") is PROFILES["h100-nvl"]


@pytest.mark.parametrize(
    ("name", "near"), [("h10", "did you mean h100"), ("a10o", "a100"), ("§", "known")]
)
def test_an_unknown_profile_names_near_ones_and_all(name, near):
    with pytest.raises(UsageError) as error:
        named_profile(name)
    assert near in str(error.value)
    assert all(known in str(error.value) for known in PROFILES)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "bf16", "fp8", "int8", "gb_per_s"),
    [
        ("a100", 312, None, 624, 2039),
        ("l4", 121, 242, 242, 300),
        ("l40s", 362, 733, 733, 864),
        ("h100", 989, 1979, 1979, 3350),
        ("h200", 989, 1979, 1979, 4800),
        ("b200", 2250, 4500, 4500, 8000),
    ],
)
def test_dense_peaks_are_the_datasheets(name, bf16, fp8, int8, gb_per_s):
    """Not those with 2:4 sparsity, which vendors print in larger letters."""
    profile = named_profile(name)
    found = [profile.peak_per_s.get(kind) for kind in ("bfloat16", "float8_e4m3fn", "int8")]
    assert found == [None if tera is None else tera * 1e12 for tera in (bf16, fp8, int8)]
    assert profile.memory_bytes_per_s == gb_per_s * 1e9
