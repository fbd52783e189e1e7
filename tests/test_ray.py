"""Sweeps on a real Ray cluster of three nodes on this machine. Workers replay kept answers, except
in one cell that is measured for good; nodes, actors, lanes and files are real."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from precision_explorer.errors import UsageError
from precision_explorer.plan.spec import make_spec
from precision_explorer.runner import places
from precision_explorer.runner.spread import Pool
from precision_explorer.runner.sweep import run_sweep
from precision_explorer.store import RunFolder
from tests import replaying_lane
from tests.command import run as command
from tests.spread_sweep import CELLS, gone, planned, same

os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # Read when Ray is imported, as the source has it.
ray = pytest.importorskip("ray")
from precision_explorer.runner import ray_places  # noqa: E402


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A sweep of 24 cells, and what the local executor makes of it."""
    return planned(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes with one core each, of which `nodes` may be killed, as the head may not. `file`
    holds what workers answer, which lanes read when they start."""
    file = tmp_path_factory.mktemp("told") / "answers"
    here = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv(replaying_lane.VARIABLE, str(file))
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        from ray.cluster_utils import Cluster

        own = {"num_cpus": 1, "resources": {"Type-A": 1}}
        made = Cluster(initialize_head=True, head_node_args=own | {"include_dashboard": False})
        nodes = [_node(made, **own) for _ in range(2)]
        yield SimpleNamespace(cluster=made, nodes=nodes, file=file, address=made.address)
        ray.shutdown()
        made.shutdown()


def _node(cluster: Any, **own: Any) -> Any:
    """One more node. On a busy machine it may not come up within the 30 s that Ray gives it."""
    for left in (2, 1, 0):
        try:
            return cluster.add_node(**own)
        except Exception:
            if not left:
                raise
    return None


@pytest.fixture
def spread(kept, cluster, tmp_path, monkeypatch):
    """A function that sweeps the 24 cells on the cluster: (folder, tally, events)."""
    monkeypatch.setattr(places, "LANE", "tests.replaying_lane")

    def run(on_event: Any = None, pause_s: float = 0.0, into: Path | None = None) -> Any:
        log = tmp_path / "log"
        log.touch()
        replaying_lane.told(cluster.file, kept.answers, pause_s, log)
        own = {"executor": "ray", "ray_address": cluster.address, "on": ("type-a",)}
        own["out"] = str(into or tmp_path / "run")
        spec = kept.prepared.spec.model_copy(update=own)
        events: list[Any] = []

        def told(event: Any) -> None:
            events.append(event)
            if on_event is not None:
                on_event(event)

        run.source = ray_places.RaySource(spec)
        pool = Pool(run.source, spec, told)
        try:
            folder, tally = run_sweep(replace(kept.prepared, spec=spec, pool=pool), told)
        finally:
            pool.close()
        return SimpleNamespace(folder=folder, tally=tally, events=events)

    return run


def test_24_cells_on_three_nodes_of_which_one_is_killed_are_the_local_executor_s(
    kept, spread, cluster
):
    """In the middle of its lot, without being asked. What was under way there is measured whole by
    another node."""
    killed, node = threading.Event(), cluster.nodes.pop()

    def kill(event: Any) -> None:
        place = spread.source._machines.get(node.node_id)
        if event.name == "round" and event.data["place"] == place and not killed.is_set():
            killed.set()
            # In a thread of its own: events are told while the sweep's lock is held.
            threading.Thread(target=cluster.cluster.remove_node, args=(node, False)).start()

    found = spread(kill, pause_s=0.15)
    assert killed.is_set()
    assert (found.tally.ran, found.tally.failed, found.tally.skipped) == (CELLS, 0, 0)
    same(kept, found.folder)
    lost = [e.data["text"] for e in found.events if "was lost" in e.data.get("text", "")]
    assert len(lost) == 1
    assert "go to another place" in lost[0]
    ends = [e.data["cell_id"] for e in found.events if e.name == "cell"]
    assert sorted(ends) == sorted(c.cell_id for c in kept.prepared.plan.cells)
    _one_machine_per_model(kept, found)
    assert gone()
    # It left, as an attempt, what it had answered, and nothing of it is in a record.
    assert list(found.folder.path.glob("parts/*/attempt-1/*.json"))


def _one_machine_per_model(kept: Any, found: Any) -> None:
    used: dict[str, set[str]] = {}
    for cell in kept.prepared.plan.cells:
        record = found.folder.read_record(cell.cell_id)
        placement = record.environment.placement
        assert (placement.executor, placement.device_type) == ("ray", "type-a")
        used.setdefault(cell.ref.name, set()).add(placement.place)
    assert all(len(places_) == 1 for places_ in used.values())
    assert len(set().union(*used.values())) >= 2


def test_a_sweep_that_is_interrupted_ends_at_once_and_goes_on_where_it_was(
    kept, spread, cluster, tmp_path
):
    asked = threading.Event()

    def stop(event: Any) -> None:
        if event.name == "cell" and not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signal.SIGINT)

    begun = time.monotonic()
    # It is ignored where the tests run in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            spread(stop, pause_s=0.1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begun < 40
    assert gone()
    done = len(list((tmp_path / "run" / "cells").iterdir()))
    assert 0 < done < CELLS
    again = spread()
    assert again.tally.reused == done
    assert again.tally.ran == CELLS - done
    same(kept, again.folder, in_turn=False)


@pytest.mark.slow
def test_a_real_cell_by_the_command_line(cluster, tmp_path, quick_workload):
    """Planned from what the node says, by its own probe, measured there, written here."""
    out = tmp_path / "run"
    options = [
        "--executor", "ray", "--ray-address", cluster.address, "--on", "TYPE-A", "--device", "cpu",
        "--formats", "fp32", "--task", "sentiment", "--limit", "4", "--threads", "1",
        "--batch-size", "1", "--workload", quick_workload, "--out", out,
    ]  # fmt: skip
    done = command("sweep", *options)
    assert done.returncode == 0, done.stderr
    assert "fp32" in done.stdout
    (record,) = [RunFolder(out).read_record(p.stem) for p in (out / "cells").iterdir()]
    assert record.status == "ok"
    assert record.environment.placement.place.startswith("node-")
    document = json.loads((out / "sweep.json").read_text())
    assert document["spec"]["on"] == ["TYPE-A"]
    assert cluster.address not in (out / "sweep.json").read_text()
    assert command("verify", out).returncode == 0


def test_a_type_that_no_node_has_is_one_line(cluster):
    options = ["--executor", "ray", "--ray-address", cluster.address, "--on", "h100"]
    done = command("sweep", *options, "--device", "cpu")
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    assert "no place to measure on" in line
    assert "--on" in line


def test_an_address_at_which_nothing_answers_is_one_line_within_seconds():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        begun = time.monotonic()
        done = command("sweep", "--executor", "ray", "--ray-address", address, "--device", "cpu")
    assert time.monotonic() - begun < 30
    assert done.returncode == 1
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("error:")]
    assert f"--ray-address {address}: nothing answers there (Connection refused)" in line
    assert "ray start --head" in line


def test_places_of_one_node_have_names_of_their_own(cluster):
    node = _node(cluster.cluster, num_cpus=2, resources={"Type-B": 1})
    spec = make_spec(
        {
            "executor": "ray", "ray_address": cluster.address, "on": ("type-b",), "cores": 1,
            "device": "cpu",
        }
    )  # fmt: skip
    source = ray_places.RaySource(spec)
    try:
        assert [slot.name for slot in source.slots()] == ["node-1/1", "node-1/2"]
    finally:
        source.close()
        cluster.cluster.remove_node(node)


def test_without_ray_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'precision-explorer\[ray\]'"):
        ray_places.RaySource(make_spec({"executor": "ray"}))


def test_an_actor_that_does_not_start_in_time_is_ended():
    """Else it starts later, and holds what it asked for."""
    killed: list[Any] = []

    class Late:
        def options(self, **options: Any) -> Any:
            return self

        def remote(self, *given: Any) -> Any:
            return self

        ready = property(lambda self: self)

    def get(*given: Any, **more: Any) -> Any:
        raise TimeoutError

    source = ray_places.RaySource.__new__(ray_places.RaySource)
    source._spec, source._actors = make_spec({"executor": "ray"}), []
    late = Late()
    source._ray = SimpleNamespace(
        remote=lambda kind: late, get=get, kill=killed.append, nodes=lambda: []
    )
    slot = places.Slot("1", "ab" * 28, "node-1")
    with pytest.raises(places.PlaceLost):
        source.open(slot)
    assert (killed, source._actors) == ([late], [])
