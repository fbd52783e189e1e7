"""A long timed part watched window by window: in the loops, in the answers, in the record, and in
one sweep."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from precision_explorer.hardware.fakes import FakeClock
from precision_explorer.hardware.readings import Reading
from precision_explorer.hardware.sensors import UnavailableSensor
from precision_explorer.measure import SoakMonitor, single_stream
from precision_explorer.measure.clock import VirtualClock
from precision_explorer.records import Measurements, Soak
from precision_explorer.runner import serving as serving_module
from precision_explorer.runner.join import measurements
from precision_explorer.runner.rounds import joined_block
from precision_explorer.runner.serving import Server
from precision_explorer.runner.timed import Subject, timed_part
from precision_explorer.runner.watch import Watch
from precision_explorer.store import read_run
from precision_explorer.workload import Workload
from tests.test_soak import CPU, Script, Shares

STEP_S = 0.25
RULES = Workload(
    rounds=1, min_requests=1, min_seconds=8, warmup_requests=1, warmup_seconds=1,
    window_seconds=2, budget_seconds=60, offline_seconds=0, offline_min_batches=1,
)  # fmt: skip


class Ticked(SoakMonitor):
    """A monitor without a thread: whoever moves the clock calls `tick`."""

    def __enter__(self) -> Ticked:
        self.begin()
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class Bench:
    """A fake clock, a request that takes a while of it, and what others took in each window."""

    def __init__(self, *shares: float) -> None:
        self.clock, self.shares = FakeClock(100.0), shares
        self.made: Ticked | None = None

    def monitor(self, **options: Any) -> Ticked:
        given = {"readings": Script(Reading()), "memory": lambda: 7, "clock": self.clock}
        others = Shares(*self.shares, *[0.0] * 99)
        self.made = Ticked(CPU, **options, **given, others=others)
        return self.made

    def request(self, index: int) -> dict[str, Any]:
        self.clock.sleep(STEP_S)
        if self.made is not None:
            self.made.tick()
        return {}

    def run(self, rules: Workload = RULES) -> tuple[Any, Soak | None]:
        watch = Watch(CPU, rules, rules.min_seconds, make=self.monitor)
        series = single_stream(
            self.request, 4, rules, clock=self.clock, watch=watch.at, owed=watch.owed
        )
        return series, watch.soak(series.ends_s())


def test_a_calm_soak_ends_with_its_last_window():
    series, soak = Bench().run()
    assert [w.start_s for w in soak.windows] == [1.25, 3.25, 5.25, 7.25]  # After the warm-up.
    # The last request of a window ends as it does, so it is the next one's.
    assert [w.requests for w in soak.windows] == [7, 8, 8, 8]
    assert soak.skipped() == []
    assert (series.window_s, series.stopped_by) == (8.0, "rules")


def test_a_disturbed_window_is_measured_again_once():
    series, soak = Bench(0.0, 0.4, 0.0, 0.3, 0.2, 0.0).run()
    assert [w.disturbed for w in soak.windows] == [False, True, False, True, True, False]
    assert [w.repeats for w in soak.windows] == [None, None, None, None, 1, 3]
    assert soak.skipped() == [1, 3]
    assert (series.window_s, series.stopped_by) == (12.0, "rules")


def test_the_budget_bounds_what_is_measured_again():
    series, soak = Bench(*[0.4] * 9).run(RULES.model_copy(update={"budget_seconds": 11.5}))
    assert [w.repeats for w in soak.windows] == [None, None, None, None, 0]
    # All that the rules ask for was measured.
    assert (series.window_s, series.stopped_by) == (10.25, "rules")


@pytest.mark.parametrize("changes", [{"min_seconds": 7.9}, {"rounds": 3}, {"window_seconds": None}])
def test_a_short_time_and_a_round_are_not_watched(changes):
    bench = Bench()
    series, soak = bench.run(RULES.model_copy(update=changes))
    assert soak is None
    assert bench.made is None
    assert series.window_s <= 8.0


# -- in the worker -----------------------------------------------------------------------------


@pytest.fixture
def real_monitor(monkeypatch):
    """A monitor that finds nothing on this machine, so that a busy one does not flag a window."""

    def make(facts: Any, *, window_seconds: float, origin_s: float, **options: Any) -> SoakMonitor:
        calm = {"others": Shares(*[0.0] * 999), "memory": lambda: 7}
        return SoakMonitor(facts, window_seconds, origin_s, **(options | calm))

    monkeypatch.setattr("precision_explorer.runner.watch.SoakMonitor", make)


class Adapter:
    generates = False

    def request(self, index: int, phases: Any) -> dict[str, Any]:
        time.sleep(0.02)
        return {}

    def offline(self, indices: list[int]) -> dict[str, Any]:
        return {}


def test_a_worker_answers_with_the_windows_and_the_record_holds_them(real_monitor):
    rules = RULES.model_copy(update={"min_seconds": 4.0, "window_seconds": 1.0})
    request = {
        "first": True, "round": 0, "workload": rules.rules(), "batch_sizes": [1],
        "examples": [{"id": "a"}, {"id": "b"}],
    }  # fmt: skip
    subject = Subject(Adapter(), request, 0, lambda: None, lambda *_: None, CPU)
    answer, rows = timed_part(subject, UnavailableSensor())
    assert answer["soak"]["window_seconds"] == 1.0
    assert len(answer["soak"]["windows"]) >= 4
    counted = sum(w["requests"] for w in answer["soak"]["windows"])
    assert 0 < counted <= sum(row["window"] == "measure" for row in rows)
    place = {
        "place": {"round": 0, "started_s": 0.0, "place": 0, "cells": 1, "interleaved": True},
        "other_work_share": None,
    }
    block = joined_block([answer | place])
    stored = Measurements.model_validate(measurements(None, None, block))
    assert stored.soak == Soak.model_validate(answer["soak"])
    # Rounds are not watched.
    assert joined_block([answer | place] * 2)["soak"] is None


def test_a_served_window_is_watched_from_where_it_counts_and_not_measured_again(monkeypatch):
    clock, made = VirtualClock(), []
    monkeypatch.setattr(serving_module, "RealClock", lambda: clock)

    class Told(Ticked):
        """Windows of the virtual clock, all disturbed; ticked by the service."""

        def __init__(self, facts: Any, window_seconds: float, origin_s: float, **options: Any):
            own = {"clock": clock.now, "others": Shares(*[0.5] * 999), "memory": lambda: 7}
            super().__init__(facts, window_seconds, origin_s, **(options | own))
            made.append(options)

        def __enter__(self) -> Told:
            return self

        def tick(self) -> None:
            if clock.now() < self._origin + self._after_s or self._is_full():
                return
            self.begin() if not self._begun else super().tick()

    service: list[Any] = []
    watch = serving_module.Watch

    def watched(*given: Any, **options: Any) -> Watch:
        def make(**more: Any) -> Told:
            service.append(Told(CPU, **more))
            return service[-1]

        return watch(*given, **options, make=make)

    monkeypatch.setattr(serving_module, "Watch", watched)
    rules = Workload(
        scenario="server", arrivals={"kind": "constant", "rate_per_s": 20}, rounds=1,
        duration_seconds=12, warmup_requests=1, warmup_seconds=2, window_seconds=2, max_batch=1,
        offline_seconds=0, offline_min_batches=1,
    )  # fmt: skip

    def offline(indices: list[int]) -> dict[str, Any]:
        clock.advance(0.01)
        if service:
            service[-1].tick()
        return {}

    adapter = SimpleNamespace(generates=False, offline=offline)
    server = Server(adapter, rules, 0, lambda: None, [None] * 3, CPU)
    served = server.measure([1], {}, UnavailableSensor(), 0, True)
    assert (made[-1]["after_s"], made[-1]["most"]) == (2.0, 5)
    windows = served.soak.windows
    assert windows[0].start_s == pytest.approx(2.0, abs=0.2)
    assert 4 <= len(windows) <= 5
    assert all(w.disturbed and w.repeats is None for w in windows)
    assert [w.requests for w in windows] == pytest.approx([40] * len(windows), abs=3)
    unknown = Server(adapter, rules, 0, lambda: None, [None] * 3)
    assert unknown.measure([1], {}, UnavailableSensor(), 0, True).soak is None


def test_a_sweep_of_some_seconds_shows_its_windows(tmp_path):
    workload = tmp_path / "soak.yaml"
    # On a busy machine disturbed windows are measured again until the budget ends.
    short = {"warmup_requests": 1, "warmup_seconds": 0, "budget_seconds": 1, "offline_seconds": 0}
    workload.write_text(yaml.safe_dump({"window_seconds": 1, "offline_min_batches": 1} | short))
    command = [
        sys.executable, "-m", "precision_explorer", "sweep", "--model", "demo", "--formats", "fp32",
        "--limit", "4", "--device", "cpu", "--threads", "1", "--batch-size", "1",
        "--workload", str(workload), "--duration", "5s", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, _ = read_run(tmp_path / "run")
    (cell,) = (tmp_path / "run" / "cells").glob("*.json")
    record = found.read_record(cell.stem)
    soak = record.measurements.soak
    assert soak.window_seconds == 1.0
    assert len(soak.windows) >= 5
    assert soak.windows[0].memory_bytes > 0
    assert sum(w.requests for w in soak.windows) > 0
    assert record.measurements.latency.rounds[0].requests > 0
    assert "fp32 over time" in (tmp_path / "run" / "tradeoffs.md").read_text()
