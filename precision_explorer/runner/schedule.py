"""The timed blocks of the cells of one model and task: in what order, and what stands beside each
block's answer of how it came about. No torch here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from precision_explorer.hardware import Cooling, DeviceFacts, cool_down, temperature_c
from precision_explorer.measure.throughput import OUT_OF_MEMORY
from precision_explorer.runner.cell_run import CellRun
from precision_explorer.runner.holder import Holder
from precision_explorer.runner.order import interleaved

Json = dict[str, Any]


@dataclass
class Schedule:
    """Cells that are timed in turn. `reference`: the one that the others are compared with, if it
    is among them; `planned`: how many cells of the model and task the plan has; `holders`: all
    whose models may be loaded; `began`: when the sweep did (`time.monotonic`)."""

    holders: list[Holder]
    planned: int
    seed: int
    facts: DeviceFacts
    began: float
    runs: list[CellRun] = field(default_factory=list)
    reference: CellRun | None = None
    _now: dict[int, set[int]] = field(default_factory=dict)
    _common_c: float | None = None

    def add(self, run: CellRun, is_reference: bool) -> None:
        """Have a cell take part; the first reference (there is one per runtime) is the control."""
        self.runs.append(run)
        if is_reference and self.reference is None:
            self.reference = run

    def has_others(self, holder: Holder) -> bool:
        """Whether other models are loaded beside that of `holder`."""
        return any(other.is_loaded for other in self.holders if other is not holder)

    def blocks(self) -> Iterator[tuple[CellRun, int, int, bool]]:
        """(cell, round, place in the round, whether beside background work) of every block that has
        no answer yet, in order: in each round all cells alone, then all of them disturbed."""
        if not self.runs:
            return
        rounds = max(run.rounds for run in self.runs)
        for number in range(rounds):
            lacking = {id(run) for run in self.runs if not run.has_block(number)}
            self._now.setdefault(number, set()).update(lacking)
        made, n = interleaved(self.runs, rounds, self.seed, self.reference), len(self.runs)
        for number in range(rounds):
            for disturbed in (False, True):
                for place, (run, _) in enumerate(made[number * n : (number + 1) * n]):
                    if not run.over and run.lacks(number, disturbed):
                        yield run, number, place, disturbed

    def is_interleaved(self, run: CellRun, number: int) -> bool | None:
        """Whether the round holds the reference as well as the cell (of the reference: another
        cell), both measured now; None where the plan has nothing else."""
        if self.planned < 2:
            return None
        now = self._now.get(number, set())
        others = [r for r in self.runs if r is not run and not r.over and id(r) in now]
        if run is self.reference:
            return bool(others)
        return any(r is self.reference for r in others)

    def place(self, run: CellRun, number: int, place: int) -> Json:
        """What stands beside the block's answer; waits for a GPU to cool."""
        cooling = self._wait()
        return {
            "round": number,
            "place": place,
            "cells": len(self.runs),
            "interleaved": self.is_interleaved(run, number),
            "started_s": time.monotonic() - self.began,
            "temperature_c": cooling.temperature_c,
            "waited_s": cooling.waited_s,
        }

    def early_place(self, run: CellRun) -> Json:
        """The same for the reference's first block where that is timed before the others are
        loaded."""
        self._now[0] = {id(run)}
        both = {"cells": self.planned, "interleaved": self.planned > 1 or None}
        return self.place(run, 0, 0) | both

    def _wait(self) -> Cooling:
        """Let a GPU cool down to what it was before the first block; nothing on a CPU."""
        if self.facts.kind == "cpu":
            return Cooling(0.0, None)
        used = [run.planned.split.devices for run in self.runs if run.planned.split is not None]
        watched = self.facts.over(max(used, default=1)).each
        found = cool_down(lambda: _hottest_c(watched), self._common_c)
        if self._common_c is None:
            self._common_c = found.temperature_c
        return found


def _hottest_c(devices: Sequence[DeviceFacts]) -> float | None:
    """Of those that tell."""
    found = [temperature_c(one.pci_bus_id) for one in devices]
    return max((c for c in found if c is not None), default=None)


def is_crowded(answer: Json) -> bool:
    """Whether a batch of a block did not fit in memory: beside other models that says little."""
    rates = answer["throughput"]["by_batch_size"].values()
    return any(rate["note"] == OUT_OF_MEMORY for rate in rates)
