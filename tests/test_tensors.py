"""Models whose tensors are split: the plan, and real splits over processes of this machine's
processor, which stands in for several devices (gloo in place of NCCL)."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import transformers

from precision_explorer.errors import DoesNotFit, ModelError, UsageError
from precision_explorer.models import tensors
from precision_explorer.models.reference import DEMO
from precision_explorer.models.splitting import TensorPlan, split_tensors
from precision_explorer.plan import placing
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import followers, sweep
from precision_explorer.runner import session as session_module
from precision_explorer.runner.followers import Followers, _Follower
from precision_explorer.runner.guard import error_answer
from precision_explorer.runner.session import Session
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.table import build
from tests.test_splitting import config, stand_ins

Json = dict[str, Any]


def quiet(event: Any) -> None:
    return None


def saved(folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    made = config(num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, **more)
    transformers.LlamaForCausalLM(made).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "tiny-llama")


def options(checkpoint: Path, folder: Path, workload: Path) -> Json:
    return {
        "model": str(checkpoint), "task": ("sentiment-choice", "capitals"), "device": "cpu",
        "limit": 6, "formats": "fp32", "batch_size": (1, 2), "threads": 1, "batch_tokens": 512,
        "workload": str(workload), "out": str(folder), "price_per_hour": 2.0,
    }  # fmt: skip


TENSORS = {"split": "tensors", "devices": 2}


def planned(monkeypatch: Any, given: Json, count: int = 2, memory: int = 10**9) -> Any:
    monkeypatch.setattr(sweep, "device_facts", lambda device: stand_ins(count, memory))
    return prepare_sweep(make_spec(given), quiet)


# -- the plan -----------------------------------------------------------------------------------


def test_the_fewest_devices_that_divide_the_heads_and_hold_a_share():
    plan = TensorPlan(heads=4, split=900, whole=100)
    assert plan.bytes_of_each(1000, 2) == 550
    assert split_tensors(plan, 1000, 1000, 0, 700, range(2, 9)).bytes_by_device == (550, 550)
    # A third of it would fit in 500; the heads come in halves and quarters.
    assert split_tensors(plan, 1000, 1000, 0, 500, range(2, 9)).devices == 4
    assert split_tensors(plan, 1000, 1000, 0, 500, range(2, 4)) is None
    assert split_tensors(plan, 1000, 1000, 400, 700, range(2, 9)).devices == 4  # The cache counts.
    assert split_tensors(plan, 1000, 1000, 0, None, [2]).by_tensors


def test_one_head_is_shared_out_by_no_number_of_devices():
    known = TensorPlan(heads=1, split=900, whole=100)
    need = SimpleNamespace(load_bytes=1000, held_bytes=1000, cache_bytes=0)
    split, why = placing._spread(need, known, 10**6, range(2, 4))  # type: ignore[arg-type]
    assert split is None
    assert why == "its heads can't be shared out over devices; use --split layers"


def listed(folder: Path, kind: str = "language-modeling") -> Json:
    request = {"device": "cpu", "path": str(folder), "kind": kind, "trust_remote_code": False}
    return tensors.list_tensors(request, lambda *told: None)[0]


@pytest.mark.parametrize("tied", [False, True])
def test_what_transformers_splits_is_counted_without_weights(tmp_path, tied):
    folder = saved(tmp_path, tie_word_embeddings=tied, attention_bias=True)
    found = listed(folder)
    assert found["why"] is None
    assert found["heads"] == 2
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    assert found["split"] + found["whole"] == sum(p.numel() for p in model.parameters())
    # Norms, and the bias that is added after the sum.
    whole = (n for n, _ in model.named_parameters() if "norm" in n or "o_proj.bias" in n)
    assert found["whole"] == sum(model.get_parameter(n).numel() for n in whole)


def test_a_model_without_a_plan_says_so(tmp_path):
    assert "BertForSequenceClassification has no plan" in listed(DEMO, "text-classification")["why"]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"lm_head": "colwise"}, "leaves each device a share of the logits"),
        ({}, None),  # The head is whole then, which is right, and not most of the model.
    ],
)
def test_a_plan_that_would_score_shares_of_logits_is_refused(checkpoint, monkeypatch, plan, words):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_tp_plan", plan)
    why = listed(checkpoint)["why"]
    assert why is None if words is None else words in why


def test_a_plan_that_splits_too_little_is_refused(checkpoint, monkeypatch):
    usual = transformers.LlamaConfig.base_model_tp_plan
    few = {name: style for name, style in usual.items() if "q_proj" in name}
    monkeypatch.setattr(transformers.LlamaConfig, "base_model_tp_plan", few)
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_tp_plan", {})
    assert "leaves 60% of its weights whole" in listed(checkpoint)["why"]


def test_cells_are_split_where_that_is_asked_for_and_keep_their_identity_elsewhere(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    given = options(checkpoint, tmp_path, quick_workload) | {"task": "capitals"}
    given["formats"] = "fp32,bf16,int8-weight-only"
    usual = {c.cell.format: c for c in prepare_sweep(make_spec(given), quiet).plan.cells}
    layers = planned(monkeypatch, given | {"split": "layers"}).plan
    assert [c.cell_id for c in layers.cells] == [c.cell_id for c in usual.values()]
    # By need: fp32 takes 4.2 MB, and its half fits.
    found = {c.cell.format: c for c in planned(
        monkeypatch, given | {"split": "tensors"}, memory=3_000_000).plan.cells}  # fmt: skip
    assert {f: (c.cell.devices, c.cell.split) for f, c in found.items()} == {
        "fp32": (2, "tensors"), "bf16": (None, None), "int8-weight-only": (None, None),
    }  # fmt: skip
    assert found["bf16"].cell_id == usual["bf16"].cell_id
    assert "of int8-weight-only no tensors are split" in found["int8-weight-only"].skip
    # By a number: all of them.
    found = {c.cell.format: c for c in planned(monkeypatch, given | TENSORS).plan.cells}
    assert {f: c.cell.devices for f, c in found.items() if not c.skip} == {"fp32": 2, "bf16": 2}
    assert found["fp32"].cell_id != usual["fp32"].cell_id
    assert found["fp32"].cell.method_id == usual["fp32"].cell.method_id
    by_layers = found["fp32"].cell.model_copy(update={"split": None})
    assert by_layers.cell_id not in (found["fp32"].cell_id, usual["fp32"].cell_id)


def test_what_is_not_split_is_skipped_and_says_why(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    given = options(checkpoint, tmp_path, quick_workload) | {"task": "capitals"} | TENSORS

    def why(count: int = 2, memory: int = 10**9, **more: Any) -> str:
        cell = planned(monkeypatch, given | more, count, memory).plan.cells[0]
        assert cell.split is None
        return cell.skip or ""

    assert "3 devices do not divide its heads, as 2 and its divisors do" in why(3, devices=3)
    assert "--devices 2 are more than this machine has" in why(count=1)
    assert "under runtime compile no tensors are split" in why(runtime="compile")
    assert "2 devices do not hold its shares" in why(memory=1_000_000)
    assert "random weights are drawn whole" in why(model=f"synthetic:{checkpoint}")
    encoder = {"model": str(DEMO), "task": "sentiment"}
    assert "BertForSequenceClassification has no plan in transformers" in why(**encoder)


def test_split_is_an_option_of_cells_that_run_in_turn():
    assert make_spec({}).measuring_hash() == make_spec({"split": "layers"}).measuring_hash()
    assert make_spec({}).measuring_hash() != make_spec(TENSORS).measuring_hash()
    with pytest.raises(UsageError, match="unknown split 'rows'"):
        make_spec({"split": "rows"})
    for more in ({"device": "all"}, {"executor": "ray"}, {"cores": 1}):
        with pytest.raises(UsageError, match="split tensors is for cells that run in turn"):
            make_spec({"split": "tensors"} | more)


# -- the shares ---------------------------------------------------------------------------------


def share(whole: int, **split: tuple[int, int]) -> Json:
    return {"split": split, "whole": {"norm": whole}, "census": {}}


def test_shares_that_are_not_the_whole_are_refused():
    tensors.check_shares([share(10, q=(50, 100)), share(10, q=(50, 100))])
    with pytest.raises(ModelError, match="hold 90 of the 100 elements of q"):
        tensors.check_shares([share(10, q=(50, 100)), share(10, q=(40, 100))])
    with pytest.raises(ModelError, match="holds 200 of the model's 300 elements whole"):
        tensors.check_shares([share(200, q=(50, 100)), share(200, q=(50, 100))])
    with pytest.raises(ModelError, match="elements whole"):
        tensors.check_shares([share(10), share(10)])


# -- the processes ------------------------------------------------------------------------------


def bare(give_up: Any, folder: Path) -> Followers:
    """Followers of which none was started."""
    made = Followers.__new__(Followers)
    made.count, made.folder, made._give_up = 2, folder, give_up
    made._depth, made._failure, made._closing = 0, None, False
    return made


def test_a_call_that_the_others_know_nothing_of_is_refused(tmp_path):
    """It would wait for them for ever."""
    made, model = bare(None, tmp_path), torch.nn.Linear(2, 2)
    made.guard(model)
    with pytest.raises(ModelError, match="runs the model in one process alone"):
        model(torch.ones(1, 2))
    assert list(inspect.signature(model.forward).parameters) == ["input"]


class Told:
    """Stands for a follower: what it is sent, and whose adapters it has then."""

    def __init__(self) -> None:
        self.adapters: set[int] = set()
        self.calls: list[int] = []
        self.connection = self

    def send(self, command: tuple[Any, ...]) -> None:
        if command[0] == "adapter":
            _, number, _, kept = command
            self.adapters = {n for n in self.adapters if n in kept} | {number}
        if command[0] == "call":
            assert command[1] in self.adapters
            self.calls.append(command[1])


def test_an_audit_s_adapter_and_the_cell_s_outlive_one_that_scores_an_answer_again(tmp_path):
    """Others are let go; a call of one of these would end the follower."""

    class Answers:
        def score(self, batch: Any) -> str:
            return "scored"

    told = Told()
    session = Session.__new__(Session)
    session.followers, session.adapter, session._audited = bare(None, tmp_path), None, None
    session.followers._each, session.followers._adapters = [told], 0  # type: ignore[list-item]
    session.model = session.tokenizer = None  # type: ignore[assignment]
    session.device = "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "make_adapter", lambda *given: Answers())
        cells: Any = session._adapter({})
        session.adapter = cells
        audits: Any = session._adapter({})
        session._audited = audits
        again: Any = session._adapter({})
        for adapter in (again, audits, cells):
            assert adapter.score([]) == "scored"
        assert told.calls == [3, 2, 1]
        session._audited = None
        session._adapter({})
    assert told.adapters == {1, 4}


@pytest.mark.parametrize("told", [False, True])
def test_a_process_that_ends_while_the_worker_waits_for_it_ends_the_worker(
    tmp_path, monkeypatch, told
):
    """As with NCCL, whose kernels wait for ever and let nothing be raised."""
    monkeypatch.setattr(followers, "_STUCK_S", 0.0)
    found: list[BaseException] = []
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    if told:
        answer = error_answer(DoesNotFit("no room"), "follower")
        (tmp_path / f"error-{process.pid}").write_text(json.dumps(answer))
    ours, _ = Pipe()
    bare(found.append, tmp_path)._watch(_Follower("cuda:1", process.pid, ours, Event()))
    process.returncode = 3  # Waited for already.
    assert type(found[0]).__name__ == ("DoesNotFit" if told else "FollowerLost")
    words = "failed: no room" if told else "ended with exit code 3"
    assert f"cuda:1, which held a share of the model, {words}" in str(found[0])


# -- sweeps -------------------------------------------------------------------------------------


class Seen:
    """Remembers, in a sweep's first round, the worker and its followers, and kills the one at
    `place` among them, if that is given."""

    def __init__(self, place: int | None = None) -> None:
        self.place, self.worker = place, 0
        self.all: list[psutil.Process] = []

    def __call__(self, event: Any) -> None:
        if event.name == "worker":
            self.worker = event.data["pid"]
        if event.name == "round" and not self.all:
            worker = psutil.Process(self.worker)
            self.all = [worker, *worker.children()]
            if self.place is not None:
                os.kill(self.all[self.place].pid, signal.SIGKILL)

    @property
    def left(self) -> list[psutil.Process]:
        """Those that are still there, some seconds later."""
        _, alive = psutil.wait_procs(self.all, timeout=10)
        return [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def tree(folder: Any, cells: Any) -> dict[str, Any]:
    return {c.task.card.name: folder.read_record(c.cell_id) for c in cells}


def test_a_sweep_splits_a_model_and_scores_it_as_one_device_does(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    given = options(checkpoint, tmp_path / "one", quick_workload)
    usual = prepare_sweep(make_spec(given), quiet)
    one, tally = run_sweep(usual, quiet)
    assert tally.failed == 0
    prepared = planned(monkeypatch, given | {"out": str(tmp_path / "several")} | TENSORS)
    seen = Seen()
    several, tally = run_sweep(prepared, seen)
    assert len(seen.all) == 2
    assert seen.left == []
    expected, records = tree(one, usual.plan.cells), tree(several, prepared.plan.cells)
    assert tally.failed == 0, [r.error for r in records.values()]
    for name, record in records.items():
        rows = [
            folder.read_samples(r.cell_id, "example", r.known_samples)
            for folder, r in ((one, expected[name]), (several, record))
        ]
        assert rows[0]["id"] == rows[1]["id"]
        assert rows[0]["prediction"] == rows[1]["prediction"]
    losses = [
        list(folder.read_samples(r.cell_id, "example", r.known_samples)["loss"])
        for folder, r in (
            (one, expected["sentiment-choice"]),
            (several, records["sentiment-choice"]),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    record = records["sentiment-choice"]
    applied = record.applied
    assert applied.split == "tensors"
    assert [part.device for part in applied.devices] == ["cpu", "cpu:1"]
    # Each tensor is there once; each device has the five norms of 64 values.
    alone = expected["sentiment-choice"].applied
    assert applied.weight_bytes == alone.weight_bytes + 5 * 64 * 4
    assert applied.weight_bytes == sum(part.weight_bytes for part in applied.devices)
    assert applied.linear_elements == alone.linear_elements
    assert applied.converted_share == 1.0
    # What multiplied was seen on the first device: half of it, in the format.
    assert applied.certificate.executed_share == 1.0
    assert applied.certificate.linear_flops * 2 == alone.certificate.linear_flops
    assert "on the first of 2 devices" in applied.certificate.work
    memory = record.measurements.memory
    assert memory.largest_device_peak_bytes < memory.serving_peak_bytes
    assert memory.serving_peak_bytes > applied.weight_bytes
    assert record.measurements.energy.source in ("unavailable", "measured:rapl")
    assert record.measurements.profile is None
    assert record.measurements.positions is not None
    rows = build([several.path]).rows
    assert [row["devices"] for row in rows] == [2, 2]
    assert all("several-devices" in row["cautions"] for row in rows)
    assert {row["price_per_hour_usd"] for row in rows} == {4.0}


@pytest.mark.parametrize(
    ("place", "kind", "words"),
    [
        (1, "FollowerLost", "the process of cpu:1, which held a share of the model, was ended by "
         "SIGKILL"),
        (0, "WorkerCrashed", "the worker was ended by SIGKILL"),
    ],
)  # fmt: skip
def test_one_process_that_is_killed_ends_the_cell_and_leaves_none_behind(
    checkpoint, tmp_path, quick_workload, monkeypatch, place, kind, words
):
    given = options(checkpoint, tmp_path, quick_workload) | {"task": "capitals"}
    prepared = planned(monkeypatch, given | TENSORS)
    killer = Seen(place)
    start = time.monotonic()
    folder, tally = run_sweep(prepared, killer)
    assert time.monotonic() - start < 60
    assert len(killer.all) == 2
    assert tally.failed == 1
    error = folder.read_record(prepared.plan.cells[0].cell_id).error
    assert error.kind == kind
    assert words in error.message
    assert killer.left == []


def test_a_batch_that_does_not_fit_ends_the_cell_and_says_what_to_do(
    checkpoint, tmp_path, quick_workload, monkeypatch
):
    """The other processes wait in the middle of the call, and can't be called back."""
    given = options(checkpoint, tmp_path, quick_workload) | {"task": "capitals"} | TENSORS
    more = {"batch_size": (1, 6000), "memory_limit": "400MB"}
    prepared = planned(monkeypatch, given | more)
    folder, _ = run_sweep(prepared, quiet)
    record = folder.read_record(prepared.plan.cells[0].cell_id)
    assert record.status == "out_of_memory"
    assert record.measurements.quality is not None
