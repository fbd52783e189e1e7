"""Sweeps on several places of this machine, and by submitit: which lot goes where, what becomes of
a lost place, what is tried again. Lanes are real processes, whose workers are stand-ins."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from precision_explorer.errors import UsageError
from precision_explorer.plan import Plan
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import beside, cores, disturbed, lane, places, spread
from precision_explorer.runner.beside import PAIRS, Beside, measured_beside
from precision_explorer.runner.cores import cpu_list, take_cores
from precision_explorer.runner.device_lanes import DeviceLanes
from precision_explorer.runner.environment import take_variables, variables_to_send
from precision_explorer.runner.lots import Lot, Replay, lots, start_anew
from precision_explorer.runner.places import LaneProcess, PlaceLost, Slot
from precision_explorer.runner.spread import Pool
from precision_explorer.runner.sweep import run_sweep
from precision_explorer.store import RunFolder
from tests import replaying_lane
from tests.command import run as command
from tests.spread_sweep import CELLS, FORMATS, MODELS, gone, planned, same, stand_in
from tests.test_store import arrow


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A sweep of 24 cells, and what the local executor makes of it."""
    return planned(tmp_path_factory.mktemp("kept"))


class Lanes:
    """A source of lanes on this machine, with no cores of their own, since the tests' machine has
    too few; `lines` holds those that were opened."""

    executor = "local"
    cores = None
    shares_machine = False

    def __init__(self, count: int = 3) -> None:
        self.count, self.lines = count, dict[str, LaneProcess]()
        self.closed = False

    def slots(self) -> list[Slot]:
        return [Slot(str(k), str(k), f"device-{k + 1}") for k in range(self.count)]

    def open(self, slot: Slot) -> LaneProcess:
        self.lines[slot.name] = LaneProcess(places.LANE)
        return self.lines[slot.name]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def run(kept, tmp_path, monkeypatch):
    """A function that sweeps the 24 cells on lanes: folder, tally, events and the pool. `changed`:
    answers of the stand-ins that are others."""
    monkeypatch.setattr(places, "LANE", "tests.replaying_lane")
    here = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(replaying_lane.VARIABLE, str(tmp_path / "answers"))

    def sweep(source: Any, on_event: Any = None, changed: Any = None, **more: Any) -> Any:
        log = tmp_path / "log"
        log.touch()
        answers = kept.answers | (changed or {})
        replaying_lane.told(tmp_path / "answers", answers, more.pop("pause_s", 0.0), log)
        own = {"out": str(tmp_path / "run")}
        plan = Plan(kept.prepared.plan.cells[: more.pop("cells", CELLS)])
        spec = kept.prepared.spec.model_copy(update=own | more)
        events: list[Any] = []

        def told(event: Any) -> None:
            events.append(event)
            if on_event is not None:
                on_event(event)

        pool = Pool(source, spec, told)
        try:
            prepared = replace(kept.prepared, spec=spec, plan=plan, pool=pool)
            folder, tally = run_sweep(prepared, told)
        finally:
            pool.close()
        asked = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
        return SimpleNamespace(folder=folder, tally=tally, events=events, asked=asked, pool=pool)

    return sweep


def notes(found: Any) -> list[str]:
    return [event.data["text"] for event in found.events if event.name == "note"]


def test_three_lanes_make_of_24_cells_what_one_process_does(kept, run):
    source = Lanes(3)
    found = run(source)
    assert (found.tally.ran, found.tally.failed) == (CELLS, 0)
    same(kept, found.folder)
    assert source.closed
    assert gone()
    used = {e.data["place"] for e in found.events if e.name == "cell"}
    assert len(used) >= 2
    again = run(Lanes(1))
    assert (again.tally.ran, again.tally.reused) == (0, CELLS)
    # Nothing is left to be asked, so that no place is started for it.
    assert len(again.asked) == len(found.asked)


def test_a_lane_that_is_killed_costs_what_it_was_measuring(kept, run):
    source, killed = Lanes(2), threading.Event()

    def kill(event: Any) -> None:
        if event.name == "round" and event.data["place"] == "device-2" and not killed.is_set():
            killed.set()
            source.lines["device-2"]._process.kill()

    found = run(source, kill, pause_s=0.02)
    assert killed.is_set()
    assert found.tally.ran == CELLS
    same(kept, found.folder)
    assert any("device-2 was lost" in text and "another place" in text for text in notes(found))
    # All else was asked once.
    assert len(found.asked) < 1.2 * CELLS * len(kept.answers) / len(FORMATS)


def test_lots_are_the_cells_of_one_model(kept):
    found = lots(kept.prepared.plan)
    assert [len(lot.cells) for lot in found] == [len(FORMATS)] * MODELS
    assert all(len({c.ref.path for c in lot.cells}) == 1 for lot in found)
    ids = [c.cell_id for lot in found for c in lot.cells]
    assert ids == [c.cell_id for c in kept.prepared.plan.to_run]


def lost(kind: str, status: str) -> tuple[str, dict[str, Any]]:
    return "raise", {"status": status, "kind": kind, "message": "gone; see it", "signal": None}


def test_a_crash_is_tried_once_more_by_the_same_place_and_nothing_else_is(run, monkeypatch):
    real, took = spread.Spread._next, threading.Event()

    def late(one: Any) -> Any:
        # The other place is sooner to take what it could take of this one.
        if threading.current_thread().name == "device-1":
            took.clear()
            took.wait(1.0)
        lot = real(one)
        if threading.current_thread().name == "device-2":
            took.set()
        return lot

    monkeypatch.setattr(spread.Spread, "_next", late)
    changed = {
        ("fp32", "quality-"): lost("OomKilled", "out_of_memory"),
        ("bf16", "block-1"): lost("WorkerCrashed", "failed"),
    }
    found = run(Lanes(2), changed=changed)
    assert (found.tally.ran, found.tally.failed) == (0, CELLS)
    assert found.asked.count(("fp32", "quality-")) == MODELS
    assert found.asked.count(("bf16", "block-1")) == 2 * MODELS
    used: dict[str, set[str]] = {}
    for event in found.events:
        if event.name == "start":
            used.setdefault(event.data["model"], set()).add(event.data["place"])
    assert [len(places_) for places_ in used.values()] == [1] * MODELS
    assert len(set().union(*used.values())) == 2
    tries = {"fp32": 0, "bf16": 1}
    for path in (found.folder.path / "cells").iterdir():
        record = found.folder.read_record(path.stem)
        assert len(record.attempts) == tries[record.cell.format]
    assert {"OutOfMemory", "InvalidNumerics", "OomKilled", "Timeout", "NodeLost"}.isdisjoint(
        spread.CRASHES
    )


def test_without_a_place_that_starts_cells_are_failed_in_the_end(run, monkeypatch):
    class Nothing(Lanes):
        def open(self, slot: Slot) -> LaneProcess:
            raise PlaceLost("no room")

    monkeypatch.setattr(spread, "_WAIT_S", 0.3)
    monkeypatch.setattr(Pool, "first", lambda pool: SimpleNamespace(told=None))
    found = run(Nothing(1), cells=2)
    assert (found.tally.ran, found.tally.failed) == (0, 2)
    said = [text for text in notes(found) if "did not start: no room" in text]
    assert len(said) == spread.MOST_STARTS


class Lossy(Lanes):
    """Lanes that end as soon as they measure."""

    def open(self, slot: Slot) -> LaneProcess:
        line = super().open(slot)
        real = line.exchange

        def exchange(request: bytes) -> Any:
            for header, content in real(request):
                if header["type"] == "part":
                    line.close()
                    raise PlaceLost("it was taken away")
                yield header, content

        line.exchange = exchange  # type: ignore[method-assign]
        return line


def test_a_lot_that_loses_every_place_is_given_up_with_a_record_of_why(kept, run, monkeypatch):
    monkeypatch.setattr(spread, "MOST_LOSSES", 1)
    found = run(Lossy(1), cells=2)
    assert (found.tally.ran, found.tally.failed) == (0, 2)
    assert sum("was lost" in text for text in notes(found)) == 2
    record = found.folder.read_record(kept.prepared.plan.cells[0].cell_id)
    assert (record.status, record.error.kind) == ("failed", "NodeLost")
    assert "run the sweep again" in record.error.message


def test_a_place_of_another_device_or_other_versions_is_left_out():
    facts = {"kind": "cpu", "device": "cpu", "name": "A", "cpu_model": "A", "cores": 1}
    one = places.DeviceFacts.model_validate(facts | {"memory_bytes": 1})
    told = places.Told(one, None, {"torch": "1"})  # type: ignore[arg-type]
    other = replace(told, facts=one.model_copy(update={"name": "B"}))
    larger = replace(told, facts=one.model_copy(update={"memory_bytes": 2}))
    assert spread._unlike(told, larger) is None
    assert "another device (B beside A: name)" in str(spread._unlike(told, other))
    assert "--on" in str(spread._unlike(told, other))
    assert "other versions of torch" in str(spread._unlike(told, replace(told, versions={})))


def test_a_new_place_measures_whole_what_is_not_finished(kept, tmp_path, monkeypatch):
    """Whatever was answered: what is left, such as a certificate, would be another machine's."""
    folder = RunFolder(tmp_path / "run")
    folder.open()
    lot = lots(kept.prepared.plan)[0]
    first, second = lot.cells
    for cell_id in (first.cell_id, second.cell_id):
        for name in ("load", "quality", "block-0", "block-1"):
            folder.write_part(cell_id, name, {"session": 0}, b"")
    folder.write_record(kept.folder.read_record(first.cell_id))
    start_anew(folder, lot)
    assert folder.has_parts(first.cell_id)
    assert not folder.has_parts(second.cell_id)
    # It lacks what is measured beside the background.
    monkeypatch.setattr(disturbed, "has_background", lambda planned: True)
    start_anew(folder, lot)
    assert not folder.has_parts(first.cell_id)
    assert folder.read_record(first.cell_id).status == "ok"
    folder.close()


class Says:
    """A line that answers one header."""

    def __init__(self, header: dict[str, Any]) -> None:
        self.header, self.closed = header, False

    def exchange(self, request: bytes) -> Any:
        yield self.header, b""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    "header",
    [
        {"type": "end"},
        {"type": "end", "facts": {"kind": 3}, "environment": {}, "versions": [], "note": None},
        {"type": "event", "name": "note", "data": 3},
        {"type": "error"},
    ],
)
def test_rubbish_of_a_place_loses_that_place(header):
    line = Says(header)
    with pytest.raises(PlaceLost, match="what it sent can't be used"):
        places.Place(Slot("1", "1", "node-1"), line, {}, lambda event: None)
    assert line.closed


def test_a_lot_s_end_that_is_rubbish_loses_the_place(kept):
    place = SimpleNamespace(
        slot=Slot("1", "1", "node-1"),
        ask=lambda request: iter([({"type": "end", "worker_s": None, "ready_s": []}, b"")]),
    )
    pool = Pool(Lanes(1), kept.prepared.spec, print)
    local = SimpleNamespace(
        folder=kept.folder, environment=SimpleNamespace(threads=1), roof=None, load=None,
        background=(), on_event=print, spec=kept.prepared.spec,
    )  # fmt: skip
    with pytest.raises(PlaceLost, match="what it sent can't be used"):
        spread.Spread(local, pool)._ask(place, lots(kept.prepared.plan)[0])


def test_a_frame_longer_than_any_is_not_read(tmp_path):
    from precision_explorer.runner.slurm_places import SlurmLine

    (tmp_path / "answer-0").write_bytes((2**63).to_bytes(8, "big"))
    line = SlurmLine(SimpleNamespace(done=lambda: False), tmp_path)
    with pytest.raises(PlaceLost, match="too long"):
        list(line.exchange(b""))
    with pytest.raises(PlaceLost, match="too long"):
        places.unframed((2**63).to_bytes(8, "big") + b"{}")


def test_nothing_but_a_lot_s_own_is_written(kept, tmp_path):
    folder = kept.folder
    lot = lots(kept.prepared.plan)[0]
    replay = Replay(folder, lambda event: None)
    other = kept.prepared.plan.cells[-1].cell_id
    for header in (
        {"type": "part", "cell_id": other, "name": "quality", "answer": {}},
        {"type": "samples", "cell_id": "../../x"},
        {"type": "log", "cell_id": "/etc/passwd"},
        {"type": "part", "cell_id": lot.cells[0].cell_id, "name": "../x", "answer": {}},
        {"type": "open", "cell_id": lot.cells[0].cell_id},
    ):
        with pytest.raises(ValueError, match="it sent"):
            replay.message(lot, header, b"", "node-1")
    assert Lot(0, lot.cells).model == lot.model


def test_several_types_of_devices_are_a_run_each_and_one_table(kept, tmp_path, monkeypatch):
    """Here both are this machine's."""
    stand_in(monkeypatch, kept.answers, tmp_path / "log")
    spec, out = kept.prepared.spec, tmp_path / "both"
    options = [
        "--executor", "ray", "--on", "a,b", "--model", spec.model[0], "--task", "sentiment",
        "--formats", ",".join(FORMATS), "--device", "cpu", "--limit", "6", "--threads", "1",
        "--workload", spec.workload, "--batch-size", "1", "--out", out,
    ]  # fmt: skip
    done = command("sweep", *options)
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        assert len(list((out / name / "cells").iterdir())) == len(FORMATS)
        assert json.loads((out / name / "sweep.json").read_text())["spec"]["on"] == [name]
    rows = (out / "tradeoffs.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(FORMATS)
    planned_ = command("plan", *options)
    assert planned_.stdout.count("results would go to") == 2


# -- cores ------------------------------------------------------------------------------------


def test_cores_are_whole_of_one_numa_node_and_nobody_else_s(tmp_path):
    """Two nodes of two cores with two hyper-threads each."""
    core_of = {n: ("0", str(n % 4)) for n in range(8)}
    machine = {
        "usable": set(range(8)), "core_of": core_of, "numa": [[0, 1, 4, 5], [2, 3, 6, 7]],
        "folder": tmp_path,
    }  # fmt: skip
    one = take_cores(1, **machine)
    assert one.cpus == [0, 4]
    two = take_cores(2, **machine)
    assert two.cpus == [2, 3, 6, 7]
    assert take_cores(2, **machine) is None
    one.release()
    near = take_cores(1, near=[1, 5], **machine)
    assert near.cpus == [1, 5]
    two.release()
    assert take_cores(3, **machine).cpus == [0, 2, 3, 4, 6, 7]


def test_places_that_choose_at_once_each_find_what_is_free(tmp_path, monkeypatch):
    real, found = cores._chosen, list[Any]()

    def slowly(*given: Any) -> Any:
        time.sleep(0.05)
        return real(*given)

    monkeypatch.setattr(cores, "_chosen", slowly)
    machine = {"usable": {0, 1}, "core_of": {}, "numa": [], "folder": tmp_path}
    take = lambda: found.append(take_cores(1, **machine))  # noqa: E731
    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.cpus for one in found) == [[0], [1]]


def test_a_killed_process_gives_its_cores_back(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_folder", lambda: tmp_path)
    pid = os.fork()
    if pid == 0:
        taken = take_cores(1, usable={0}, core_of={}, numa=[])
        os.kill(os.getpid(), 9 if taken else 1)
    assert os.waitpid(pid, 0)[1] == 9
    assert take_cores(1, usable={0}, core_of={}, numa=[]) is not None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_place_without_cores_of_its_own_is_none_on_a_cpu(monkeypatch, device):
    """On a GPU, which is the device there, it is a note."""
    sent: list[Any] = []
    facts = {"kind": device, "device": device, "name": "A", "cpu_model": "A", "cores": 2}
    told = places.DeviceFacts.model_validate(facts | {"memory_bytes": 8})
    monkeypatch.setattr(lane, "take_cores", lambda count, near: None)
    monkeypatch.setattr(lane, "device_facts", lambda device: told)
    monkeypatch.setattr(lane, "resolve_device", lambda device: device)
    hello = {"op": "hello", "cores": 1, "device": device, "executor": "ray", "place": "node-1"}
    lane.Lane(lambda header, content: sent.append(header)).answer(
        hello | {"device_type": None, "beside": 2, "variables": {}}
    )
    (header,) = sent
    if device == "cpu":
        assert header["type"] == "error"
        assert "1 whole cores that no other place has are not free" in header["message"]
    else:
        assert "no other place has are not free" in header["note"]
        assert header["facts"]["memory_bytes"] == 4
        assert header["environment"]["placement"]["cpus"] is None


def test_a_place_has_the_variables_that_are_part_of_a_cell_s_identity_and_no_others(monkeypatch):
    for name in variables_to_send():
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("UNRELATED", "1")
    sent = variables_to_send()
    assert sent == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    take_variables(sent)
    assert variables_to_send() == sent
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ


def test_the_kernel_s_lists_of_processors():
    assert cpu_list("0-2,8\n") == [0, 1, 2, 8]
    assert cpu_list("\n") == []


# -- the devices of one machine ---------------------------------------------------------------


def test_each_gpu_has_a_lane_that_sees_no_other(monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(
        "precision_explorer.runner.device_lanes.LaneProcess", lambda *given: seen.append(given)
    )
    source = DeviceLanes(make_spec({"device": "all", "cores": 1}), ["GPU-a", "GPU-b"])
    slots = source.slots()
    assert [slot.name for slot in slots] == ["device-1", "device-2"]
    for slot in slots:
        source.open(slot)
    assert [variables["CUDA_VISIBLE_DEVICES"] for _, variables in seen] == ["GPU-a", "GPU-b"]
    assert Pool(source, make_spec({"device": "all", "one_at_a_time": True}), print).limit == 1


def test_the_usable_cores_are_divided(monkeypatch):
    facts = SimpleNamespace(cores=8)
    monkeypatch.setattr("precision_explorer.runner.device_lanes.device_facts", lambda d: facts)
    for cores_each, count in ((2, 4), (3, 2)):
        spec = make_spec({"device": "cpu", "cores": cores_each})
        assert len(DeviceLanes(spec, []).slots()) == count
    assert DeviceLanes(make_spec({"device": "all"}), ["a", "b"]).cores == 4
    with pytest.raises(UsageError, match="8 are usable"):
        DeviceLanes(make_spec({"device": "cpu", "cores": 9}), [])


# -- whether places disturb one another ---------------------------------------------------------


@pytest.mark.parametrize("change", [0.05, 0.01, None])
def test_places_that_disturb_one_another_are_used_in_turn_and_the_others_at_once(
    kept, run, monkeypatch, change
):
    source = Lanes(2)
    source.shares_machine = True
    asked: list[int] = []

    def measured(places_: Any, *rest: Any) -> Beside:
        asked.append(len(places_))
        return Beside(change, None if change else "it went away")

    monkeypatch.setattr(spread, "measured_beside", measured)
    found = run(source, pause_s=0.005)
    assert asked == [2]
    assert found.tally.ran == CELLS
    used = {e.data["place"] for e in found.events if e.name == "cell"}
    (said,) = [text for text in notes(found) if "one after the other" in text or "at once" in text]
    record = found.folder.read_record(kept.prepared.plan.cells[0].cell_id)
    if change == 0.01:
        assert len(used) == 2
        assert "1.0 %" in said
        assert record.environment.placement.beside_change == 0.01
    else:
        assert len(used) == 1
        assert "at most 2 %" in said or "it went away" in said
        assert record.environment.placement.beside_change is None


class Desk:
    """A place that says how long a request took: `slow_s` where another one was busy meanwhile."""

    busy = 0

    def __init__(self, number: int, slow_s: float) -> None:
        facts = {"kind": "cpu", "device": "cpu", "name": "A", "cpu_model": "A", "cores": 1}
        told = places.DeviceFacts.model_validate(facts | {"memory_bytes": 1})
        self.number, self.slow_s = number, slow_s
        self.told = SimpleNamespace(facts=told)
        self.ops: list[str] = []

    def ask(self, request: dict[str, Any]) -> Any:
        op = request.get("request", request)["op"]
        self.ops.append(op)
        if op != "block":
            yield {"type": "end", "answer": {}}, b""
            return
        saw = False
        if self.number:
            Desk.busy += 1
            time.sleep(0.01)
            Desk.busy -= 1
        else:
            for _ in range(30):
                time.sleep(0.002)
                saw = saw or Desk.busy > 0
        took_s = self.slow_s if saw else 0.1
        rows = [{"window": w, "latency_s": t} for w, t in (("warmup", 9.0), ("measure", took_s))]
        yield {"type": "end", "answer": {}}, arrow(rows)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        ((header, _),) = self.ask(request)
        return header


@pytest.mark.parametrize(("slow_s", "change"), [(0.1, 0.0), (0.11, 0.1), (0.101, 0.01)])
def test_the_reference_is_timed_alone_and_while_all_others_measure(kept, slow_s, change):
    desks = [Desk(number, slow_s) for number in range(3)]
    planned_ = kept.prepared.plan.cells[0]
    spec = kept.prepared.spec
    found = measured_beside(desks, planned_, spec, {}, 1, lambda event: None)
    assert found.change == pytest.approx(change)
    assert found.disturbs == (change > 0.02)
    assert desks[0].ops.count("block") == 1 + 2 * PAIRS
    for desk in desks:
        assert desk.ops[:2] == ["worker", "load"]
        assert desk.ops[-1] == "dismiss"
    assert all(desk.ops.count("block") > PAIRS for desk in desks[1:])


def test_an_interrupt_leaves_no_thread_that_waits_for_the_others(monkeypatch):
    real, threads = threading.Barrier, threading.active_count()

    def barrier(parties: int) -> Any:
        """One whose last party is interrupted."""
        made = real(parties)
        wait = made.wait

        def interrupted() -> int:
            if threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return wait()

        made.wait = interrupted
        return made

    monkeypatch.setattr(beside.threading, "Barrier", barrier)
    with pytest.raises(KeyboardInterrupt), beside._busy([None], lambda worker: None):
        pass
    deadline = time.monotonic() + 5.0
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_what_can_not_be_checked_counts_as_disturbed(kept):
    desk = Desk(0, 0.1)
    desk.ask = lambda request: iter(
        [
            (
                {
                    "type": "end",
                    "failed": {  # type: ignore[method-assign]
                        "status": "failed",
                        "kind": "X",
                        "message": "no room",
                        "phase": "load",
                    },
                },
                b"",
            )
        ]
    )
    given = kept.prepared.plan.cells[0], kept.prepared.spec, {}, 1, lambda event: None
    found = measured_beside([desk, desk], *given)
    assert (found.change, found.disturbs) == (None, True)
    assert "no room" in found.words


# -- Slurm ------------------------------------------------------------------------------------


def test_slurm_by_submitit_s_own_processes_makes_the_same_of_24_cells(
    kept, run, tmp_path, monkeypatch
):
    pytest.importorskip("submitit")
    from precision_explorer.runner.slurm_places import SlurmSource

    spec = make_spec({"executor": "slurm", "slurm": "jobs=2"})
    told: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path / "cache"))
        source = SlurmSource(spec, told.append, cluster="local")
    found = run(source, executor="slurm")
    assert (found.tally.ran, found.tally.failed) == (CELLS, 0)
    same(kept, found.folder)
    assert any("submitted to Slurm" in event.data["text"] for event in told)
    record = found.folder.read_record(kept.prepared.plan.cells[0].cell_id)
    assert record.environment.placement.executor == "slurm"
    assert gone()
    # The folder between the two is gone with them.
    assert not list((tmp_path / "cache" / "slurm").iterdir())


def test_what_a_job_asks_for(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    from precision_explorer.runner.slurm_places import SlurmSource

    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path))

    def asked(**options: Any) -> dict[str, Any]:
        spec = make_spec(options | {"executor": "slurm"})
        source = SlurmSource(spec, print, cluster="local")
        source.close()
        settings = dict(one.split("=") for one in spec.slurm if not one.startswith("jobs"))
        return source._parameters(settings)

    plain = asked(cores=4, slurm="partition=long,time=90,jobs=3")
    assert plain["cpus_per_task"] == 4
    assert plain["timeout_min"] == 90
    assert plain["slurm_partition"] == "long"
    assert asked(device="cuda")["gpus_per_node"] == 1
    assert asked(on="h100")["slurm_gres"] == "gpu:h100:1"
    assert asked(on="epyc", device="cpu")["slurm_constraint"] == "epyc"
    # A GPU that was not asked for is not measured on.
    for options, device in (({}, "cpu"), ({"on": "h100"}, None), ({"slurm": "gres=gpu:1"}, None)):
        source = SlurmSource(make_spec(options | {"executor": "slurm"}), print, cluster="local")
        source.close()
        assert {slot.device for slot in source.slots()} == {device}


def test_jobs_that_wait_in_the_queue_are_cancelled_with_the_sweep(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    from precision_explorer.runner.slurm_places import SlurmSource

    monkeypatch.setenv("PRECISION_EXPLORER_CACHE", str(tmp_path))
    spec, cancelled = make_spec({"executor": "slurm", "slurm": "jobs=2"}), list[str]()
    source = SlurmSource(spec, lambda event: None, cluster="local")
    job = SimpleNamespace(job_id="1", done=lambda: False, cancel=lambda: cancelled.append("1"))
    source._executor = SimpleNamespace(submit=lambda *given: job)
    pool = Pool(source, spec, print)
    ended: list[Any] = []

    def start() -> None:
        try:
            pool.start(source.slots()[0])
        except PlaceLost as lost:
            ended.append(str(lost))

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    while not source._lines:
        time.sleep(0.01)
    pool.close()
    assert cancelled == ["1"]
    thread.join(5.0)
    assert len(ended) == 1


def test_a_job_whose_driver_is_gone_ends(tmp_path):
    from precision_explorer.runner.slurm_places import serve

    own, this = tmp_path / "job-1", psutil.Process()
    own.mkdir()
    before = set(this.children(recursive=True))
    serve(str(own), "tests.replaying_lane", silent_s=0.2)
    # It came back, and its lane did not stay.
    assert set(this.children(recursive=True)) <= before


def test_a_job_whose_driver_is_gone_ends_in_the_middle_of_a_lot(tmp_path, monkeypatch):
    from precision_explorer.runner import slurm_places

    closed, waited = threading.Event(), list[bool]()

    class Busy:
        def __init__(self, module: str) -> None:
            pass

        def exchange(self, request: bytes) -> Any:
            waited.append(closed.wait(10.0))
            raise PlaceLost("it was closed")
            yield

        def close(self) -> None:
            closed.set()

    monkeypatch.setattr(slurm_places, "LaneProcess", Busy)
    own = tmp_path / "job-1"
    own.mkdir()
    (own / "request-0").write_bytes(b"")
    slurm_places.serve(str(own), "tests.replaying_lane", silent_s=0.2)
    assert waited == [True]


def test_without_slurm_or_submitit_the_line_that_says_so(monkeypatch):
    from precision_explorer.runner import slurm_places

    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="no Slurm is here"):
        slurm_places.SlurmSource(make_spec({"executor": "slurm"}), print)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'precision-explorer\[slurm\]'"):
        slurm_places.SlurmSource(make_spec({"executor": "slurm"}), print)
