"""What is installed: pins, floors and the scripts that install them."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
TEST = [Requirement(text) for text in PROJECT["optional-dependencies"]["test"]]
SITE = [Requirement(text) for text in PROJECT["optional-dependencies"]["docs"]]


def read_pins() -> dict[str, Version]:
    """Name to version of constraints.txt."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines():
        if line and not line.startswith("#"):
            (pin,) = Requirement(line).specifier
            assert pin.operator == "=="
            pins[canonicalize_name(Requirement(line).name)] = Version(pin.version)
    return pins


PINS = read_pins()
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


@pytest.mark.parametrize("requirement", [*CORE, *TEST], ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)


def test_no_package_is_pinned_twice_or_from_elsewhere():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) == len(PINS)
    # A local version ("2.13.0+cpu") can't be had from the index.
    assert all(pin.local is None for pin in PINS.values())


# Below these, published advisories let a model or a data set run code, or read beyond memory.
@pytest.mark.parametrize(
    ("name", "last_unsafe"), [("transformers", "5.2.99"), ("torch", "2.9.99"), ("datasets", "3.99")]
)
def test_the_security_floors_stand_in_the_project(name, last_unsafe):
    (requirement,) = [r for r in CORE if r.name == name]
    assert not requirement.specifier.contains(last_unsafe)
    assert requirement.specifier.contains(PINS[name])


def test_the_environment_is_the_pinned_one():
    if not (Path(sys.prefix) / ".installed-test").exists():
        pytest.skip("this environment was not made by scripts/install.sh test")
    wrong = {}
    for requirement in [*CORE, *TEST]:
        name = canonicalize_name(requirement.name)
        installed = Version(metadata.version(name))
        if Version(installed.public) != PINS[name]:
            wrong[name] = f"{installed}, pinned {PINS[name]}"
    assert not wrong


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_executable_and_parse(script):
    assert os.access(script, os.X_OK)
    assert script.read_text(encoding="utf8").startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_tests_build_the_site():
    assert set(map(str, SITE)) <= set(map(str, TEST))


def test_the_scripts_are_there():
    names = {script.name for script in SCRIPTS}
    assert {"docs.sh", "install.sh", "quickstart.sh", "test.sh"} <= names
