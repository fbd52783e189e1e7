"""A sweep of many cells on many nodes that fail, on a virtual clock (SimPy): how much later it ends
than it could, what the scheduling costs, and how much work is lost and done again.

    python scripts/simulate_cluster.py
    python scripts/simulate_cluster.py --cells 200 --nodes 20 --node-mtbf 6h --seed 3

The rules are like the executors' (`cluster_placement.py`: all formats of a model on one node, what
is tried again, and the longest lot first); the nodes, their failures and all durations are drawn.
Declared, not measured on a cluster:

- a cell takes a lognormal time: `--median` seconds and `--sigma`, of which half of the variance is
  its model's, so that lots differ as models do; the scheduler knows it only within `--known`
  (lognormal spread of what it expects around what is);
- a lot is measured as the local executor does it: each cell is loaded and scored in turn
  (`SCORED` of its time), then all are timed in interleaved rounds, and only then get their records,
  so that a lost node loses all of its lot that has none;
- nodes fail by an exponential law with `--node-mtbf` and are back after `--repair`; that one is
  gone is noticed after `--noticed`;
- a try of a cell crashes with `--crash` at a uniform point of its scoring, and is tried once more;
  `--oom` of the cells don't fit, which shows at a uniform point of the first tenth;
- the scheduler answers one node at a time, in `--decide` seconds each; a lot is handed over in
  `--hand-over` (a lane that is up; a model that is in the node's reach).

For comparison: the 16,384 GPUs of Llama 3's training were interrupted unexpectedly 419 times in 54
days (Grattafiori et al. 2024, arXiv 2407.21783, section 3.3.4), which is once in some 6,300 hours
for a node of eight. The default is far worse, so that there is something to see.

Exit code 1 where an invariant does not hold: each cell has one record, none is measured again that
had one, busy time is what cells took plus what was lost.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy
from cluster_placement import Lot, Placement

from precision_explorer.units import clock, parse_duration, share, significant

SCORED = 0.5
ROUNDS = 3


@dataclass(frozen=True)
class Assumptions:
    """What is drawn, in seconds and shares; see the module's words."""

    cells: int = 10_000
    nodes: int = 1_000
    formats: int = 8
    median_s: float = 120.0
    sigma: float = 1.0
    known: float = 0.3
    node_mtbf_s: float = 24 * 3600.0
    repair_s: float = 600.0
    noticed_s: float = 30.0
    crash: float = 0.01
    oom: float = 0.02
    decide_s: float = 0.002
    hand_over_s: float = 3.0
    seed: int = 0


@dataclass
class Outcome:
    """What a simulated sweep came to. Times are node-seconds, but `end_s`, the last record's time.
    `useful_s`: tries that led to a record, whatever its status; `lost_s`: tries cut by a lost node;
    `crashed_s`: tries that crashed and were tried again; `asking_s`: nodes that waited for a
    decision or for their lot; `policy_s`: real seconds that the rules took."""

    assumptions: Assumptions
    end_s: float = 0.0
    useful_s: float = 0.0
    lost_s: float = 0.0
    crashed_s: float = 0.0
    asking_s: float = 0.0
    busy_s: float = 0.0
    lots: int = 0
    work_s: float = 0.0
    longest_lot_s: float = 0.0
    failures: int = 0
    failures_at_work: int = 0
    policy_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    tries: Counter[int] = field(default_factory=Counter)
    again_after_record: int = 0
    without_record: int = 0
    refused: int = 0

    @property
    def ideal_s(self) -> float:
        """The earliest end that nodes that never fail allow: all work shared evenly, but no sooner
        than the longest lot, which is not cut."""
        return max(self.work_s / self.assumptions.nodes, self.longest_lot_s)

    def faults(self) -> list[str]:
        """The invariants that do not hold, in words."""
        found = []
        if self.without_record or sum(self.statuses.values()) != self.assumptions.cells:
            found.append(f"{self.without_record} cells have no record")
        if self.refused or self.again_after_record:
            found.append(f"{self.refused + self.again_after_record} cells were done twice")
        accounted = self.useful_s + self.lost_s + self.crashed_s
        if abs(accounted - self.busy_s) > 1e-6 * max(self.busy_s, 1):
            found.append(f"nodes were busy {self.busy_s} s, of which {accounted} are accounted for")
        return found


class Cluster:
    """Nodes that measure lots until every cell has its record."""

    def __init__(self, assumptions: Assumptions) -> None:
        self.a = assumptions
        self.rng = np.random.default_rng(assumptions.seed)
        self.env = simpy.Environment()
        self.took = self._drawn()
        self.fits = dict(zip(self.took, self.rng.random(len(self.took)) >= self.a.oom, strict=True))
        self.out = Outcome(assumptions, work_s=sum(self.took.values()))
        self.placement = Placement(self._lots())
        self.scheduler = simpy.Resource(self.env, capacity=1)
        self.changed = self.env.event()
        self.finished = self.env.event()

    def _drawn(self) -> dict[str, float]:
        """{cell: seconds}, by model."""
        part = self.a.sigma / np.sqrt(2)
        found: dict[str, float] = {}
        while len(found) < self.a.cells:
            model = len(found) // self.a.formats
            own = self.rng.normal(0, part)
            for number in range(min(self.a.formats, self.a.cells - len(found))):
                spread = own + self.rng.normal(0, part)
                found[f"{model}/{number}"] = float(self.a.median_s * np.exp(spread))
        return found

    def _lots(self) -> list[Lot]:
        lots: dict[str, dict[str, float]] = {}
        for cell, seconds in self.took.items():
            expected = seconds * float(np.exp(self.rng.normal(0, self.a.known)))
            lots.setdefault(cell.split("/")[0], {})[cell] = expected
        sums = (sum(self.took[c] for c in cells) for cells in lots.values())
        self.out.longest_lot_s = max(sums)
        return [Lot(name, cells) for name, cells in lots.items()]

    def run(self) -> Outcome:
        """Until the last record."""
        for number in range(self.a.nodes):
            self.env.process(self._node(f"node-{number}"))
        self.env.run(until=self.finished)
        out, rules = self.out, self.placement
        out.end_s, out.refused = float(self.env.now), rules.refused
        out.statuses.update(rules.records.values())
        out.tries.update(rules.begun.values())
        out.without_record = sum(cell not in rules.records for cell in self.took)
        return out

    def _node(self, name: str) -> Iterator[Any]:
        """Up, until it fails; then away until it is repaired."""
        while True:
            up_s = float(self.rng.exponential(self.a.node_mtbf_s))
            work = self.env.process(self._work(name))
            yield self.env.timeout(up_s) | self.finished
            if self.finished.triggered:
                return
            self.out.failures += 1
            work.interrupt()
            yield work
            yield self.env.timeout(self.a.noticed_s)
            self._told(lambda: self._was_lost(name))
            yield self.env.timeout(max(self.a.repair_s - self.a.noticed_s, 0.0))

    def _was_lost(self, name: str) -> None:
        for cell in self.placement.lost(name):
            self._record(cell, "failed")

    def _told(self, rule: Any) -> Any:
        """What a rule answers."""
        began = time.perf_counter()
        found = rule()
        self.out.policy_s += time.perf_counter() - began
        if self.placement.waiting:  # A lot has come back: idle nodes ask again.
            waiting, self.changed = self.changed, self.env.event()
            waiting.succeed()
        if self.placement.is_done and not self.finished.triggered:
            self.finished.succeed()
        return found

    def _work(self, name: str) -> Iterator[Any]:
        """One lot after the other, while the node is up."""
        spent: dict[str, float] = {}
        asked = None
        try:
            while True:
                asked = self.env.now
                with self.scheduler.request() as turn:
                    yield turn
                    yield self.env.timeout(self.a.decide_s)
                    began = time.perf_counter()
                    lot = self.placement.take(name)
                    self.out.policy_s += time.perf_counter() - began
                if lot is None:
                    asked = None
                    yield self.changed
                    continue
                yield self.env.timeout(self.a.hand_over_s)
                self.out.asking_s += self.env.now - asked
                asked = None
                self.out.lots += 1
                spent.clear()
                self.out.again_after_record += sum(c in self.placement.records for c in lot.cells)
                yield from self._lot(lot, spent)
                self._told(lambda: self.placement.ended(name))
        except simpy.Interrupt:
            if asked is not None:
                self.out.asking_s += self.env.now - asked
            if spent:
                self.out.failures_at_work += 1
            self.out.lost_s += sum(spent.values())

    def _lot(self, lot: Lot, spent: dict[str, float]) -> Iterator[Any]:
        """Each cell scored in turn, then all in rounds, then their records. `spent`: what would be
        lost now, by cell."""
        timed = []
        for cell in lot.cells:
            if (yield from self._score(cell, spent)):
                timed.append(cell)
        for _ in range(ROUNDS):
            for cell in timed:
                yield from self._spend(cell, self.took[cell] * (1 - SCORED) / ROUNDS, spent)
        for cell in timed:
            self._keep(cell, "ok", spent)

    def _score(self, cell: str, spent: dict[str, float]) -> Iterator[Any]:
        """Whether the cell is there to be timed; else it has its record."""
        whole = self.took[cell] * SCORED
        while True:
            if not self.fits[cell]:
                yield from self._spend(cell, whole * self.rng.uniform(0, 0.1), spent)
                if not self.placement.again(cell, "out_of_memory"):
                    self._keep(cell, "out_of_memory", spent)
                    return False
            elif self.rng.random() < self.a.crash:
                yield from self._spend(cell, whole * self.rng.uniform(), spent)
                if not self.placement.again(cell, "crash"):
                    self._keep(cell, "failed", spent)
                    return False
                self.out.crashed_s += spent.pop(cell, 0.0)
            else:
                yield from self._spend(cell, whole, spent)
                return True

    def _spend(self, cell: str, seconds: float, spent: dict[str, float]) -> Iterator[Any]:
        began = self.env.now
        try:
            yield self.env.timeout(seconds)
        finally:
            passed = self.env.now - began
            spent[cell] = spent.get(cell, 0.0) + passed
            self.out.busy_s += passed

    def _keep(self, cell: str, status: str, spent: dict[str, float]) -> None:
        self.out.useful_s += spent.pop(cell, 0.0)
        self._record(cell, status)

    def _record(self, cell: str, status: str) -> None:
        began = time.perf_counter()
        self.placement.record(cell, status)
        self.out.policy_s += time.perf_counter() - began


def simulate(assumptions: Assumptions) -> Outcome:
    """One simulated sweep."""
    return Cluster(assumptions).run()


def report(out: Outcome) -> str:
    """What came of it, in lines."""
    a = out.assumptions
    said = ", ".join(f"{count:,} {name}" for name, count in sorted(out.statuses.items()))
    more = sum(count for tries, count in out.tries.items() if tries > 1)
    waited, rules_us = out.asking_s / a.cells, out.policy_s / a.cells * 1e6
    decision = f"{significant(a.decide_s * 1000)} ms a decision"
    lines = [
        f"{a.cells:,} cells in lots of {a.formats} on {a.nodes:,} nodes, seed {a.seed}",
        f"assumed: {significant(a.median_s)} s a cell (median; sigma {a.sigma:g}), known within "
        f"{a.known:g}; a node fails every {clock(a.node_mtbf_s)}, is back after "
        f"{clock(a.repair_s)}, noticed after {significant(a.noticed_s)} s; crashes "
        f"{share(a.crash)}, out of memory {share(a.oom)}; {decision}, "
        f"{significant(a.hand_over_s)} s a lot handed over",
        f"work: {significant(out.work_s / 3600)} node-hours, an even share "
        f"{clock(out.work_s / a.nodes)}; longest lot {clock(out.longest_lot_s)}",
        f"end: {clock(out.end_s)}, {significant(out.end_s / out.ideal_s)} times the ideal of "
        f"{clock(out.ideal_s)} (even shares, no failure, but no lot cut)",
        f"failures: {out.failures:,} nodes lost, {out.failures_at_work:,} of them at work",
        f"lost work: {share(out.lost_s / out.busy_s, 2)} of the busy time by lost nodes, "
        f"{share(out.crashed_s / out.busy_s, 2)} by crashes that were tried again",
        f"scheduling: {significant(waited)} s a cell in which its node waits for a decision and "
        f"its lot ({share(out.asking_s / out.busy_s, 2)} of the busy time), of which the rules "
        f"themselves take {significant(rules_us)} us a cell, measured",
        f"records: {said}; {out.lots:,} lots begun, {more:,} cells begun more than once",
        f"cells without a record: {out.without_record}; done twice: "
        f"{out.refused + out.again_after_record}",
    ]
    return "\n".join(lines)


def _parsed(arguments: list[str] | None) -> Assumptions:
    usual = Assumptions()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("cells", "nodes", "formats", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(usual, name))
    for name in ("sigma", "known", "crash", "oom"):
        parser.add_argument(f"--{name}", type=float, default=getattr(usual, name))
    for name in ("median", "node-mtbf", "repair", "noticed", "decide", "hand-over"):
        field_name = f"{name.replace('-', '_')}_s"
        parser.add_argument(
            f"--{name}", type=parse_duration, default=getattr(usual, field_name), dest=field_name
        )
    return Assumptions(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> int:
    """Simulate and print; 1 where an invariant does not hold."""
    out = simulate(_parsed(arguments))
    print(report(out))
    for fault in out.faults():
        print(f"broken: {fault}")
    return 1 if out.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
