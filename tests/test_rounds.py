"""Interleaved rounds: their order, who is timed beside whom, what memory allows, how the blocks are
joined, and what the executor makes of workers that fail in between. Workers are stand-ins."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from precision_explorer.formats import Support
from precision_explorer.hardware import DeviceFacts
from precision_explorer.plan.expand import RULES
from precision_explorer.plan.spec import make_spec
from precision_explorer.records.serving import Serving
from precision_explorer.runner import local, sweep
from precision_explorer.runner.cell_run import CellRun
from precision_explorer.runner.manager import Event, WorkerError, WorkerGone
from precision_explorer.runner.order import interleaved
from precision_explorer.runner.parking import SHARE, Parking, own_bytes
from precision_explorer.runner.rounds import joined_block
from precision_explorer.runner.schedule import Schedule
from precision_explorer.runner.sweep import prepare_sweep, run_sweep
from precision_explorer.workload import Workload
from precision_explorer.workload.load import changed
from tests.test_runner import BLOCK, CERTIFICATE, LOAD, QUALITY
from tests.test_store import arrow
from tests.test_table import classified, window

# -- order ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", range(1, 10))
@pytest.mark.parametrize("rounds", range(2, 8))
def test_every_cell_has_the_same_mean_place_and_the_reference_is_first_and_last(cells, rounds):
    names = [f"format-{k}" for k in range(cells)]
    for seed in range(3):
        made = interleaved(names, rounds, seed, names[0])
        assert [number for _, number in made] == [k for k in range(rounds) for _ in range(cells)]
        for number in range(rounds):
            assert sorted(c for c, k in made if k == number) == names
        sums = dict.fromkeys(names, 0)
        for step, (name, _) in enumerate(made):
            sums[name] += step % cells
        possible = 0 if rounds % 2 == 0 or cells % 2 else 1
        assert max(sums.values()) - min(sums.values()) <= possible
        assert made[0] == (names[0], 0)
        assert made[-1] == (names[0], rounds - 1)


def test_a_child_that_ends_while_memory_is_read_takes_no_other_s_with_it(monkeypatch):
    class Gone(psutil.Process):
        def memory_full_info(self) -> Any:
            raise psutil.NoSuchProcess(self.pid)

    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [Gone()])
    assert own_bytes(os.getpid()) > 1e6


def test_a_steady_drift_cancels_out_of_every_difference():
    """A machine that loses a thousandth from block to block, and three formats equally fast."""
    made = interleaved(["fp32", "bf16", "int8"], 3, 0, "fp32")
    means = {
        name: sum(1 + step / 1000 for step, (other, _) in enumerate(made) if other == name)
        for name in ("fp32", "bf16", "int8")
    }
    assert len({round(mean, 12) for mean in means.values()}) == 1


def test_the_order_is_drawn_by_the_seed():
    names = list("abcdefg")
    made = [interleaved(names, 3, seed, "a") for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert interleaved(names, 1, 0, "c")[0] == ("c", 0)
    without = interleaved(names, 3, 0)
    assert len(without) == 21
    with pytest.raises(ValueError, match="give 1 or more"):
        interleaved(names, 0, 0)


# -- rules of a round -------------------------------------------------------------------------


def test_numbers_and_budgets_are_divided_over_the_rounds_and_the_meter_s_window_is_not():
    whole = Workload(rounds=3, min_requests=31, energy_seconds=5, warmup_requests=4)
    first, later = whole.one_round(first=True), whole.one_round(first=False)
    for one in (first, later):
        assert (one.min_requests, one.min_seconds, one.budget_seconds) == (11, 1.0, 20.0)
        assert one.offline_min_batches == 1
        assert one.offline_seconds == pytest.approx(2 / 3)
        assert one.offline_budget_seconds == pytest.approx(20 / 3)
        assert one.energy_seconds == 5
    assert (first.warmup_requests, first.warmup_seconds) == (4, 0.5)
    assert later.warmup_requests == 2
    assert later.warmup_seconds == pytest.approx(0.5 / 3)
    alone = Workload(rounds=1)
    assert alone.one_round(first=True) == alone
    server = Workload(scenario="server", arrivals={"kind": "poisson", "load": 0.5})
    for one in (server.one_round(first=True), server.one_round(first=False)):
        # Its queue has to fill anew in each of them.
        assert (one.duration_seconds, one.warmup_seconds, one.warmup_requests) == (10, 0.5, 3)
    assert server.rules()["rounds"] == 3
    assert changed(whole, duration_s=600.0).rounds == 1


# -- memory -----------------------------------------------------------------------------------

CPU = DeviceFacts(kind="cpu", device="cpu", name="x", cpu_model="x", cores=2, memory_bytes=1000)
GPU = CPU.model_copy(update={"kind": "cuda", "device": "cuda:0", "pci_bus_id": "0"})


def parking(facts: DeviceFacts = CPU, available: int = 5000, **more: Any) -> Parking:
    return Parking(facts, available=lambda: available, own=lambda pid: pid, **more)


def test_a_model_fits_while_all_stay_within_a_share_of_what_was_free():
    """The cgroup's 1,000 bytes bound what the machine has; a worker's number is its size."""
    room = int(SHARE * 1000)
    assert parking().fits(room, [])
    assert not parking().fits(room + 1, [])
    assert parking().fits(room - 300, [100, 200])
    assert not parking().fits(room - 299, [100, 200])
    assert not parking(available=400).fits(400, [])


def test_on_a_gpu_the_device_must_have_room_too():
    room = int(SHARE * 1000)
    assert parking(GPU, free=lambda bus: 1000).fits(room, [])
    assert not parking(GPU, free=lambda bus: 900).fits(room, [])
    assert not parking(GPU, free=lambda bus: None).fits(1, [])
    assert not parking(GPU, free=lambda bus: 10_000).fits(room, [1])


# -- blocks to one ----------------------------------------------------------------------------


def block(number: int, **changes: Any) -> dict[str, Any]:
    """One round's answer: 10 requests in 1 s, three batches."""
    latency = BLOCK["latency"] | {
        "cold_first_s": 0.5 if number == 0 else None,
        "requests": 10,
        "window_s": 1.0,
        "phases": {"forward_s": 0.1 * (number + 1), "post_s": None},
    }
    rate = {"requests_per_s": 10.0 + number, "batches": 3, "batch_s": [0.1, 0.2, 0.1 * number]}
    made = {
        "latency": latency,
        "throughput": {"by_batch_size": {"1": rate | {"note": None}}, "best_batch_size": 1},
        "energy": {"source": "measured:nvml", "boundary": "GPU", "energy_j": 2.0 + number,
                   "window_s": 1.0 + number, "requests": 10, "idle_power_w": 6.0, "note": None},
        "other_work_share": 0.01 * number,
        "peak_bytes": 400,
        "recompiles": None,
        "place": {"round": number, "place": 2 - number, "cells": 3, "interleaved": True,
                  "started_s": 1.0, "temperature_c": None, "waited_s": 0.0},
    }  # fmt: skip
    return made | changes


def test_rounds_are_joined_by_sums_and_medians():
    joined = joined_block([block(k) for k in range(3)])
    latency = joined["latency"]
    assert latency["cold_first_s"] == 0.5
    assert (latency["requests"], latency["window_s"], latency["warmup_requests"]) == (30, 3.0, 3)
    assert latency["phases"] == {"forward_s": pytest.approx(0.2), "post_s": None}
    assert latency["stopped_by"] == "rules"
    assert [r["place"] for r in latency["rounds"]] == [2, 1, 0]
    assert [r["requests"] for r in latency["rounds"]] == [10, 10, 10]
    rate = joined["throughput"]["by_batch_size"]["1"]
    assert joined["throughput"]["best_batch_size"] == 1
    assert rate["requests_per_s"] == 11.0
    assert [(r["round"], r["requests_per_s"]) for r in rate["rounds"]] == [
        (0, 10.0), (1, 11.0), (2, 12.0),
    ]  # fmt: skip
    assert rate["batches"] == len(rate["batch_s"]) == 9
    energy = joined["energy"]
    assert (energy["energy_j"], energy["window_s"], energy["requests"]) == (9.0, 6.0, 30)
    assert energy["idle_power_w"] == pytest.approx(6.0)
    assert energy["rounds"] == [{"round": k, "energy_j": 2.0 + k, "requests": 10} for k in range(3)]
    assert joined["other_work_share"] == pytest.approx(0.01)


def test_what_is_missing_in_one_round_is_missing_in_all():
    odd = block(1)
    odd["energy"] |= {"energy_j": None, "note": "the counter fell"}
    odd["throughput"] = {
        "by_batch_size": {"1": {"requests_per_s": None, "batches": 0, "batch_s": [], "note": "x"}},
        "best_batch_size": None,
    }
    odd["latency"] |= {"stopped_by": "budget"}
    joined = joined_block([block(0), odd, block(2)])
    assert joined["energy"]["energy_j"] is None
    assert "rounds" not in joined["energy"]
    assert joined["energy"]["note"] == "the counter fell"
    assert joined["throughput"]["best_batch_size"] is None
    assert joined["throughput"]["by_batch_size"]["1"]["note"] == "x"
    assert joined["latency"]["stopped_by"] == "budget"
    assert joined_block([]) is None
    assert joined_block([BLOCK]) is BLOCK


# -- the executor, with stand-ins for workers ---------------------------------------------------

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
ROWS = arrow([row | {"cut": False} for row in classified(set(), 6)])


class Fake:
    """A worker that answers at once; `trouble(format, op, round)` may raise or change the answer.

    `asked` holds what all workers were asked, in order of time, `blocks` the whole requests of
    blocks, `loaded` who lives."""

    asked: list[tuple[str, str, Any]]
    blocks: list[tuple[str, dict[str, Any]]]
    loaded: list[Fake]
    most: int
    trouble: Any = staticmethod(lambda worker, op, number: None)
    pids = itertools.count(1)

    def __init__(self, context: Any, on_event: Any) -> None:
        self.format, self.alive, self.ready_s, self.busy_s = "", True, 0.0, 1.0
        self.process = SimpleNamespace(
            pid=next(self.pids), is_alive=lambda: self.alive, kill=self.kill
        )

    def kill(self) -> None:
        self.alive = False
        if self in Fake.loaded:
            Fake.loaded.remove(self)

    close = kill_soon = kill

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        op, number = request["op"], request.get("round")
        if op == "load":
            self.format = request["format"]
            Fake.loaded.append(self)
            Fake.most = max(Fake.most, len(Fake.loaded))
        Fake.asked.append((self.format, op, number))
        if op == "block":
            Fake.blocks.append((self.format, request))
        changed = Fake.trouble(self, op, number)
        if changed is not None:
            return changed
        if op == "block":
            made = block(number)
            made.pop("place")
            made["first"] = request["first"]
            rows = [
                {"id": "e0", "index": 0, "window": "measure", "latency_s": 0.1, "round": number}
            ]
            return made, arrow(rows)
        noise = {"seconds": 1.0, "examples": 6, "batches": 1, "batch_plan_hash": "0"}
        answers: dict[str, tuple[dict[str, Any], bytes]] = {
            "load": (LOAD, b""),
            "quality": (QUALITY, ROWS),
            "certificate": (CERTIFICATE, b""),
            "noise": ({"noise": noise}, ROWS),
            "park": ({}, b""),
        }
        if op not in answers:
            self.kill()
            raise WorkerError({"status": "failed", "kind": "X", "message": f"no {op}"})
        return answers[op]


@pytest.fixture
def run(tmp_path, quick_workload, monkeypatch):
    """A function that sweeps three formats with stand-ins: ({format: record}, events, folder)."""

    def answer(facts: Any, formats: list[str], *rest: Any) -> dict[str, Support]:
        recipe = {"kernel": "torch", "library": "torch"}
        return {
            name: Support(name, "native", "a unit", recipe | {"compute_dtype": DTYPES[name]})
            for name in formats
        }

    monkeypatch.setattr(sweep, "probe", answer)
    monkeypatch.setattr(local, "start_context", lambda **more: None)
    monkeypatch.setattr(local, "WorkerHandle", Fake)
    monkeypatch.setattr(Fake, "trouble", staticmethod(lambda worker, op, number: None))

    def sweep_it(on_event: Any = None, **more: Any) -> SimpleNamespace:
        Fake.asked, Fake.blocks, Fake.loaded, Fake.most = [], [], [], 0
        given = {
            "task": ("sentiment",), "formats": ("fp32", "bf16", "fp16"), "device": "cpu",
            "limit": 6, "workload": str(quick_workload), "out": str(tmp_path / "run"),
            "batch_size": (1,), "threads": 1,
        }  # fmt: skip
        events: list[Event] = []

        def told(event: Event) -> None:
            events.append(event)
            if on_event is not None:
                on_event(event)

        found = prepare_sweep(make_spec(given | more), lambda event: None)
        folder, tally = run_sweep(found, told)
        cells = {c.cell.format: c for c in found.plan.cells}
        records = {name: folder.read_record(c.cell_id) for name, c in cells.items()}
        blocks = [(name, number) for name, op, number in Fake.asked if op == "block"]
        assert Fake.loaded == []
        return SimpleNamespace(
            records=records, events=events, tally=tally, folder=folder, blocks=blocks, cells=cells
        )

    return sweep_it


def cautions(record: Any) -> set[str]:
    return {caution.id for caution in record.cautions}


def test_all_are_scored_then_timed_in_turn_then_certified(run):
    found = run()
    ops = [(name, op) for name, op, _ in Fake.asked if op != "profile"]
    scored = [(f, op) for f in ("fp32", "bf16", "fp16") for op in ("load", "quality", "park")]
    assert ops[:9] == scored
    assert [op for _, op in ops[9:18]] == ["block"] * 9
    assert ops[18:21] == [(f, "certificate") for f in ("fp32", "bf16", "fp16")]
    assert found.blocks[0] == ("fp32", 0)
    assert found.blocks[-1] == ("fp32", 2)
    assert Fake.most == 3
    for name, record in found.records.items():
        rounds = record.measurements.latency.rounds
        assert [r.round for r in rounds] == [0, 1, 2]
        assert all(r.interleaved and r.cells == 3 for r in rounds)
        assert sum(r.place for r in rounds) == 3
        assert "rounds-not-interleaved" not in cautions(record)
        parts = found.folder.path / "parts" / found.cells[name].cell_id
        assert {p.name for p in parts.glob("block-*.json")} == {
            "block-0.json", "block-1.json", "block-2.json",
        }  # fmt: skip
        samples = found.folder.read_samples(record.cell_id, "request")
        assert samples["round"] == [0, 1, 2]


def test_a_process_serves_a_cold_request_in_its_first_round_only(run):
    found = run()
    for cell in found.cells.values():
        firsts = [
            found.folder.read_answer(cell.cell_id, f"block-{k}")["first"] for k in range(3)
        ]  # fmt: skip
        assert firsts == [True, False, False]


def test_the_number_of_rounds_is_part_of_the_identity(run, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("rounds: 1\n")
    one, three = run(workload=str(path)), run()
    assert len(one.blocks) == 3
    assert one.records["fp32"].cell_id != three.records["fp32"].cell_id
    assert one.records["fp32"].method_id != three.records["fp32"].method_id


def test_what_memory_does_not_hold_is_measured_apart_and_says_so(run, monkeypatch):
    """No more than two models fit: the third is loaded when the others are gone."""
    monkeypatch.setattr(
        local,
        "Parking",
        lambda facts: SimpleNamespace(fits=lambda need, pids, split: len(pids) < 2),
    )
    found = run()
    assert Fake.most == 2
    assert [name for name, _ in found.blocks[-3:]] == ["fp16"] * 3
    assert {name for name, _ in found.blocks[:6]} == {"fp32", "bf16"}
    assert {name: "rounds-not-interleaved" in cautions(r) for name, r in found.records.items()} == {
        "fp32": False, "bf16": False, "fp16": True,
    }  # fmt: skip
    notes = [e.data["text"] for e in found.events if e.name == "note"]
    assert any("fp16: measured apart" in text for text in notes)
    assert found.tally.ran == 3
    # What is compared with the reference is compared all the same.
    assert found.records["fp32"].measurements.noise is not None


OUT = {"status": "out_of_memory", "kind": "OutOfMemoryError", "message": "out of memory"}


@pytest.mark.parametrize("where", ["load", "quality", "block"])
def test_running_out_of_memory_beside_others_is_tried_alone_before_it_counts(run, where):
    def trouble(worker: Fake, op: str, number: Any) -> None:
        if worker.format == "bf16" and op == where and len(Fake.loaded) > 1 and number in (None, 1):
            worker.kill()
            raise WorkerError(OUT)

    Fake.trouble = staticmethod(trouble)
    found = run()
    assert {r.status for r in found.records.values()} == {"ok"}
    assert found.tally.failed == 0
    assert "rounds-not-interleaved" in cautions(found.records["bf16"])
    assert "resumed" not in cautions(found.records["bf16"])
    assert [b for b in found.blocks if b[0] == "bf16"][-3:] == [("bf16", k) for k in range(3)]


def test_a_batch_that_did_not_fit_beside_others_is_measured_again_alone(run):
    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if worker.format != "bf16" or op != "block" or len(Fake.loaded) == 1:
            return None
        made = block(number)
        made["throughput"]["by_batch_size"]["8"] = {
            "requests_per_s": None, "batches": 0, "batch_s": [], "note": "out of memory",
        }  # fmt: skip
        return made, b""

    Fake.trouble = staticmethod(trouble)
    found = run()
    assert list(found.records["bf16"].measurements.throughput.by_batch_size) == ["1"]
    assert "rounds-not-interleaved" in cautions(found.records["bf16"])


def test_a_worker_that_dies_between_rounds_fails_its_own_cell_and_no_other(run):
    def trouble(worker: Fake, op: str, number: Any) -> None:
        if worker.format == "bf16" and (op, number) == ("block", 1):
            worker.kill()
            raise WorkerGone("failed", "WorkerCrashed", "the worker was ended by SIGKILL")

    Fake.trouble = staticmethod(trouble)
    found = run()
    assert {n: r.status for n, r in found.records.items()} == {
        "fp32": "ok", "bf16": "failed", "fp16": "ok",
    }  # fmt: skip
    bad = found.records["bf16"].measurements
    assert [r.round for r in bad.latency.rounds] == [0]
    assert bad.quality is not None
    assert ("bf16", 2) not in found.blocks
    assert len([b for b in found.blocks if b[0] != "bf16"]) == 6
    assert (found.tally.ran, found.tally.failed) == (2, 1)


def test_a_format_without_its_reference_s_rounds_says_so(run):
    """It fails in its first round; the others go on, with nothing to hold them against."""

    def trouble(worker: Fake, op: str, number: Any) -> None:
        if worker.format == "fp32" and op == "block":
            worker.kill()
            raise WorkerGone("failed", "WorkerCrashed", "gone")

    Fake.trouble = staticmethod(trouble)
    found = run()
    assert found.records["fp32"].status == "failed"
    for name in ("bf16", "fp16"):
        assert "rounds-not-interleaved" in cautions(found.records[name])


def test_a_format_that_is_added_later_was_not_timed_beside_the_reference(run):
    run(formats=("fp32", "bf16"))
    found = run()
    assert [name for name, _ in found.blocks] == ["fp16"] * 3
    assert "rounds-not-interleaved" in cautions(found.records["fp16"])
    assert "rounds-not-interleaved" not in cautions(found.records["bf16"])


def test_a_format_that_is_alone_in_the_plan_lacks_nothing(run):
    found = run(formats=("fp32",))
    (record,) = found.records.values()
    assert [r.interleaved for r in record.measurements.latency.rounds] == [None] * 3
    assert "rounds-not-interleaved" not in cautions(record)


def test_an_interruption_loses_no_round_that_was_timed(run):
    rounds: list[Event] = []

    def interrupt(event: Event) -> None:
        rounds.extend([event] if event.name == "round" else [])
        if len(rounds) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert Fake.loaded == []
    done = {(name, k) for name, op, k in Fake.asked if op == "block"}
    assert len(done) == 5
    found = run()
    assert len(found.blocks) == 4
    assert not done & set(found.blocks)
    assert not [op for _, op, _ in Fake.asked if op == "quality"]
    for record in found.records.values():
        assert record.status == "ok"
        assert "resumed" in cautions(record)
        # The process that scored it had served a round.
        assert record.measurements.memory.serving_peak_bytes is not None


def test_the_time_of_other_cells_does_not_count_against_a_cell_s_limit(tmp_path, monkeypatch):
    """Waiting between rounds is free; what the cell itself takes is counted."""
    from precision_explorer.runner import cell_run

    now = [0.0]
    monkeypatch.setattr(cell_run, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cell_run, "task_request", lambda planned, log: {})
    deadlines = []

    def ask(request: dict[str, Any], deadline: float) -> Any:
        deadlines.append(deadline)
        now[0] += 10
        return {}, b""

    planned: Any = SimpleNamespace(cell=SimpleNamespace(workload={"rounds": 2}), cell_id="c")
    folder: Any = SimpleNamespace(read_part=lambda cell_id, name: None, log_path=Path)
    cell = CellRun(planned, SimpleNamespace(worker=SimpleNamespace(ask=ask)), folder, 100.0)
    cell.ask({})
    now[0] += 1000
    cell.ask({})
    assert deadlines == [100.0, 1010.0 + 90.0]
    assert cell.left_s == 80.0


def test_a_scenario_without_latency_leaves_no_request_rows(run):
    """Offline alone: no request is timed by itself."""

    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if op != "block":
            return None
        made = block(number, latency=None)
        made.pop("place")
        return made, b""

    Fake.trouble = staticmethod(trouble)
    found = run()
    for record in found.records.values():
        assert record.status == "ok"
        assert record.measurements.latency is None
        assert record.measurements.throughput.by_batch_size["1"].requests_per_s == 11.0
        assert found.folder.read_samples(record.cell_id, "request")["id"] == []


def test_all_are_offered_a_share_of_the_reference_s_capacity(run, tmp_path):
    """What it showed in its first block goes to every later one of all formats, its own too."""

    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if op != "block":
            return None
        shown = 40.0 if worker.format == "fp32" else 99.0
        made = block(number, latency=None)
        made.pop("place")
        spoilt = {"saturated": True} if (worker.format, number) == ("fp16", 1) else {}
        own = {"capacity_per_s": shown, "load": 0.5, "load_of": "reference"}
        serving = Serving.model_validate(window(**own, **spoilt))
        return made | {"serving": serving.model_dump()}, b""

    Fake.trouble = staticmethod(trouble)
    path = tmp_path / "load.yaml"
    path.write_text("scenario: server\narrivals: {kind: poisson, load: 0.5}\nduration_seconds: 9\n")
    found = run(workload=str(path))
    assert len(Fake.blocks) == 9
    for name, request in Fake.blocks:
        first = (name, request["round"]) == ("fp32", 0)
        assert request["capacity_per_s"] == (None if first else 40.0)
        assert request["is_reference"] is (name == "fp32")
        assert request["own_capacity_per_s"] is None
        assert request["workload"]["arrivals"]["load"] == 0.5
    for record in found.records.values():
        assert [w.round.round for w in record.measurements.serving] == [0, 1, 2]
        assert record.cell.rules["latency"].startswith("server, planned arrival to answer")
    assert "serving-saturated" in cautions(found.records["fp16"])
    assert "serving-saturated" not in cautions(found.records["bf16"])


def test_a_trace_s_path_is_read_once_and_goes_to_every_block(run, tmp_path):
    (tmp_path / "t.csv").write_text("time_s\n" + "".join(f"{k / 10}\n" for k in range(100)))
    path = tmp_path / "replay.yaml"
    path.write_text(
        "scenario: server\nduration_seconds: 9\n"
        "arrivals: {kind: trace, path: t.csv, use_lengths: false}\n"
    )

    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if op != "block":
            return None
        path.unlink(missing_ok=True)
        made = block(number, latency=None)
        made.pop("place")
        return made | {"serving": Serving.model_validate(window()).model_dump()}, b""

    Fake.trouble = staticmethod(trouble)
    found = run(workload=str(path))
    assert found.tally.failed == 0
    paths = [request["workload"]["arrivals"]["path"] for _, request in Fake.blocks]
    assert paths == [str(tmp_path / "t.csv")] * 3


def test_the_latency_s_rule_of_one_request_after_the_other_is_what_it_was(run):
    assert run(formats=("fp32",)).records["fp32"].cell.rules["latency"] == RULES["latency"]
    assert RULES["latency"].startswith("single-stream, text to answer: tokenise, copy, forward")


# -- until decided ------------------------------------------------------------------------------


def test_the_reference_is_compared_with_itself_before_the_others_are_scored(run):
    """They stop being scored by its noise floor; memory after the second pass is not counted."""
    found = run(until_decided=True, formats=("fp32", "bf16"))
    ops = [(name, op, number) for name, op, number in Fake.asked if op != "profile"]
    assert ops[:5] == [
        ("fp32", "load", None), ("fp32", "quality", None), ("fp32", "park", None),
        ("fp32", "block", 0), ("fp32", "noise", None),
    ]  # fmt: skip
    assert ops[5:7] == [("bf16", "load", None), ("bf16", "quality", None)]
    assert {r.status for r in found.records.values()} == {"ok"}
    assert [b for b in found.blocks if b[0] == "fp32"] == [("fp32", k) for k in range(3)]
    cell_id = found.cells["fp32"].cell_id
    compared = [found.folder.read_answer(cell_id, f"block-{k}")["compared"] for k in range(3)]
    assert compared == [False, True, True]
    assert found.records["fp32"].measurements.noise is not None
    for record in found.records.values():
        assert all(r.interleaved for r in record.measurements.latency.rounds)


# -- cooling ------------------------------------------------------------------------------------


def test_a_gpu_cools_to_what_it_was_before_the_first_block(monkeypatch):
    from precision_explorer.runner import schedule as module

    read = iter([40.0, 55.0, 41.0])
    waited = []

    def cool_down(temperature: Any, target: float | None) -> Any:
        waited.append(target)
        return module.Cooling(1.0, next(read))

    monkeypatch.setattr(module, "cool_down", cool_down)
    schedule = Schedule([], 1, 0, GPU, 0.0)
    one: Any = SimpleNamespace(over=False)
    places = [schedule.place(one, k, 0) for k in range(3)]
    assert waited == [None, 40.0, 40.0]
    assert [place["temperature_c"] for place in places] == [40.0, 55.0, 41.0]
    assert Schedule([], 1, 0, CPU, 0.0).place(one, 0, 0)["temperature_c"] is None
