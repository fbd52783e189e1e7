"""Continuous batching of a cell's window: whether it is used; a plan's requests as steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precision_explorer.errors import DoesNotFit, PrecisionExplorerError
from precision_explorer.measure.continuous import Step, Stepper, full_rate
from precision_explorer.measure.throughput import is_out_of_memory
from precision_explorer.workload import Schedule, Workload

if TYPE_CHECKING:
    from precision_explorer.models.adapter import Adapter
    from precision_explorer.models.continuous import ContinuousBatches
    from precision_explorer.models.greedy import GreedyServing

Json = dict[str, Any]
_STATIC = "a batch is decoded in step until its longest output is there, and no request joins it"


@dataclass(frozen=True)
class Batching:
    """How a cell's requests are put together (`Serving.batching`), and why not continuously."""

    name: str
    note: str | None = None
    is_fallback: bool = False
    """Whether the model can't be served continuously, though nothing else was asked."""

    @property
    def is_continuous(self) -> bool:
        """Whether requests join and leave at any step."""
        return self.name == "continuous"


def choose_batching(adapter: Adapter, rules: Workload) -> Batching:
    """As the workload says, else continuous where that can be and means something.

    PrecisionExplorerError where it was asked for and can't be."""
    if not hasattr(adapter, "serve_batch"):
        return Batching("dynamic")
    if rules.batching == "static":
        return Batching("static", _STATIC)
    if rules.batching is None and rules.max_batch == 1:
        return Batching("static", "max_batch is 1: there is nothing to join")
    if rules.batching is None and rules.max_wait_s:
        return Batching("static", f"max_wait_s is for batches that begin together: {_STATIC}")
    from precision_explorer.models.continuous import why_not

    reason = why_not(adapter)
    if reason is None:
        return Batching("continuous")
    if rules.batching == "continuous":
        raise PrecisionExplorerError(
            f"{reason}, and the workload asks for continuous batching; leave its batching out, or "
            "set batching: static"
        )
    return Batching("static", f"{reason}: {_STATIC}", is_fallback=True)


class _Planned:
    """The requests of a plan, which join by their place in it."""

    def __init__(self, adapter: GreedyServing, plan: Schedule, batches: ContinuousBatches) -> None:
        self._adapter, self._batches = adapter, batches
        self._asked = _asked(plan)

    def join(self, position: int) -> tuple[int, Json]:
        """Tokenise the prompt and hand it over, as a server would when a request has its turn."""
        ids, count = self._adapter.request_tokens(*self._asked[position])
        extras = {"input_tokens": len(ids), "output_tokens": count}
        return self._batches.join(ids, count), extras

    def step(self) -> Step:
        """Go on with all; nothing is made of the tokens."""
        done = self._batches.step()
        for ticket in done.finished:
            self._batches.tokens.pop(ticket)
        return done


def _asked(plan: Schedule) -> list[tuple[int, int | None, int | None]]:
    """(example, tokens in, tokens out) of each request; None: the example's own."""
    none: list[int | None] = [None] * plan.n
    given = [plan.input_tokens, plan.output_tokens]
    lengths = [none if values is None else values.tolist() for values in given]
    return list(zip(plan.items.tolist(), *lengths, strict=True))


@contextmanager
def stepping(adapter: Any, plan: Schedule, max_batch: int) -> Iterator[Stepper]:
    """The model with a cache for `max_batch` of the longest requests of `plan`.

    DoesNotFit where memory does not hold it."""
    from precision_explorer.models.continuous import continuous_batches

    asked = (adapter.request_tokens(*request) for request in dict.fromkeys(_asked(plan)))
    longest = max(len(ids) + count for ids, count in asked)
    try:
        with continuous_batches(adapter.model, max_batch, longest) as batches:
            yield _Planned(adapter, plan, batches)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DoesNotFit(
            f"{max_batch} requests of up to {longest} tokens at once, which the workload lets a "
            "window have, do not fit into memory; lower max_batch"
        ) from error


def answered_together(adapter: Any, indices: Sequence[int]) -> list[list[int]]:
    """The tokens of requests of these examples that are all in progress at once."""
    from precision_explorer.models.continuous import continuous_batches

    asked = [adapter.request_tokens(index) for index in indices]
    longest = max(len(ids) + count for ids, count in asked)
    with continuous_batches(adapter.model, len(asked), longest) as batches:
        tickets = [batches.join(ids, count) for ids, count in asked]
        while any(ticket not in batches.tokens for ticket in tickets):
            batches.step()
        return [batches.tokens[ticket] for ticket in tickets]


def continuous_capacity(
    adapter: Any, plan: Schedule, rules: Workload, sync: Callable[[], None]
) -> float:
    """Requests per second of `plan` while ``max_batch`` are in progress all the time."""
    with stepping(adapter, plan, rules.max_batch) as stepper:
        return full_rate(
            stepper,
            plan.n,
            rules.max_batch,
            least_requests=rules.offline_min_batches * rules.max_batch,
            least_s=rules.offline_seconds,
            budget_s=rules.offline_budget_seconds,
            clock=time.perf_counter,
            sync=sync,
        )
