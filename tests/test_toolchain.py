"""What torch.compile needs is found, or named with what to install."""

import pytest

from precision_explorer.hardware import toolchain
from precision_explorer.hardware.toolchain import compiler


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH of our own, and a writer of programs in it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)

    def make(name: str, output: str = "") -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{output}'\n")
        path.chmod(0o755)

    return make


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", "12.2.0"),
        ("g++ (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0", "13.3.0"),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)", "18.1.3"),
        ("no number", "unknown"),
    ],
)
def test_the_version_is_what_the_compiler_says_of_itself(tools, said, version):
    tools("g++", said)
    assert compiler("cpu", {}) == ({"g++": version}, None)


def test_another_compiler_is_named_by_a_variable_and_recorded_without_its_path(
    tools, tmp_path, monkeypatch
):
    tools("my-clang++", "clang version 18.1.3")
    monkeypatch.setenv("CXX", str(tmp_path / "my-clang++"))
    assert compiler("cpu", {}) == ({"my-clang++": "18.1.3"}, None)


def test_without_a_compiler_the_reason_says_what_to_install(tools):
    found, reason = compiler("cpu", {"triton": "3.4.0"})
    assert found == {}
    assert reason is not None
    assert "found no g++" in reason
    assert "apt-get install g++" in reason


def test_python_s_headers_are_needed_on_a_cpu(tools, tmp_path, monkeypatch):
    tools("g++", "g++ 12.2.0")
    monkeypatch.setattr(
        toolchain.sysconfig, "get_paths", lambda: {"include": str(tmp_path / "none")}
    )
    found, reason = compiler("cpu", {})
    assert found == {}
    assert reason is not None
    assert "Python.h" in reason


def test_a_gpu_needs_triton_and_a_c_compiler(tools):
    assert "pip install triton" in str(compiler("cuda", {})[1])
    assert "found no gcc or clang or cc" in str(compiler("cuda", {"triton": "3.4.0"})[1])
    tools("gcc")
    assert compiler("cuda", {"triton": "3.4.0"}) == ({"triton": "3.4.0"}, None)


def test_triton_s_launchers_need_python_s_headers(tools, tmp_path, monkeypatch):
    tools("gcc")
    none = {"include": str(tmp_path / "none")}
    monkeypatch.setattr(toolchain.sysconfig, "get_paths", lambda *scheme: none)
    found, reason = compiler("cuda", {"triton": "3.6.0"})
    assert found == {}
    assert "Python.h" in str(reason)
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setenv("CPATH", str(tmp_path))
    assert compiler("cuda", {"triton": "3.6.0"})[1] is None
