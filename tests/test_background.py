"""Background work: how it is declared, what its processes do, in what order cells are measured
beside it, and what of it goes wrong at whose cost. The executor's workers are stand-ins; the
neighbours' own are real."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from precision_explorer.errors import ModelError, UsageError
from precision_explorer.hardware import DeviceFacts
from precision_explorer.measure import OtherWork
from precision_explorer.plan.spec import load_spec, make_spec
from precision_explorer.records.serving import Serving
from precision_explorer.runner import background
from precision_explorer.runner.background import NeighbourLost, Neighbours, prepare_background
from precision_explorer.runner.interference import same_load
from precision_explorer.runner.manager import WorkerGone, prepare_environment, start_context
from precision_explorer.runner.sweep import workload_of
from precision_explorer.workload import PRESETS, Workload, load_workload, names_of
from tests.test_rounds import Fake, block, cautions, run
from tests.test_table import window

__all__ = ["run"]
CPU = DeviceFacts(kind="cpu", device="cpu", name="x", cpu_model="x", cores=2, memory_bytes=1 << 30)

# -- declaration --------------------------------------------------------------------------------


def test_a_background_is_declared_on_the_command_line_in_a_spec_or_in_a_workload(tmp_path):
    line = workload_of(make_spec({"background": "cpu:2, copy,model:demo"}))
    assert names_of(line.background) == "cpu:2,copy:1,model:demo"
    spec = tmp_path / "spec.yaml"
    spec.write_text("background: [cpu:2, copy, model:demo]\n")
    assert workload_of(load_spec(spec, {})) == line
    path = tmp_path / "w.yaml"
    path.write_text("name: single-stream\nbackground: cpu:2,copy,model:demo\n")
    assert load_workload(path) == line
    assert names_of(workload_of(make_spec({"background": "cpu", "workload": str(path)})).background)


def test_a_model_s_folder_is_as_seen_from_the_workload_file(tmp_path):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    path = tmp_path / "w.yaml"
    path.write_text("background: [model:models/mine, copy]\n")
    found = load_workload(path).background
    assert [n.path for n in found] == [str(tmp_path / "models" / "mine"), None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gpu:1", "unknown background 'gpu'; did you mean cpu?; write it as cpu:1,copy"),
        ("cpu:0", "cpu:0 is no number of processes; write it as cpu:1"),
        ("cpu:x", "cpu:x is no number of processes; write it as cpu:1"),
        ("copy:-1", "copy:-1 is no number of processes; write it as copy:1"),
        ("cpu:", "cpu: is no number of processes; write it as cpu:1"),
        ("model:", "model names none; write it as model:demo or model:path/to/model"),
        ("", "background names no work; write it as cpu:1,copy or model:demo, or leave it out"),
        (" , ", "background names no work"),
        (7, "background names no work"),
        ("cpu:1,cpu:2", "background names cpu twice; write cpu:2, or leave one out"),
        ("model:demo,model:demo", "background names model:demo twice, or leave one out"),
    ],
)
def test_a_background_that_makes_no_sense_is_refused_in_one_line(tmp_path, given, said):
    with pytest.raises(UsageError) as caught:
        workload_of(make_spec({"background": given}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    path = tmp_path / "w.yaml"
    path.write_text(f"background: {json.dumps(given)}\n")
    with pytest.raises(UsageError) as caught:
        load_workload(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


def test_the_rules_of_a_workload_without_one_are_what_they_were():
    assert all("background" not in workload.rules() for workload in PRESETS.values())
    assert make_spec({}).measuring_hash() == "5a8816"
    assert make_spec({"background": "cpu"}).measuring_hash() != make_spec({}).measuring_hash()


def test_a_model_is_pinned_and_its_path_is_no_part_of_the_rules(tmp_path):
    spec = make_spec({"background": "cpu:2,model:demo"})
    workload, requests = prepare_background(workload_of(spec), spec, CPU, 3)
    rules = workload.rules()
    cpu, model = rules["background"]
    assert cpu == {"kind": "cpu", "processes": 2}
    assert model["model"] == "demo"
    assert model["revision"].startswith("files:")
    assert set(model) == {"kind", "processes", "model", "revision"}
    assert Workload.model_validate(json.loads(json.dumps(rules))).rules() == rules
    assert [r["label"] for r in requests] == ["cpu:2", "cpu:2", "model:demo"]
    # One that computes has a thread; a model as many as the measured one.
    assert [r["threads"] for r in requests] == [1, 1, 3]
    assert len(requests[2]["examples"]) == 32
    assert prepare_background(PRESETS["poisson"], spec, CPU, 1) == (PRESETS["poisson"], ())


def test_what_can_t_be_started_is_refused_before_anything_runs(tmp_path, monkeypatch):
    def refused(error: Any, given: str) -> str:
        spec = make_spec({"background": given})
        with pytest.raises(error) as caught:
            prepare_background(workload_of(spec), spec, CPU, 1)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "9 processes on 2 cores would only wait for each other; give at most 8" in refused(
        UsageError, "cpu:8,copy"
    )
    assert "model folder ./nowhere does not exist" in refused(ModelError, "model:./nowhere")
    ref = background.resolve("demo")
    for number in (1, 2):
        shutil.copytree(ref.path, tmp_path / str(number) / "mine")
    both = f"model:{tmp_path}/1/mine,model:{tmp_path}/2/mine"
    assert "background names model:mine twice" in refused(UsageError, both)
    named = Workload(background=({"kind": "model", "model": "x", "revision": "y"},))
    with pytest.raises(UsageError, match="background: model names none"):
        prepare_background(named, make_spec({}), CPU, 1)
    bare = {**vars(ref), "config": {"architectures": ["SomethingElse"]}}
    monkeypatch.setattr(background, "resolve", lambda *a, **k: type(ref)(**bare))
    assert "no bundled task has requests for demo" in refused(UsageError, "model:demo")
    shipped = {**vars(ref), "scheme": SimpleNamespace(words="GPTQ, 4 bit")}
    monkeypatch.setattr(background, "resolve", lambda *a, **k: type(ref)(**shipped))
    assert "demo comes quantized (GPTQ, 4 bit)" in refused(UsageError, "model:demo")


# -- the processes ------------------------------------------------------------------------------


@pytest.fixture
def started(tmp_path):
    """A function that starts the processes of a background; all are ended in the end."""
    prepare_environment(1)
    made: list[Neighbours] = []

    def start(given: str, **changes: Any) -> Neighbours:
        spec = make_spec({"background": given})
        _, requests = prepare_background(workload_of(spec), spec, CPU, 1)
        changed = [request | changes for request in requests]
        log = str(tmp_path / "background.log")
        made.append(Neighbours(changed, start_context, lambda event: None, log, 300.0))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.close()


def spent(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_neighbours_really_work_when_they_are_told_to_and_leave_nothing(started):
    """Each kind: processor time is spent between work and rest, none while they rest, and all are
    gone after the end."""
    neighbours = started("cpu:1,copy,model:demo")
    pids = neighbours.pids
    assert len(set(pids)) == 3
    neighbours.work()
    begun = [spent(pid) for pid in pids]
    deadline = time.monotonic() + 120
    while min(spent(pid) - b for pid, b in zip(pids, begun, strict=True)) < 0.1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    paces = neighbours.rest()
    assert [p.label for p in paces] == ["cpu:1", "copy:1", "model:demo"]
    assert [p.operation for p in paces] == ["products", "bytes", "requests"]
    assert all(p.per_s > 0 and p.processes == 1 for p in paces)
    # The last level of cache does not hold what is copied.
    assert "copies of an array of" in paces[1].what
    assert "requests of sentiment" in paces[2].what
    resting = [spent(pid) for pid in pids]
    time.sleep(0.5)
    assert [spent(pid) for pid in pids] == pytest.approx(resting, abs=0.05)
    neighbours.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert neighbours.pids == []


def test_several_processes_of_one_kind_are_one_pace(started, monkeypatch):
    monkeypatch.setattr(background, "ALONE_S", 0.2)
    neighbours = started("cpu:2")
    (pace,) = neighbours.alone()
    assert (pace.label, pace.processes) == ("cpu:2", 2)
    assert pace.per_s > 0


def test_a_neighbour_that_is_killed_or_can_t_load_is_named(started, tmp_path):
    neighbours = started("cpu:1,copy")
    neighbours.work()
    os.kill(neighbours.pids[1], signal.SIGKILL)
    with pytest.raises(NeighbourLost, match=r"copy:1: the worker was ended by SIGKILL"):
        neighbours.rest()
    (tmp_path / "empty").mkdir()
    with pytest.raises(NeighbourLost, match="model:demo: ") as caught:
        started("model:demo", path=str(tmp_path / "empty"))
    assert "\n" not in str(caught.value)


def test_an_error_in_the_middle_of_the_work_is_told_when_it_is_asked(monkeypatch):
    from precision_explorer.runner import neighbour

    def fails(request: Any) -> Any:
        left = iter([1])
        return "nothing", "steps", lambda: next(left)

    monkeypatch.setitem(neighbour._KINDS, "cpu", fails)
    one = neighbour.Neighbour({"kind": "cpu", "threads": 1, "device": "cpu"})
    one.work({})
    one.meanwhile(lambda: False)
    with pytest.raises(StopIteration):
        one.rest({})


def test_work_of_the_background_is_no_work_of_others(started, tmp_path):
    """The cores' time that a neighbour took counts as our own; that of a process that nobody named
    does not."""
    neighbours = started("cpu:1")
    stat = tmp_path / "stat"
    core = sorted(os.sched_getaffinity(0))[0]
    cores = "".join(f"cpu{c} 0 0 0 0 0 0 0 0\n" for c in os.sched_getaffinity(0) if c != core)

    def tell(busy: float, idle: float) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        stat.write_text(f"cpu{core} {int(busy * tick)} 0 0 {int(idle * tick)} 0 0 0 0\n{cores}")

    named, unnamed = OtherWork(stat, ours=neighbours.pids), OtherWork(stat)
    tell(0, 0)
    named.begin()
    unnamed.begin()
    before = spent(neighbours.pids[0])
    neighbours.work()
    deadline = time.monotonic() + 120
    while spent(neighbours.pids[0]) - before < 0.5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    neighbours.rest()
    took = spent(neighbours.pids[0]) - before
    tell(took, took)
    assert unnamed.end() > 0.3
    assert named.end() < 0.1


# -- the executor, with stand-ins ---------------------------------------------------------------


class FakeNeighbour:
    """A neighbour's worker that answers at once; `trouble(label, op)` may raise."""

    alive: set[int]
    trouble: Any = staticmethod(lambda label, op: None)
    pids = itertools.count(1000)

    def __init__(self, context: Any, on_event: Any) -> None:
        self.pid = next(self.pids)
        self.process = SimpleNamespace(pid=self.pid, kill=lambda: None)
        self.label = ""
        FakeNeighbour.alive.add(self.pid)
        Fake.asked.append(("neighbour", "start", self.pid))

    def ask(self, request: dict[str, Any], deadline: float) -> tuple[dict[str, Any], bytes]:
        op = request["op"]
        self.label = request.get("label", self.label)
        Fake.asked.append((self.label, op, None))
        FakeNeighbour.trouble(self.label, op)
        answers = {
            "neighbour": {"what": "sums", "operation": "sums"},
            "work": {},
            "rest": {"operations": 30, "seconds": 2.0},
        }
        return answers[op], b""

    def kill_soon(self) -> None:
        """`close` comes after it."""

    def close(self) -> None:
        FakeNeighbour.alive.discard(self.pid)


@pytest.fixture
def disturbed(run, monkeypatch):
    """The sweep of three formats by stand-ins, beside stand-ins for neighbours."""
    monkeypatch.setattr(background, "WorkerHandle", FakeNeighbour)
    monkeypatch.setattr(background, "ALONE_S", 0.0)
    monkeypatch.setattr(FakeNeighbour, "trouble", staticmethod(lambda label, op: None))
    FakeNeighbour.alive = set()

    def sweep(given: str = "cpu:1,copy", **more: Any) -> SimpleNamespace:
        found = run(background=given, **more)
        assert not FakeNeighbour.alive
        return found

    return sweep


def lost(*args: Any) -> None:
    raise WorkerGone("failed", "WorkerCrashed", "the worker was ended by SIGKILL; see the cell's "
                     "log, then run again", "SIGKILL")  # fmt: skip


def test_in_each_round_all_are_measured_alone_and_then_beside_the_background(disturbed):
    found = disturbed()
    blocks = [(name, asked["round"], bool(asked.get("beside"))) for name, asked in Fake.blocks]
    for number in range(3):
        alone = [name for name, k, beside in blocks if k == number and not beside]
        beside = [name for name, k, beside in blocks if k == number and beside]
        assert alone == beside
        assert sorted(alone) == ["bf16", "fp16", "fp32"]
    assert [(k, beside) for _, k, beside in blocks] == [
        (k, beside) for k in range(3) for beside in (False, True) for _ in range(3)
    ]
    for _, request in Fake.blocks:
        if request.get("beside"):
            assert len(request["beside"]) == 2
            assert request["first"] is False
    record = found.records["bf16"]
    part = record.measurements.disturbed
    assert part.failed is None
    assert [r.round for r in part.latency.rounds] == [0, 1, 2]
    assert [n.label for n in part.neighbours] == ["cpu:1", "copy:1"]
    assert [(r.round, r.alone_per_s, r.beside_per_s) for r in part.neighbours[0].rounds] == [
        (k, 15.0, 15.0) for k in range(3)
    ]
    assert found.folder.read_samples(record.cell_id, "disturbed")["round"] == [0, 1, 2]
    assert found.folder.read_samples(record.cell_id, "request")["round"] == [0, 1, 2]
    rounds = [e.data for e in found.events if e.name == "round"]
    assert sum(bool(data.get("disturbed")) for data in rounds) == 9


def test_neighbours_are_there_for_their_half_of_a_round_only(disturbed, monkeypatch):
    """None is alive while a block is measured alone, all are at work during a disturbed one."""
    state = {"working": 0}
    seen = []

    def neighbour(label: str, op: str) -> None:
        state["working"] += {"work": 1, "rest": -1}.get(op, 0)

    def trouble(worker: Fake, op: str, number: Any) -> None:
        if op == "block":
            seen.append((bool(Fake.blocks[-1][1].get("beside")), len(FakeNeighbour.alive),
                         state["working"]))  # fmt: skip

    FakeNeighbour.trouble = staticmethod(neighbour)
    Fake.trouble = staticmethod(trouble)
    disturbed()
    assert set(seen) == {(False, 0, 0), (True, 2, 2)}
    assert len(seen) == 18


def test_a_sweep_without_background_asks_and_stores_what_it_did(run):
    found = run()
    assert len(Fake.blocks) == 9
    assert not any("beside" in request for _, request in Fake.blocks)
    for record in found.records.values():
        assert record.measurements.disturbed is None
        assert "background" not in record.cell.workload
    assert "background" not in found.folder.read_sweep_or_none()["spec"]


def test_a_background_is_part_of_the_method_and_names_no_path(disturbed, run, tmp_path):
    plain = run(out=str(tmp_path / "plain"))
    found = disturbed("model:demo")
    assert found.records["fp32"].method_id != plain.records["fp32"].method_id
    assert found.folder.read_sweep_or_none()["spec"]["background"] == ["model:demo"]
    text = found.folder.record_path(found.records["fp32"].cell_id).read_text()
    assert "files:" in json.dumps(found.records["fp32"].cell.workload["background"])
    assert str(background.resolve("demo").path) not in text


@pytest.mark.parametrize("where", ["neighbour", "work", "rest"])
def test_a_neighbour_that_ends_costs_a_cell_its_disturbed_part_and_no_more(disturbed, where):
    """In the first round it ends beside the first format; the next start it anew."""
    calls = itertools.count()

    def trouble(label: str, op: str) -> None:
        # The pace alone takes a work and a rest of each.
        if label == "copy:1" and op == where and next(calls) == {"neighbour": 0}.get(where, 1):
            lost()

    FakeNeighbour.trouble = staticmethod(trouble)
    found = disturbed()
    assert {r.status for r in found.records.values()} == {"ok"}
    assert found.tally.failed == 0
    bad = found.records["fp32"]
    assert bad.measurements.disturbed.failed == "copy:1: the worker was ended by SIGKILL"
    (caution,) = [c for c in bad.cautions if c.id == "background-failed"]
    assert "copy:1" in caution.message
    assert "\n" not in caution.message
    assert len(bad.measurements.latency.rounds) == 3
    notes = [e.data["text"] for e in found.events if e.name == "note"]
    assert any("fp32: not measured beside the background" in text for text in notes)
    for name in ("bf16", "fp16"):
        part = found.records[name].measurements.disturbed
        assert part.failed is None
        assert len(part.latency.rounds) == 3
        assert "background-failed" not in cautions(found.records[name])
    parts = found.folder.path / "parts" / bad.cell_id
    # What was measured beside one that ended is kept, and counted nowhere.
    assert (parts / "failed-disturbed-0.json").exists() is (where == "rest")
    FakeNeighbour.trouble = staticmethod(lambda label, op: None)
    again = disturbed()
    assert [(name, r.get("beside") is not None) for name, r in Fake.blocks] == [("fp32", True)] * 3
    part = again.records["fp32"].measurements.disturbed
    assert part.failed is None
    assert len(part.latency.rounds) == 3
    assert "background-apart" in cautions(again.records["fp32"])
    assert "background-apart" not in cautions(again.records["bf16"])
    assert again.records["fp32"].measurements.latency == bad.measurements.latency


def test_a_measured_worker_that_ends_beside_the_background_is_loaded_again(disturbed):
    def trouble(worker: Fake, op: str, number: Any) -> None:
        if worker.format == "bf16" and op == "block" and Fake.blocks[-1][1].get("beside"):
            worker.kill()
            lost()

    Fake.trouble = staticmethod(trouble)
    found = disturbed()
    record = found.records["bf16"]
    assert record.status == "ok"
    assert len(record.measurements.latency.rounds) == 3
    assert "ended by SIGKILL" in record.measurements.disturbed.failed
    assert record.measurements.disturbed.latency is None
    assert {"resumed", "background-failed"} <= cautions(record)
    # One try was enough to know.
    assert sum(name == "bf16" and bool(r.get("beside")) for name, r in Fake.blocks) == 1


def test_an_interruption_in_the_disturbed_half_ends_the_neighbours_and_loses_nothing(disturbed):
    def trouble(worker: Fake, op: str, number: Any) -> None:
        beside = op == "block" and Fake.blocks[-1][1].get("beside")
        if beside and (worker.format, number) == ("bf16", 1):
            raise KeyboardInterrupt

    Fake.trouble = staticmethod(trouble)
    with pytest.raises(KeyboardInterrupt):
        disturbed()
    assert not FakeNeighbour.alive
    done = {(name, r["round"], bool(r.get("beside"))) for name, r in Fake.blocks}
    Fake.trouble = staticmethod(lambda worker, op, number: None)
    found = disturbed()
    again = {(name, r["round"], bool(r.get("beside"))) for name, r in Fake.blocks}
    assert done & again == {("bf16", 1, True)}
    assert len(done | again) == 18
    for record in found.records.values():
        assert len(record.measurements.disturbed.latency.rounds) == 3


def test_a_disturbed_block_has_a_time_limit_of_its_own(disturbed, monkeypatch):
    """What it takes is not taken from the cell's own measurement."""
    from precision_explorer.runner import cell_run

    now, left = [0.0], []
    monkeypatch.setattr(cell_run, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Slow(Fake):
        def ask(self, request: dict[str, Any], deadline: float) -> Any:
            if request["op"] == "block":
                left.append((bool(request.get("beside")), deadline - now[0]))
                now[0] += 50.0 if request.get("beside") else 1.0
            return super().ask(request, deadline)

    monkeypatch.setattr("precision_explorer.runner.local.WorkerHandle", Slow)
    disturbed(formats=("fp32",), cell_timeout=1000.0)
    assert left == [
        (False, 1000), (True, 1000), (False, 999), (True, 950), (False, 998), (True, 900)
    ]  # fmt: skip


def test_the_same_requests_come_as_alone_at_the_same_rate(disturbed, tmp_path):
    """Also to the reference in its first round, whose capacity was measured alone; and for as long
    as the window that counted there."""

    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if op != "block":
            return None
        made = block(number, latency=None)
        made.pop("place")
        beside = Fake.blocks[-1][1].get("beside")
        own = {"capacity_per_s": 40.0, "load": 0.5, "load_of": "reference", "duration_s": 12.0}
        serving = Serving.model_validate(window(**own, saturated=bool(beside)))
        return made | {"serving": serving.model_dump()}, b""

    Fake.trouble = staticmethod(trouble)
    path = tmp_path / "load.yaml"
    path.write_text(
        "scenario: server\narrivals: {kind: poisson, load: 0.5}\nduration_seconds: 9\ntails: p99\n"
    )
    found = disturbed(workload=str(path))
    for _, request in Fake.blocks:
        rules = Workload.model_validate(request["workload"])
        if request.get("beside"):
            assert request["capacity_per_s"] == 40.0
            assert (rules.tails, rules.one_round(first=False).duration_seconds) == (None, 12.0)
        else:
            assert (rules.tails, rules.duration_seconds) == ("p99", 9.0)
    part = found.records["fp32"].measurements.disturbed
    assert [w.saturated for w in part.serving] == [True] * 3
    # Of the row alone nothing is said for it.
    assert "serving-saturated" not in cautions(found.records["fp32"])
    assert same_load({}, {"latency": {}}) == {}


@pytest.mark.parametrize(("share", "busy"), [(0.04, False), (0.06, True)])
def test_others_than_the_background_are_still_told(disturbed, share, busy):
    def trouble(worker: Fake, op: str, number: Any) -> Any:
        if op != "block":
            return None
        made = block(number, other_work_share=share if Fake.blocks[-1][1].get("beside") else 0.0)
        made.pop("place")
        rows = [{"id": "e0", "index": 0, "window": "measure", "latency_s": 0.1, "round": number}]
        from tests.test_store import arrow

        return made, arrow(rows)

    Fake.trouble = staticmethod(trouble)
    found = disturbed()
    for record in found.records.values():
        assert ("background-busy" in cautions(record)) is busy
        assert "machine-busy" not in cautions(record)
