"""Records of every schema version are read without a loss, and the JSON Schemas are those of the
types and hold for what is stored and written."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from precision_explorer.records import SCHEMA_VERSION, read_record
from precision_explorer.records.upgrade import _STEPS
from precision_explorer.tasks import bundled_cards
from precision_explorer.workload import PRESETS, load_workload
from scripts import make_schemas
from tests.test_docs import DOCS, example_of

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "tests" / "records").glob("*/*.json"))
RUNS = sorted((ROOT / "results").glob("*/sweep.json"))


@functools.cache
def validator(name: str) -> Any:
    """That of the stored schema `name`."""
    schema = json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def problems(name: str, document: Any) -> list[str]:
    """What the stored schema `name` says against `document`."""
    return [error.message for error in validator(name).iter_errors(document)]


def plain(text: str) -> Any:
    """YAML as JSON has it, dates as texts."""
    return json.loads(json.dumps(yaml.safe_load(text), default=str))


# -- records of every version -------------------------------------------------------------------


def test_every_version_has_stored_records_and_a_step_to_the_next():
    assert {path.parent.name for path in RECORDS} == {
        str(version) for version in range(1, SCHEMA_VERSION + 1)
    }
    assert set(_STEPS) == set(range(1, SCHEMA_VERSION))


def lost(old: Any, new: Any, where: str = "") -> list[str]:
    """Where `new` does not hold what `old` does."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key, value in old.items()
            for line in (
                lost(value, new[key], f"{where}/{key}") if key in new else [f"{where}/{key}"]
            )
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for n, (a, b) in pairs for line in lost(a, b, f"{where}/{n}")]
    return [] if old == new else [f"{where}: {old!r} became {new!r}"]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_an_old_record_is_read_without_a_loss_and_is_the_same_cell(path):
    document = json.loads(path.read_text())
    assert str(document["schema_version"]) == path.parent.name
    record = read_record(path)
    assert record.schema_version == SCHEMA_VERSION
    assert record.cell.cell_id == record.cell_id == document["cell_id"]
    assert record.cell.method_id == record.method_id
    if path.parent.name == str(SCHEMA_VERSION):
        assert lost(document, record.model_dump(mode="json")) == []
    assert problems("record", document) == []


def test_old_records_hold_what_later_ones_have_in_other_places_or_not_at_all():
    """So that they stay what they are kept for."""
    found = {p.stem: json.loads(p.read_text()) for p in RECORDS if p.parent.name == "1"}
    first = found["first-fp8-weight-only"]
    assert "certificate" not in first["applied"]
    assert "profile" not in first["measurements"]
    assert "rounds" not in first["measurements"]["latency"]
    assert found["timeout"]["status"] == "timeout"
    assert found["compared"]["measurements"]["kept"]
    assert found["served"]["measurements"]["serving"]
    assert found["compiled-cuda"]["measurements"]["compilation"]


# -- the schemas --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", make_schemas.SCHEMAS)
def test_the_stored_schema_is_the_type_s(name):
    schema = make_schemas.made(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    stored = (ROOT / "schemas" / f"{name}.schema.json").read_text()
    assert stored == make_schemas.text(schema), "run scripts/make_schemas.py"


def test_fields_have_the_words_of_the_source_and_of_the_options():
    record = make_schemas.made("record")["$defs"]
    share = record["AppliedFormat"]["properties"]["converted_share"]["description"]
    assert share == "`converted_elements / linear_elements`; None for formats of arithmetic only."
    own = make_schemas.made("record")["properties"]["started_at"]["description"]
    assert own.startswith("UTC, ISO 8601")
    for name, field in make_schemas.made("spec")["properties"].items():
        assert field.get("description") or "$ref" in field, name


def test_every_schema_is_documented_and_no_other_is_there():
    names = {path.name.removesuffix(".schema.json") for path in (ROOT / "schemas").iterdir()}
    assert names == set(make_schemas.SCHEMAS)
    for name in names:
        assert f"`{name}.schema.json`" in DOCS["schemas.md"]


@pytest.mark.parametrize("run", RUNS, ids=lambda p: p.parent.name)
def test_stored_runs_are_valid(run):
    folder = run.parent
    assert problems("manifest", json.loads((folder / "manifest.json").read_text())) == []
    assert problems("sweep", json.loads(run.read_text())) == []
    assert problems("roof", json.loads((folder / "roof.json").read_text())) == []
    for path in (folder / "cells").glob("*.json"):
        assert problems("record", json.loads(path.read_text())) == [], path.name


def test_what_people_write_is_valid():
    for path in bundled_cards().values():
        assert problems("task", yaml.safe_load(path.read_text())) == [], path
    for name in PRESETS:
        assert problems("workload", load_workload(name).model_dump(mode="json")) == [], name
    assert problems("workload", plain(example_of("workloads.md"))) == []
    assert problems("spec", plain(example_of("spec.md"))) == []
    assert problems("task", plain(example_of("tasks.md"))) == []
    part = DOCS["mixed-precision.md"].split("## The recipe file\n", 1)[1].split("\n| key")[0]
    recipe = "\n".join(line[4:] for line in part.splitlines())
    assert problems("recipe", plain(recipe)) == []


def test_price_files_of_the_docs_are_valid():
    blocks = [
        "\n".join(line[4:] for line in block.splitlines())
        for block in DOCS["economics.md"].split("\n\n")
        if block.startswith("    currency: USD")
    ]
    assert len(blocks) >= 4
    for block in blocks:
        assert problems("prices", plain(block)) == [], block


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("spec", {"formatz": "fp32"}),
        ("spec", {"seed": -1}),
        ("prices", {"kind": "hourly", "usd_per_hour": 1, "source": "x", "date": "2026"}),
        ("prices", {"currency": "USD", "kind": "hourly", "usd_per_hour": 0, "source": "x",
                    "date": "2026"}),
        ("task", {"name": "x"}),
        ("workload", {"scenario": "none"}),
        ("recipe", {"layers": {"nf4": [""]}}),
        ("recipe", {}),
        ("manifest", {"version": 3, "root": "", "files": {}}),
        ("record", {"schema_version": 1}),
        ("roof", {"threads": "many"}),
        ("scores", {"metrics": {}}),
        ("numerics", {}),
        ("sweep", {"schema_version": 1}),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused(name, document):
    assert problems(name, document)


def test_the_script_says_which_schema_is_out_of_date(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_schemas, "FOLDER", tmp_path)
    monkeypatch.setattr("sys.argv", ["make_schemas.py"])
    assert make_schemas.main() == 0
    monkeypatch.setattr("sys.argv", ["make_schemas.py", "--check"])
    assert make_schemas.main() == 0
    (tmp_path / "roof.schema.json").write_text("{}")
    assert make_schemas.main() == 1
    assert capsys.readouterr().out.startswith("roof.schema.json is out of date")
