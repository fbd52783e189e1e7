"""The processes of a background: resolved before the sweep, started, at work, at rest, ended. No
torch here.

They are pinned to no core and have no priority: they compete for the machine as neighbours do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.hardware import DeviceFacts
from precision_explorer.models import (
    ModelRef,
    check_inputs,
    has_head,
    refuse_synthetic,
    resolve,
)
from precision_explorer.plan import SweepSpec
from precision_explorer.runner.holder import LOST
from precision_explorer.runner.manager import OnEvent, WorkerHandle
from precision_explorer.tasks import load_card, prepare
from precision_explorer.workload import Neighbour, Workload
from precision_explorer.workload.background import check_once

Json = dict[str, Any]


class NeighbourLost(Exception):
    """A neighbour's process that could not begin, or ended."""


# Far more than the cores would only queue for them, whatever is measured.
_MOST_PER_CORE = 4
# The bundled task whose requests a neighbour's model serves, by the kind that its head fits.
_SERVED = {
    "text-classification": "sentiment",
    "language-modeling": "news-perplexity",
    "image-classification": "digits",
    "similarity": "news-similarity",
}
# Of its examples, so many, over and over.
_EXAMPLES = 32
ALONE_S = 1.0
"""How long the background works by itself in each round, for its rate without a measurement."""


def prepare_background(
    workload: Workload, spec: SweepSpec, facts: DeviceFacts, threads: int
) -> tuple[Workload, tuple[Json, ...]]:
    """(`workload` with each neighbour's model pinned, what each process is asked to become).

    UsageError where there are too many processes or a model can't serve; ModelError for one that
    can't be had."""
    if workload.background is None:
        return workload, ()
    total, most = sum(n.processes for n in workload.background), _MOST_PER_CORE * facts.cores
    if total > most:
        raise UsageError(
            f"background: {total} processes on {facts.cores} cores would only wait for each other; "
            f"give at most {most}"
        )
    pinned: list[Neighbour] = []
    requests: list[Json] = []
    for one in workload.background:
        found, request = one, _request(one, spec, facts)
        if one.kind == "model":
            if one.path is None:
                raise UsageError("background: model names none; write it as model:path/to/model")
            refuse_synthetic([one.path], "a neighbour's work is that of a model in use")
            ref = resolve(
                one.path,
                trust_remote_code=spec.trust_remote_code,
                allow_pickle=spec.allow_pickle,
            )
            own = {"model": ref.name, "revision": ref.identity.revision}
            found = one.model_copy(update=own)
            request |= _serving(ref, workload) | {"threads": threads}
        pinned.append(found)
        requests += [request | {"label": str(found)}] * one.processes
    try:
        check_once(pinned)
    except ValueError as error:  # Two folders of one name, whose figures would be one.
        raise UsageError(str(error)) from error
    return workload.model_copy(update={"background": tuple(pinned)}), tuple(requests)


def _request(neighbour: Neighbour, spec: SweepSpec, facts: DeviceFacts) -> Json:
    return {
        "op": "neighbour",
        "kind": neighbour.kind,
        "device": "cpu" if neighbour.kind == "cpu" else facts.device,
        "threads": 1,
        "seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
    }


def _serving(ref: ModelRef, workload: Workload) -> Json:
    """What a neighbour serves `ref` with: as a request of the kind would be measured."""
    if ref.scheme is not None:
        raise UsageError(
            f"background: {ref.name} comes quantized ({ref.scheme.words}), and a neighbour runs in "
            "float32; give its original"
        )
    check_inputs(ref)
    kind = next((kind for kind in _SERVED if has_head(ref, kind)), None)
    if kind is None:
        raise UsageError(
            f"background: no bundled task has requests for {ref.name}; give a classifier of texts "
            "or images, a causal language model or a sentence encoder"
        )
    task = prepare(load_card(_SERVED[kind]), _EXAMPLES, 0)
    return {
        "model": ref.name,
        "path": str(ref.path),
        "pickled": ref.pickled,
        "task": task.card.name,
        "card": task.card.asked(),
        "examples": task.examples,
        "corpus": task.corpus,
        # Only a quality pass asks which label is which.
        "label_ids": {},
        "workload": workload.model_dump(mode="json", include={"prompt_tokens", "output_tokens"}),
    }


@dataclass(frozen=True)
class Pace:
    """How fast one kind of work went, over all of its processes."""

    label: str
    what: str
    operation: str
    processes: int
    per_s: float


@dataclass
class Neighbours:
    """The processes of a background. `requests`: what each becomes; `limit_s`: how long an answer
    may take. What goes wrong in one is raised as `NeighbourLost`, with its label."""

    requests: Sequence[Json]
    context: Callable[[], BaseContext]
    on_event: OnEvent
    log: str
    limit_s: float
    _handles: list[WorkerHandle] = field(default_factory=list)
    _told: list[Json] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started."""
        return [handle.process.pid or 0 for handle in self._handles]

    def start(self) -> None:
        """Start all, which makes them ready and leaves them at rest."""
        for request in self.requests:
            try:
                handle = WorkerHandle(self.context(), self.on_event)
            except LOST as error:
                why = str(error) or "its process did not start"
                raise NeighbourLost(f"{request['label']}: {why}") from error
            self._handles.append(handle)
            self._told.append(self._ask(handle, request))

    def work(self) -> None:
        """Have all work; returns when each has done something."""
        for handle in self._handles:
            self._ask(handle, {"op": "work"})

    def rest(self) -> list[Pace]:
        """Stop all work; how fast each kind was since `work`."""
        done = [self._ask(handle, {"op": "rest"}) for handle in self._handles]
        found: dict[str, Pace] = {}
        for request, told, answer in zip(self.requests, self._told, done, strict=True):
            label, rate = request["label"], answer["operations"] / answer["seconds"]
            before = found.get(label, Pace(label, told["what"], told["operation"], 0, 0.0))
            found[label] = Pace(
                label, before.what, before.operation, before.processes + 1, before.per_s + rate
            )
        return list(found.values())

    def alone(self) -> list[Pace]:
        """How fast all are together while nothing is measured."""
        self.work()
        time.sleep(ALONE_S)
        return self.rest()

    def close(self) -> None:
        """End all, whatever they do."""
        handles, self._handles, self._told = self._handles, [], []
        for handle in handles:
            handle.kill_soon()
        for handle in handles:
            handle.close()

    def _ask(self, handle: WorkerHandle, request: Json) -> Json:
        deadline = time.monotonic() + self.limit_s
        try:
            answer, _ = handle.ask(request | {"log": self.log}, deadline)
        except LOST as error:
            label = self.requests[self._handles.index(handle)]["label"]
            raise NeighbourLost(f"{label}: {str(error) or 'its process did not start'}") from error
        return answer
