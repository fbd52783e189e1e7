"""The runner's own rules: resuming, joining parts to records, bounds on memory, lost workers, the
probe's cache, the names of runs; and the progress that the command line makes of its events."""

from __future__ import annotations

import errno
import gc
import io
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console

from precision_explorer.api import progress as progress_module
from precision_explorer.api.progress import _Live, _Plain, progress
from precision_explorer.errors import DoesNotFit, InvalidNumerics, StoreError, UsageError
from precision_explorer.formats import Support
from precision_explorer.hardware import DeviceFacts
from precision_explorer.hardware.fakes import FakeClock
from precision_explorer.models import resolve
from precision_explorer.models.reference import DEMO
from precision_explorer.plan import PlannedCell
from precision_explorer.plan.spec import make_spec
from precision_explorer.records import Attempt, Caution, Environment
from precision_explorer.records.record import Quality
from precision_explorer.runner import guard, jobs, local, manager, protocol, sessions, sweep
from precision_explorer.runner import probe as probe_module
from precision_explorer.runner import worker as worker_module
from precision_explorer.runner.join import (
    failed_record,
    measurements,
    ok_record,
    skipped_record,
)
from precision_explorer.runner.ledger import Tally
from precision_explorer.runner.manager import (
    Event,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    start_context,
)
from precision_explorer.runner.probe import probe, probe_compiled
from precision_explorer.runner.sweep import (
    Prepared,
    default_task,
    prepare_sweep,
    run_folder,
    run_sweep,
    sweep_document,
)
from tests import trouble
from tests.test_records import FULL, make_cell


def nothing(event: Event) -> None:
    pass


def options(folder: Path, workload: Path) -> dict[str, Any]:
    """A sweep of two formats that takes moments."""
    return {
        "task": ("sentiment",),
        "formats": ("fp32", "bf16"),
        "device": "cpu",
        "limit": 6,
        "workload": str(workload),
        "out": str(folder / "run"),
        "batch_size": (1,),
        "threads": 1,
    }


# -- resuming ---------------------------------------------------------------------------------


def interrupted_at(folder: Path, workload: Path, stop: Any) -> SimpleNamespace:
    """A sweep interrupted at the first event for which `stop(event, formats so far)`, run again."""
    given = options(folder, workload)
    formats: list[str] = []

    def interrupt(event: Event) -> None:
        if event.name in ("start", "round"):
            formats.append(event.data["format"])
        if stop(event, formats):
            raise KeyboardInterrupt

    prepared = prepare_sweep(make_spec(given), nothing)
    cells = {planned.cell.format: planned.cell_id for planned in prepared.plan.cells}
    with pytest.raises(KeyboardInterrupt):
        run_sweep(prepared, interrupt)
    made = run_folder(prepared)
    between = {p: p.read_bytes() for p in made.path.rglob("*") if p.suffix in (".json", ".arrow")}
    events: list[Event] = []
    again, tally = run_sweep(prepare_sweep(make_spec(given), nothing), events.append)
    return SimpleNamespace(
        folder=again,
        cells=cells,
        parts=made.path / "parts" / cells["bf16"],
        between=between,
        events=events,
        tally=tally,
        records={name: again.read_record(cell_id) for name, cell_id in cells.items()},
    )


@pytest.fixture(scope="module")
def resumed(tmp_path_factory, quick_workload) -> SimpleNamespace:
    """Interrupted in the first round, where fp32's block was stored and bf16's had begun."""

    def stop(event: Event, formats: list[str]) -> bool:
        return event.name == "progress" and event.data["phase"] == "offline" and (
            formats == ["fp32", "bf16", "fp32", "bf16"]
        )  # fmt: skip

    return interrupted_at(tmp_path_factory.mktemp("resumed"), quick_workload, stop)


@pytest.fixture(scope="module")
def half_done(tmp_path_factory, quick_workload) -> SimpleNamespace:
    """Interrupted when fp32 was done and bf16 had only to be certified."""

    def stop(event: Event, formats: list[str]) -> bool:
        return event.name == "cell"

    return interrupted_at(tmp_path_factory.mktemp("half"), quick_workload, stop)


def test_an_interrupt_in_the_timed_part_leaves_the_parts_and_no_record(resumed):
    names = {p.name for p in resumed.between if p.parent == resumed.parts}
    assert names == {"load.json", "quality.json", "quality.arrow"}
    reference = resumed.parts.parent / resumed.cells["fp32"]
    assert {p.name for p in resumed.between if p.parent == reference} == {
        *names, "block-0.json", "block-0.arrow",
    }  # fmt: skip
    assert not [p for p in resumed.between if p.parent.name == "cells"]


def test_stored_parts_are_used_again_and_not_measured_again(resumed):
    for name in ("quality.json", "quality.arrow"):
        assert (resumed.parts / name).read_bytes() == resumed.between[resumed.parts / name]
    phases = {e.data["phase"] for e in resumed.events if e.name == "progress"}
    assert "quality" not in phases
    assert {"load", "latency", "offline"} <= phases
    stored = json.loads((resumed.parts / "quality.json").read_text())["quality"]
    assert resumed.records["bf16"].measurements.quality.model_dump() == stored
    rows = pa.ipc.open_stream((resumed.parts / "quality.arrow").read_bytes()).read_all()
    samples = resumed.folder.read_samples(resumed.cells["bf16"], "example")
    assert samples["loss"] == rows.column("loss").to_pylist()
    rounds = [(e.data["format"], e.data["round"]) for e in resumed.events if e.name == "round"]
    assert ("fp32", 0) not in rounds
    assert set(rounds) == {("fp32", 1), ("fp32", 2), ("bf16", 0), ("bf16", 1), ("bf16", 2)}
    block = resumed.parts.parent / resumed.cells["fp32"] / "block-0.json"
    assert block.read_bytes() == resumed.between[block]


def test_a_resumed_cell_has_the_memory_of_the_process_that_scored_it_if_that_was_timed(resumed):
    """Rounds of two processes; fp32's first served a round, bf16's none."""
    for name, known in (("fp32", True), ("bf16", False)):
        record = resumed.records[name]
        assert record.status == "ok"
        assert ("left empty" in messages(record)["resumed"]) != known
        assert (record.measurements.memory.serving_peak_bytes is not None) == known
        assert record.attempts == []
        assert len(record.measurements.latency.rounds) == 3
        samples = resumed.folder.read_samples(resumed.cells[name], "request")
        assert set(samples["round"]) == {0, 1, 2}
        # A cold request per process, which is in no window that counts.
        assert samples["window"].count("cold") == (2 if known else 1)


def test_rounds_that_an_interruption_parted_are_not_called_interleaved(resumed):
    apart = {
        name: [r.interleaved for r in record.measurements.latency.rounds]
        for name, record in resumed.records.items()
    }
    assert apart == {"fp32": [True, True, True], "bf16": [False, True, True]}
    assert "not all of 3 rounds" in messages(resumed.records["bf16"])["rounds-not-interleaved"]
    assert "rounds-not-interleaved" not in messages(resumed.records["fp32"])


def test_the_cells_that_were_finished_are_not_run_again_nor_rounds_that_were_timed(half_done):
    path = half_done.folder.record_path(half_done.cells["fp32"])
    before = json.loads(half_done.between[path])
    assert (
        json.loads(path.read_bytes())["measurements"]["latency"]
        == (before["measurements"]["latency"])
    )
    assert [e.data["format"] for e in half_done.events if e.name == "start"] == ["bf16"]
    assert not [e for e in half_done.events if e.name == "round"]
    assert (half_done.tally.ran, half_done.tally.reused, half_done.tally.failed) == (1, 1, 0)
    reused = {e.data["format"]: e.data["reused"] for e in half_done.events if e.name == "cell"}
    assert reused == {"fp32": True, "bf16": False}
    for record in half_done.records.values():
        assert record.measurements.memory.serving_peak_bytes > 0
        assert "resumed" not in messages(record)


def test_an_interrupt_in_the_profile_takes_nothing_that_was_measured(tmp_path, quick_workload):
    def interrupt(event: Event) -> None:
        if event.name == "progress" and event.data["phase"] == "profile":
            raise KeyboardInterrupt

    given = options(tmp_path, quick_workload) | {"formats": ("fp32",)}
    prepared = prepare_sweep(make_spec(given), nothing)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(prepared, interrupt)
    folder, tally = run_sweep(prepare_sweep(make_spec(given), nothing), nothing)
    (planned,) = prepared.plan.cells
    record = folder.read_record(planned.cell_id)
    assert (tally.ran, tally.reused) == (0, 1)
    assert record.measurements.latency.requests >= 5
    assert record.applied.certificate.executed_share == 1.0
    assert "resumed" not in {caution.id for caution in record.cautions}
    assert len(folder.read_samples(planned.cell_id, "request")["id"]) >= 5


def test_an_interrupted_sweep_lets_go_of_its_folder(tmp_path, quick_workload, monkeypatch):
    class Interrupted:
        def __init__(self, *arguments: Any) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("precision_explorer.runner.local.WorkerHandle", Interrupted)
    prepared = prepare_sweep(make_spec(options(tmp_path, quick_workload)), nothing)
    # Kept here, so that its lock does not end for want of an owner.
    first, second = run_folder(prepared), run_folder(prepared)
    monkeypatch.setattr(sweep, "run_folder", lambda prepared: first)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(prepared, nothing)
    assert first.manifest_root()
    second.open()
    with pytest.raises(StoreError):
        first.open()
    second.close()


# -- parts to records -------------------------------------------------------------------------

LOAD: dict[str, Any] = {
    "applied": FULL["applied"],
    "cautions": [],
    "load": FULL["measurements"]["load"],
    "memory": {"method": "uss", "baseline_bytes": 1000, "load_peak_bytes": 900},
    "threads": 1,
}
QUALITY: dict[str, Any] = {
    # With every field, as a worker sends it.
    "quality": Quality.model_validate(FULL["measurements"]["quality"]).model_dump(),
    "peak_bytes": 500,
}
BLOCK: dict[str, Any] = {
    "latency": {
        "cold_first_s": 0.5,
        "warmup_requests": 1,
        "requests": 30,
        "window_s": 3.0,
        "stopped_by": "rules",
        "phases": {"forward_s": 0.1},
    },
    "throughput": {
        "by_batch_size": {"1": {"requests_per_s": 10.0, "batches": 2, "batch_s": [0.1, 0.1]}},
        "best_batch_size": 1,
    },
    "energy": {"source": "measured:nvml", "boundary": "GPU board", "energy_j": 3.0},
    "other_work_share": 0.01,
    "peak_bytes": 400,
}
CERTIFICATE: dict[str, Any] = {
    "certificate": {
        "evidence": "oneDNN and MKL verbose lines",
        "work": "one request",
        "linear_flops": 200.0,
        "executed_flops": 150.0,
        "executed_share": 0.75,
    },
    "execution": "dequantized",
    "reason": "seen in float32",
    "cautions": [],
}
ENVIRONMENT = Environment(
    python="3.11",
    platform="Linux",
    device_name="Some CPU",
    device={},
    cpu_model="Some CPU",
    cores=2,
    memory_bytes=8_000_000_000,
    threads=1,
    libraries={},
)
STARTED = "2026-01-02T03:04:05Z"


def planned_cell(*cautions: Caution, skip: str | None = None) -> PlannedCell:
    unused: Any = None
    return PlannedCell(
        cell=make_cell(),
        ref=unused,
        task=unused,
        support=unused,
        label_ids=None,
        skip=skip,
        cautions=cautions,
    )


def joined(
    load: dict | None = None,
    quality: dict | None = None,
    block: dict | None = None,
    certificate: dict | None = None,
    resumed: bool = False,
    model_cautions: tuple[Caution, ...] = (),
) -> Any:
    """The record of a cell whose parts are those above with some fields changed."""
    answers = {
        "load": LOAD | (load or {}),
        "quality": QUALITY | (quality or {}),
        "block-0": BLOCK | (block or {}),
        "certificate": CERTIFICATE | (certificate or {}),
    }
    if resumed:
        answers["quality"] = answers["quality"] | {"session": 0}
        answers["block-0"] = answers["block-0"] | {"session": 1}
    return ok_record(planned_cell(*model_cautions), answers, ENVIRONMENT, STARTED, [])


def messages(record: Any) -> dict[str, str]:
    found = {caution.id: caution.message for caution in record.cautions}
    assert len(found) == len(record.cautions)
    assert not any("\n" in message for message in found.values())
    return found


def test_a_cell_of_which_nothing_odd_is_known_has_no_caution():
    record = joined()
    assert record.cautions == []
    assert (record.status, record.error, record.skip_reason) == ("ok", None, None)
    assert record.cell_id == make_cell().cell_id
    assert record.method_id == make_cell().method_id
    assert record.applied.kernel == "torch"
    assert record.started_at == STARTED
    assert record.environment == ENVIRONMENT


def test_the_parts_of_a_cell_are_its_measurements():
    measured = joined().measurements
    assert measured.load.model_dump(exclude={"compile_s"}) == LOAD["load"]
    assert measured.quality.model_dump() == QUALITY["quality"]
    assert measured.latency.requests == 30
    assert measured.throughput.by_batch_size["1"].batch_s == [0.1, 0.1]
    assert measured.energy.energy_j == 3.0
    assert measured.other_work_share == 0.01
    assert measured.memory.load_peak_bytes == 900


def test_execution_is_what_was_seen_not_what_the_device_promised():
    assert FULL["applied"]["execution"] == "native"
    record = joined(certificate={"cautions": [{"id": "partly-executed", "message": "half"}]})
    assert record.applied.execution == "dequantized"
    assert record.applied.reason == "seen in float32"
    assert record.applied.certificate.executed_share == 0.75
    assert messages(record) == {"partly-executed": "half"}


COMPILED: dict[str, Any] = {
    "compile_s": 12.5,
    "compilation": {
        "mode": "default",
        "dynamic": True,
        "graphs": 2,
        "graph_breaks": 0,
        "break_reasons": {},
        "compiled_share": 1.0,
        "recompiles": None,
    },
}


def joined_compiled(recompiles: tuple[int, int] = (0, 0), **compilation: Any) -> Any:
    made = COMPILED["compilation"] | compilation
    answers = {
        "load": LOAD,
        "compile": COMPILED | {"compilation": made},
        "quality": QUALITY | {"recompiles": recompiles[0]},
        "block-0": BLOCK | {"recompiles": recompiles[1]},
        "certificate": CERTIFICATE,
    }
    return ok_record(planned_cell(), answers, ENVIRONMENT, STARTED, [])


def test_compile_time_stands_apart_from_the_rest_of_loading_and_from_the_first_request():
    measured = joined_compiled().measurements
    assert measured.load.compile_s == 12.5
    assert measured.load.model_dump(exclude={"compile_s"}) == LOAD["load"]
    assert measured.latency.cold_first_s == BLOCK["latency"]["cold_first_s"]
    assert measured.compilation.graphs == 2
    assert measured.compilation.recompiles == 0
    assert joined_compiled().cautions == []
    eager = joined().measurements
    assert (eager.load.compile_s, eager.compilation) == (None, None)


def test_graph_breaks_are_a_caution_with_the_reason_and_what_was_left():
    reasons = {"Call to print": 3}
    found = messages(joined_compiled(graph_breaks=3, break_reasons=reasons, compiled_share=0.25))
    assert list(found) == ["graph-breaks"]
    for part in ("3 places", "Call to print", "25.0 %"):
        assert part in found["graph-breaks"]


def test_graphs_compiled_while_scores_and_times_were_taken_are_a_caution():
    record = joined_compiled(recompiles=(1, 2))
    assert record.measurements.compilation.recompiles == 3
    assert messages(record)["recompiled"].startswith("3 graphs")


def test_a_cell_that_failed_after_compiling_keeps_what_was_compiled():
    error = {"status": "failed", "kind": "KeyError", "message": "x", "phase": "quality"}
    answers = {"load": LOAD, "compile": COMPILED}
    record = failed_record(planned_cell(), error, answers, "", ENVIRONMENT, STARTED, [])
    assert record.measurements.load.compile_s == 12.5
    assert record.measurements.compilation.graphs == 2


def test_tasks_share_a_loaded_model_only_where_nothing_is_compiled():
    def cells(runtime: str) -> list[Any]:
        return [
            SimpleNamespace(
                ref=SimpleNamespace(path="m", synthetic=None),
                task=SimpleNamespace(card=SimpleNamespace(kind="multiple-choice")),
                cell=SimpleNamespace(format="fp32", runtime=runtime, recipe={}),
                cell_id=f"{runtime}-{task}",
                split=None,
            )
            for task in range(2)
        ]

    for runtime, count in (("eager", 1), ("compile", 2), ("compile-fixed", 2)):
        assert len(sessions.sessions(cells(runtime))) == count
        assert [len(group) for group in sessions.groups(cells(runtime))] == [count]


def test_earlier_attempts_are_kept():
    attempt = Attempt(status="timeout", started_at=STARTED)
    answers = {"load": LOAD, "quality": QUALITY, "block-0": BLOCK, "certificate": CERTIFICATE}
    record = ok_record(planned_cell(), answers, ENVIRONMENT, STARTED, [attempt])
    assert record.attempts == [attempt]


@pytest.mark.parametrize("source", ["estimated:cpu-time", "measured:rapl", "unavailable"])
def test_energy_that_was_estimated_is_called_so(source):
    boundary = "cores' busy time x rated power"
    found = messages(joined(block={"energy": {"source": source, "boundary": boundary}}))
    assert ("energy-estimated" in found) == source.startswith("estimated")
    if found:
        assert boundary in found["energy-estimated"]


def test_a_latency_window_that_the_budget_ended_is_called_so():
    found = messages(
        joined(block={"latency": BLOCK["latency"] | {"stopped_by": "budget", "requests": 7}})
    )
    assert set(found) == {"latency-budget"}
    assert "7 requests" in found["latency-budget"]


def test_inputs_that_were_cut_are_counted():
    found = messages(joined(quality={"quality": QUALITY["quality"] | {"cut_examples": 3}}))
    assert set(found) == {"inputs-cut"}
    assert "3 of 40" in found["inputs-cut"]


@pytest.mark.parametrize(
    ("share", "busy"), [(0.06, True), (0.9, True), (0.05, False), (0.04, False), (None, False)]
)
def test_work_of_others_above_a_twentieth_makes_the_machine_busy(share, busy):
    found = messages(joined(block={"other_work_share": share}))
    assert set(found) == ({"machine-busy"} if busy else set())
    assert not busy or "5 %" in found["machine-busy"]


def test_a_resumed_cell_says_that_two_processes_measured_it():
    record = joined(resumed=True)
    assert set(messages(record)) == {"resumed"}
    assert "left empty" in messages(record)["resumed"]
    assert record.measurements.memory.serving_peak_bytes is None


def test_cautions_of_the_model_and_of_the_format_travel_into_the_record():
    model = Caution(id="was-4bit", message="The weights were rounded to 4 bits before.")
    layer = {"id": "left-behind", "message": "One layer was not converted."}
    record = joined(load={"cautions": [layer]}, model_cautions=(model,))
    assert record.cautions == [model, Caution.model_validate(layer)]
    failed = failed_record(planned_cell(model), ERROR, {}, "", ENVIRONMENT, STARTED, [])
    assert failed.cautions == [model]
    skipped = skipped_record(planned_cell(model, skip="no such unit"), ENVIRONMENT, STARTED)
    assert skipped.cautions == [model]
    assert (skipped.status, skipped.skip_reason) == ("skipped", "no such unit")


@pytest.mark.parametrize(("in_quality", "in_block"), [(500, 400), (400, 500), (None, 500)])
def test_the_serving_peak_is_the_larger_of_the_two_windows(in_quality, in_block):
    peaks = {name: {"peak_bytes": n} for name, n in (("q", in_quality), ("b", in_block))}
    for kind, more in (("reserved_peak_bytes", 1000), ("process_peak_bytes", 2000)):
        peaks["q"][kind] = None if in_quality is None else in_quality + more
        peaks["b"][kind] = in_block + more
    memory = joined(quality=peaks["q"], block=peaks["b"]).measurements.memory
    assert memory.serving_peak_bytes == 500
    assert memory.reserved_peak_bytes == 1500
    assert memory.process_peak_bytes == 2500
    assert (memory.baseline_bytes, memory.load_peak_bytes) == (1000, 900)


def test_peaks_that_the_device_does_not_have_stay_none():
    memory = joined().measurements.memory
    assert memory.serving_peak_bytes == 500
    assert memory.reserved_peak_bytes is memory.process_peak_bytes is None


def test_parts_that_are_missing_stay_none():
    assert measurements(None, None, None) == {}
    loaded = measurements(LOAD, None, None)
    assert set(loaded) == {"load", "memory"}
    assert "serving_peak_bytes" not in loaded["memory"]
    assert set(measurements(None, QUALITY, None)) == {"quality"}
    assert measurements(LOAD, None, BLOCK)["memory"]["serving_peak_bytes"] == 400
    assert LOAD["memory"].keys() == {"method", "baseline_bytes", "load_peak_bytes"}


ERROR = {"status": "timeout", "kind": "Timeout", "message": "too long; raise it", "signal": None}


def test_a_failed_record_keeps_what_was_measured_before():
    cut = QUALITY | {"quality": QUALITY["quality"] | {"cut_examples": 3}}
    attempt = Attempt(status="failed", started_at=STARTED)
    record = failed_record(
        planned_cell(),
        ERROR,
        {"load": LOAD, "quality": cut},
        "last words",
        ENVIRONMENT,
        STARTED,
        [attempt],
    )
    measured = record.measurements
    assert measured.quality.model_dump() == cut["quality"]
    assert measured.memory.serving_peak_bytes == 500
    assert measured.latency is measured.throughput is measured.energy is None
    assert measured.other_work_share is None
    assert record.applied.format == "fp32"
    assert record.attempts == [attempt]
    assert set(messages(record)) == {"inputs-cut"}


def test_what_was_timed_before_a_label_was_found_untrue_is_kept_and_no_promise_is():
    answers = {"load": LOAD, "quality": QUALITY, "block-0": BLOCK}
    record = failed_record(planned_cell(), ERROR, answers, "", ENVIRONMENT, STARTED, [])
    assert record.measurements.latency.requests == 30
    assert record.measurements.energy.energy_j == 3.0
    assert record.applied.execution == "unverified"
    assert FULL["applied"]["execution"] == "native"


class Watched:
    """A worker whose certificate's pass fails by `error`."""

    def __init__(self, error):
        self.error, self.asked, self.killed = error, [], False
        self.process = SimpleNamespace(is_alive=lambda: not self.killed)

    def ask(self, request, deadline):
        self.asked.append(request["op"])
        raise self.error

    def kill(self):
        self.killed = True


@pytest.mark.parametrize("dies", [True, False])
def test_a_certificate_that_can_t_be_made_costs_no_measurement(dies):
    text = "the worker was ended by SIGSEGV"
    error = (
        WorkerGone("failed", "WorkerCrashed", text)
        if dies
        else WorkerError({"status": "failed", "kind": "RuntimeError", "message": text})
    )
    worker = Watched(error)
    executor = local.Executor(*[None] * 6)
    found = executor._certificate(worker, {}, 0.0)
    record = joined(certificate=found)
    assert (record.status, record.applied.execution) == ("ok", "unverified")
    assert record.applied.certificate is None
    assert text in messages(record)["execution-unknown"]
    # A worker that ended is asked for no profile.
    why = "the worker ended in the certificate's pass"
    assert executor._profile(worker, {}, 0.0) == {"why": why}
    assert worker.asked == ["certificate"]


def test_a_label_seen_to_be_untrue_fails_its_cell():
    answer = {"status": "failed", "kind": "FormatNotApplied", "message": "fp32 was multiplied"}
    with pytest.raises(WorkerError, match="fp32 was multiplied"):
        local.Executor(*[None] * 6)._certificate(Watched(WorkerError(answer)), {}, 0.0)


def test_a_failed_record_holds_the_error_whole():
    error = {
        "status": "failed",
        "kind": "KeyError",
        "message": "KeyError: what; see the log",
        "phase": "quality",
        "signal": "SIGSEGV",
    }
    record = failed_record(planned_cell(), error, {}, "last words", ENVIRONMENT, STARTED, [])
    assert record.status == "failed"
    assert record.error.model_dump() == {
        "kind": "KeyError",
        "message": "KeyError: what; see the log",
        "phase": "quality",
        "signal": "SIGSEGV",
        "log_tail": "last words",
    }
    assert record.applied is None
    assert set(record.measurements.model_dump().values()) == {None}
    lost = failed_record(planned_cell(), ERROR, {}, "", ENVIRONMENT, STARTED, [])
    assert (lost.status, lost.error.phase, lost.error.signal) == ("timeout", None, None)


# -- bounds and names of errors ---------------------------------------------------------------


def test_a_format_that_passes_the_memory_limit_is_out_of_memory(
    tmp_path, quick_workload, monkeypatch
):
    """The limit is the process's: what the model's own code takes counts, and fp32 is unharmed."""
    # torch.empty touches no page: only an allocator that is bounded refuses it.
    statement = "torch.empty(2_000_000_000, dtype=torch.uint8)"
    monkeypatch.setitem(trouble.STATEMENTS, "greed", statement)
    model = trouble.troubled_model(tmp_path / "greedy", "greed")
    given = {"model": (str(model),), "trust_remote_code": True, "memory_limit": "1GB"}
    spec = make_spec(options(tmp_path, quick_workload) | given)
    prepared = prepare_sweep(spec, nothing)
    folder, tally = run_sweep(prepared, nothing)
    records = {c.cell.format: folder.read_record(c.cell_id) for c in prepared.plan.cells}
    assert records["fp32"].status == "ok"
    bad = records["bf16"]
    assert (bad.status, bad.error.phase, tally.failed) == ("out_of_memory", "quality", 1)
    assert "--memory-limit" in bad.error.message
    assert "\n" not in bad.error.message


def data_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


def test_the_limit_counts_from_what_the_process_has_taken(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda *given: limits.append(given))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5, 77))
    guard.limit_memory(None)
    assert limits == []
    guard.limit_memory(1_000_000_000)
    ((which, (soft, hard)),) = limits
    assert (which, hard) == (resource.RLIMIT_DATA, 77)
    assert soft == pytest.approx(data_bytes() + 1_000_000_000, rel=0.05)


@pytest.mark.parametrize("trouble_in_it", [OSError("no such file"), ValueError("above the hard")])
def test_a_limit_that_can_t_be_set_stops_nothing(monkeypatch, trouble_in_it):
    asked = []

    def refuse(*arguments: Any) -> None:
        asked.append(arguments)
        raise trouble_in_it

    monkeypatch.setattr(resource, "setrlimit", refuse)
    guard.limit_memory(1_000_000_000)
    assert len(asked) == 1


class OutOfMemoryError(RuntimeError):
    """Named as torch's own, which says little when a driver refuses."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "no room"),
        OutOfMemoryError("CUDA says no"),
        RuntimeError("[enforce fail at alloc.cpp:1] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand a hint\nof three lines"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_says_that_memory_did_not_suffice_is_out_of_memory(error):
    answer = guard.error_answer(error, "block")
    assert (answer["status"], answer["kind"]) == ("out_of_memory", type(error).__name__)
    assert (answer["type"], answer["phase"]) == ("error", "block")
    assert "--memory-limit" in answer["message"]
    assert "smaller model" in answer["message"]
    assert "\n" not in answer["message"]


def test_a_model_that_was_found_not_to_fit_keeps_its_own_advice():
    text = "the weights take 2 GB; use a smaller model"
    answer = guard.error_answer(DoesNotFit(text), "load")
    assert (answer["status"], answer["message"]) == ("out_of_memory", text)


def test_numbers_that_are_none_are_invalid_numerics():
    text = "3 of 8 examples gave NaN, which is not out of memory; use a wider format"
    answer = guard.error_answer(InvalidNumerics(text), "quality")
    assert (answer["status"], answer["kind"]) == ("invalid_numerics", "InvalidNumerics")
    assert answer["message"] == text


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyError("what"), "KeyError: 'what'"),
        (OSError(errno.ENOENT, "not there"), "FileNotFoundError: [Errno 2] not there"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (AssertionError(), "AssertionError: AssertionError()"),
        (SystemExit(3), "SystemExit: 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_ordinary_error_has_failed_and_points_to_the_log(error, shown):
    answer = guard.error_answer(error, "load")
    assert answer["status"] == "failed"
    assert answer["kind"] == type(error).__name__
    assert answer["message"].startswith(f"{shown}; ")
    assert "log" in answer["message"]
    assert "\n" not in answer["message"]


def test_an_error_of_the_program_s_own_says_what_to_do_and_nothing_else():
    answer = guard.error_answer(UsageError("wrong; do it so"), "load")
    assert (answer["status"], answer["message"]) == ("failed", "wrong; do it so")


def test_a_message_without_end_is_cut():
    message = guard.error_answer(ValueError("x" * 100_000), "load")["message"]
    assert 500 <= len(message) < 700


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (-9, "SIGKILL"),
        (-11, "SIGSEGV"),
        (-250, "signal 250"),
        (0, None),
        (3, None),
        (None, None),
    ],
)
def test_an_exit_code_below_zero_is_a_signal(code, name):
    assert guard.signal_name(code) == name


# -- workers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "method", "preloaded"),
    [
        (["fork", "spawn", "forkserver"], "forkserver", [[manager.PRELOAD]]),
        (["spawn"], "spawn", []),
        (["fork", "spawn"], "spawn", []),
    ],
)
def test_workers_are_spawned_where_there_is_no_fork_server(monkeypatch, methods, method, preloaded):
    given: list[list[str]] = []
    base = multiprocessing.context.BaseContext
    monkeypatch.setattr(base, "set_forkserver_preload", lambda self, names: given.append(names))
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: methods)
    assert start_context().get_start_method() == method
    assert given == preloaded


class _Torch:
    """torch.cuda in a forked worker: never initialised there, and unusable if its server was."""

    def __init__(self, initialized: bool, bad_fork: bool) -> None:
        self.cuda = SimpleNamespace(
            is_initialized=lambda: initialized, _is_in_bad_fork=lambda: bad_fork
        )


@pytest.mark.parametrize(("initialized", "bad_fork"), [(False, True), (True, False)])
def test_a_server_that_only_counted_devices_has_touched_cuda_too(
    monkeypatch, initialized, bad_fork
):
    monkeypatch.setitem(sys.modules, "torch", _Torch(initialized, bad_fork))
    assert worker_module._cuda_touched()
    monkeypatch.setitem(sys.modules, "torch", _Torch(False, False))
    assert not worker_module._cuda_touched()


@pytest.mark.parametrize("gpu", [True, False])
def test_where_the_server_touched_cuda_workers_are_started_without_one(monkeypatch, gpu):
    """The first worker is let go of; all later ones are spawned. A torch for CUDA on a machine
    without a GPU loses nothing by it and keeps its server."""
    touched, started = iter([True, False, False]), []
    monkeypatch.setattr(manager, "gpu_present", lambda: gpu)

    def start(self, context, main):
        started.append(context.get_start_method())
        return {"cuda_touched": next(touched)}

    monkeypatch.setattr(manager, "_fork_broke_cuda", [])
    monkeypatch.setattr(WorkerHandle, "_start", start)
    monkeypatch.setattr(WorkerHandle, "kill", lambda self: started.append("killed"))
    monkeypatch.setattr(WorkerHandle, "process", SimpleNamespace(pid=1), raising=False)
    WorkerHandle(start_context(), nothing)
    WorkerHandle(start_context(), nothing)
    expected = ["forkserver", "killed", "spawn", "spawn"] if gpu else ["forkserver", "forkserver"]
    assert started == expected


def test_torch_asks_nvml_whether_there_is_a_gpu(monkeypatch):
    """Asked of CUDA in the fork server, the question would break CUDA in every worker."""
    for name in dict(os.environ):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    manager.prepare_environment(1)
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_the_preload_of_a_machine_with_a_gpu_asks_for_no_device():
    """What asks CUDA for a device where there is one, torchao's import for instance, is left to the
    workers: here torch is made to say that there is one."""
    script = (
        "import torch, types\n"
        "asked = []\n"
        "def refuse(name):\n"
        "    def ask(*a, **k): asked.append(name)\n"
        "    return ask\n"
        "for name in ('_lazy_init', 'get_device_capability', 'get_device_properties',\n"
        "             'current_device', 'init'):\n"
        "    setattr(torch.cuda, name, refuse(name))\n"
        "torch.cuda.is_available = lambda: asked.append('is_available') or True\n"
        "torch.cuda.device_count = lambda: 1\n"
        "import precision_explorer.hardware.nvml as nvml\n"
        "shut = []\n"
        "nvml.load_nvml = lambda: types.SimpleNamespace(\n"
        "    nvmlDeviceGetCount=lambda: 1, NVMLError=OSError,\n"
        "    nvmlShutdown=lambda: shut.append(1))\n"
        "import sys, precision_explorer.runner.preload\n"
        "print('ASKED', asked, 'torchao' in sys.modules, 'sklearn.metrics' in sys.modules, shut)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "ASKED [] False True [1]"


@pytest.mark.parametrize(
    ("text", "kills"),
    [("nr_free_pages 7\noom_kill 3\nswap_ra 1\n", 3), ("nr_free_pages 7\n", 0), (None, 0)],
)
def test_the_kernel_s_count_of_kills_for_memory_is_read(tmp_path, monkeypatch, text, kills):
    file = tmp_path / "vmstat"
    if text is not None:
        file.write_text(text)
    asked = []
    monkeypatch.setattr(manager, "Path", lambda name: asked.append(name) or file)
    assert manager._vm_oom_kills() == kills
    assert asked == ["/proc/vmstat"]


@pytest.fixture
def worker(monkeypatch):
    """A real worker that is gone at the end whatever became of it."""
    monkeypatch.setattr(manager, "_GRACE_S", 30.0)
    handle = WorkerHandle(start_context(), nothing)
    yield handle
    handle.kill()


def ask_nothing(worker: WorkerHandle, folder: Path) -> Any:
    """A request that takes no time and whose worker then waits for the next."""
    request = {"op": "probe", "device": "cpu", "formats": [], "threads": 1}
    return worker.ask(request | {"log": str(folder / "log")}, time.monotonic() + 60)


@pytest.mark.parametrize(
    ("ended_by", "counted", "status", "kind"),
    [
        (signal.SIGKILL, 1, "out_of_memory", "OomKilled"),
        (signal.SIGKILL, 0, "failed", "WorkerCrashed"),
        (signal.SIGTERM, 1, "failed", "WorkerCrashed"),
    ],
)
def test_a_kill_while_the_kernel_counted_one_for_memory_is_out_of_memory(
    tmp_path, monkeypatch, ended_by, counted, status, kind
):
    kills = [7]
    monkeypatch.setattr(manager, "_vm_oom_kills", lambda: kills[0])
    worker = WorkerHandle(start_context(), nothing)
    kills[0] += counted
    os.kill(worker.process.pid, ended_by)
    with pytest.raises(WorkerGone) as caught:
        ask_nothing(worker, tmp_path)
    answer = caught.value.answer
    assert (answer["status"], answer["kind"]) == (status, kind)
    assert answer["signal"] == ended_by.name
    assert "\n" not in answer["message"]
    assert ("--memory-limit" in answer["message"]) == (status == "out_of_memory")
    worker.close()


def test_a_worker_that_answers_rubbish_is_ended(tmp_path, monkeypatch, worker):
    def rubbish(connection: Any) -> Any:
        protocol.receive(connection)
        raise ValueError("no JSON")

    monkeypatch.setattr(manager, "_GRACE_S", 0.2)
    monkeypatch.setattr(manager, "receive", rubbish)
    with pytest.raises(WorkerGone) as caught:
        ask_nothing(worker, tmp_path)
    assert (caught.value.answer["status"], caught.value.answer["kind"]) == (
        "failed",
        "WorkerBroken",
    )
    assert not worker.process.is_alive()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b'"text"'])
def test_what_is_no_json_object_is_refused_on_the_wire(content):
    ours, theirs = multiprocessing.Pipe()
    theirs.send_bytes(content)
    with pytest.raises(ValueError):
        protocol.receive(ours)


def test_a_header_and_its_rows_arrive_as_they_were_sent():
    ours, theirs = multiprocessing.Pipe()
    protocol.reply(theirs, {"type": "answer"}, b"rows")
    protocol.reply(theirs, {"type": "progress"})
    assert protocol.receive(ours) == ({"type": "answer", "arrow_bytes": 4}, b"rows")
    assert protocol.receive(ours) == ({"type": "progress", "arrow_bytes": 0}, b"")
    theirs.close()
    with pytest.raises(EOFError):
        protocol.receive(ours)


def test_an_error_in_a_worker_is_its_answer_and_its_end(tmp_path, worker):
    with pytest.raises(WorkerError) as caught:
        worker.ask({"op": "probe", "log": str(tmp_path / "log")}, time.monotonic() + 60)
    assert (caught.value.answer["kind"], caught.value.answer["phase"]) == ("KeyError", "probe")
    worker.process.join(10)
    assert worker.process.exitcode == 0


def test_a_worker_that_is_asked_to_end_does(tmp_path, worker):
    assert ask_nothing(worker, tmp_path) == ({"formats": {}}, b"")
    worker.close()
    assert worker.process.exitcode == 0
    assert worker.connection.closed


class FakeProcess:
    """A process that ends when it is asked to, or only when it is killed."""

    def __init__(self, obeys: bool) -> None:
        self.obeys, self.exitcode, self.killed = obeys, None, False

    def join(self, timeout: float) -> None:
        assert timeout > 0
        if self.exitcode is None and self.obeys:
            self.exitcode = 0

    def kill(self) -> None:
        self.killed, self.exitcode = True, -9


class FakeConnection:
    """A pipe that keeps what is sent, or whose other end is gone."""

    def __init__(self, broken: bool) -> None:
        self.broken, self.sent, self.closed = broken, [], False

    def send(self, message: Any) -> None:
        if self.broken:
            raise BrokenPipeError
        self.sent.append(message)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("obeys", [False, True])
def test_close_kills_a_worker_only_if_it_does_not_end(obeys, broken):
    handle: Any = object.__new__(WorkerHandle)
    handle.process, handle.connection = FakeProcess(obeys), FakeConnection(broken)
    handle.close()
    assert handle.process.killed is not obeys
    assert handle.connection.closed
    assert handle.connection.sent == ([] if broken else [{"op": "close"}])


def count_frozen(request: Any, progress: Any) -> tuple[dict[str, Any], bytes]:
    """A job that answers how many objects collections pass over."""
    return {"frozen": gc.get_freeze_count()}, b""


def test_a_job_s_collections_of_garbage_pass_over_what_was_imported(monkeypatch):
    """Else each would walk a million objects of torch and transformers, for a third of a second."""
    monkeypatch.setitem(jobs.JOBS, "count", "tests.test_runner:count_frozen")
    before = gc.get_freeze_count()
    try:
        answer, _ = worker_module._job({"job": "count", "device": None}, None)
    finally:
        gc.unfreeze()
    assert answer["frozen"] > before + 50_000


# -- the probe --------------------------------------------------------------------------------

FACTS = DeviceFacts(
    kind="cpu", device="cpu", name="Some CPU", cpu_model="Some CPU", cores=2, memory_bytes=8 << 30
)
VERSIONS = {"torch": "2.13.0", "transformers": "5.24.0", "torchao": "0.17", "bitsandbytes": "0.49"}
RECIPE = {"kernel": "torch", "library": "torch", "compute_dtype": "float32"}


def test_an_answer_from_before_a_kernel_of_our_own_is_not_taken_for_one(tmp_path, monkeypatch):
    """The dry run of such a format on CUDA tries that kernel too."""
    monkeypatch.setattr(probe_module, "cache_dir", lambda: tmp_path)

    def path(kind: str, format_id: str) -> Path:
        facts = FACTS.model_copy(update={"kind": kind})
        return probe_module._cache_path(facts, format_id, {}, 1)

    before = {(k, f): path(k, f) for k in ("cpu", "cuda") for f in ("fp32", "fp8-dynamic")}
    monkeypatch.setattr(probe_module, "OWN_ON_CUDA", {"fp8-dynamic": "another"})
    changed = {key for key, old in before.items() if path(*key) != old}
    assert changed == {("cuda", "fp8-dynamic")}


class Device:
    """In place of the probe's worker. It runs every format but those in `lost`, whose error ends
    the worker; `notes` counts how often it had to be asked rather than the cache."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.lost: dict[str, Exception] = {}
        self.start: Exception | None = None
        self.notes: list[str] = []
        self.asked: list[str] = []
        self.open = self.started = 0

    def __call__(self, context: Any, on_event: Any) -> Device:
        if self.start is not None:
            raise self.start
        self.open += 1
        self.started += 1
        return self

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[Any, bytes]:
        assert self.open == 1
        assert (request["device"], request["op"]) == ("cpu", "probe")
        if self.error is not None:
            return {"device_error": self.error}, b""
        for name in request["formats"]:
            if name in self.lost:
                raise self.lost[name]
        self.asked += request["formats"]
        answers = {name: self.answer(name) for name in request["formats"]}
        return {"formats": answers}, b""

    def answer(self, name: str) -> dict[str, Any]:
        if name in ("fp32", "bf16"):
            return {"ok": True, "recipe": RECIPE}
        return {"ok": False, "why": f"no {name} here"}

    def close(self) -> None:
        self.open -= 1

    def probe(self, **changes: Any) -> dict[str, Support]:
        def on_event(event: Event) -> None:
            self.notes.append(event.name)

        given = {"facts": FACTS, "formats": ["fp32", "bf16"], "versions": VERSIONS, "threads": 1}
        try:
            return probe(on_event=on_event, **(given | changes))
        finally:
            assert self.open == 0


@pytest.fixture
def device(tmp_path, monkeypatch) -> Device:
    fake = Device()
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe_module, "WorkerHandle", fake)
    monkeypatch.setattr(probe_module, "start_context", lambda: None)
    return fake


def cached(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file()]


def test_kernels_are_tried_anew_under_each_runtime_that_compiles(tmp_path, device, monkeypatch):
    tools = {"g++": "12.2.0"}
    monkeypatch.setattr(probe_module, "compiler", lambda kind, versions: (tools, None))
    monkeypatch.setattr(device, "answer", lambda name: {
        "ok": True, "kernel": "torchao", "recipe": RECIPE | {"kernel": "torchao"}})  # fmt: skip

    def ask(runtime: str, formats: str = "fp32,int8-dynamic") -> dict[str, Support]:
        given = (FACTS, formats.split(","), VERSIONS, 1, nothing, runtime)
        return probe_compiled(*given)

    assert ask("eager") == ask("compile", "fp32,bf16") == {}
    assert device.started == 0
    found = ask("compile")
    assert list(found) == ["int8-dynamic"]
    assert found["int8-dynamic"].recipe["kernel"] == "torchao"
    assert ask("compile") == found
    assert device.started == len(cached(tmp_path)) == 1
    ask("compile-fixed")
    assert device.started == 2
    tools["g++"] = "14.1.0"
    ask("compile")
    assert device.started == 3


def test_a_plan_compiles_nothing_and_says_what_is_not_known(device, monkeypatch):
    monkeypatch.setattr(probe_module, "compiler", lambda kind, versions: ({}, None))
    events: list[Event] = []
    given = (FACTS, ["int8-dynamic"], VERSIONS, 1, events.append, "compile")
    assert probe_compiled(*given, ask=False) == {}
    assert device.started == 0
    assert "int8-dynamic takes under compile is not known yet" in events[0].data["text"]
    monkeypatch.setattr(device, "answer", lambda name: {
        "ok": True, "kernel": "torchao", "recipe": RECIPE | {"kernel": "torchao"}})  # fmt: skip
    found = probe_compiled(*given)
    assert probe_compiled(*given, ask=False) == found


def test_without_a_compiler_no_kernel_is_tried(device, monkeypatch):
    monkeypatch.setattr(probe_module, "compiler", lambda kind, versions: ({}, "no g++"))
    assert probe_compiled(FACTS, ["int8-dynamic"], VERSIONS, 1, nothing, "compile") == {}
    assert device.started == 0


def test_a_kernel_choice_that_fails_when_compiled_skips_that_runtime_s_cell_only(
    device, monkeypatch
):
    monkeypatch.setattr(probe_module, "compiler", lambda kind, versions: ({}, None))
    found = probe_compiled(FACTS, ["int8-dynamic"], VERSIONS, 1, nothing, "compile")
    assert not found["int8-dynamic"].supported
    assert "no int8-dynamic here" in found["int8-dynamic"].reason


def test_a_device_is_asked_once_and_the_answer_is_read_again(tmp_path, device):
    first = device.probe()
    assert {name: support.supported for name, support in first.items()} == {
        "fp32": True,
        "bf16": True,
    }
    assert first["fp32"].execution == "native"
    assert first["fp32"].recipe == RECIPE
    assert device.notes == ["note"]
    assert len(cached(tmp_path)) == 2
    started = device.started
    assert device.probe() == first
    assert device.notes == ["note"]
    assert device.started == started


def test_only_formats_without_a_stored_answer_are_tried(device):
    device.probe()
    assert device.asked == ["fp32", "bf16"]
    found = device.probe(formats=["bf16", "int8-dynamic"])
    assert found["bf16"].supported
    assert found["int8-dynamic"].reason.endswith("no int8-dynamic here")
    assert device.asked == ["fp32", "bf16", "int8-dynamic"]
    device.probe(formats=["int8-dynamic"])
    assert device.notes == ["note"] * 2


def test_fp32_is_tried_too_so_that_a_format_that_does_not_run_is_no_broken_device(device):
    assert not device.probe(formats=["int8-dynamic"])["int8-dynamic"].supported
    assert device.asked == ["fp32", "int8-dynamic"]


@pytest.mark.parametrize(
    "changes",
    [
        {"threads": 2},
        {"versions": VERSIONS | {"torchao": "0.18"}},
        {"facts": FACTS.model_copy(update={"cpu_flags": ("avx2",)})},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_device_stack_or_number_of_threads_is_asked_anew(device, changes):
    for _ in range(2):
        device.probe()
        device.probe(**changes)
        assert len(device.notes) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe\x00"])
def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path, device, content):
    first = device.probe(formats=["fp32"])
    (path,) = cached(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(content)
    for _ in range(2):
        assert device.probe(formats=["fp32"]) == first
        assert len(device.notes) == 2
        assert path.read_bytes() == whole


def test_a_device_that_can_t_be_used_is_wrong_use_and_is_not_remembered(tmp_path, device):
    device.error = "the installed torch has no CUDA; install another"
    for times in (1, 2):
        with pytest.raises(UsageError, match="cpu: the installed torch has no CUDA"):
            device.probe()
        assert len(device.notes) == times
    assert cached(tmp_path) == []
    device.error = None
    assert device.probe()["fp32"].supported


def test_a_cache_that_can_t_be_written_does_not_matter(tmp_path, device, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "file" / "cache"))
    first = device.probe()
    assert first["fp32"].supported
    assert device.probe() == first
    assert len(device.notes) == 2


@pytest.mark.parametrize(
    "error",
    [
        WorkerError({"message": "OSError: no library"}),
        WorkerGone("failed", "WorkerCrashed", "the worker was ended by SIGSEGV"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_format_that_ends_the_probe_s_worker_spares_the_others_and_is_asked_again(
    tmp_path, device, error
):
    device.lost = {"bf16": error}
    asked = ["bf16", "fp32", "int8-dynamic"]
    found = device.probe(formats=asked)
    assert found["fp32"].supported
    assert not found["bf16"].supported
    assert str(error) in found["bf16"].reason
    assert device.started == 2
    assert len(cached(tmp_path)) == 2
    device.lost = {}
    assert device.probe(formats=asked)["bf16"].supported
    assert len(cached(tmp_path)) == 3


@pytest.mark.parametrize(
    "error",
    [WorkerGone("timeout", "Timeout", "no answer within the time limit"), EOFError()],
    ids=lambda error: type(error).__name__,
)
def test_a_probe_whose_worker_does_not_start_is_wrong_use(tmp_path, device, error):
    device.start = error
    with pytest.raises(UsageError) as caught:
        device.probe()
    message = str(caught.value)
    assert "\n" not in message
    assert (str(error) or "did not start") in message
    assert "import torch" in message
    assert cached(tmp_path) == []


def test_a_device_on_which_no_format_runs_is_wrong_use(tmp_path, device, monkeypatch):
    monkeypatch.setattr(device, "answer", lambda name: {"ok": False, "why": f"no {name}"})
    with pytest.raises(UsageError, match="no fp32"):
        device.probe()
    assert cached(tmp_path) == []


# -- progress ---------------------------------------------------------------------------------

LABELS = {"model": "demo", "task": "sentiment", "format": "bf16"}
EVENTS = [
    Event("note", {"text": "asking the device"}),
    Event("worker", {"pid": 1, "ready_s": 0.1}),
    Event("start", LABELS),
    Event("progress", {"phase": "quality", "done": 1, "total": 2}),
    Event("cell", LABELS | {"status": "ok", "reused": False}),
    Event("cell", LABELS | {"status": "ok", "reused": True}),
    Event("cell", LABELS | {"status": "timeout", "reused": False, "message": "too long"}),
    Event("skip", LABELS | {"reason": "no unit for it"}),
]
LINES = {
    "note": ["asking the device"],
    "start": ["demo sentiment bf16: start"],
    "progress": ["demo sentiment bf16: quality, 1 of 2 examples"],
    "cell": [
        "demo sentiment bf16: ok",
        "demo sentiment bf16: already there",
        "demo sentiment bf16: timeout (too long)",
    ],
    "skip": ["demo sentiment bf16: skipped (no unit for it)"],
}


@pytest.fixture
def clock(monkeypatch) -> FakeClock:
    clock = FakeClock(1000.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_plain_progress_is_a_dated_line_for_each_thing_that_happened(capsys, clock):
    show = _Plain()
    for event in EVENTS:
        clock.sleep(65)
        show(event)
    out, err = capsys.readouterr()
    assert out == ""
    names = ("note", "start", "progress", "cell", "skip")
    texts = [line for name in names for line in LINES[name]]
    times = ["1:05", "3:15", "4:20", "5:25", "6:30", "7:35", "8:40"]
    assert err.splitlines() == [f"[{t}] {x}" for t, x in zip(times, texts, strict=True)]


def test_plain_progress_tells_how_far_a_cell_is_at_most_every_15_seconds(capsys, clock):
    show = _Plain()
    show(Event("start", LABELS))
    for done in range(41):
        show(Event("progress", {"phase": "quality", "done": 50 * done, "total": 2000}))
        clock.sleep(1)
    show(Event("round", LABELS | {"round": 1, "rounds": 4}))
    show(Event("progress", {"phase": "latency", "done": 0, "total": 1}))
    clock.sleep(15)
    show(Event("progress", {"phase": "offline", "done": 0, "total": 1}))
    show(Event("compare", LABELS))
    clock.sleep(15)
    show(Event("progress", {"phase": "compare", "done": 1000, "total": 4000}))
    lines = [line.split("] ")[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "demo sentiment bf16: start",
        "demo sentiment bf16: quality, 750 of 2,000 examples, 50.0 examples/s, 25.0 s left",
        "demo sentiment bf16: quality, 1,500 of 2,000 examples, 50.0 examples/s, 10.0 s left",
        "demo sentiment bf16, round 2 of 4: throughput",
        "demo sentiment bf16: held against the reference, 1,000 of 4,000 positions",
    ]


class Bar:
    """A progress bar that keeps what it is told."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        self.console = Console(file=self.text, width=200)
        self.shown: dict[str, Any] = {}

    def add_task(self, description: str, **fields: Any) -> int:
        self.shown = {"description": description} | fields
        return 7

    def update(self, task: int, **fields: Any) -> None:
        assert task == 7
        self.shown |= fields


@pytest.fixture
def live(clock) -> SimpleNamespace:
    bar = Bar()
    show = _Live(bar)

    def step(phase: str, done: int, total: int, after: float = 0.0) -> dict[str, Any]:
        clock.sleep(after)
        show(Event("progress", {"phase": phase, "done": done, "total": total}))
        return dict(bar.shown)

    return SimpleNamespace(bar=bar, show=show, step=step)


def test_live_progress_shows_cell_phase_rate_and_time_left(live):
    live.show(Event("start", LABELS))
    assert live.bar.shown["description"] == "demo sentiment bf16: start"
    shown = live.step("quality", 0, 30)
    assert shown["description"] == "demo sentiment bf16: quality"
    assert (shown["completed"], shown["total"]) == (0, 30)
    assert shown["rate"] == "0 of 30 examples"
    # Half a second is needed for a rate to say anything.
    assert live.step("quality", 5, 30, after=0.4)["rate"] == "5 of 30 examples"
    shown = live.step("quality", 10, 30, after=1.6)
    assert (shown["completed"], shown["total"]) == (10, 30)
    assert shown["rate"] == "10 of 30 examples, 5.00 examples/s, 4.00 s left"


def test_live_progress_times_each_phase_from_its_own_beginning(live):
    live.show(Event("start", LABELS))
    live.step("load", 0, 1)
    live.step("quality", 0, 30, after=100.0)
    shown = live.step("quality", 20, 30, after=2.0)
    assert shown["rate"] == "20 of 30 examples, 10.0 examples/s, 1.00 s left"
    live.show(Event("start", LABELS | {"format": "fp16"}))
    assert live.bar.shown["rate"] == ""
    assert live.bar.shown["total"] is None
    assert live.bar.shown["description"] == "demo sentiment fp16: start"


def test_live_progress_of_a_step_that_has_no_parts_has_no_rate(live):
    live.step("latency", 0, 1)
    shown = live.step("latency", 1, 1, after=5.0)
    assert (shown["total"], shown["rate"]) == (None, "")
    live.step("quality", 0, 30)
    assert live.step("quality", 0, 30, after=5.0)["rate"] == "0 of 30 examples"


def test_what_happened_stands_above_the_live_line(live):
    for event in EVENTS:
        live.show(event)
    lines = live.bar.text.getvalue().splitlines()
    assert lines == [*LINES["note"], *LINES["cell"], *LINES["skip"]]


def test_a_name_in_brackets_is_shown_as_it_is(live):
    live.show(Event("skip", LABELS | {"model": "[red]m[/red]", "reason": "no [unit]"}))
    assert live.bar.text.getvalue() == "[red]m[/red] sentiment bf16: skipped (no [unit])\n"


class Stream(io.StringIO):
    """stderr as a terminal or none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize(("terminal", "kind"), [(False, _Plain), (True, _Live)])
def test_progress_is_live_on_a_terminal_only(monkeypatch, terminal, kind):
    stream = Stream(terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "stderr", stream)
    with progress() as show:
        assert type(show) is kind
        for event in EVENTS:
            show(event)
    for line in [*LINES["note"], *LINES["cell"], *LINES["skip"]]:
        assert line in stream.getvalue()


# -- a sweep's task, folder and document ------------------------------------------------------


def model_folder(folder: Path, *architectures: str) -> Path:
    """A model folder with the demo's labels and no weights, enough to plan with."""
    folder.mkdir()
    config = json.loads((DEMO / "config.json").read_text()) | {"architectures": architectures}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


CLASSIFIER, CAUSAL = "BertForSequenceClassification", "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("heads", "task"),
    [
        ((CLASSIFIER,), "sentiment"),
        ((CLASSIFIER, "RobertaForSequenceClassification"), "sentiment"),
        ((CAUSAL,), "sentiment-choice"),
        ((CAUSAL, "GPT2LMHeadModel"), "sentiment-choice"),
        (("BertModel",), "news-similarity"),
        (("ViTForImageClassification",), "digits"),
    ],
)
def test_a_sweep_without_a_task_takes_the_one_that_fits_the_heads(tmp_path, heads, task):
    refs = [resolve(str(model_folder(tmp_path / head, head))) for head in heads]
    assert default_task(refs) == task


@pytest.mark.parametrize(
    "heads", [(CLASSIFIER, CAUSAL), ("BertForMaskedLM",), (CAUSAL, "BertModel")]
)
def test_models_that_no_one_task_fits_need_a_task(tmp_path, heads):
    refs = [resolve(str(model_folder(tmp_path / head, head))) for head in heads]
    with pytest.raises(UsageError, match="--task"):
        default_task(refs)


def prepared_for(models: list[str], task: str = "sentiment", **given: Any) -> Prepared:
    """What naming a run needs."""
    unused: Any = None
    return Prepared(
        spec=make_spec({"model": models} | given),
        refs=[SimpleNamespace(name=name) for name in models],  # type: ignore[misc]
        tasks=[SimpleNamespace(card=SimpleNamespace(name=task))],  # type: ignore[list-item]
        workload=unused,
        facts=SimpleNamespace(device="cuda:0"),  # type: ignore[arg-type]
        supports={},
        environment=unused,
        plan=unused,
        budgets={},
    )


NAMES = [
    "demo", "org/name", "/home/someone/models/Mine/", "..", "../..", "a b\tc\nd", "$(rm -r x);*?",
    "x" * 300, "-", "C:\\models\\m", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_s_folder_has_a_name_of_safe_characters_below_results(name):
    path = run_folder(prepared_for([name])).path
    assert path.parent == Path("results")
    assert re.fullmatch(r"[a-z0-9_-]+-sentiment-cuda-0-[0-9a-f]{6}", path.name)
    assert not path.name.startswith("-")
    assert "someone" not in path.name


def test_the_names_of_several_models_are_told_apart():
    name = run_folder(prepared_for(["org/one", "two"])).path.name
    assert name.startswith("one+two-sentiment-cuda-0-")


MANY = [f"a-model-with-a-rather-long-name-{i}" for i in range(12)]


@pytest.mark.parametrize("models", [["demo"], MANY])
def test_the_same_spec_gives_the_same_folder(models):
    path = run_folder(prepared_for(models)).path
    assert path == run_folder(prepared_for(models)).path
    assert len(path.name) <= 255
    for later in ({"price_per_hour": 2.0}, {"slo": "p99=50ms"}, {"cell_timeout": 5.0}):
        assert run_folder(prepared_for(models, **later)).path == path


@pytest.mark.parametrize("models", [["demo"], MANY])
def test_other_measuring_options_give_another_folder(models):
    changes: list[dict[str, Any]] = [
        {}, {"limit": 5}, {"seed": 1}, {"batch_size": (1,)}, {"formats": "fp32,bf16"},
        {"threads": 3}, {"memory_limit": "1GB"}, {"workload": "other.yaml"},
    ]  # fmt: skip
    names = [run_folder(prepared_for(models, **change)).path.name for change in changes]
    assert len(set(names)) == len(changes)
    assert len({name[:-6] for name in names}) == 1


def test_models_beyond_the_length_of_the_words_still_count():
    names = [run_folder(prepared_for(models)).path.name for models in (MANY, MANY[:-1])]
    assert names[0][:-6] == names[1][:-6]
    assert names[0] != names[1]


def test_out_is_the_folder_whatever_the_spec(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_folder(prepared_for(["demo"], out="some/where")).path == Path("some/where")
    assert run_folder(prepared_for(["demo"], out="~/mine")).path == tmp_path / "mine"
    assert run_folder(prepared_for(MANY, out="~/mine", seed=3)).path == tmp_path / "mine"


def texts(document: Any) -> list[str]:
    """Every key and every text in a document."""
    if isinstance(document, dict):
        return [*document, *(text for value in document.values() for text in texts(value))]
    if isinstance(document, list):
        return [text for value in document for text in texts(value)]
    return [document] if isinstance(document, str) else []


@pytest.fixture
def by_path(tmp_path, quick_workload, monkeypatch) -> Prepared:
    """A sweep whose model, task, workload and output folder were all given by absolute paths."""

    def answer(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
        return {name: Support(name, "native", "a unit for it", RECIPE) for name in formats}

    monkeypatch.setattr(sweep, "probe", answer)
    card = {
        "name": "mine",
        "version": 1,
        "kind": "text-classification",
        "data": {"path": "test.jsonl"},
        "columns": {"text": "text", "label": "label"},
        "metrics": ["accuracy"],
    }
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "task.yaml").write_text(yaml.safe_dump(card))
    (tmp_path / "card" / "test.jsonl").write_text('{"text": "fine", "label": "positive"}\n')
    model = model_folder(tmp_path / "somewhere", CLASSIFIER)
    (model / "tokenizer.json").write_text("{}")
    given = {"model": (str(model),), "task": (str(tmp_path / "card"),)}
    return prepare_sweep(make_spec(options(tmp_path, quick_workload) | given), nothing)


def test_rounds_that_other_places_have_measured_are_not_gone_on_with_here(by_path, monkeypatch):
    begun_anew = []
    monkeypatch.setattr(sweep, "start_anew", lambda folder, lot: begun_anew.append(lot.cells))
    monkeypatch.setattr(sweep, "_roof", lambda *given: None)
    monkeypatch.setattr(sweep, "estimated", lambda *given: nullcontext(nothing))
    monkeypatch.setattr(sweep.Executor, "run", lambda self: Tally())

    def run(**before: Any) -> int:
        folder, _ = run_sweep(by_path, nothing)
        path = folder.path / "sweep.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps(document | {"spec": document["spec"] | before}))
        return len(begun_anew)

    assert run() == 0
    assert run(executor="ray") == 0
    assert run() == 1
    assert run(device="all") == 1
    assert run(cores=2) == 2
    assert run() == 3
    assert {len(cells) for cells in begun_anew} == {len(by_path.plan.cells)}


def test_settings_of_a_cluster_name_people_and_stay_out_of_the_document(by_path):
    named = {"executor": "slurm", "slurm": ("account=somebody",), "ray_address": "host:1"}
    asked = replace(by_path, spec=by_path.spec.model_copy(update=named))
    text = json.dumps(sweep_document(asked, "run"))
    assert "somebody" not in text
    assert "host:1" not in text


def test_the_document_of_a_sweep_holds_no_path(tmp_path, by_path, quick_workload):
    """Results are passed on: paths name people and machines."""
    document = sweep_document(by_path, "run")
    found = texts(document)
    assert len(found) > 50
    assert not [text for text in found if text.startswith(("/", "~"))]
    for secret in (tmp_path, quick_workload.parent, sys.prefix, Path.home()):
        assert not [text for text in found if f"{secret}/" in text]
    assert "out" not in document["spec"]


def test_the_document_of_a_sweep_says_what_is_measured_and_how(by_path):
    document = json.loads(json.dumps(sweep_document(by_path, "run")))
    assert (document["schema_version"], document["run"]) == (1, "run")
    assert document["spec"]["formats"] == ["fp32", "bf16"]
    assert document["reader"]["reference"] == "fp32"
    cells = document["plan"]["cells"]
    assert [(cell["format"], cell["skip"]) for cell in cells] == [("fp32", None), ("bf16", None)]
    assert set(document["methods"]) == {c.cell.method_id for c in by_path.plan.cells}
    (task,) = document["tasks"]
    assert (task["name"], task["kind"], task["n"]) == ("mine", "text-classification", 1)
    assert document["environment"]["threads"] == 1
    same = replace(by_path, spec=by_path.spec.model_copy(update={"out": "/else/where"}))
    assert sweep_document(same, "run") == sweep_document(by_path, "run")


def _tell_blocked(connection):
    connection.send([int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])])


def test_what_is_started_holds_ctrl_c_back_and_the_manager_does_not():
    """Else an interrupt of the group while a worker starts prints a traceback of its server."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_tell_blocked, args=(theirs,))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with manager._interrupts_held():
        process.start()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert ours.poll(60)
    assert signal.SIGINT in ours.recv()
    process.join()


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: None)
from precision_explorer.runner import manager
print("ready", flush=True)
worker = manager.WorkerHandle(manager.start_context(preload=False), lambda event: None)
print("hello", flush=True)
worker.close()
"""


def test_ctrl_c_while_a_worker_starts_ends_neither_it_nor_its_server():
    """The group is interrupted again and again, from before the fork server starts until the worker
    has said hello: the one that asked decides what becomes of them."""
    script = [sys.executable, "-c", INTERRUPTED]
    process = subprocess.Popen(
        script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(process.stdout.readline()))
    reader.start()
    while reader.is_alive():
        os.killpg(process.pid, signal.SIGINT)
        reader.join(0.005)
    rest, errors = process.communicate(timeout=60)
    assert (said, rest, errors, process.returncode) == (["hello\n"], "", "", 0)
