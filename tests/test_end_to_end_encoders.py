"""A sweep of every kind that encoders and vision models answer, on tiny models, in four formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from precision_explorer.plan.spec import make_spec
from precision_explorer.records import METRICS
from precision_explorer.runner.requests import load_request, task_request
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.store import read_run
from precision_explorer.table import build
from precision_explorer.tasks import KINDS
from tests import tiny_models

FORMATS = ("fp32", "bf16", "int8-dynamic", "int8-weight-only")
NAMES = ("anna", "bob", "eve", "dora")
PLACES = ("rome", "oslo", "bonn")


def sentences() -> list[tuple[str, str]]:
    return [(NAMES[i % 4], PLACES[i % 3]) for i in range(12)]


def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "token-classification":
        return [
            {"tokens": [name, "is", "in", place], "tags": [1, 0, 0, 3]}
            for name, place in sentences()
        ]
    if kind == "extractive-qa":
        return [
            {
                "question": f"where is {name}?",
                "context": f"{name} is in {place}. " * 4,
                "answers": {"text": [place], "answer_start": [0]},
            }
            for name, place in sentences()
        ]
    if kind == "similarity":
        return [
            {"a": name, "b": place, "grade": i % 4} for i, (name, place) in enumerate(sentences())
        ]
    if kind == "retrieval":
        return [
            {"query": f"{n} {p} {i}", "document": f"d{i}"} for i, (n, p) in enumerate(sentences())
        ]
    return [
        {"image": [[(i * 20 + x * y) % 256 for x in range(8)] for y in range(8)], "label": i % 4}
        for i in range(12)
    ]


CARDS: dict[str, dict[str, Any]] = {
    "token-classification": {
        "columns": {"text": "tokens", "label": "tags"},
        "labels": list(tiny_models.TAGS),
        "metrics": ["entity_f1", "entity_recall"],
    },
    "extractive-qa": {
        "columns": {"text": "question", "context": "context", "reference": "answers.text"},
        "max_length": 60,
        "stride": 8,
        "metrics": ["exact_match", "token_f1"],
    },
    "similarity": {
        "columns": {"text": "a", "pair": "b", "label": "grade"},
        "metrics": ["spearman"],
    },
    "retrieval": {
        "columns": {"text": "query", "label": "document"},
        "corpus": {"path": "corpus.jsonl"},
        "metrics": ["ndcg_at_10", "recall_at_10"],
    },
    "image-classification": {
        "columns": {"image": "image", "label": "label"},
        "metrics": ["accuracy", "macro_f1"],
    },
}
MODELS = {
    "token-classification": tiny_models.tagger,
    "extractive-qa": tiny_models.answerer,
    "similarity": tiny_models.encoder,
    "retrieval": tiny_models.encoder,
    "image-classification": tiny_models.vision,
}


def write_task(folder: Path, kind: str) -> Path:
    folder.mkdir()
    lines = [json.dumps(row) + "\n" for row in rows_of(kind)]
    (folder / "test.jsonl").write_text("".join(lines))
    documents = [{"id": f"d{i}", "text": f"{n} {p} {i}"} for i, (n, p) in enumerate(sentences())]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    card = {"name": kind, "version": 1, "kind": kind, "data": {"path": "test.jsonl"}} | CARDS[kind]
    (folder / "task.yaml").write_text(yaml.safe_dump(card))
    return folder


def swept(folder: Path, kind: str, workload: Path, **more: Any) -> Path:
    spec = make_spec(
        {
            "model": (str(MODELS[kind](folder / "model")),),
            "task": (str(write_task(folder / "task", kind)),),
            "formats": FORMATS,
            "device": "cpu",
            "threads": 1,
            "limit": 10,
            "batch_size": (1, 4),
            "workload": str(workload),
            "out": str(folder / "run"),
        }
        | more
    )
    run, tally = run_sweep(prepare_sweep(spec, lambda event: None), lambda event: None)
    records = [run.read_record(c["cell_id"]) for c in read_run(run.path)[1]["plan"]["cells"]]
    assert tally.failed == 0, [record.error for record in records]
    return run.path


@pytest.mark.parametrize("kind", CARDS)
def test_a_sweep_in_four_formats(kind: str, tmp_path: Path, quick_workload: Path) -> None:
    path = swept(tmp_path, kind, quick_workload)
    table = build([path])
    assert [row["format"] for row in table.rows] == list(FORMATS)
    run, sweep = read_run(path)
    metric, proof = CARDS[kind]["metrics"][0], KINDS[kind].proof
    for cell, row in zip(sweep["plan"]["cells"], table.rows, strict=True):
        assert row["status"] == "ok"
        assert row["quality_metric"] == metric
        assert row["quality_n"] == 10
        assert row["quality_ci_low"] <= row["quality"] <= row["quality_ci_high"]
        assert row["latency_p50_s"] > 0
        assert row["throughput_per_s"] > 0
        # Every layer that multiplies was converted, and was seen to run in the format.
        assert row["converted_share"] == 1.0
        assert row["executed_share"] is None or row["executed_share"] > 0.5
        record = run.read_record(cell["cell_id"])
        assert set(record.measurements.quality.scores) == set(CARDS[kind]["metrics"])
        assert record.measurements.profile.note is None
        assert record.measurements.profile.prefill.work.flops_by_type
        samples = run.read_samples(cell["cell_id"], "example")
        assert len(samples["id"]) == 10
        assert None not in samples[proof]
    fp32, others = table.rows[0], table.rows[1:]
    assert all(row["verdict"] for row in others)
    assert all(row["quality_delta"] is not None for row in others)
    if METRICS[metric].zero_one:
        assert all(row["flips"] is not None for row in others)
    assert fp32["executed_share"] == 1.0
    weights = {row["format"]: row["weight_bytes"] for row in table.rows}
    assert weights["int8-weight-only"] < weights["fp32"]


def test_nothing_is_calibrated_on_the_corpus(tmp_path: Path) -> None:
    """Its documents are test data, and a calibrating format is given none of them."""
    model = tiny_models.encoder(tmp_path / "model")
    spec = make_spec(
        {
            "model": (str(model),),
            "task": ("news-retrieval",),
            "formats": ("fp32", "int8-static"),
            "device": "cpu",
            "threads": 1,
            "limit": 3,
        }
    )
    prepared = prepare_sweep(spec, lambda event: None)
    planned = prepared.plan.cells[-1]
    given = load_request(planned, spec, prepared.facts, "log")["calibration"]
    assert given is not None
    assert (len(given["examples"]), given["corpus"]) == (64, [])
    assert len(task_request(planned, "log")["corpus"]) == 498


@pytest.mark.parametrize("kind", ["extractive-qa", "retrieval"])
def test_a_model_of_nan_is_no_score(kind: str, tmp_path: Path, quick_workload: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = MODELS[kind](tmp_path / "broken")
    weights = load_file(model / "model.safetensors")
    name = next(n for n in weights if n.endswith("layer.1.output.dense.weight"))
    weights[name].fill_(float("nan"))
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    spec = make_spec(
        {
            "model": (str(model),),
            "task": (str(write_task(tmp_path / "task", kind)),),
            "formats": ("fp32",),
            "device": "cpu",
            "threads": 1,
            "workload": str(quick_workload),
            "out": str(tmp_path / "run"),
        }
    )
    prepared = prepare_sweep(spec, lambda event: None)
    run, tally = run_sweep(prepared, lambda event: None)
    assert tally.failed == 1
    (planned,) = prepared.plan.to_run
    assert run.read_record(planned.cell_id).status == "invalid_numerics"
