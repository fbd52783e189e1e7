"""The quality pass in looks (`--until-decided`): score some examples, see whether the verdict is
clear, go on where it is not. No torch.

The reference is scored on all examples first: to score on when a format asks for more, its model
would have to stay in memory beside the format's, and both may not fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from precision_explorer.plan import PlannedCell
from precision_explorer.records import CellRecord, canonical_hash
from precision_explorer.runner.streams import stream_of, table_of
from precision_explorer.stats import looks
from precision_explorer.store import RunFolder
from precision_explorer.table.quality import Quality, common
from precision_explorer.table.sequential import is_settled
from precision_explorer.tasks import scores

Answer = tuple[dict[str, Any], bytes]
_PARTS = {"example": "quality", "repeat": "noise"}
_SUMMED = ("seconds", "examples", "tokens", "batches", "cut_examples")


class Looks:
    """The quality pass of one cell. `reference`: the reference, which has been scored, None where
    the cell is the reference itself or there is none; then all examples are scored.

    `ends`: the numbers of examples at which to look. `resumed`: whether a part of an earlier
    process was taken.
    """

    def __init__(
        self, folder: RunFolder, planned: PlannedCell, reference: CellRecord | PlannedCell | None
    ) -> None:
        self.folder, self.planned, self.resumed = folder, planned, False
        self.ends = looks(len(planned.task.examples))
        self._base: Quality | None = None
        self._again: Quality | None = None
        if reference is not None:
            self._base = self._read(reference, "example")
            again = self._read(reference, "repeat")
            self._again = again if len(again) else None
            # There is nothing to compare later examples with.
            self.ends = [end for end in self.ends if end <= len(self._base)]

    def score(self, ask: Callable[[dict[str, Any]], Answer], until: float) -> Answer:
        """The whole pass's answer and rows. `ask` scores the examples of a request; no new look
        begins after `until` (a clock of `time.monotonic`), so that what was scored is kept."""
        parts: list[Answer] = []
        start = 0
        for number, end in enumerate(self.ends):
            parts.append(self._part(ask, number, start, end))
            start = end
            if time.monotonic() > until or self._is_decided(parts):
                break
        return self._joined(parts)

    def _read(self, reference: CellRecord | PlannedCell, kind: str) -> Quality:
        """The reference's rows from its samples, or from its parts where it is still measured."""
        if self.folder.samples_path(reference.cell_id).exists():
            known = reference.known_samples if isinstance(reference, CellRecord) else None
            columns = self.folder.read_samples(reference.cell_id, kind, known)
        else:
            part = self.folder.read_part(reference.cell_id, _PARTS[kind])
            columns = table_of([part[1]]).to_pydict() if part and part[1] else {"id": []}
        card = self.planned.task.card
        return Quality.of(card.metrics[0], columns, card.higher_is_better)

    def _part(
        self, ask: Callable[[dict[str, Any]], Answer], number: int, start: int, end: int
    ) -> Answer:
        name, cell_id = f"quality-{number}", self.planned.cell_id
        stored = self.folder.read_part(cell_id, name)
        if stored is not None:
            self.resumed = True
            return stored
        examples = self.planned.task.examples[start:end]
        found = ask({"op": "quality", "examples": examples, "part": True})
        self.folder.write_part(cell_id, name, *found)
        return found

    def _is_decided(self, parts: list[Answer]) -> bool:
        if self._base is None:
            return False
        stop = self.planned.cell.until_decided
        assert stop is not None
        columns = table_of([arrow for _, arrow in parts]).to_pydict()
        other = Quality.of(self._base.metric, columns, self._base.higher_is_better)
        both = common(self._base, other)
        if both is None:
            return False
        planned, seed = len(self.planned.task.examples), self.planned.cell.seed
        return is_settled(*both, self._again, stop["quality_budget"], planned, seed)

    def _joined(self, parts: list[Answer]) -> Answer:
        """One answer as of one pass: what counts is added, peaks are the highest."""
        table = table_of([arrow for _, arrow in parts])
        card = self.planned.task.card
        each = [answer["quality"] for answer, _ in parts]
        quality = each[0] | {name: sum(q[name] for q in each) for name in _SUMMED}
        quality |= {
            "scores": scores(card.kind, card.own_metrics, table.to_pylist()),
            "batch_plan_hash": canonical_hash([q["batch_plan_hash"] for q in each]),
            "look_batch_plans": [q["batch_plan_hash"] for q in each],
            "unparsed": _sum([q.get("unparsed") for q in each]),
        }
        joined: dict[str, Any] = {"quality": quality}
        for name in parts[0][0].keys() - {"quality"}:
            values = [answer[name] for answer, _ in parts if answer[name] is not None]
            add = sum if name == "recompiles" else max
            joined[name] = add(values) if values else None
        return joined, stream_of(table)


def _sum(values: list[int | None]) -> int | None:
    return None if None in values else sum(v for v in values if v is not None)
