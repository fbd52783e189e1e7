"""Blocks measured beside background work. No torch here.

In each round every cell has its block alone first, then, in the same order, its block beside the
background, whose processes are there for that half of the round only.
"""

from __future__ import annotations

from typing import Any

from precision_explorer.paths import without_paths
from precision_explorer.runner.background import NeighbourLost, Neighbours, Pace
from precision_explorer.runner.cell_run import CellRun
from precision_explorer.runner.holder import LOST
from precision_explorer.runner.rounds import NOT_DISTURBED, disturbed_name

Json = dict[str, Any]


class Interference:
    """The background of one model and task's cells. Ends with the ``with`` block."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._neighbours = neighbours
        self._round: int | None = None
        self._alone: list[Pace] = []

    def __enter__(self) -> Interference:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """End all processes: nothing of them is there while cells are measured alone."""
        if self._round is not None:
            self._round = None
            self._neighbours.close()

    def block(self, run: CellRun, number: int, load: Json, place: Json) -> str | None:
        """Measure and keep a round's block of `run` beside the background; `load`: as of the block
        alone. Returns why that failed, which costs the cell its disturbed part and no more."""
        asked = {"op": "block", "round": number, "first": not run.served}
        try:
            if self._round != number:
                self._start(number)
            self._neighbours.work()
            answer, rows = run.ask(load | asked | {"beside": self._neighbours.pids}, beside=True)
            run.served = True
            marks = {"session": run.session, "place": place}
            try:
                beside = self._neighbours.rest()
            except NeighbourLost:
                # Measured beside who knows what, and kept for those who look into it.
                run.keep(f"failed-{disturbed_name(number)}", answer | marks, rows)
                raise
        except (*LOST, NeighbourLost) as error:
            self.end()
            run.answers[NOT_DISTURBED] = {"why": _why(error)}
            return run.not_disturbed
        paces = [_pace(*pair) for pair in zip(self._alone, beside, strict=True)]
        run.keep(disturbed_name(number), answer | marks | {"neighbours": paces}, rows)
        return None

    def _start(self, number: int) -> None:
        self.end()
        self._round = number
        self._neighbours.start()
        self._alone = self._neighbours.alone()


def same_load(load: Json, alone: Json) -> Json:
    """What a disturbed block is told of its load: that of the block `alone`, in a window as long as
    the one that counted there, so that the same requests come."""
    serving = alone.get("serving")
    if not serving:
        return load
    rules = {name: value for name, value in load["workload"].items() if name != "tails"}
    rules["duration_seconds"] = serving["duration_s"] * rules.get("rounds", 1)
    found = load | {"workload": rules}
    if serving.get("capacity_per_s") is not None:
        # What a later run of the sweep knows of the reference makes no other rate.
        found |= dict.fromkeys(("capacity_per_s", "own_capacity_per_s"), serving["capacity_per_s"])
    return found


def _pace(alone: Pace, beside: Pace) -> Json:
    return {
        "label": alone.label,
        "what": alone.what,
        "operation": alone.operation,
        "processes": alone.processes,
        "alone_per_s": alone.per_s,
        "beside_per_s": beside.per_s,
    }


def _why(error: Exception) -> str:
    text = without_paths(str(error) or "a process did not start")
    return text.partition("; see the cell's log")[0]
