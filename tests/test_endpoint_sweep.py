"""Sweeps through the command line against servers that really answer: rows, comparisons, failures,
and what no file may hold."""

from __future__ import annotations

import csv
import json
import re
from multiprocessing import forkserver

import pytest
import torch
import yaml

from precision_explorer.store import read_run
from tests.test_generation_sweep import command
from tests.test_models_causal_lm import BOTH, llama, tokenizer
from tests.tiny_server import Faults, TinyServer

KEY = "sk-never-stored"
WORDS = ["film", "music", "evening", "weather"]
QUICK = {"min_requests": 3, "min_seconds": 0, "warmup_requests": 1, "warmup_seconds": 0.1,
         "offline_seconds": 0, "offline_min_batches": 1, "output_tokens": 3, "prompt_tokens": 8,
         "rounds": 1}  # fmt: skip
# In which nothing that goes wrong is waited for long.
ARRIVING = QUICK | {"scenario": "server", "duration_seconds": 4,
                    "arrivals": {"kind": "poisson", "rate_per_s": 3}}  # fmt: skip
for name in ("min_requests", "min_seconds"):
    ARRIVING.pop(name)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model's folder, two cards and two workloads."""
    root = tmp_path_factory.mktemp("endpoint")
    llama().save_pretrained(root / "tiny")
    tokenizer(**BOTH).save_pretrained(root / "tiny")
    texts = [f"the {a} was {b}" for a in WORDS for b in ("good", "bad", "quiet")]
    rows = [{"text": t, "label": k % 2, "answer": "good"} for k, t in enumerate(texts)]
    card = {"version": 1, "data": {"path": "../data.jsonl"}, "prompt": "{text}", "max_length": 40}
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in {
        "choose": {
            "kind": "multiple-choice", "columns": {"text": "text", "label": "label"},
            "choices": [" indeed", " and very bad"], "metrics": ["accuracy"],
        },
        "answer": {
            "kind": "generation", "columns": {"text": "text", "reference": "answer"},
            "metrics": ["exact_match"], "generation": {"max_new_tokens": 4},
        },
    }.items():  # fmt: skip
        (root / name).mkdir()
        (root / name / "task.yaml").write_text(yaml.safe_dump(card | {"name": name} | more))
    for name, workload in {"quick": QUICK, "arriving": ARRIVING}.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(workload))
    return root


def rows_of(folder):
    with (folder / "tradeoffs.csv").open(newline="") as file:
        return {(row["format"], row["task"]): row for row in csv.DictReader(file)}


def texts_of(folder):
    """All that a run's folder holds, in bytes."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


EMPTY = (
    "converted_share", "executed_share", "weight_bytes", "peak_memory_bytes", "power_w",
    "energy_per_request_j", "cost_per_1k_requests_usd", "requests_per_joule", "value_per_usd",
    "kernel", "compute_dtype", "load_s", "utilisation", "queue_p50_s", "service_p50_s",
)  # fmt: skip


def test_two_servers_in_one_table_and_one_that_fails(places, monkeypatch):
    """The second server is another model, so that its answers differ."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    # One that other tests of this process have left has the environment of then.
    forkserver._forkserver._stop()
    out = places / "servers"
    coder = tokenizer(**BOTH)
    with TinyServer(llama(), coder) as one, TinyServer(llama(seed=1), coder, "other") as two:
        one.faults = Faults(key=KEY)
        runtime = (
            f"endpoint:bf16:{one.url},endpoint:Q4_K_M:{two.url}#other,"
            "endpoint:gone:http://127.0.0.1:9/v1"
        )
        code, printed = command(
            "sweep", "--model", "tiny", "--task", places / "answer", "--runtime", runtime,
            "--workload", places / "arriving.yaml", "--batch-size", "1,2", "--out", out,
        )  # fmt: skip
        assert one.keys[-1] == f"Bearer {KEY}"
    assert code == 3, printed
    rows = rows_of(out)
    base, other, gone = (rows[f"declared:{f}", "answer"] for f in ("bf16", "Q4_K_M", "gone"))
    assert (base["status"], other["status"], gone["status"]) == ("ok", "ok", "failed")
    assert "no server answers" in gone["reason"]
    for row in (base, other):
        assert (row["runtime"], row["device"], row["execution"]) == (
            "endpoint", "endpoint", "unverified",
        )  # fmt: skip
        assert [row[name] for name in EMPTY] == [""] * len(EMPTY)
        assert float(row["throughput_per_s"]) > 0
        assert float(row["offered_rate_per_s"]) > 0
        assert row["lateness_p99_s"] != ""
        assert set(row["cautions"].split(";")) >= {"served-as-declared", "prompts-repeated"}
    # Paired with the first, whose own noise was measured.
    assert base["verdict"] == ""
    assert base["noise_floor_flips"] != ""
    assert other["quality_delta"] != ""
    assert other["flips"] != ""
    assert base["method_id"] == other["method_id"]
    record = read_run(out)[0].read_record
    plan = json.loads((out / "sweep.json").read_text())
    assert plan["spec"]["reference"] == "declared:bf16"
    first = record(plan["plan"]["cells"][0]["cell_id"])
    assert first.measurements.memory is None
    assert first.measurements.energy.energy_j is None
    assert first.environment.cpu_model is None
    assert first.applied.reported["version"] == "1.2.3"
    held = texts_of(out)
    for secret in (KEY, "127.0.0.1", str(places)):
        assert secret.encode() not in held
    for name in ("tradeoffs.md", "report.html"):
        text = (out / name).read_text()
        assert "declared:Q4_K_M" in text
        assert "of whose device nothing is known" in text
    assert "Traceback" not in printed


def test_a_server_is_compared_with_the_model_run_here(places):
    """The same weights on both sides: the same answers, and times that are not compared."""
    out = places / "both"
    with TinyServer(llama(), tokenizer(**BOTH), "served") as server:
        code, printed = command(
            "sweep", "--model", places / "tiny", "--task", places / "choose", "--formats", "fp32",
            "--runtime", f"eager,endpoint:fp32:{server.url}#served", "--batch-tokens", "256",
            "--workload", places / "quick.yaml", "--batch-size", "1", "--out", out,
            "--price-per-hour", "2",
        )  # fmt: skip
    assert code == 0, printed
    rows = rows_of(out)
    here, served = rows["fp32", "choose"], rows["declared:fp32", "choose"]
    assert served["quality"] == here["quality"]
    assert float(served["quality_delta"]) == 0
    assert served["flips"] == "0"
    assert served["verdict"] in ("within", "cannot-tell")
    # A price is the user's word too.
    assert float(served["cost_per_1k_requests_usd"]) > 0
    assert served["weight_bytes"] == "" != here["weight_bytes"]
    assert served["method_id"] != here["method_id"]
    folder, plan = read_run(out)
    ids = {c["runtime"]: c["cell_id"] for c in plan["plan"]["cells"]}
    first, second = (folder.read_samples(ids[r], "example") for r in ("eager", "endpoint"))
    for own, asked in zip(first["choice_logprobs"], second["choice_logprobs"], strict=True):
        assert asked == pytest.approx(own, abs=1e-3)
    assert "interleaved" not in here["cautions"]
    text = (out / "tradeoffs.md").read_text()
    assert re.search(r"declared:fp32", text)


def test_a_server_is_audited_as_far_as_its_requests_tell(places):
    out = places / "audited"
    with TinyServer(llama(), tokenizer(**BOTH), "served") as server:
        code, printed = command(
            "sweep", "--model", "tiny", "--task", places / "answer", "--audit",
            "--runtime", f"endpoint:fp32:{server.url}#served",
            "--workload", places / "quick.yaml", "--batch-size", "1,2", "--out", out,
        )  # fmt: skip
    assert code == 0, printed
    folder, plan = read_run(out)
    audit = folder.read_record(plan["plan"]["cells"][0]["cell_id"]).measurements.audit
    checks = {check.name: check for check in audit.checks}
    assert checks["answers"].outcome == "passed", checks["answers"]
    # At least four alone, and two that were sent at once.
    assert checks["answers"].figures["answers"] >= 6
    assert checks["roofline"].outcome == "not-judged"
    for name in ("repeated-sample", "other-seed", "a-a"):
        assert checks[name].figures["queries"] >= 16, checks[name]


def test_servers_that_go_away_while_they_are_asked_cost_their_cells(places):
    """One in the quality pass, one under load: each cell has failed with what to do, and what was
    answered before is kept."""
    out, coder = places / "gone", tokenizer(**BOTH)

    def scored(seen):
        return sum(body.get("max_tokens") == 4 for body in seen)

    def timed(seen):
        return sum(bool(body.get("stream")) and body.get("max_tokens") == 3 for body in seen)

    with TinyServer(llama(), coder) as one, TinyServer(llama(), coder, "other") as two:
        one.faults = Faults(ends=lambda seen: scored(seen) > 5)
        two.faults = Faults(ends=lambda seen: timed(seen) > 7)
        code, printed = command(
            "sweep", "--model", "tiny", "--task", places / "answer", "--runtime",
            f"endpoint:bf16:{one.url},endpoint:int4:{two.url}#other", "--workload",
            places / "arriving.yaml", "--batch-size", "1", "--out", out,
        )  # fmt: skip
        assert one.is_gone
        assert two.is_gone
    assert code == 3, printed
    assert "Traceback" not in printed
    rows = rows_of(out)
    first, second = rows["declared:bf16", "answer"], rows["declared:int4", "answer"]
    for row in (first, second):
        assert row["status"] == "failed"
        # Which of the two hangs on whether a request was under way when it went.
        gone = ("no server answers at the endpoint's address", "start it, or correct the address")
        broke = ("the connection to the endpoint broke off", "see the server's log")
        assert any(all(part in row["reason"] for part in said) for said in (gone, broke))
    assert first["quality"] == ""
    kept = sorted(path.stem for path in out.glob("parts/*/attempt-1/*.json"))
    assert kept == ["load", "load", "quality"]
