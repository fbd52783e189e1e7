"""The script that holds int8-dynamic's loss against fp32's, with and without VNNI."""

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_int8_soundness.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("check_int8_soundness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["check_int8_soundness.py"])
    return module


@pytest.mark.parametrize(("capped", "code"), [(4.15, 0), (4.17, 1), (3.93, 1), (5.2, 1)])
def test_it_fails_where_either_setting_differs_by_more_than_the_limit(
    script, monkeypatch, capsys, capped, code
):
    def measured_with(variables, articles, tokens):
        loss = capped if "ONEDNN_MAX_CPU_ISA" in variables else 4.12
        return {"kernel": "some", "fp32": 4.10, "int8-dynamic": loss}

    monkeypatch.setattr(script, "measured_with", measured_with)
    assert script.main() == code
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == ["as it is", "capped to AVX2"]
    assert ("not sound" in err) == bool(code)


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="the trap is that of x86"
)
def test_int8_dynamic_is_sound_on_a_language_model_with_and_without_vnni(smollm2):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--articles", "1", "--tokens", "96"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = [line[16:40].strip() for line in done.stdout.splitlines()[1:]]
    assert len(kernels) == 2
    assert kernels[1] in ("fbgemm-per-token-paired", "onednn-per-token-paired", "int-mm", "torchao")
