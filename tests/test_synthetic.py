"""Shapes with random weights: what they are, that they are made where they are used, and that a
sweep of one is timed, not scored."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from precision_explorer.errors import ModelError, PrecisionExplorerError, UsageError
from precision_explorer.hardware import device_facts, library_versions
from precision_explorer.models import check_head, refuse_synthetic, resolve
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.loading import load, prepare
from precision_explorer.models.reference import DEMO
from precision_explorer.models.shapes import SHAPES
from precision_explorer.models.synthetic import make
from precision_explorer.plan.spec import make_spec
from precision_explorer.report.answers import limits_line
from precision_explorer.runner.batch_budget import _asked
from precision_explorer.runner.mixed import check_revisions
from precision_explorer.runner.rescore import rescore
from precision_explorer.runner.sensitivity import list_layers
from precision_explorer.runner.sessions import sessions
from precision_explorer.runner.sweep import prepare_sweep
from precision_explorer.store import read_run
from precision_explorer.table import Context
from precision_explorer.tasks import load_card
from precision_explorer.workload import Workload
from tests.command import run

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 6400, "max_position_embeddings": 256,
    "rope_theta": 500000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BERT = json.loads((SHAPES["bert-large"] / "config.json").read_text()) | {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
LAYER = "model.layers.0.mlp.up_proj"
NOTE = "synthetic weights: quality not measured"


def shape(folder, config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return shape(tmp_path_factory.mktemp("shapes") / "tiny-llama", LLAMA)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return shape(tmp_path_factory.mktemp("shapes") / "tiny-bert", BERT)


# -- what is asked for -------------------------------------------------------------------------


def test_the_bundled_shapes_are_those_of_their_models():
    """Against the numbers of weights that are published: 8.03 and 0.335 billion."""
    ref = resolve("synthetic:llama-3-8b")
    c = ref.config
    head = c["hidden_size"] // c["num_attention_heads"]
    attention = c["hidden_size"] * head * 2 * (c["num_attention_heads"] + c["num_key_value_heads"])
    layer = attention + 3 * c["hidden_size"] * c["intermediate_size"] + 2 * c["hidden_size"]
    outside = 2 * c["vocab_size"] * c["hidden_size"] + c["hidden_size"]
    assert c["num_hidden_layers"] * layer + outside == 8_030_261_248
    assert (c["rope_theta"], c["max_position_embeddings"]) == (500000.0, 8192)
    request = {"path": SHAPES["bert-large"], "trust_remote_code": False}
    found, _ = list_layers(request | {"kind": "text-classification"}, lambda *a: None)
    # The encoder with its pooler, and a head of 1,024 x 2 weights and 2 biases.
    assert found["elements"] == 335_141_888 + 2_050


def test_a_shape_is_pinned_by_its_config_its_tokenizer_and_the_seed(llama, tmp_path):
    ref = resolve(f"synthetic:{llama}")
    assert ref.name == ref.identity.name == "synthetic:tiny-llama"
    assert ref.identity.revision.startswith("synthetic:")
    assert ref.identity.cautions == ("synthetic-weights",)
    assert [c.message for c in ref.cautions] == [NOTE]
    assert ref.synthetic.tokenizer == DEMO
    same = resolve(f"synthetic:{shape(tmp_path / 'same', LLAMA)}")
    other = resolve(f"synthetic:{shape(tmp_path / 'other', LLAMA | {'hidden_size': 32})}")
    own = shape(tmp_path / "own", LLAMA)
    (own / "tokenizer.json").write_bytes((DEMO / "tokenizer.json").read_bytes())
    found = [same, other, resolve(f"synthetic:{llama}", seed=1), resolve(f"synthetic:{own}")]
    assert found[0].identity.revision == ref.identity.revision
    assert len({r.identity.revision for r in found}) == 4
    assert found[3].synthetic.tokenizer == own


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("synthetic:lama-3-8b", "unknown synthetic shape 'lama-3-8b'; did you mean llama-3-8b?"),
        ("synthetic:", "unknown synthetic shape ''; known: llama-3-8b, bert-large"),
        ("synthetic:{empty}", "holds no config.json"),
        ("synthetic:{broken}", "is no JSON"),
        ("synthetic:{quantized}", "has a quantization_config"),
        ("synthetic:{small}", "has a vocabulary of 40 and no tokenizer"),
    ],
)
def test_what_is_no_shape_is_refused_in_one_line(name, says, tmp_path):
    (tmp_path / "empty").mkdir()
    (shape(tmp_path / "broken", {}) / "config.json").write_text("{")
    quantized = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    shape(tmp_path / "quantized", LLAMA | quantized)
    shape(tmp_path / "small", LLAMA | {"vocab_size": 40})
    folders = {n: tmp_path / n for n in ("empty", "broken", "quantized", "small")}
    with pytest.raises(ModelError) as found:
        resolve(name.format(**folders))
    assert says in str(found.value)
    assert "\n" not in str(found.value)


def test_what_random_weights_say_nothing_of_is_refused(llama, bert, tmp_path):
    with pytest.raises(ModelError, match="--revision is for hub models"):
        resolve(f"synthetic:{llama}", revision="main")
    with pytest.raises(ModelError, match="has no head for language-modeling"):
        check_head(resolve(f"synthetic:{bert}"), "language-modeling")
    with pytest.raises(ModelError, match="with which lm-eval is not measured"):
        check_head(resolve(f"synthetic:{llama}"), "lm-eval")
    refuse_synthetic(["demo"], "nothing")
    name = f"synthetic:{llama}"
    rest = ("--device", "cpu", "--limit", "4")
    for arguments, says in [
        (("plan", "--model", name, "--until-decided", *rest), "--until-decided scores examples"),
        (("plan", "--model", name, "--runtime", "endpoint:http://localhost:1/v1", *rest[:2]),
         "an endpoint's server has its own"),
        (("plan", "--background", f"model:{name}", *rest), "a neighbour's work is that of"),
        (("inspect", "--model", name), "errors of a trained model's layers"),
        (("mix", "--model", name, "--budget-bytes", "60%"), "what a model loses least by"),
    ]:  # fmt: skip
        done = run(*arguments)
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_config_that_makes_no_model_is_refused_in_one_line(tmp_path):
    folder = shape(tmp_path / "odd", LLAMA | {"num_attention_heads": "many"})
    with pytest.raises(PrecisionExplorerError) as found:
        make(folder, "language-modeling", torch.float32, "cpu", False, 0)
    assert "the config.json makes no model" in str(found.value)
    done = run("plan", "--model", f"synthetic:{folder}", "--formats", "fp32", "--device", "cpu")
    assert done.returncode == 1
    assert "config.json makes no model" in done.stderr.splitlines()[-1]


# -- how it is made ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["language-modeling", "text-classification"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_what_an_ordinary_load_of_the_config_gives(kind, dtype, llama, bert, tmp_path):
    folder = llama if kind == "language-modeling" else bert
    model = make(folder, kind, dtype, "cpu", False, 0)
    model.save_pretrained(tmp_path)
    usual = load(tmp_path, kind, dtype, "cpu", False)
    for ours, theirs in (
        (model.named_parameters(), usual.named_parameters()),
        (model.named_buffers(), usual.named_buffers()),
    ):
        both = zip(ours, theirs, strict=True)
        for (name, tensor), (other, wanted) in both:
            assert (name, tensor.dtype) == (other, wanted.dtype)
            assert torch.equal(tensor, wanted), name
    assert model.config._attn_implementation == usual.config._attn_implementation
    assert not model.training
    weights = [p for p in model.parameters() if p.dim() == 2]
    assert all(0.01 < float(p.detach().float().std()) < 0.03 for p in weights)
    with torch.inference_mode():
        assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_nothing_of_it_is_made_on_another_device(llama):
    model = make(llama, "language-modeling", torch.bfloat16, "meta", False, 0)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_one_seed_gives_one_model(llama):
    first, again, other = (
        make(llama, "language-modeling", torch.float32, "cpu", False, seed) for seed in (0, 0, 1)
    )
    heads = [model.lm_head.weight for model in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_lent_tokenizer_has_the_signs_and_the_length_that_the_shape_needs(llama, bert):
    of_llama = prepare(llama, "generation", False, DEMO)
    assert None not in (of_llama.bos_token_id, of_llama.eos_token_id, of_llama.pad_token_id)
    assert of_llama.model_max_length == 256
    assert prepare(bert, "text-classification", False, DEMO).model_max_length == 512


@pytest.mark.parametrize(
    ("kind", "card"),
    [
        ("language-modeling", "news-perplexity"),
        ("generation", "capitals"),
        ("multiple-choice", "sentiment-choice"),
        ("text-classification", "sentiment"),
    ],
)
def test_every_kind_answers_requests_and_batches(kind, card, llama, bert):
    folder = bert if kind == "text-classification" else llama
    loaded = load_card(card)
    model = make(folder, kind, torch.float32, "cpu", False, 0)
    tokenizer = prepare(folder, kind, False, DEMO)
    examples = loaded_examples(loaded)
    rules = Workload(prompt_tokens=32, output_tokens=4)
    adapter = make_adapter(model, tokenizer, "cpu", {
        "card": loaded.card.asked(), "examples": examples, "corpus": [],
        "label_ids": {"negative": 0, "positive": 1}, "workload": rules.model_dump(),
    })  # fmt: skip
    from precision_explorer.measure import NullPhases

    with torch.inference_mode():
        for index in range(len(examples)):
            adapter.request(index, NullPhases())
        adapter.offline(list(range(len(examples))))
        assert adapter.score(adapter.items()[:2])


def loaded_examples(loaded):
    from precision_explorer.tasks import prepare as prepare_task

    return prepare_task(loaded, 3, 0).examples


# -- a sweep -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(llama, tmp_path_factory, quick_workload):
    """One of each way of applying a format, and a recipe that was found on other weights."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "mine.yaml"
    layers = {"int8-weight-only": [LAYER]}
    document = {"version": 1, "model": "x", "model_revision": "files:0", "layers": layers}
    recipe.write_text(yaml.safe_dump(document))
    formats = f"fp32,bf16,int8-weight-only,mixed:{recipe}"
    arguments = (
        "sweep", "--model", f"synthetic:{llama}", "--task", "sentiment-choice", "--formats",
        formats, "--workload", quick_workload, "--limit", 6, "--device", "cpu", "--threads", 1,
        "--batch-size", "1,2,4", "--price-per-hour", 1, "--slo", "p50=9s", "--out", folder / "run",
    )  # fmt: skip
    return run(*arguments), folder / "run", arguments


def rows_of(folder):
    with (folder / "tradeoffs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_everything_but_quality_is_measured(swept):
    done, folder, _ = swept
    assert done.returncode == 0, done.stderr
    rows = rows_of(folder)
    assert [r["format"] for r in rows] == ["fp32", "bf16", "int8-weight-only", "mixed:mine"]
    empty = (
        "quality_metric", "quality", "quality_ci_low", "quality_ci_high", "quality_n",
        "quality_delta", "flips", "p_value", "verdict", "value_per_usd", "kl_mean",
        "noise_floor_flips",
    )  # fmt: skip
    for row in rows:
        assert row["status"] == "ok", row["reason"]
        assert row["model"] == "synthetic:tiny-llama"
        assert row["model_revision"].startswith("synthetic:")
        assert {name: row[name] for name in empty if row[name]} == {}
        assert row["verdict_note"] == NOTE
        assert "synthetic-weights" in row["cautions"].split(";")
        for name in ("latency_p50_s", "throughput_per_s", "peak_memory_bytes", "weight_bytes",
                     "energy_per_request_j", "cost_per_1k_requests_usd"):  # fmt: skip
            assert float(row[name]) > 0, name
        assert row["pareto"] in ("yes", "no")
        assert row["executed_share"] != ""
    sizes = {row["format"]: int(row["weight_bytes"]) for row in rows}
    assert sizes["bf16"] < sizes["int8-weight-only"] < sizes["mixed:mine"] < sizes["fp32"]


def test_no_example_is_scored_and_nothing_compared(swept):
    _, path, _ = swept
    folder, sweep = read_run(path)
    for cell in sweep["plan"]["cells"]:
        cell_id = cell["cell_id"]
        assert folder.read_samples(cell_id, "example")["id"] == []
        assert folder.read_samples(cell_id, "request")["latency_s"]
        assert folder.read_answer(cell_id, "quality")["quality"] is None
        assert not folder.has_part(cell_id, "noise")
        assert not folder.has_part(cell_id, "kept")
        record = folder.read_record(cell_id)
        assert record.measurements.quality is None
        assert record.measurements.profile is not None or record.profile is not None
        rates = record.measurements.throughput.by_batch_size
        assert set(rates) == {"1", "2", "4"}


def test_every_output_says_that_quality_was_not_measured(swept):
    done, folder, _ = swept
    markdown, html = ((folder / n).read_text() for n in ("tradeoffs.md", "report.html"))
    for text in (done.stdout, markdown, html):
        flat = " ".join(text.split())
        assert "Of synthetic weights quality is not measured, so it limits nothing." in flat
        assert NOTE in flat
        assert "the weights are synthetic (random)" in flat
        assert "the quality budget is 1.0 %" not in flat
        assert "Most value" not in flat
    assert "Quality: none (synthetic weights: quality not measured)." in markdown
    assert "p50 of the latency at most 9" in markdown


def test_it_resumes_and_reports_the_same_bytes(swept, monkeypatch):
    _, folder, arguments = swept
    before = {n: (folder / n).read_bytes() for n in ("tradeoffs.csv", "report.html")}
    # As an import of scikit-learn in between would; the environment that is stored is no other.
    monkeypatch.setenv("KMP_INIT_AT_FORK", "FALSE")
    monkeypatch.setenv("KMP_DUPLICATE_LIB_OK", "True")
    again = run(*arguments)
    assert "0 measured, 4 already there" in again.stderr
    assert run("report", folder).returncode == 0
    assert {n: (folder / n).read_bytes() for n in before} == before


def test_the_front_of_quality_has_nobody(swept, tmp_path):
    _, folder, _ = swept
    done = run("report", folder, "--objectives", "quality,memory", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {r["pareto_note"] for r in rows_of(tmp_path)} == {"left out: no quality"}


def test_decide_answers_what_can_be_told(swept):
    _, folder, _ = swept
    done = run("decide", folder, "--objective", "memory", "--json")
    (found,) = json.loads(done.stdout)["decisions"]
    assert done.returncode == 0
    assert found["status"] == "recommended"
    assert not any("quality" in limit for limit in found["limits"])
    assert any("what is fastest or cheapest here may be useless" in t for t in found["uncovered"])
    for objective in ("quality", "value"):
        done = run("decide", folder, "--objective", objective)
        assert done.returncode == 5
        assert f"Can't tell: {NOTE}." in " ".join(done.stdout.split())
    done = run("decide", folder, "--objective", "memory", "--max-quality-loss", "1%")
    assert done.returncode == 5
    assert "quality was not measured (synthetic weights)" in " ".join(done.stdout.split())


def test_capacity_names_the_cheapest_fleet_of_all_formats(swept):
    _, folder, _ = swept
    done = run("capacity", folder, "--rate", "0.01/s", "--slo", "p50=100s")
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    busy = ", as far as times that were taken beside other work tell"
    assert f"Cheapest fleet, of all formats ({NOTE}):" in text.replace(busy, "")
    assert "quality budget" not in text


def test_there_is_nothing_to_score_again(swept):
    _, folder, _ = swept
    with pytest.raises(UsageError, match="random weights alone"):
        rescore(folder, (), None, (), lambda event: None)


# -- between the parts -------------------------------------------------------------------------


def test_the_plan_knows_how_much_memory_it_takes_and_probes_no_batches(llama):
    spec = make_spec({
        "model": f"synthetic:{llama}", "task": "sentiment-choice", "formats": "fp32,bf16",
        "device": "cpu", "limit": 4, "seed": 7,
    })  # fmt: skip
    prepared = prepare_sweep(spec, lambda event: None)
    (ref,) = prepared.refs
    # Two tables of 6,400 x 64, and two layers.
    assert 2 * 6400 * 64 < ref.elements < 2 * 6400 * 64 + 100_000
    assert ref.load_bytes(2, False) == 2 * ref.elements
    assert ref.synthetic.seed == 7
    assert not any(planned.has_quality for planned in prepared.plan.cells)
    assert {p.cell.batch_plan["max_tokens"] for p in prepared.plan.cells} == {256}
    assert _asked(prepared.plan, device_facts("cpu"), library_versions(), 1) == {}


def test_a_shape_shares_no_worker_with_the_weights_in_its_folder(swept, llama):
    spec = make_spec({
        "model": f"synthetic:{llama}", "task": "sentiment-choice", "formats": "fp32",
        "device": "cpu", "limit": 4,
    })  # fmt: skip
    (cell,) = prepare_sweep(spec, lambda event: None).plan.cells
    from dataclasses import replace

    with_weights = replace(cell, ref=replace(cell.ref, synthetic=None))
    assert len(sessions([cell, with_weights])) == 2
    assert len(sessions([cell, cell])) == 1


def test_a_recipe_of_other_weights_fits_a_shape_alone():
    recipe = SimpleNamespace(model="x", model_revision="files:0")
    shape_ = SimpleNamespace(name="s", synthetic=object(), identity=SimpleNamespace(revision="s"))
    stored = SimpleNamespace(name="t", synthetic=None, identity=SimpleNamespace(revision="files:1"))
    check_revisions({"mixed:r.yaml": recipe}, [shape_])
    with pytest.raises(UsageError, match="was made for x"):
        check_revisions({"mixed:r.yaml": recipe}, [shape_, stored])


@pytest.mark.parametrize(
    ("revisions", "says"),
    [
        (["files:0"], "Of the formats known to hold: loss of quality at most 1.0 %."),
        (["synthetic:0"], "Of all formats. Of synthetic weights quality is not measured, so it "
         "limits nothing."),
        (["files:0", "synthetic:0"], "Of the formats known to hold: loss of quality at most 1.0 %. "
         "Of models with synthetic weights quality is not measured, so it limits nothing."),
    ],
)  # fmt: skip
def test_the_limits_are_said_of_those_that_they_are_of(revisions, says):
    context = SimpleNamespace(limits=None, quality_budget=0.01, slo=None)
    assert {"limits", "quality_budget", "slo"} <= set(Context.__dataclass_fields__)
    rows = [{"model_revision": revision} for revision in revisions]
    assert limits_line(SimpleNamespace(context=context, rows=rows)) == says
