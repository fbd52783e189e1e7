"""A recipe searched, stored and run: the whole command on the bundled model, and its refusals."""

import csv
import json
from types import SimpleNamespace

import pytest
import yaml

from precision_explorer.errors import UsageError
from precision_explorer.formats.recipe import Recipe, read_recipe, write_recipe
from precision_explorer.models import resolve
from precision_explorer.runner import mix as mix_module
from precision_explorer.runner.budget import Budget, costs, parse_budget, reference_of
from precision_explorer.runner.mix import MixOptions, find_recipe, window_tokens
from precision_explorer.runner.mixed import check_revisions, read_recipes
from precision_explorer.search import assign
from tests.command import run

FORMATS = ("int8-weight-only", "nf4")


def nothing(event):
    pass


# -- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "amount", "relative"),
    [
        ("bytes", "60%", 0.6, True),
        ("bytes", "100MB", 1e8, False),
        ("latency", "80ms", 0.08, False),
        ("latency", "90 %", 0.9, True),
        ("energy", "500mJ", 0.5, False),
    ],
)
def test_budgets_are_amounts_or_shares(kind, text, amount, relative):
    found = parse_budget(kind, text)
    assert found.amount == pytest.approx(amount)
    assert found.relative == relative
    assert found.of(200.0) == pytest.approx(amount * 200 if relative else amount)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("bytes", "much"), ("latency", "80"), ("energy", "2W"), ("bytes", "0%"), ("bytes", "0")],
)
def test_a_budget_that_is_none_is_refused(kind, text):
    with pytest.raises(UsageError, match=f"--budget-{kind}"):
        parse_budget(kind, text)


STATE = {
    "base": {
        "weight_bytes": 1000,
        "request_s": 2.0,
        "power_w": 10.0,
        "layers": {
            "a": {"bytes": 400, "seconds": 0.5},
            "b": {"bytes": 400, "seconds": 0.25},
        },
    },
    "formats": {
        "nf4": {
            "power_w": 20.0,
            "layers": {
                "a": {"bytes": 50, "seconds": 0.25, "kl_nats": 0.1, "held": True},
                "b": {"bytes": 400, "seconds": 0.25, "kl_nats": 0.0, "held": False},
            },
        },
    },
}


def test_costs_are_of_the_layers_and_the_rest_is_the_model_s():
    items, rest = costs("bytes", "fp32", ("nf4",), STATE)
    assert rest == 200
    assert {name: option.cost for name, option in items["a"].items()} == {"nf4": 50}
    # A layer that the format left as it was stays as it was.
    assert {name: option.cost for name, option in items["b"].items()} == {"fp32": 400}
    items, rest = costs("latency", "fp32", ("nf4", "fp32"), STATE)
    assert rest == pytest.approx(1.25)
    assert items["a"]["fp32"].cost == 0.5
    assert items["a"]["fp32"].harm == 0.0
    items, rest = costs("energy", "fp32", ("nf4", "fp32"), STATE)
    assert items["a"]["nf4"].cost == pytest.approx(0.25 * 20)
    assert items["a"]["fp32"].cost == pytest.approx(0.5 * 10)
    assert rest == pytest.approx(1.25 * 10)
    assert reference_of("energy", STATE["base"]) == pytest.approx(20)


def test_energy_without_a_reading_of_the_meter_is_refused():
    state = STATE | {"base": STATE["base"] | {"power_w": None}}
    with pytest.raises(UsageError, match="use --budget-latency"):
        costs("energy", "fp32", ("nf4",), state)


def test_what_the_recipe_says_of_its_budget():
    said = Budget("bytes", 0.5, True).document(STATE["base"])
    assert said == {"kind": "bytes", "limit_bytes": 500, "of_reference": "50.0 %"}
    assert Budget("latency", 1.0, False).document(STATE["base"])["limit_s"] == 1.0


def test_at_least_eight_texts_are_looked_at():
    assert window_tokens(512) == 64
    assert window_tokens(100_000) == 256
    assert window_tokens(16) == 32


# -- the whole search --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """`mix` on the demo model, with 53 % of fp32's bytes: all int8 takes 56 %, all nf4 48 %."""
    folder = tmp_path_factory.mktemp("mix")
    out = folder / "half.yaml"
    options = ("--formats", ",".join(FORMATS), "--tokens", 128, "--threads", 1, "--device", "cpu")
    done = run("mix", "--budget-bytes", "53%", "--out", out, *options)
    assert done.returncode == 0, done.stderr
    state = json.loads((folder / "half.layers.json").read_text())
    return SimpleNamespace(done=done, out=out, folder=folder, state=state, options=options)


def test_the_recipe_keeps_its_budget_and_says_what_it_is_of(searched):
    recipe = read_recipe(searched.out)
    assert recipe.model == "demo"
    assert recipe.model_revision == resolve("demo").identity.revision
    assert recipe.budget["kind"] == "bytes"
    assert recipe.weight_bytes <= recipe.budget["limit_bytes"]
    # No layer could be larger: the smallest step between the formats is 72 kB.
    assert recipe.weight_bytes > recipe.budget["limit_bytes"] - 300_000
    assert set(recipe.converted) == set(FORMATS)
    assert sum(map(len, recipe.layers.values())) == len(searched.state["base"]["layers"]) == 13
    assert recipe.calibration["task"] == "sentiment"


def test_what_it_predicts_is_the_sum_and_what_it_verified_is_measured(searched):
    recipe = read_recipe(searched.out)
    formats = searched.state["formats"]
    total = sum(
        formats[f]["layers"][n]["kl_nats"] for f, held in recipe.layers.items() for n in held
    )
    assert recipe.predicted_kl_nats == pytest.approx(total)
    assert 0 < recipe.verified_kl_nats < formats["nf4"]["uniform_kl_nats"]
    assert recipe.verified_kl_nats == pytest.approx(recipe.predicted_kl_nats, rel=2)
    size = searched.state["base"]["weight_bytes"] + sum(
        formats[f]["layers"][n]["bytes"] - searched.state["base"]["layers"][n]["bytes"]
        for f, held in recipe.layers.items()
        for n in held
    )
    assert recipe.weight_bytes == pytest.approx(size, rel=1e-4)


def test_each_layer_was_measured_in_each_format(searched):
    layers = searched.state["base"]["layers"]
    for found in searched.state["formats"].values():
        assert set(found["layers"]) == set(layers)
        for name, layer in found["layers"].items():
            assert layer["kl_nats"] >= 0
            assert layer["bytes"] < layers[name]["bytes"]
            assert layer["seconds"] > 0
    assert searched.state["shortcut"]


def test_the_ranking_and_the_comparison_are_printed(searched):
    text = searched.done.stdout
    worst = max(
        searched.state["formats"]["nf4"]["layers"].items(), key=lambda item: item[1]["kl_nats"]
    )[0]
    assert worst in text
    for word in ("mixed:half", *FORMATS, "fp32"):
        assert word in text
    assert f"mixed:{searched.out}" in searched.done.stderr


def test_another_budget_measures_nothing_again(searched):
    before = (searched.folder / "half.layers.json").read_bytes()
    marked = json.loads(before)
    name = next(iter(marked["base"]["layers"]))
    marked["formats"]["nf4"]["layers"][name]["kl_nats"] = 123.0
    path = searched.folder / "again.layers.json"
    path.write_text(json.dumps(marked))
    out = searched.folder / "again.yaml"
    options = MixOptions(
        "demo", None, FORMATS, ("bytes", "54%"), str(out), device="cpu", tokens=128, threads=1
    )
    found = find_recipe(options, nothing)
    assert found.layers[0].name == name
    assert found.layers[0].kl_nats["nf4"] == 123.0
    assert found.layers[0].chosen == "int8-weight-only"
    assert json.loads(path.read_text()) == marked


def test_an_interrupted_search_goes_on_and_another_s_figures_are_not_taken(searched):
    partly = json.loads((searched.folder / "half.layers.json").read_text())
    names = list(partly["base"]["layers"])
    partly["formats"]["nf4"]["layers"].pop(names[-1])
    partly["formats"]["nf4"].pop("uniform_kl_nats")
    partly["formats"]["nf4"]["layers"][names[0]]["kl_nats"] = 99.0
    partly["formats"]["int8-weight-only"]["recipe"] = {"kernel": "another"}
    partly["formats"]["int8-weight-only"]["layers"][names[0]]["kl_nats"] = 99.0
    path = searched.folder / "partly.layers.json"
    path.write_text(json.dumps(partly))
    out = str(searched.folder / "partly.yaml")
    options = MixOptions(
        "demo", None, FORMATS, ("bytes", "54%"), out, device="cpu", tokens=128, threads=1
    )
    find_recipe(options, nothing)
    now = json.loads(path.read_text())
    whole = searched.state["formats"]
    assert now["formats"]["nf4"]["layers"][names[0]]["kl_nats"] == 99.0
    last = now["formats"]["nf4"]["layers"][names[-1]]["kl_nats"]
    assert last == pytest.approx(whole["nf4"]["layers"][names[-1]]["kl_nats"], rel=1e-3)
    again = now["formats"]["int8-weight-only"]["layers"][names[0]]["kl_nats"]
    assert again == pytest.approx(
        whole["int8-weight-only"]["layers"][names[0]]["kl_nats"], rel=1e-3
    )


def test_a_latency_budget_is_searched_over_measured_seconds(searched):
    items, rest = costs("latency", "fp32", (*FORMATS, "fp32"), searched.state)
    whole = reference_of("latency", searched.state["base"])
    own = sum(layer["seconds"] for layer in searched.state["base"]["layers"].values())
    assert rest == pytest.approx(whole - own)
    free = assign(items, 1e9)
    assert set(free.chosen.values()) == {"fp32"}


def test_a_sweep_runs_the_recipe_as_one_more_row(searched, quick_workload):
    folder = searched.folder / "run"
    done = run(
        "sweep", "--formats", f"fp32,mixed:{searched.out}", "--limit", 20, "--device", "cpu",
        "--threads", 1, "--workload", quick_workload, "--out", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (folder / "tradeoffs.csv").open(newline="") as file:
        rows = {row["format"]: row for row in csv.DictReader(file)}
    row = rows["mixed:half"]
    recipe = read_recipe(searched.out)
    assert row["status"] == "ok"
    assert row["execution"] == "dequantized"
    assert int(row["weight_bytes"]) == recipe.weight_bytes
    assert float(row["converted_share"]) > 0.99
    assert float(row["executed_share"]) > 0.9
    sweep = (folder / "sweep.json").read_text()
    assert '"mixed:half"' in sweep
    assert str(searched.folder) not in sweep
    (cell,) = [c for c in json.loads(sweep)["plan"]["cells"] if c["format"] == "mixed:half"]
    record = json.loads((folder / "cells" / f"{cell['cell_id']}.json").read_text())
    assert record["cell"]["recipe"]["layers"] == recipe.converted
    assert str(searched.folder) not in json.dumps(record)


# -- refusals ----------------------------------------------------------------------------------


def refusal(*arguments):
    done = run(*arguments)
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    return line


def test_layers_that_the_model_has_not_are_refused_before_anything_runs(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"layers": {"nf4": ["bert.encoder.layer.99.output.dense"]}}))
    line = refusal("plan", "--formats", f"mixed:{path}", "--device", "cpu", "--threads", 1)
    assert "demo has no linear layer bert.encoder.layer.99.output.dense" in line
    assert "1 of the 1 named" in line


def test_a_recipe_of_other_weights_is_refused():
    recipe = Recipe(model="other", model_revision="files:0", layers={"nf4": ["a"]})
    with pytest.raises(UsageError, match="made for other of revision files:0"):
        check_revisions({"mixed:r": recipe}, [resolve("demo")])
    check_revisions(
        {"mixed:r": recipe.model_copy(update={"model_revision": None})}, [resolve("demo")]
    )


def test_two_recipes_of_one_name_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name / "r.yaml", Recipe(layers={"nf4": ["x"]}))
    with pytest.raises(UsageError, match="would both be mixed:r"):
        read_recipes([f"mixed:{tmp_path}/a/r.yaml", "fp32", f"mixed:{tmp_path}/b/r.yaml"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --budget-bytes"),
        (["--budget-bytes", "60%", "--budget-latency", "1s"], "give one of --budget-bytes"),
        (["--budget-bytes", "60%", "--formats", "nf4"], "a mixture needs two formats"),
        (["--budget-bytes", "60%", "--formats", "fp32,bf16"], "a mixture needs two formats"),
        (["--budget-bytes", "60%", "--formats", "nf5,nf4"], "did you mean nf4"),
        (
            ["--budget-bytes", "60%", "--formats", "int8-static,nf4"],
            "can't be chosen for single layers",
        ),
        (["--budget-bytes", "53"], "'53' has no unit; write it as 53MB"),
        (["--budget-bytes", "100kB"], "the cheapest takes at least"),
        (["--budget-bytes", "lots"], "--budget-bytes: 'lots' is no size"),
        (["--budget-bytes", "60%", "--task", "nonsense"], "unknown task"),
        (["--budget-bytes", "60%", "--out", "no/where/r.yaml"], "is no folder"),
        (["--budget-bytes", "60%", "--out", "."], "is a folder; give a file"),
        (["--budget-bytes", "60%", "--calibration", "gone.jsonl"], "no calibration file"),
    ],
)
def test_what_can_t_be_asked_is_refused_in_one_line(arguments, said):
    assert said in refusal("mix", "--device", "cpu", "--threads", 1, *arguments)


def test_an_energy_budget_needs_a_meter(monkeypatch, tmp_path):
    options = MixOptions(
        "demo", None, FORMATS, ("energy", "90%"), str(tmp_path / "r.yaml"), device="cpu"
    )
    sensor = SimpleNamespace(source="estimated:cpu-time")
    monkeypatch.setattr(mix_module, "open_sensor", lambda facts: sensor)
    with pytest.raises(UsageError, match="no energy meter can be read"):
        find_recipe(options, nothing)


def test_calibration_texts_that_are_test_data_are_refused(tmp_path):
    card = resolve("demo").path.parents[2] / "tasks" / "sentiment"
    texts = (card / "test.jsonl").read_text().splitlines()[:3]
    (tmp_path / "c.jsonl").write_text("\n".join(texts) + "\n")
    line = refusal(
        "mix", "--budget-bytes", "60%", "--calibration", tmp_path / "c.jsonl", "--device", "cpu"
    )
    assert "stand in the test data" in line


def test_a_budget_below_the_cheapest_says_what_that_takes(searched):
    out = searched.folder / "half.yaml"
    line = refusal("mix", "--budget-bytes", "20%", "--out", out, *searched.options)
    assert "the cheapest takes at least 11.9 MB, the rest of the model included" in line
