"""A whole sweep through the command line, on the bundled model and on SmolLM2."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from precision_explorer.formats.catalog import DEFAULT_FORMATS
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner.manager import WorkerGone, WorkerHandle, start_context
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.store import read_run
from precision_explorer.table import CONTRACT_COLUMNS, build


def run(*arguments, **options):
    command = [sys.executable, "-m", "precision_explorer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, quick_workload):
    """The default sweep, on the CPU and with fewer requests."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    workload = ("--workload", quick_workload, "--limit", 40, "--device", "cpu", "--threads", 1)
    done = run("sweep", *workload, "--out", folder)
    return done, folder


def test_the_default_sweep_measures_nine_formats(demo):
    done, folder = demo
    assert done.returncode == 0, done.stderr
    with (folder / "tradeoffs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0])[: len(CONTRACT_COLUMNS)] == CONTRACT_COLUMNS
    assert [row["format"] for row in rows] == list(DEFAULT_FORMATS)
    by_format = {row["format"]: row for row in rows}
    ok = [row for row in rows if row["status"] == "ok"]
    assert len(ok) >= 6
    for name in ("tf32", "fp8-dynamic"):
        assert by_format[name]["status"] == "skipped"
        assert by_format[name]["execution"] == "unsupported"
        assert "compute capability" in by_format[name]["reason"]
    for row in ok:
        assert float(row["quality"]) > 0.7
        assert row["quality_n"] == "40"
        assert float(row["latency_p50_s"]) > 0
        assert row["latency_p99_s"] == ""  # A handful of requests supports no p99.
        assert float(row["throughput_per_s"]) > 0
        assert float(row["peak_memory_bytes"]) > float(row["weight_bytes"]) / 2
        assert row["power_source"] in ("estimated:cpu-time", "measured:rapl")
        assert float(row["converted_share"]) > 0.99
        assert float(row["cost_per_1k_requests_usd"]) > 0
    assert any(row["pareto"] == "yes" for row in ok)


def test_every_output_of_a_sweep_is_there_and_names_the_formats(demo):
    done, folder = demo
    for text in (
        done.stdout,
        (folder / "tradeoffs.md").read_text(),
        (folder / "report.html").read_text(),
    ):
        for name in DEFAULT_FORMATS:
            assert name in text
    assert "report.html" in done.stderr
    assert "[" in done.stderr  # Progress in plain lines, since stderr is no terminal.


def test_each_cell_stores_raw_values(demo):
    _, path = demo
    folder, sweep = read_run(path)
    cell_id = next(c["cell_id"] for c in sweep["plan"]["cells"] if c["format"] == "fp32")
    examples = folder.read_samples(cell_id, "example")
    assert len(examples["id"]) == len(set(examples["id"])) == 40
    requests = folder.read_samples(cell_id, "request")
    assert {"cold", "warmup", "measure"} == set(requests["window"])
    assert all(seconds > 0 for seconds in requests["latency_s"])
    record = folder.read_record(cell_id)
    phases = record.measurements.latency.phases
    assert min(phases.tokenize_s, phases.copy_s, phases.forward_s, phases.post_s) > 0
    assert record.measurements.quality.tokens > 40
    assert record.measurements.quality.seconds > 0
    assert record.environment.threads >= 1
    # What a worker imports is no memory of the model: scikit-learn alone would be 60 MB.
    serving = record.measurements.memory.serving_peak_bytes
    assert serving < record.applied.weight_bytes + 40e6
    document = json.loads(folder.record_path(cell_id).read_text())
    assert next(iter(document)) == "schema_version"


def test_all_formats_saw_the_same_examples_in_the_same_batches(demo):
    _, path = demo
    folder, sweep = read_run(path)
    ids, plans = set(), set()
    for cell in sweep["plan"]["cells"]:
        if cell["skip"] is None:
            ids.add(tuple(folder.read_samples(cell["cell_id"], "example")["id"]))
            record = folder.read_record(cell["cell_id"])
            plans.add(record.measurements.quality.batch_plan_hash)
    assert len(ids) == len(plans) == 1


def test_report_makes_the_same_bytes_again(demo):
    _, folder = demo
    names = ("tradeoffs.csv", "tradeoffs.md", "report.html")
    before = [(folder / name).read_bytes() for name in names]
    for name in names:
        (folder / name).unlink()
    done = run("report", folder)
    assert done.returncode == 0, done.stderr
    assert [(folder / name).read_bytes() for name in names] == before


def test_a_run_holds_as_a_folder_and_as_a_bundle(demo, tmp_path):
    _, folder = demo
    assert list((folder / "logs").iterdir())
    done = run("verify", folder)
    assert done.returncode == 0, done.stdout
    root = done.stdout.split()[-1]
    assert run("export", folder, "--to", tmp_path / "demo.zip").returncode == 0
    done = run("verify", tmp_path / "demo.zip", "--root", root)
    assert done.returncode == 0, done.stdout
    path = next((folder / "logs").iterdir())
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    assert run("verify", folder).returncode == 5
    path.write_bytes(content)


def test_a_run_comes_out_the_same_again(demo, tmp_path, quick_workload):
    """On the same machine and stack: every answer; times are only told."""
    _, folder = demo
    again = ("--out", tmp_path / "again", "--workload", quick_workload, "--formats", "bf16")
    done = run("reproduce", folder, *again, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all 40 the same") == 2
    assert "2 of 2 cells ended and answered as before" in done.stderr
    assert run("verify", tmp_path / "again").returncode == 0


def test_no_file_of_a_run_names_the_machine_or_the_user(demo):
    """Records are passed on: no absolute path, host or user may be in them (logs apart)."""
    _, folder = demo
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".csv", ".md", ".html"):
            text = path.read_text()
            assert str(folder.parent) not in text, path
            assert sys.prefix not in text, path


def test_a_worker_whose_server_touched_cuda_is_refused(monkeypatch):
    """The real server has not (else no sweep here would run); one that had is not used."""
    from precision_explorer.runner import manager

    hello = ({"type": "hello", "cuda_touched": True}, b"")
    monkeypatch.setattr(WorkerHandle, "_receive", lambda self, deadline: hello)
    monkeypatch.setattr(manager, "gpu_present", lambda: True)
    monkeypatch.setattr(manager, "_fork_broke_cuda", [])
    with pytest.raises(WorkerGone) as refused:
        WorkerHandle(start_context(), lambda event: None)
    assert refused.value.answer["kind"] == "CudaTouched"


def test_the_second_plan_asks_no_device(demo, monkeypatch):
    """The probe's answer is cached by device and versions: no worker is started again."""
    import precision_explorer.runner.probe as probe

    def refuse(*arguments):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(probe, "WorkerHandle", refuse)
    prepared = prepare_sweep(
        make_spec({"device": "cpu", "limit": 3, "threads": 1}), lambda event: None
    )
    assert len(prepared.plan.to_run) >= 6


def test_a_new_card_is_measured_once(tmp_path, quick_workload):
    """The first run reads the data by a library, which sets variables of its own on the way; the
    second finds them in the cache. Both must see the same cell."""
    (tmp_path / "task.yaml").write_text(
        "name: own\nversion: 1\nkind: text-classification\ndata: {path: own.csv}\n"
        "columns: {text: text, label: label}\nmetrics: [accuracy]\n"
    )
    (tmp_path / "own.csv").write_text("text,label\ngood film,positive\nbad film,negative\n")
    fixed = ("--formats", "fp32", "--device", "cpu", "--threads", 1, "--workload", quick_workload)
    command = ("sweep", "--task", tmp_path, "--out", tmp_path / "run", *fixed)
    assert "1 measured" in run(*command).stderr
    assert "0 measured, 1 already there" in run(*command).stderr


# -- a language model ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smol(smollm2, tmp_path_factory, quick_workload):
    """(folder, {format: record}) of two tasks on SmolLM2."""
    spec = make_spec(
        {
            "model": ("smollm2-135m",),
            "task": ("sentiment-choice", "news-perplexity"),
            "formats": ("fp32", "int8-weight-only", "int8-dynamic"),
            "device": "cpu",
            "limit": 3,
            "batch_size": (1,),
            "workload": str(quick_workload),
            "threads": 1,  # On a busy machine two threads wait for each other.
            "out": str(tmp_path_factory.mktemp("runs") / "smol"),
        }
    )
    prepared = prepare_sweep(spec, lambda event: None)
    folder, tally = run_sweep(prepared, lambda event: None)
    assert tally.failed == 0
    records = {}
    for planned in prepared.plan.cells:
        record = folder.read_record(planned.cell_id)
        records[record.cell.task.name, record.cell.format] = record
    return folder, records, prepared


@pytest.fixture(scope="module")
def plain(smollm2):
    """SmolLM2 and its tokenizer as anybody would load them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.smollm2
def test_fp32_agrees_with_plain_transformers_code_on_choices(smol, plain):
    folder, records, prepared = smol
    model, tokenizer = plain
    rows = folder.read_samples(records["sentiment-choice", "fp32"].cell_id, "example")
    task = next(t for t in prepared.tasks if t.card.name == "sentiment-choice")
    for index, example in enumerate(task.examples):
        expected = []
        for choice in example["choices"]:
            context = tokenizer(example["prompt"])["input_ids"]
            whole = tokenizer(example["prompt"] + choice)["input_ids"]
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            steps = range(len(context), len(whole))
            expected.append(sum(float(logprobs[i - 1, whole[i]]) for i in steps))
        assert rows["id"][index] == example["id"]
        assert rows["choice_logprobs"][index] == pytest.approx(expected, abs=1e-3)
        assert rows["prediction"][index] == expected.index(max(expected))


@pytest.mark.smollm2
def test_fp32_agrees_with_plain_transformers_code_on_perplexity(smol, plain):
    folder, records, prepared = smol
    model, tokenizer = plain
    rows = folder.read_samples(records["news-perplexity", "fp32"].cell_id, "example")
    task = next(t for t in prepared.tasks if t.card.name == "news-perplexity")
    for index, example in enumerate(task.examples):
        ids = [tokenizer.bos_token_id, *tokenizer(example["text"])["input_ids"]]
        assert len(ids) <= 1024, "the plain loop below holds one window"
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = -sum(float(logprobs[i - 1, ids[i]]) for i in range(1, len(ids)))
        assert rows["loss"][index] == pytest.approx(expected, rel=1e-4)
        assert rows["tokens"][index] == len(ids) - 1


@pytest.mark.smollm2
def test_int8_rows_differ_and_store_what_they_claim(smol):
    folder, records, _ = smol
    fp32 = records["sentiment-choice", "fp32"]
    losses = {}
    for name in ("fp32", "int8-weight-only", "int8-dynamic"):
        record = records["sentiment-choice", name]
        losses[name] = folder.read_samples(record.cell_id, "example")["loss"]
    assert losses["int8-weight-only"] != losses["fp32"]
    assert losses["int8-dynamic"] != losses["fp32"]
    # Loss of one token each: int8 activations move it by about 0.8 (root mean square over 24
    # examples, torchao's kernel 0.9); a saturating kernel by several times that.
    moved = np.abs(np.subtract(losses["int8-dynamic"], losses["fp32"]))
    assert moved.mean() < 2
    assert fp32.applied.weight_bytes == 538_060_032
    stored = records["sentiment-choice", "int8-weight-only"].applied.weight_bytes
    assert stored < 0.42 * fp32.applied.weight_bytes  # torchao's own figure would be 651 MB.
    assert records["sentiment-choice", "int8-weight-only"].applied.converted_share == 1.0
    peaks = {
        name: records["sentiment-choice", name].measurements.memory.serving_peak_bytes
        for name in losses
    }
    # Weights that were replaced are not in memory any more.
    assert peaks["int8-weight-only"] < 0.8 * peaks["fp32"]
    assert peaks["int8-dynamic"] < 0.8 * peaks["fp32"]


@pytest.mark.smollm2
def test_a_generating_task_has_times_to_first_and_per_token(smol):
    folder, _, _ = smol
    rows = [row for row in build([folder.path]).rows if row["task"] == "news-perplexity"]
    assert len(rows) == 3
    for row in rows:
        assert row["tpot_s"] > 0
        assert row["ttft_s"] + 3 * row["tpot_s"] == pytest.approx(row["latency_p50_s"], rel=0.25)
        assert row["output_tokens_per_s"] > 0
        assert "reference-was-4bit" in row["cautions"]


@pytest.mark.smollm2
def test_both_tasks_of_a_format_share_one_loaded_model(smol):
    _, records, _ = smol
    for name in ("fp32", "int8-weight-only", "int8-dynamic"):
        loads = {
            records[task, name].measurements.load.load_s
            for task in ("sentiment-choice", "news-perplexity")
        }
        assert len(loads) == 1
