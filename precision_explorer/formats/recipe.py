"""Mixed-precision recipes: which format holds which layer. The file, its checks, and what a device
makes of it. No torch here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from precision_explorer.errors import UsageError, unknown_name
from precision_explorer.formats.catalog import (
    AS_SHIPPED,
    CATALOG,
    MIXED,
    FormatSpec,
    is_mixed,
    spec_of,
)
from precision_explorer.formats.support import Support
from precision_explorer.option_files import read_options

RECIPE_VERSION = 1
# Formats that load the model in their type: what the layers that no format is named for stay in.
BASES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# Comes with the model's files, so that it can't be chosen for a layer.
_WHOLE_MODEL_ONLY = (AS_SHIPPED,)
# From the least that a row may claim to the most.
_EXECUTIONS = ("unsupported", "emulated", "dequantized", "native")
_EXAMPLE = "layers: {nf4: [model.layers.0.mlp.up_proj]}"

_Name = Annotated[str, Field(min_length=1)]


def layer_formats() -> tuple[str, ...]:
    """The formats that may hold some of a model's layers while other layers are in other ones. Not
    those with calibrated scales, which are found in a run of the whole model."""
    named = (f for f in CATALOG.values() if f.quantizes and f.id not in _WHOLE_MODEL_ONLY)
    return tuple(f.id for f in named if not f.calibrates)


class Recipe(BaseModel):
    """A recipe file (docs/mixed-precision.md). `layers` maps formats to the linear layers that they
    hold; every other layer stays in `base`. `model_revision` is checked against the model: None
    where the recipe is meant for any that has the layers. All else is for people."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: int = RECIPE_VERSION
    model: str | None = None
    model_revision: str | None = None
    base: str = "fp32"
    layers: dict[str, list[_Name]]
    budget: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    predicted_kl_nats: float | None = None
    verified_kl_nats: float | None = None
    weight_bytes: int | None = None

    @field_validator("version")
    @classmethod
    def _version(cls, value: int) -> int:
        if value != RECIPE_VERSION:
            raise ValueError(f"version {value} is not one that this release reads; it is 1 here")
        return value

    @field_validator("base")
    @classmethod
    def _base(cls, value: str) -> str:
        if value not in BASES:
            raise ValueError(unknown_name("base", value, BASES))
        return value

    @model_validator(mode="after")
    def _named(self) -> Recipe:
        known = layer_formats()
        for name in self.layers:
            if name not in known and name != self.base:
                raise ValueError(not_for_layers(name, (*known, self.base)))
        counts = Counter(layer for held in self.layers.values() for layer in held)
        twice = [layer for layer, n in counts.items() if n > 1]
        if twice:
            raise ValueError(f"layers names {_few(twice)} more than once; name each layer once")
        if not self.converted:
            raise ValueError(f"layers names no layer in another format than {self.base}; name some")
        return self

    @property
    def converted(self) -> dict[str, list[str]]:
        """{format: layers} without the base format and without formats that hold no layer."""
        return {f: sorted(n) for f, n in sorted(self.layers.items()) if n and f != self.base}

    @property
    def formats(self) -> tuple[str, ...]:
        """All formats in it, the base first."""
        return (self.base, *self.converted)


def not_for_layers(name: str, allowed: tuple[str, ...]) -> str:
    """The one line for a format that can't be chosen for single layers: a known one, or not."""
    if name not in CATALOG and not is_mixed(name):
        return unknown_name("format for layers", name, allowed)
    why = "it is made for a model as a whole"
    if name in CATALOG and CATALOG[name].calibrates:
        why = "its scales are found in a run of the whole model"
    elif name in BASES:
        why = "only one format that layers stay in can be named, the base"
    return f"{name} can't be chosen for single layers ({why}); use {', '.join(allowed)}"


def _few(names: Iterable[str]) -> str:
    """The first three of `names` and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def label_of(path: str | Path) -> str:
    """The format's id in a row: ``mixed:`` and the file's stem."""
    return f"{MIXED}:{Path(path).stem}"


def row_id(format_id: str) -> str:
    """The id in a row of a format as it was asked for: of a recipe's path its label."""
    return label_of(format_id.removeprefix(f"{MIXED}:")) if is_mixed(format_id) else format_id


def read_recipe(path: Path) -> Recipe:
    """The recipe in the YAML file at `path`; UsageError in one line where it is none."""
    document = read_options(path, "recipe", _EXAMPLE)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UsageError(f"{path}: {_problem(error)}") from error


def _problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)
    first = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_name("key", where, Recipe.model_fields)
    if first["type"] == "missing":
        return f"'{where}' is missing; write lines such as '{_EXAMPLE}'"
    if first["type"] == "value_error":
        return " ".join(str(first["ctx"]["error"]).split())
    return f"'{where}' is not valid ({first['msg']}); correct it"


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write `recipe` as YAML, one layer a line, whole or not at all."""
    import yaml

    document = recipe.model_dump(mode="json", exclude_none=True)
    layers = document.pop("layers")
    text = (
        "# Which format holds which linear layer; for --formats mixed:THIS_FILE.\n"
        + yaml.safe_dump(document, sort_keys=False)
        + yaml.safe_dump({"layers": layers}, sort_keys=False)
    )
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf8")
    temporary.replace(path)


def check_layers(recipe: Recipe, label: str, model: str, present: Iterable[str]) -> None:
    """UsageError unless the linear layers of the model, `present`, hold all that `recipe` names."""
    there = set(present)
    named = [name for held in recipe.converted.values() for name in held]
    missing = [name for name in named if name not in there]
    if missing:
        raise UsageError(
            f"{label}: {model} has no linear layer {_few(missing)} that could be converted "
            f"({len(missing)} of the {len(named)} named); name layers as model.named_modules() "
            "does, the output head apart"
        )


def mixed_support(label: str, recipe: Recipe, parts: Mapping[str, Support]) -> Support:
    """What the device of `parts` ({format: its Support}) makes of `recipe`.

    Its execution is the weakest of its formats'. Unsupported where one of them is, or where they
    compute in other types than the base.
    """
    for name in recipe.formats:
        if not parts[name].supported:
            reason = f"{name}, which the recipe names, is unsupported: {parts[name].reason}"
            return Support(label, "unsupported", reason)
    recipes = {name: parts[name].recipe for name in recipe.formats}
    compute = recipes[recipe.base]["compute_dtype"]
    for name, found in recipes.items():
        if found["compute_dtype"] != compute:
            return Support(
                label,
                "unsupported",
                f"{name} computes in {found['compute_dtype']} here and the base {recipe.base} in "
                f"{compute}; name the base that computes in {found['compute_dtype']}",
            )
    weakest = min((parts[n].execution for n in recipe.formats), key=_EXECUTIONS.index)
    counts = {name: len(held) for name, held in recipe.converted.items()}
    reason = "; ".join(
        f"{name} ({counts[name]} layers): {parts[name].execution}" for name in counts
    )
    rest = f"the rest in {recipe.base}: {parts[recipe.base].execution}"
    return Support(label, weakest, f"{reason}; {rest}", _cell_recipe(recipe, recipes, compute))


def _cell_recipe(recipe: Recipe, parts: dict[str, dict[str, Any]], compute: str) -> dict[str, Any]:
    """What a worker needs and what the cell's identity holds: contents, not the path."""
    kernels = dict.fromkeys(str(parts[name]["kernel"]) for name in recipe.converted)
    return {
        "library": MIXED,
        "kernel": " + ".join(kernels),
        "compute_dtype": compute,
        "base": recipe.base,
        "layers": recipe.converted,
        "parts": {name: parts[name] for name in recipe.converted},
    }


def parts_of(format_id: str, recipe: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{format: its recipe} of a cell's recipe: of each format in a mixed one, else of the one."""
    return dict(recipe["parts"]) if "parts" in recipe else {format_id: recipe}


def layers_of(
    format_id: str, recipe: dict[str, Any], layers: Iterable[str]
) -> dict[str, list[str]]:
    """{format: those of `layers` that it is meant to hold}: a recipe's own, else all."""
    return dict(recipe["layers"]) if "parts" in recipe else {format_id: list(layers)}


def spec_in(format_id: str, recipe: dict[str, Any]) -> FormatSpec:
    """The format's spec, its arithmetic known from the recipe: ``compute`` where every format of a
    mixed one widens its weights, and the scheme's own number type of a checkpoint that comes
    quantized. Where a scheme does not tell, it is taken to widen its weights, which only products
    seen in the compute type will prove."""
    spec = spec_of(format_id)
    if format_id == AS_SHIPPED:
        return replace(spec, arithmetic=recipe["arithmetic"] or "compute")
    if all(spec_of(part).arithmetic == "compute" for part in parts_of(format_id, recipe)):
        return replace(spec, arithmetic="compute")
    return spec


def packages_of(format_id: str, recipe: dict[str, Any]) -> tuple[str, ...]:
    """What must be imported before a model in this format is loaded and its memory counted."""
    names: dict[str, None] = {}
    for part, made in parts_of(format_id, recipe).items():
        names |= dict.fromkeys((*spec_of(part).packages, *made.get("packages", ())))
        if made.get("library") == "torchao":
            names["torchao.quantization"] = None
    return tuple(names)
