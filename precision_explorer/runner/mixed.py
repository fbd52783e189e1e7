"""Recipes among a sweep's formats: read, checked against the models, and turned into supports
before anything is measured. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from precision_explorer.errors import UsageError
from precision_explorer.formats import Support
from precision_explorer.formats.catalog import MIXED, is_mixed
from precision_explorer.formats.recipe import (
    Recipe,
    check_layers,
    label_of,
    mixed_support,
    read_recipe,
    row_id,
)
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import ModelRef
from precision_explorer.paths import expand_user
from precision_explorer.runner.jobs import run_job
from precision_explorer.runner.manager import OnEvent

# A model without weights is built in a second or two.
_TIME_LIMIT_S = 300.0


def read_recipes(formats: Iterable[str]) -> dict[str, Recipe]:
    """{format as it was asked for: its recipe} of the mixed ones; UsageError where a file is none,
    or where two would have the same name in the table."""
    recipes: dict[str, Recipe] = {}
    labels: dict[str, str] = {}
    for name in filter(is_mixed, formats):
        path = name.removeprefix(f"{MIXED}:")
        recipes[name] = read_recipe(expand_user(path))
        other = labels.setdefault(label_of(path), path)
        if other != path:
            raise UsageError(
                f"{other} and {path} would both be {label_of(path)} in the table; rename one"
            )
    return recipes


def check_revisions(recipes: Mapping[str, Recipe], refs: Iterable[ModelRef]) -> None:
    """UsageError where a recipe was made for other weights than one of the models'. Random weights
    lose nothing by any recipe, so of a shape only the layers' names must fit."""
    for name, recipe in recipes.items():
        for ref in (ref for ref in refs if ref.synthetic is None):
            made_for = recipe.model_revision
            if made_for is not None and made_for != ref.identity.revision:
                raise UsageError(
                    f"{name} was made for {recipe.model or 'a model'} of revision {made_for}, and "
                    f"{ref.name} is of {ref.identity.revision}; search a recipe for it by "
                    "precision-explorer mix, or sweep the models apart"
                )


def check_against(
    recipes: Mapping[str, Recipe],
    refs: Iterable[ModelRef],
    kind: str,
    facts: DeviceFacts,
    threads: int,
    trust_remote_code: bool,
    on_event: OnEvent,
) -> None:
    """UsageError where a recipe names layers that one of the models has not. Each model is built
    without weights in a worker, since its files' names are not always its layers'."""
    if not recipes:
        return
    for ref in refs:
        request = {
            "device": facts.device,
            "path": str(ref.path),
            "kind": kind,
            "trust_remote_code": trust_remote_code,
        }
        answer, _ = run_job("layer-names", request, threads, on_event, _TIME_LIMIT_S)
        for name, recipe in recipes.items():
            check_layers(recipe, name, ref.name, answer["layers"])


def formats_in(formats: Iterable[str], recipes: Mapping[str, Recipe]) -> list[str]:
    """The catalogue's formats that must be tried out for `formats`: those of recipes included."""
    parts = [part for recipe in recipes.values() for part in recipe.formats]
    return list(dict.fromkeys([*(f for f in formats if not is_mixed(f)), *parts]))


def with_mixed(
    recipes: Mapping[str, Recipe], supports: Mapping[str, Support]
) -> dict[str, Support]:
    """`supports` and those of the recipes, by the names that they were asked for."""
    mixed = {
        name: mixed_support(row_id(name), recipe, supports) for name, recipe in recipes.items()
    }
    return dict(supports) | mixed
