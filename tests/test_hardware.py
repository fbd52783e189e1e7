"""Device facts from recorded processors and a fake NVML; what they can do; libraries."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from precision_explorer.errors import UsageError
from precision_explorer.hardware import (
    NEEDS,
    DeviceFacts,
    bf16_native,
    container,
    cpu,
    device_facts,
    device_settings,
    fp8_native,
    fp16_native,
    int8_native,
    library_versions,
    relevant_variables,
    resolve_device,
    tf32_native,
)
from precision_explorer.hardware.fakes import FakeGpu, FakeNvml
from precision_explorer.hardware.libraries import WITHHELD
from precision_explorer.records import DeviceSettings

_BASE = "fpu vme sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi2"


def x86(model, extra="", cpus=((0, "0", "0"),)):
    """A text like /proc/cpuinfo's: one block per (processor, package, core)."""
    blocks = [
        f"processor\t: {number}\nvendor_id\t: x\nmodel name\t: {model}\nphysical id\t: {package}\n"
        f"core id\t\t: {core}\nflags\t\t: {_BASE} {extra}\nbugs\t\t: spectre_v1 avx512f_bug\n"
        for number, package, core in cpus
    ]
    return "\n".join(blocks) + "\n"


HASWELL = x86("Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz")
SAPPHIRE = x86(
    "Intel(R) Xeon(R) Platinum 8481C",
    "avx_vnni avx512_bf16 avx512f avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8",
    ((0, "0", "0"), (1, "0", "1"), (2, "0", "0"), (3, "0", "1")),
)
ZEN4 = x86("AMD EPYC 9654 96-Core Processor", "avx512f avx512_bf16 avx512_vnni")
GRAVITON3 = (
    "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd fphp asimdhp asimddp i8mm bf16 sve\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\n\n"
)


def facts(text, **variables):
    return device_facts("cpu", cpuinfo=text, variables=variables)


@pytest.mark.parametrize(
    ("text", "model", "flags"),
    [
        (HASWELL, "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz", ("f16c", "avx2")),
        (
            ZEN4,
            "AMD EPYC 9654 96-Core Processor",
            ("f16c", "avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
        ),
        (GRAVITON3, "Arm Neoverse-V1", ("asimddp", "i8mm", "bf16", "fphp", "asimdhp")),
    ],
)
def test_model_and_flags_of_recorded_processors(text, model, flags):
    found = facts(text)
    assert (found.cpu_model, found.cpu_flags) == (model, flags)
    assert (found.kind, found.device, found.name) == ("cpu", "cpu", model)
    assert found.compute_capability is None
    assert found.device_memory_bytes is None


@pytest.mark.parametrize(
    ("text", "int8", "bf16", "fp16"),
    [
        (HASWELL, False, False, False),
        (SAPPHIRE, True, True, True),
        (ZEN4, True, True, False),
        (GRAVITON3, True, True, True),
    ],
)
def test_what_recorded_processors_compute_in(text, int8, bf16, fp16):
    found = facts(text)
    answers = [int8_native(found), bf16_native(found), fp16_native(found)]
    assert [native for native, _ in answers] == [int8, bf16, fp16]
    assert fp8_native(found)[0] is False
    assert tf32_native(found)[0] is False
    assert "8.9" in NEEDS["float8_e4m3fn"]


def test_the_reason_names_the_instructions_found_or_the_cap():
    assert "avx512_vnni" in int8_native(facts(ZEN4))[1]
    native, reason = int8_native(facts(ZEN4, ONEDNN_MAX_CPU_ISA="AVX2"))
    assert not native
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in reason


@pytest.mark.parametrize(
    ("caps", "kept"),
    [
        ({"ATEN_CPU_CAPABILITY": "avx2"}, {"f16c", "avx2", "avx_vnni"}),
        ({"ATEN_CPU_CAPABILITY": "default"}, {"f16c"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"f16c", "avx2"}),
        ({"ONEDNN_MAX_CPU_ISA": "avx2"}, {"f16c", "avx2"}),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"f16c", "avx2", "avx512f"}),
        (
            {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
            {"f16c", "avx2", "avx_vnni", "avx512f", "avx512_vnni"},
        ),
    ],
)
def test_caps_remove_what_libraries_may_not_use(caps, kept):
    found = facts(SAPPHIRE, **caps)
    assert set(found.cpu_flags) == kept
    assert found.capped == caps


@pytest.mark.parametrize(
    "caps", [{}, {"ONEDNN_MAX_CPU_ISA": "ALL"}, {"ATEN_CPU_CAPABILITY": "AVX2"}]
)
def test_a_cap_that_its_library_ignores_removes_nothing(caps):
    assert len(facts(SAPPHIRE, **caps).cpu_flags) == 10
    assert facts(SAPPHIRE, **caps).capped == caps


def test_only_what_all_cores_of_a_hybrid_processor_have_counts():
    text = x86("Hybrid", "avx_vnni avx512f") + x86("Hybrid", "avx_vnni", ((1, "0", "1"),))
    assert facts(text).cpu_flags == ("f16c", "avx2", "avx_vnni")


def test_cores_are_physical_schedulable_and_within_the_quota():
    core_of = cpu.parse_cpuinfo(SAPPHIRE).core_of
    assert cpu.count_cores({0, 1, 2, 3}, core_of, None) == 2
    assert cpu.count_cores({0, 2}, core_of, None) == 1
    assert cpu.count_cores({0, 1, 2, 3}, {}, None) == 4
    assert cpu.count_cores({0, 1, 2, 3}, {}, 2.5) == 2
    assert cpu.count_cores({0, 1}, core_of, 0.5) == 1
    assert cpu.count_cores({0, 9}, core_of, None) == 2


def _cgroup(tmp_path, membership, files):
    proc, root = tmp_path / "cgroup", tmp_path / "root"
    proc.write_text(membership)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return proc, root


def test_cgroup_v2_limits_of_the_group_and_its_ancestors(tmp_path):
    files = {
        "a/cpu.max": "150000 100000\n",
        "a/b/cpu.max": "max 100000\n",
        "a/memory.max": "max\n",
        "a/b/memory.max": "1073741824\n",
    }
    where = _cgroup(tmp_path, "0::/a/b\n", files)
    assert cpu.cpu_quota(*where) == 1.5
    assert cpu.memory_limit(*where) == 1 << 30


def test_cgroup_v1_limits(tmp_path):
    files = {
        "cpu/x/cpu.cfs_quota_us": "400000\n",
        "cpu/x/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    where = _cgroup(tmp_path, "5:memory:/y\n4:cpu,cpuacct:/x\n", files)
    assert cpu.cpu_quota(*where) == 4.0
    assert cpu.memory_limit(*where) is None


def test_no_cgroup_is_no_limit(tmp_path):
    assert cpu.cpu_quota(tmp_path / "none", tmp_path) is None
    assert cpu.memory_limit(tmp_path / "none", tmp_path) is None


def test_facts_of_this_machine_survive_json():
    found = device_facts("cpu")
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory_bytes > 1 << 28
    assert DeviceFacts.model_validate(json.loads(found.model_dump_json())) == found


# -- GPUs --------------------------------------------------------------------------------------

TWO = FakeNvml([FakeGpu(uuid="GPU-aa", bus_id="01"), FakeGpu(uuid="GPU-bb", bus_id="02", memory=7)])
NONE = FakeNvml([])


def test_facts_of_a_gpu():
    found = device_facts("cuda:1", nvml=TWO, variables={}, cpuinfo=ZEN4)
    assert (found.kind, found.device, found.name) == ("cuda", "cuda:1", "NVIDIA H200")
    assert (found.index, found.pci_bus_id, found.device_memory_bytes) == (1, "02", 7)
    assert found.compute_capability == (9, 0)
    assert found.driver == "580.0"
    assert found.cpu_model.startswith("AMD EPYC 9654")


@pytest.mark.parametrize(
    ("visible", "buses"),
    [
        ("1", ["02"]),
        ("1,0", ["02", "01"]),
        ("GPU-b", ["02"]),
        ("0,7,1", ["01"]),
        ("", []),
        ("-1", []),
        ("GPU-", []),
    ],
)
def test_cuda_numbers_follow_cuda_visible_devices(visible, buses):
    """CUDA's documented rules: order as listed, UUID prefixes, the list ends at an invalid one."""
    variables = {"CUDA_VISIBLE_DEVICES": visible}
    for number, bus in enumerate(buses):
        found = device_facts(f"cuda:{number}", nvml=TWO, variables=variables)
        assert found.pci_bus_id == bus
        assert TWO.gpus[found.index].bus_id == bus
    with pytest.raises(UsageError):
        device_facts(f"cuda:{len(buses)}", nvml=TWO, variables=variables)


def test_mixed_gpus_are_refused_unless_the_order_is_certain():
    mixed = FakeNvml([FakeGpu(name="slow"), FakeGpu(name="fast")])
    with pytest.raises(UsageError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        resolve_device("cuda:0", nvml=mixed, variables={})
    ordered = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert resolve_device("cuda:1", nvml=mixed, variables=ordered) == "cuda:1"


@pytest.mark.parametrize(
    ("word", "nvml", "resolved"),
    [
        ("auto", TWO, "cuda:0"),
        ("auto", NONE, "cpu"),
        ("cpu", TWO, "cpu"),
        ("cuda", TWO, "cuda:0"),
        ("cuda:1", TWO, "cuda:1"),
    ],
)
def test_resolve_device(word, nvml, resolved):
    assert resolve_device(word, nvml=nvml, variables={}) == resolved


@pytest.mark.parametrize(
    ("word", "nvml", "part"),
    [
        ("cuda", NONE, "use cpu"),
        ("cuda:2", TWO, "use cuda:0 to cuda:1"),
        ("cudda", TWO, "did you mean cuda"),
        ("cuda:x", TWO, "unknown device"),
        ("xyzzy", NONE, "known: auto, cpu"),
    ],
)
def test_resolve_device_refuses_in_one_line(word, nvml, part):
    with pytest.raises(UsageError) as caught:
        resolve_device(word, nvml=nvml, variables={})
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def gpu_facts(capability):
    return device_facts("cuda", nvml=FakeNvml([FakeGpu(capability=capability)]), variables={})


@pytest.mark.parametrize(
    ("capability", "int8", "bf16", "fp16", "fp8", "tf32"),
    [
        ((5, 2), False, False, False, False, False),  # Maxwell
        ((6, 0), False, False, True, False, False),  # P100
        ((6, 1), True, False, True, False, False),  # GTX 1080
        ((7, 0), True, False, True, False, False),  # V100
        ((7, 5), True, False, True, False, False),  # T4
        ((8, 0), True, True, True, False, True),  # A100
        ((8, 6), True, True, True, False, True),  # A10
        ((8, 9), True, True, True, True, True),  # L4
        ((9, 0), True, True, True, True, True),  # H100
        ((10, 0), True, True, True, True, True),  # B200
    ],
)
def test_capabilities_by_nvidias_tables(capability, int8, bf16, fp16, fp8, tf32):
    found = gpu_facts(capability)
    predicates = (int8_native, bf16_native, fp16_native, fp8_native, tf32_native)
    answers = [predicate(found) for predicate in predicates]
    assert [native for native, _ in answers] == [int8, bf16, fp16, fp8, tf32]
    assert all(f"{capability[0]}.{capability[1]}" in reason for _, reason in answers)


def test_reasons_tell_tensor_cores_from_plain_units():
    assert "dp4a" in int8_native(gpu_facts((7, 0)))[1]
    assert "1/64" in fp16_native(gpu_facts((6, 1)))[1]
    assert "int8 tensor cores" in int8_native(gpu_facts((8, 0)))[1]


# -- libraries and variables -------------------------------------------------------------------


def test_library_versions_are_those_installed():
    found = library_versions(("numpy", "no-such-distribution"))
    assert found == {"numpy": metadata.version("numpy")}
    assert {"pydantic"} == set(library_versions(["pydantic"]))


def test_relevant_variables_keep_no_path_and_nothing_else():
    variables = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": "/home/someone/cache",
        "OMP_PLACES": "x" * 65,
        "HF_TOKEN": "secret",
        "HOME": "x",
    }
    assert relevant_variables(variables) == {
        "ATEN_CPU_CAPABILITY": "avx2",
        "OMP_PLACES": WITHHELD,
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "TORCHINDUCTOR_CACHE_DIR": WITHHELD,
    }


def test_the_rooms_import_neither_torch_nor_meters():
    rooms = ("hardware", "workload", "measure")
    imports = "; ".join(f"import precision_explorer.{room}" for room in rooms)
    heavy = "{'torch', 'transformers', 'pynvml', 'psutil', 'yaml'}"
    code = f"import sys; {imports}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- how the system is set ----------------------------------------------------------------------


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


GPU = DeviceFacts(
    kind="cuda", device="cuda:0", name="NVIDIA H200", index=0, cpu_model="c", cores=1,
    memory_bytes=1,
)  # fmt: skip
CPU = DeviceFacts(
    kind="cpu", device="cpu", name="c", cpu_model="c", cores=1, memory_bytes=1
)  # fmt: skip


def test_a_gpu_tells_its_limits_of_power_and_clocks():
    found = device_settings(GPU, nvml=FakeNvml([FakeGpu(power_limit_mw=450_000)]))
    assert (found.power_limit_w, found.default_power_limit_w) == (450.0, 700.0)
    assert (found.clock_limit_hz, found.memory_clock_limit_hz) == (1.98e9, 3.201e9)
    assert (found.application_clock_hz, found.ecc) == (None, True)
    assert (found.governor, found.boost) == (None, None)


def test_what_a_gpu_does_not_tell_is_none():
    silent = FakeGpu(power_limit_mw=None, ecc=None)
    found = device_settings(GPU, nvml=FakeNvml([silent]))
    assert (found.power_limit_w, found.ecc) == (None, None)
    without = GPU.model_copy(update={"index": None})
    assert device_settings(without, nvml=FakeNvml([silent])) == DeviceSettings()


def test_a_processor_tells_them_in_files(tmp_path):
    cpu = "sys/devices/system/cpu"
    rapl = "sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw"
    root = written(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_max_freq": "3500000\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "performance\n",
            f"{cpu}/intel_pstate/no_turbo": "1\n",
            rapl: "205000000\n",
        },
    )
    found = device_settings(CPU, root=root)
    assert (found.power_limit_w, found.clock_limit_hz) == (205.0, 3.5e9)
    assert (found.governor, found.boost) == ("performance", False)
    other = written(tmp_path / "amd", {f"{cpu}/cpufreq/boost": "1\n"})
    assert device_settings(CPU, root=other).boost is True
    assert device_settings(CPU, root=tmp_path / "nothing") == DeviceSettings()


@pytest.mark.parametrize(
    ("files", "variables", "engine"),
    [
        ({}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/1/cgroup": "1:pids:/kubepods/pod1\n"}, {}, "kubernetes"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"APPTAINER_CONTAINER": "/people/me/image.sif"}, "apptainer"),
    ],
)
def test_a_container_is_told_by_its_engine_s_name_alone(tmp_path, files, variables, engine):
    assert container(written(tmp_path, files), variables) == engine
