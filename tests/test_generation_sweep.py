"""Sweeps of generating tasks through the command line, on tiny models built from a config."""

import contextlib
import csv
import io
import json
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
import transformers
import yaml

from precision_explorer.cli import main
from precision_explorer.plan.expand import not_compiled
from precision_explorer.runner.comparisons import NO_DISTRIBUTIONS, Comparisons
from precision_explorer.runner.streams import stream_of, table_of
from precision_explorer.store import read_run
from precision_explorer.table import build
from tests.test_models_generation import PAD, llama, t5, tokenizer

WORDS = ["film", "music", "evening", "weather", "question", "good", "bad", "quiet"]


def folder_of(tmp_path_factory, name, model, coder):
    folder = tmp_path_factory.mktemp(name)
    model.save_pretrained(folder)
    coder.save_pretrained(folder)
    return folder


def card_of(tmp_path_factory, kind, **keys):
    folder = tmp_path_factory.mktemp(kind)
    rows = [
        {"text": f"the {a} was {b}", "answer": [a, f"{b} {a}"] if k % 2 else b}
        for k, (a, b) in enumerate((a, b) for a in WORDS[:4] for b in WORDS[4:7])
    ]
    rows = [r | {"answer": r["answer"] if isinstance(r["answer"], list) else [r["answer"]]}
            for r in rows]  # fmt: skip
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "name": kind,
        "version": 1,
        "kind": kind,
        "data": {"path": "data.jsonl"},
        "columns": {"text": "text", "reference": "answer"},
        "max_length": 40,
        "licence": "CC0",
        "source": "by hand",
    } | keys
    (folder / "task.yaml").write_text(yaml.safe_dump(card))
    return folder


def command(*arguments):
    """(exit code, all that was printed)."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(argument) for argument in arguments])
    return ended.value.code or 0, printed.getvalue()


def sweep(model, task, workload, out, *more):
    return command(
        "sweep", "--model", model, "--task", task, "--formats", "fp32,bf16,int8-dynamic",
        "--device", "cpu", "--threads", 1, "--workload", workload, "--out", out,
        "--price-per-hour", "1", *more,
    )  # fmt: skip


def rows_of(folder):
    with (folder / "tradeoffs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(model's folder, task's folder)."""
    model = folder_of(tmp_path_factory, "llama", llama(), tokenizer(**PAD))
    task = card_of(
        tmp_path_factory, "generation", prompt="Review: {text}\nSentiment:",
        metrics=["exact_match", "token_f1", "rougeL", "bleu", "chrf"],
        generation={
            "max_new_tokens": 12, "stop": ["\n\n"],
            "extract": {"pattern": "[a-m]+", "take": "last", "clean": ["strip", "casefold"]},
        },
    )  # fmt: skip
    return model, task


@pytest.fixture(scope="module")
def generated(asked, tmp_path_factory, quick_workload):
    out = tmp_path_factory.mktemp("runs") / "generation"
    return sweep(*asked, quick_workload, out), out


def test_a_generating_task_is_swept_in_three_formats(generated):
    (code, printed), folder = generated
    assert code == 0, printed
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["ok"] * 3
    for row in rows:
        assert row["quality_metric"] == "exact_match"
        assert row["quality_n"] == "12"
        assert float(row["ttft_s"]) > 0
        assert float(row["tpot_s"]) > 0
        assert float(row["output_tokens_per_s"]) > 0
        assert row["unparsed"] != ""
    assert rows[1]["verdict"] in ("within", "outside", "cannot-tell")


def test_the_examples_store_outputs_answers_and_counts(generated):
    _, path = generated
    folder, plan = read_run(path)
    for cell in plan["plan"]["cells"]:
        examples = folder.read_samples(cell["cell_id"], "example")
        record = folder.read_record(cell["cell_id"])
        quality = record.measurements.quality
        assert quality.unparsed == sum(examples["unparsed"])
        assert [p is None for p in examples["prediction"]] == examples["unparsed"]
        assert all(1 <= n <= 12 for n in examples["output_tokens"])
        assert all(len(counts) == 10 for counts in examples["bleu_counts"])
        assert set(quality.signatures) == {"rougeL", "bleu", "chrf"}
        assert "tok:13a" in quality.signatures["bleu"]
        assert {"rouge-score", "sacrebleu"} <= set(record.cell.libraries)
        assert set(quality.scores) == {"exact_match", "token_f1", "rougeL", "bleu", "chrf"}
        requests = folder.read_samples(cell["cell_id"], "request")
        assert set(requests["output_tokens"]) == {4}
        assert record.measurements.profile.prefill is not None
        assert record.measurements.profile.decode is not None
        assert record.applied.certificate is not None


def test_formats_are_held_against_the_reference_along_its_own_answers(asked, generated):
    """The figures of every position, made again with transformers alone."""
    _, path = generated
    folder, plan = read_run(path)
    cells = {cell["format"]: cell["cell_id"] for cell in plan["plan"]["cells"]}
    answered = folder.read_samples(cells["fp32"], "example")
    outputs = dict(zip(answered["id"], answered["output"], strict=True))
    kept = folder.read_record(cells["fp32"]).measurements.kept
    source, task = asked
    coder = transformers.AutoTokenizer.from_pretrained(source)
    lines = (task / "data.jsonl").read_text().splitlines()
    prompts = [f"Review: {json.loads(line)['text']}\nSentiment:" for line in lines]

    def logprobs(dtype):
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
        made = []
        for prompt, output in zip(prompts, outputs.values(), strict=True):
            begin = coder(prompt)["input_ids"]
            # Made of random tokens, a text may be tokenised to more than the 12 it was made of.
            ids = begin + coder(output, add_special_tokens=False)["input_ids"][:12]
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0, len(begin) - 1 :]
            made.append(logits.double().log_softmax(-1))
        return torch.cat(made)

    reference, other = logprobs(torch.float32), logprobs(torch.bfloat16)
    expected = (reference.exp() * (reference - other)).sum(-1)
    found = folder.read_samples(cells["bf16"], "position")
    assert kept.positions == len(found["kl"]) == len(expected)
    assert sum(found["kl"]) == pytest.approx(float(expected.sum()), rel=0.2)
    rows = {row["format"]: row for row in rows_of(path)}
    assert float(rows["bf16"]["kl_mean"]) == pytest.approx(sum(found["kl"]) / len(found["kl"]))
    # Weights and inputs of 8 bits are further away than 16-bit ones, and the floor is nearer.
    floor = float(rows["fp32"]["noise_floor_kl"])
    assert floor < float(rows["bf16"]["kl_mean"]) < float(rows["int8-dynamic"]["kl_mean"])
    assert 0 < float(rows["int8-dynamic"]["same_top"]) <= 1


@pytest.mark.parametrize(
    ("kind", "answer", "there"),
    [
        ("generation", {"why": NO_DISTRIBUTIONS}, False),
        ("generation", {"why": "the worker was ended"}, True),
        ("generation", {"kept": {}, "outputs": {}}, True),
        ("multiple-choice", {"why": NO_DISTRIBUTIONS}, True),
    ],
)
def test_what_an_earlier_version_did_not_keep_is_asked_for_again(kind, answer, there):
    planned = SimpleNamespace(
        cell_id="c", task=SimpleNamespace(card=SimpleNamespace(kind=kind)),
    )  # fmt: skip
    folder = SimpleNamespace(
        has_part=lambda *which: True, read_answer=lambda *which: answer,
    )  # fmt: skip
    assert Comparisons(None, None, folder)._has(planned, "kept") == there


def test_an_answer_that_was_not_finite_is_held_against_nothing(generated):
    _, path = generated
    folder, plan = read_run(path)
    reference = plan["plan"]["cells"][0]["cell_id"]
    answer, rows = folder.read_part(reference, "quality")
    table = table_of([rows])
    lost = table.set_column(
        table.column_names.index("output"), "output",
        pa.array([None, *table["output"].to_pylist()[1:]]),
    )  # fmt: skip
    kind = SimpleNamespace(card=SimpleNamespace(kind="generation"))
    planned = SimpleNamespace(cell_id=reference, task=kind)
    stand_in = SimpleNamespace(read_part=lambda *which: (answer, stream_of(lost)))
    asked = Comparisons(None, None, stand_in)._outputs(planned)
    assert list(asked["outputs"]) == table["id"].to_pylist()[1:]


def test_the_report_says_which_variant_of_a_metric_was_computed(generated):
    _, folder = generated
    text = (folder / "tradeoffs.md").read_text().replace("\\", "")
    assert "Metric bleu: nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:" in text


def test_the_report_says_what_a_timed_request_generates(generated):
    _, folder = generated
    text = (folder / "tradeoffs.md").read_text()
    assert "Every timed request generates 4 tokens, however long the task's answers are" in text
    assert "Nearest to fp32 first" in text


def test_unparsed_outputs_stand_beside_the_score(generated):
    _, folder = generated
    rows = rows_of(folder)
    text = (folder / "tradeoffs.md").read_text()
    counts = [int(row["unparsed"]) for row in rows]
    for row, count in zip(rows, counts, strict=True):
        assert ("unparsed-answers" in row["cautions"].split(";")) == (count > 0.05 * 12)
        if count:
            assert f", {count} unparsed" in text


def test_an_encoder_decoder_is_swept_in_three_formats(tmp_path_factory, tmp_path, quick_workload):
    kind, metrics = "translation", ["bleu", "chrf", "rouge1"]
    model = folder_of(tmp_path_factory, "t5", t5(), tokenizer(**PAD))
    task = card_of(
        tmp_path_factory, kind, prompt="in short: {text}", metrics=metrics,
        generation={"max_new_tokens": 8},
    )  # fmt: skip
    code, printed = sweep(model, task, quick_workload, tmp_path / "run")
    assert code == 0, printed
    rows = rows_of(tmp_path / "run")
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert [row["quality_metric"] for row in rows] == [metrics[0]] * 3
    assert all(float(row["converted_share"]) > 0.9 for row in rows)
    assert all(float(row["tpot_s"]) > 0 for row in rows)
    assert all(row["unparsed"] == "" for row in rows)
    folder, plan = read_run(tmp_path / "run")
    record = folder.read_record(plan["plan"]["cells"][0]["cell_id"])
    assert record.measurements.profile.prefill is not None
    assert record.measurements.profile.note == "decode: not profiled for encoder-decoders"
    assert build([tmp_path / "run"]).rows[0]["quality"] is not None


@pytest.mark.parametrize(
    ("kind", "runtime", "skipped"),
    [
        ("translation", "compile", True),
        ("translation", "eager", False),
        ("generation", "compile", False),
    ],
)
def test_a_compiled_encoder_decoder_is_skipped_with_the_reason(kind, runtime, skipped):
    task = SimpleNamespace(card=SimpleNamespace(kind=kind))
    reason = not_compiled(runtime, task)
    assert (reason is not None and "not for encoder-decoders" in reason) == skipped


def test_a_model_whose_logits_are_nan_is_invalid_numerics(
    tmp_path_factory, tmp_path, quick_workload
):
    model = llama()
    model.model.norm.weight.data[:] = float("nan")
    folder = folder_of(tmp_path_factory, "nan", model, tokenizer(**PAD))
    task = card_of(
        tmp_path_factory, "generation", prompt="{text}", metrics=["exact_match"],
        generation={"max_new_tokens": 4},
    )  # fmt: skip
    code, _ = sweep(folder, task, quick_workload, tmp_path / "run", "--limit", "4")
    assert code == 3
    rows = rows_of(tmp_path / "run")
    assert {row["status"] for row in rows} == {"invalid_numerics"}
    assert {row["quality"] for row in rows} == {""}
