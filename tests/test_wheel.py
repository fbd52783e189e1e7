"""What is handed on: the source archive, the wheel built from it, and the wheel installed where
nothing of the repository can be seen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "precision_explorer"
STORED = ROOT / "results" / "demo-sentiment-cpu"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the source archive and of the wheel that was built from it."""
    for name in ("build", "hatchling"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}: scripts/install.sh test")
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: the build's own requirements are there, and nothing is fetched.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The scripts' folder of a new environment that holds the wheel, and sees the libraries of this
    one. A path added by a .pth file is not searched for more of them, so an editable install of
    this one is not seen."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (wheel,) = built.glob("*.whl")
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--no-index", wheel], check=True, capture_output=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return venv / "bin"


def run(installed: Path, folder: Path, *arguments: object) -> str:
    hidden = ("PYTHONPATH", "PRECISION_EXPLORER_DATA")
    done = subprocess.run(
        [installed / str(arguments[0]), *map(str, arguments[1:])],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_what_is_needed_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    own = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert {path.relative_to(ROOT).as_posix() for path in own} <= names
    cards = {
        f"precision_explorer/tasks/bundled/{path.relative_to(ROOT / 'tasks').as_posix()}"
        for path in (ROOT / "tasks").rglob("*")
        if path.is_file()
    }
    assert cards <= names
    for needed in (
        "py.typed", "report/report.html.j2", "report/excerpt.html.j2", "economics/prices.yaml",
        "models/demo/model.safetensors", "tasks/bundled/sentiment/test.jsonl",
    ):  # fmt: skip
        assert f"precision_explorer/{needed}" in names
    rooms = {name.split("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"precision_explorer"}


def test_the_source_archive_holds_no_results(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = [name.split("/", 1)[1] for name in file.getnames() if "/" in name]
    tops = {name.split("/")[0] for name in names}
    assert {"precision_explorer", "tasks", "docs", "mkdocs.yml", "scripts", "schemas"} <= tops
    assert not tops & {"results", ".venv", "site", "dist", ".git"}


def test_the_installed_command_works_outside_the_repository(installed, tmp_path):
    from precision_explorer import __version__
    from precision_explorer.tasks import bundled_cards

    assert run(installed, tmp_path, "precision-explorer", "--version").split()[-1] == __version__
    listed = run(installed, tmp_path, "precision-explorer", "tasks")
    assert all(name in listed for name in bundled_cards())
    out = tmp_path / "mine"
    shown = run(installed, tmp_path, "precision-explorer", "report", STORED, "--out", out)
    assert "int8-dynamic" in shown
    stored = (STORED / "tradeoffs.csv").read_text().splitlines()
    assert (out / "tradeoffs.csv").read_text().splitlines()[0] == stored[0]


def test_the_installed_package_is_python_s_interface_with_types(installed, tmp_path):
    code = (
        "import precision_explorer as pe, pathlib, sys\n"
        "own = pathlib.Path(pe.__file__).parent\n"
        f"assert own.is_relative_to({str(installed.parent)!r}), own\n"
        "assert (own / 'py.typed').is_file()\n"
        f"run = pe.open_run({str(STORED)!r})\n"
        "assert '<table' in run._repr_html_()\n"
        "print(*run.pareto()['format'])"
    )
    shown = run(installed, tmp_path, "python", "-c", code)
    assert shown.split() == ["bf16", "fp16", "int8-weight-only", "int8-dynamic"]
