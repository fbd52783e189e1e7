"""Models that are a shape alone: a config.json whose weights are made at random, to measure what
does not depend on them. No torch here; `models.synthetic` makes the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from precision_explorer.errors import ModelError, unknown_name
from precision_explorer.paths import expand_user
from precision_explorer.records import NOT_SCORED, SYNTHETIC, Caution

_FOLDER = Path(__file__).parent / "synthetic-shapes"
SHAPES = {name: _FOLDER / name for name in ("llama-3-8b", "bert-large")}
"""The bundled ones; what each is made after stands in the folder's README."""
KINDS_TIMED = ("text-classification", "multiple-choice", "language-modeling", "generation")
"""Kinds of task whose requests need nothing of a model but its shape."""
CAUTION = Caution(id="synthetic-weights", message=NOT_SCORED)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""What else than safetensors weights are stored in, by the ends of names."""
# Of the bundled demo model's tokenizer, whose ids are all below it.
_DEMO_VOCABULARY = 6400


@dataclass(frozen=True)
class Synthetic:
    """What random weights are made with. `tokenizer`: the folder of the tokenizer, the shape's own
    or the demo model's; how long a text is in tokens depends on it, speed per token does not."""

    seed: int
    tokenizer: Path


def is_synthetic(name: str) -> bool:
    """Whether a model is asked for as a shape with random weights."""
    return name.startswith(SYNTHETIC)


def refuse_synthetic(names: Iterable[str], what: str) -> None:
    """ModelError where one of the models is a shape alone, whose weights tell nothing of `what`."""
    for name in filter(is_synthetic, names):
        raise ModelError(
            f"{name} has random weights, and {what}; give a model with weights of its own"
        )


def by_config_alone(name: str) -> str:
    """`name`, or ``synthetic:`` and `name` where that is a folder that holds a config.json and no
    weights of any kind: all that a plan asks of a model stands in its config."""
    path = expand_user(name)
    if is_synthetic(name) or not path.is_dir() or not (path / "config.json").is_file():
        return name
    weights = any(file.suffix in (".safetensors", *PICKLES) for file in path.iterdir())
    return name if weights else f"{SYNTHETIC}{name}"


def shape_folder(name: str) -> tuple[str, Path]:
    """(what records call it, the folder of its config.json) of ``synthetic:NAME`` or
    ``synthetic:FOLDER``; ModelError for what is neither."""
    asked = name.removeprefix(SYNTHETIC)
    if asked in SHAPES:
        return name, SHAPES[asked]
    path = expand_user(asked)
    if not asked or not path.is_dir():
        known = unknown_name("synthetic shape", asked, SHAPES)
        raise ModelError(f"{known} (or give synthetic: and a folder with a config.json)")
    if not (path / "config.json").is_file():
        raise ModelError(
            f"{name}: the folder holds no config.json, which is a shape; put one there"
        )
    return f"{SYNTHETIC}{path.resolve().name}", path


def check_vocabulary(name: str, config: dict[str, object]) -> None:
    """ModelError where the demo model's tokenizer has ids that the shape has no row for."""
    inner = config.get("text_config")
    sizes = [c.get("vocab_size") for c in (config, inner) if isinstance(c, dict)]
    size = next((s for s in sizes if isinstance(s, int)), None)
    if size is not None and size < _DEMO_VOCABULARY:
        raise ModelError(
            f"{name} has a vocabulary of {size:,} and no tokenizer, and the demo model's has "
            f"{_DEMO_VOCABULARY:,} tokens; save one there with tokenizer.save_pretrained(folder)"
        )
