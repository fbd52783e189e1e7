"""Write the JSON Schemas (draft 2020-12) of all files of this program to ``schemas/``, from the
types that read them; ``--check`` writes nothing and ends with 1 where one is out of date.

Files that people write may spell things in ways that the types turn into their own (`1%`, `8GB`,
`a,b`, ``-`` for ``_``): the schemas take these too.
"""

from __future__ import annotations

import ast
import copy
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, ForwardRef, get_args

from pydantic import BaseModel

from precision_explorer.cli import group
from precision_explorer.economics.price_model import Prices
from precision_explorer.formats.recipe import BASES, Recipe
from precision_explorer.plan.spec import SweepSpec
from precision_explorer.records import AddedScores, CellRecord, Estimate, Roof, SweepDocument
from precision_explorer.records.numerics import NumericsDocument
from precision_explorer.store import Manifest
from precision_explorer.tasks import KINDS, TaskCard
from precision_explorer.workload import SCENARIOS, Workload

FOLDER = Path(__file__).parents[1] / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def types_in(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """`kind` and all models that its fields hold, by name."""
    found: dict[str, type[BaseModel]] = {}
    left: list[Any] = [kind]
    while left:
        one = left.pop()
        if isinstance(one, ForwardRef):
            raise TypeError(f"a model names {one.__forward_arg__!r} before it is made: move it up")
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one.__name__ in found:
                continue
            found[one.__name__] = one
            left += [field.annotation for field in one.model_fields.values()]
        left += get_args(one)
    return found


def told(kind: type[BaseModel]) -> dict[str, str]:
    """{field: the text below it in the source} of a model and those that it extends."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not issubclass(one, BaseModel) or one is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(body, ast.ClassDef)
        for line, below in pairwise(body.body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(line.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[line.target.id] = " ".join(str(below.value.value).split())
    return texts


def described(kind: type[BaseModel]) -> Schema:
    """The schema of `kind`, in which fields have the texts that stand below them in the source."""
    schema = kind.model_json_schema()
    parts = {kind.__name__: schema} | schema.get("$defs", {})
    for name, one in types_in(kind).items():
        for field, text in told(one).items():
            # Of two types of one name pydantic calls neither so.
            if field in parts.get(name, {}).get("properties", {}):
                parts[name]["properties"][field]["description"] = text
    return schema


def also(schema: Schema, *kinds: str) -> Schema:
    """`schema`, or a plain value of one of `kinds`; its default stays outside."""
    one = dict(schema)
    default = {"default": one.pop("default")} if "default" in one else {}
    return {"anyOf": [one, *({"type": kind} for kind in kinds)]} | default


def spelled(schema: Schema) -> Schema:
    """Names with ``-`` for ``_`` too."""
    names = schema["properties"]
    more = {n.replace("_", "-"): {"$ref": f"#/properties/{n}"} for n in names if "_" in n}
    return schema | {"properties": names | more}


def one_of(field: str, known: Iterable[str]) -> Callable[[Schema], Schema]:
    """A field whose values are checked by code that a schema does not see."""

    def change(schema: Schema) -> Schema:
        schema["properties"][field]["enum"] = list(known)
        return schema

    return change


def spec(schema: Schema) -> Schema:
    """Lists as ``a,b`` or one value, shares, times and sizes with their units, a price file; fields
    have the texts of their options."""
    names = schema["properties"]
    for name in (
        "model",
        "task",
        "formats",
        "runtime",
        "allow_metric",
        "background",
        "on",
        "slurm",
    ):
        names[name] = also(names[name], "string")
    names["batch_size"] = also(names["batch_size"], "string", "integer")
    for name in ("quality_budget", "duration", "memory_limit", "price"):
        names[name] = also(names[name], "string")
    command = group.get_command(None, "sweep")  # type: ignore[arg-type]
    for option in command.params if command else ():
        if option.name in names:
            names[option.name]["description"] = getattr(option, "help", None) or ""
    return spelled(schema)


def prices(schema: Schema) -> Schema:
    """One model at the top, or several under ``prices``; always with the currency."""
    # pydantic tells types of one name apart by their modules.
    schema = json.loads(re.sub(r"precision_explorer__\w+?__(\w+?)__", r"\1.", json.dumps(schema)))
    kinds = schema["$defs"]
    for name in ("Hourly", "Ownership"):
        # A year alone is a number in YAML.
        kinds[name]["properties"]["date"] = also(kinds[name]["properties"]["date"], "integer")
    currency = {"currency": {"const": "USD"}}
    several = {key: value for key, value in schema.items() if key != "$defs"}
    several["properties"] = currency | {"prices": schema["properties"]["prices"]}
    forms = []
    alone = ("Hourly", "Ownership", "price_model.Listed")
    for one in (several, *(copy.deepcopy(kinds[name]) for name in alone)):
        one["properties"] = currency | one["properties"]
        one["required"] = ["currency", *one["required"]]
        forms.append(one)
    return {"title": schema["title"], "description": schema["description"], "anyOf": forms,
            "$defs": kinds}  # fmt: skip


SCHEMAS: dict[str, tuple[type[BaseModel], Callable[[Schema], Schema], str]] = {
    "record": (CellRecord, dict, "cells/<cell_id>.json of a run"),
    "sweep": (SweepDocument, dict, "sweep.json of a run"),
    "scores": (AddedScores, dict, "scores/<cell_id>.json of a run"),
    "roof": (Roof, dict, "roof.json of a run"),
    "estimate": (Estimate, dict, "estimate.json of a run"),
    "manifest": (Manifest, dict, "manifest.json of a run"),
    "numerics": (NumericsDocument, dict, "numerics.json of inspect"),
    "spec": (SweepSpec, spec, "the file of sweep --spec"),
    "task": (TaskCard, one_of("kind", KINDS), "task.yaml, a task card"),
    "workload": (
        Workload,
        lambda s: spelled(one_of("scenario", SCENARIOS)(s)),
        "the file of sweep --workload",
    ),
    "prices": (Prices, prices, "the file of --price"),
    "recipe": (Recipe, lambda s: spelled(one_of("base", BASES)(s)), "a recipe of mixed precision"),
}


def made(name: str) -> Schema:
    """The schema `name` as it is stored."""
    kind, change, what = SCHEMAS[name]
    schema = change(described(kind))
    schema["title"] = f"precision-explorer: {what}"
    return {"$schema": DIALECT} | schema


def text(schema: Schema) -> str:
    """What stands in the file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check all; the exit code."""
    old = 0
    FOLDER.mkdir(exist_ok=True)
    for name in SCHEMAS:
        path, content = FOLDER / f"{name}.schema.json", text(made(name))
        if "--check" in sys.argv[1:]:
            if not path.is_file() or path.read_text(encoding="utf8") != content:
                print(f"{path.name} is out of date; run scripts/make_schemas.py")
                old = 1
        else:
            path.write_text(content, encoding="utf8")
    return old


if __name__ == "__main__":
    sys.exit(main())
