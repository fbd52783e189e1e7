"""One cell on its way to a record: what was answered so far and the time that took. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from precision_explorer.plan import PlannedCell
from precision_explorer.runner.holder import Holder
from precision_explorer.runner.join import utc_now
from precision_explorer.runner.requests import task_request
from precision_explorer.runner.rounds import (
    NOT_DISTURBED,
    block_name,
    block_names,
    disturbed_name,
)
from precision_explorer.runner.streams import joined_streams
from precision_explorer.store import RunFolder

Json = dict[str, Any]
Answer = tuple[Json, bytes]


class CellRun:
    """The answers of one cell, stored as parts the moment they are there.

    Parts of an earlier, interrupted run of the sweep are taken over. `session` numbers the
    processes that measured the cell, and stands in the parts, so that their memory is not mixed.
    The time limit counts what the cell itself takes, not the waiting between its rounds.
    """

    def __init__(
        self, planned: PlannedCell, holder: Holder, folder: RunFolder, limit_s: float
    ) -> None:
        self.planned, self.holder = planned, holder
        self.started = utc_now()
        self.rounds: int = planned.cell.workload.get("rounds", 1)
        self.answers: dict[str, Json] = {}
        self.streams: dict[str, bytes] = {}
        log = str(folder.log_path(planned.cell_id).resolve())
        self.request = task_request(planned, log)
        self.over = False
        """Recorded, failed or put off: nothing more is asked for it."""
        self.served = self.compared = False
        """By this process: a block; a comparison, which leaves memory behind."""
        self._folder, self._limit_s = folder, limit_s
        self._spent_s = self._beside_s = 0.0
        self._take_over()
        known = [answer.get("session") for answer in self.answers.values()]
        self.session = 1 + max((n for n in known if n is not None), default=-1)

    def _take_over(self) -> None:
        blocks = [*block_names(self.planned), *block_names(self.planned, disturbed=True)]
        names = ["quality", *blocks, "certificate", "profile", "audit"]
        for name in names:
            stored = self._folder.read_part(self.planned.cell_id, name)
            if stored is not None:
                self.answers[name], self.streams[name] = stored
            elif name == "quality":
                return

    def has_block(self, number: int) -> bool:
        """Whether the round's block was answered, now or in an earlier run."""
        return block_name(number) in self.answers

    @property
    def not_disturbed(self) -> str | None:
        """Why it is not measured beside background work any more."""
        return self.answers.get(NOT_DISTURBED, {}).get("why")

    def lacks(self, number: int, disturbed: bool) -> bool:
        """Whether the round's block has no answer yet; of a `disturbed` one, whether there is to be
        one, which there is after that alone."""
        if not disturbed:
            return not self.has_block(number)
        wanted = self.planned.cell.workload.get("background") and self.not_disturbed is None
        there = disturbed_name(number) in self.answers
        return bool(wanted) and self.has_block(number) and not there

    def in_new_process(self) -> None:
        """Go on with another worker, whose memory is another's."""
        self.session += 1
        self.served = self.compared = False

    @property
    def left_s(self) -> float:
        """What is left of the cell's time limit."""
        return self._limit_s - self._spent_s

    def ask(self, more: Json, beside: bool = False) -> Answer:
        """The answer of the holder's worker to the cell's request with `more`; raises as
        `WorkerHandle.ask`. What is measured `beside` background work has a time limit of its own,
        as long as the cell's."""
        worker = self.holder.worker
        assert worker is not None, "load comes first"
        began = time.monotonic()
        try:
            left_s = self._limit_s - self._beside_s if beside else self.left_s
            return worker.ask(self.request | more, began + left_s)
        finally:
            spent_s = time.monotonic() - began
            if beside:
                self._beside_s += spent_s
            else:
                self._spent_s += spent_s

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count the time inside as the cell's own."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent_s += time.monotonic() - began

    def keep(self, name: str, answer: Json, stream: bytes = b"") -> None:
        """Store an answer as a part, and remember it."""
        self._folder.write_part(self.planned.cell_id, name, answer, stream)
        self.answers[name] = answer
        if stream:
            self.streams[name] = stream

    def samples(self) -> dict[str, bytes]:
        """The rows by kind, once all is answered; none of requests where all are at hand, none of
        examples where these are not scored."""
        scored = self.streams.get("quality")
        found = {"example": scored} if scored else {}
        for kind, disturbed in (("request", False), ("disturbed", True)):
            names = block_names(self.planned, disturbed)
            requests = [stream for name in names if (stream := self.streams.get(name))]
            found |= {kind: joined_streams(requests)} if requests else {}
        return found
