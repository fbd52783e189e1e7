"""Recipe files: reading, writing, and every way in which one can be wrong."""

import pytest
import yaml

from precision_explorer.errors import UsageError
from precision_explorer.formats import Support
from precision_explorer.formats.catalog import CATALOG, is_mixed, spec_of
from precision_explorer.formats.recipe import (
    Recipe,
    check_layers,
    label_of,
    layer_formats,
    layers_of,
    mixed_support,
    packages_of,
    parts_of,
    read_recipe,
    spec_in,
    write_recipe,
)
from precision_explorer.plan.expand import relevant_libraries
from precision_explorer.plan.spec import make_spec

LAYERS = {"int8-weight-only": ["body.a", "body.b"], "nf4": ["body.c"]}


def write(path, **more):
    path.write_text(yaml.safe_dump({"version": 1, "layers": LAYERS} | more))
    return path


def support(format_id, execution="dequantized", dtype="float32", library="torchao"):
    recipe = {"kernel": library, "library": library, "compute_dtype": dtype}
    return Support(format_id, execution, f"why {format_id}", recipe)


def parts(**changed):
    found = {
        "fp32": support("fp32", "native", library="torch"),
        "int8-weight-only": support("int8-weight-only"),
        "nf4": support("nf4", library="bitsandbytes"),
    }
    return found | {name.replace("_", "-"): value for name, value in changed.items()}


def test_a_written_recipe_is_read_as_it_was(tmp_path):
    recipe = Recipe(
        model="m", model_revision="files:1", layers=LAYERS, budget={"kind": "bytes"},
        calibration={"hash": "x", "tokens": 3}, predicted_kl_nats=0.1, verified_kl_nats=0.2,
        weight_bytes=77,
    )  # fmt: skip
    path = tmp_path / "recipe.yaml"
    write_recipe(path, recipe)
    assert read_recipe(path) == recipe
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]


def test_layers_named_for_the_base_are_as_if_not_named():
    recipe = Recipe(layers={"fp32": ["body.d"], "nf4": ["b", "a"], "int8-weight-only": []})
    assert recipe.converted == {"nf4": ["a", "b"]}
    assert recipe.formats == ("fp32", "nf4")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layers": {"nf5": ["a"]}}, "unknown format for layers 'nf5'; did you mean nf4 or nvfp4?"),
        (
            {"layers": {"int8-static": ["a"]}},
            "int8-static can't be chosen for single layers (its scales",
        ),
        (
            {"layers": {"bf16": ["a"], "nf4": ["b"]}},
            "bf16 can't be chosen for single layers (only one",
        ),
        ({"layers": {"nf4": ["a", "b"], "int8-weight-only": ["b"]}}, "names b more than once"),
        ({"layers": {"nf4": ["a", "a"]}}, "names a more than once"),
        ({"layers": {}}, "names no layer in another format than fp32"),
        ({"layers": {"fp32": ["a"]}}, "names no layer in another format"),
        ({"layers": {"nf4": "a"}}, "'layers.nf4' is not valid"),
        ({"base": "int8"}, "unknown base 'int8'"),
        ({"version": 2}, "version 2"),
        ({"layer": {}}, "unknown key 'layer'; did you mean layers?"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tmp_path, more, said):
    path = write(tmp_path / "r.yaml", **more)
    with pytest.raises(UsageError) as error:
        read_recipe(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "no YAML"), ("- a", "no YAML mapping"), ("", "'layers' is missing")],
)
def test_what_is_no_recipe_at_all_is_refused(tmp_path, text, said):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_recipe(path)
    with pytest.raises(UsageError, match="can't read the recipe file"):
        read_recipe(tmp_path / "gone.yaml")


def test_layers_that_the_model_has_not_are_named():
    recipe = Recipe(layers={"nf4": ["a", "b", "x1", "x2", "x3", "x4"]})
    with pytest.raises(UsageError) as error:
        check_layers(recipe, "mixed:r", "tiny", ["a", "b", "c"])
    assert "tiny has no linear layer x1, x2, x3 and 1 more" in str(error.value)
    assert "4 of the 6 named" in str(error.value)
    check_layers(Recipe(layers=LAYERS), "mixed:r", "tiny", ["body.a", "body.b", "body.c"])


def test_a_device_makes_of_a_recipe_the_weakest_of_its_parts():
    found = mixed_support("mixed:r", Recipe(layers=LAYERS), parts())
    assert (found.format, found.execution) == ("mixed:r", "dequantized")
    assert "int8-weight-only (2 layers): dequantized" in found.reason
    assert "nf4 (1 layers): dequantized" in found.reason
    assert "the rest in fp32: native" in found.reason
    emulated = parts(nf4=support("nf4", "emulated", library="bitsandbytes"))
    assert mixed_support("mixed:r", Recipe(layers=LAYERS), emulated).execution == "emulated"


def test_a_recipe_with_an_unsupported_part_is_unsupported_and_says_which():
    refused = parts(nf4=Support("nf4", "unsupported", "no library"))
    found = mixed_support("mixed:r", Recipe(layers=LAYERS), refused)
    assert not found.supported
    assert "nf4, which the recipe names, is unsupported: no library" in found.reason


def test_parts_that_compute_in_another_type_than_the_base_are_refused():
    other = parts(nf4=support("nf4", dtype="bfloat16"))
    found = mixed_support("mixed:r", Recipe(layers=LAYERS), other)
    assert not found.supported
    assert "nf4 computes in bfloat16" in found.reason


def test_the_identity_holds_the_contents_and_no_path(tmp_path):
    first = mixed_support("mixed:r", read_recipe(write(tmp_path / "r.yaml")), parts())
    (tmp_path / "other").mkdir()
    moved = mixed_support("mixed:r", read_recipe(write(tmp_path / "other" / "r.yaml")), parts())
    assert first.recipe == moved.recipe
    assert str(tmp_path) not in str(first.recipe)
    changed = {"int8-weight-only": ["body.a"], "nf4": ["body.b", "body.c"]}
    other = mixed_support("mixed:r", Recipe(layers=changed), parts())
    assert other.recipe != first.recipe


def test_a_cell_s_recipe_tells_its_parts_packages_and_libraries():
    found = mixed_support("mixed:r", Recipe(layers=LAYERS), parts())
    assert list(parts_of("mixed:r", found.recipe)) == ["int8-weight-only", "nf4"]
    assert layers_of("mixed:r", found.recipe, []) == LAYERS
    assert packages_of("mixed:r", found.recipe) == ("torchao.quantization", "bitsandbytes")
    versions = dict.fromkeys(("torch", "torchao", "bitsandbytes", "scipy"), "1")
    libraries = relevant_libraries("mixed:r", found.recipe, versions)
    assert libraries == dict.fromkeys(("torch", "torchao", "bitsandbytes"), "1")
    one = parts()["nf4"].recipe
    assert parts_of("nf4", one) == {"nf4": one}
    assert layers_of("nf4", one, ["x"]) == {"nf4": ["x"]}


def test_the_spec_of_a_mixed_format_is_made_from_its_name():
    assert is_mixed("mixed:r")
    assert not is_mixed("nf4")
    assert spec_of("mixed:r").id == "mixed:r"
    assert spec_of("mixed:r").quantizes
    found = mixed_support("mixed:r", Recipe(layers=LAYERS), parts())
    assert spec_in("mixed:r", found.recipe).arithmetic == "compute"
    integer = Recipe(layers={"int8-dynamic": ["a"], "nf4": ["b"]})
    mixed = mixed_support("mixed:r", integer, parts(int8_dynamic=support("int8-dynamic")))
    assert spec_in("mixed:r", mixed.recipe).arithmetic == "mixed"
    assert spec_in("nf4", parts()["nf4"].recipe) == spec_of("nf4")
    assert label_of("some/where/half.yaml") == "mixed:half"


def test_formats_for_layers_are_those_that_quantize_them_one_by_one():
    assert {"nf4", "int8-weight-only", "int8-dynamic", "int8-llm"} <= set(layer_formats())
    for name in ("fp32", "tf32", "bf16", "int8-static"):
        assert name in CATALOG
        assert name not in layer_formats()


def test_a_spec_takes_recipes_beside_formats():
    spec = make_spec({"formats": "nf4,mixed:a/b.yaml"})
    assert spec.formats == ("fp32", "nf4", "mixed:a/b.yaml")
    assert make_spec({"formats": "all,mixed:r.yaml"}).formats == (*CATALOG, "mixed:r.yaml")
    with pytest.raises(UsageError, match="mixed: names no recipe"):
        make_spec({"formats": "mixed:"})
    with pytest.raises(UsageError, match="unknown format"):
        make_spec({"reference": "mixed:r.yaml"})
