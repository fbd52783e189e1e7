"""Which lot of cells goes to which node next, and what is tried again: the executors' rules
(`precision_explorer.runner.spread`) apart from processes and clocks, for `simulate_cluster.py` to
drive. In one thing they go further: the executors take lots in the plan's order, not the longest
first.

A lot is all formats of one model: their rounds are interleaved and they are compared with one
reference, so that they belong on one node. Lots that are expected to take longest go first (LPT;
Graham 1969, "Bounds on multiprocessing timing anomalies": no later than 4/3 of the best end, on
nodes that are alike and do not fail), since a long one that starts last decides when all is done.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Cause = Literal["crash", "out_of_memory", "timeout", "lost"]
TRIES: dict[Cause, int] = {"crash": 2, "out_of_memory": 1, "timeout": 1, "lost": 3}
"""How often a cell may end by a cause before it is given up. A crash may be chance, so once more;
memory and time would not suffice a second time on a node that is alike; a node that is lost is no
fault of the cell, unless it loses one after the other."""


@dataclass(frozen=True)
class Lot:
    """Cells that one node measures: `expected_s`, seconds by cell, from `plan --estimate`."""

    name: str
    expected_s: Mapping[str, float]

    @property
    def cells(self) -> tuple[str, ...]:
        """Their ids, in the order in which they are begun."""
        return tuple(self.expected_s)

    @property
    def seconds(self) -> float:
        """Expected of all of them."""
        return sum(self.expected_s.values())


@dataclass
class Placement:
    """The state of a sweep on several nodes. Every cell gets one record: the first that is told."""

    lots: Iterable[Lot]
    records: dict[str, str] = field(default_factory=dict)
    """{cell: its status}."""
    begun: dict[str, int] = field(default_factory=dict)
    """{cell: how often it was begun}."""
    ends: Counter[tuple[str, Cause]] = field(default_factory=Counter)
    """How often a cell was ended by a cause."""
    refused: int = 0
    """Records of cells that had one already."""
    _waiting: list[tuple[float, int, Lot]] = field(default_factory=list)
    _at: dict[str, Lot] = field(default_factory=dict)
    _number: int = 0

    def __post_init__(self) -> None:
        for lot in self.lots:
            self._put(lot)

    def _put(self, lot: Lot) -> None:
        self._number += 1  # Lots that are expected to take equally long go in the order given.
        heapq.heappush(self._waiting, (-lot.seconds, self._number, lot))

    @property
    def is_done(self) -> bool:
        """Whether nothing waits and nothing is being measured."""
        return not self._waiting and not self._at

    @property
    def waiting(self) -> int:
        """Lots that no node has."""
        return len(self._waiting)

    def take(self, node: str) -> Lot | None:
        """The lot that `node`, which has none, measures next; None where none waits now. One may
        come back from a node that is lost, until `is_done`."""
        if node in self._at:
            raise ValueError(f"node {node} has lot {self._at[node].name} already")
        if not self._waiting:
            return None
        lot = heapq.heappop(self._waiting)[2]
        self._at[node] = lot
        for cell in lot.cells:
            self.begun[cell] = self.begun.get(cell, 0) + 1
        return lot

    def record(self, cell: str, status: str) -> bool:
        """Note that a cell has its record; False, and nothing changes, where it had one."""
        if cell in self.records:
            self.refused += 1
            return False
        self.records[cell] = status
        return True

    def again(self, cell: str, cause: Cause) -> bool:
        """Note that a cell ended by `cause`: whether it is begun once more on its node; where not,
        the caller records it as failed."""
        if not self._may(cell, cause):
            return False
        self.begun[cell] = self.begun.get(cell, 0) + 1
        return True

    def _may(self, cell: str, cause: Cause) -> bool:
        self.ends[cell, cause] += 1
        return self.ends[cell, cause] < TRIES[cause]

    def ended(self, node: str) -> None:
        """`node` is done with its lot. ValueError where a cell of it has no record."""
        lot = self._at.pop(node)
        left = [cell for cell in lot.cells if cell not in self.records]
        if left:
            raise ValueError(f"lot {lot.name} ended without a record of {', '.join(left)}")

    def lost(self, node: str) -> list[str]:
        """`node` is gone: the unfinished cells of its lot go elsewhere, ahead of shorter lots.
        Returns those that have been lost too often, which the caller records as failed."""
        lot = self._at.pop(node, None)
        if lot is None:
            return []
        left = {c: s for c, s in lot.expected_s.items() if c not in self.records}
        over = [cell for cell in left if not self._may(cell, "lost")]
        rest = {c: s for c, s in left.items() if c not in over}
        if rest:
            self._put(Lot(lot.name, rest))
        return over
