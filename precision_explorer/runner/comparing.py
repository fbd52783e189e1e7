"""What a cell does beside its own measurement so that formats can be compared: the reference is
scored again in other batches, keeps its next-token distributions, and others are held against
them. Runs in a worker, after all that is timed."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from precision_explorer.errors import ModelError
from precision_explorer.models.adapter import Adapter, Item, other_batches, plan_batches
from precision_explorer.models.distributions import (
    Batches,
    Head,
    Kept,
    compare,
    first_items,
    items_hash,
    keep,
    narrower,
)
from precision_explorer.models.generation import Generation
from precision_explorer.models.states import Heard, InBatches, Passes, Source
from precision_explorer.records import canonical_hash
from precision_explorer.records.record import KeptDistributions, Positions, Repeat
from precision_explorer.runner.comparisons import NO_DISTRIBUTIONS

if TYPE_CHECKING:
    from precision_explorer.runner.session import Session

Json = dict[str, Any]
NO_ANSWERS = "the reference has no answer along which others could be held against it"


class HeardPasses:
    """What a session heard of its passes over tasks' first positions, until it is compared."""

    def __init__(self) -> None:
        self._found: list[tuple[str, Heard]] = []

    @contextlib.contextmanager
    def hear(
        self, session: Session, items: Sequence[Item], name: str, part: bool
    ) -> Iterator[None]:
        """Listen to the pass `name` over `items`. Not to a `part` of one, whose first positions are
        others, nor to compiled code, which calls no hooks, nor in one of several processes, which
        would ask its head for what the others don't."""
        scorer = getattr(session.adapter, "scorer", None)
        alone = session.compiled is None and session.followers is None
        if scorer is None or part or not alone:
            yield
            return
        heard = Heard(session.model, first_items(items))
        with heard.listening(scorer):
            yield
        if heard.is_whole:
            self._found.append((name, heard))

    def source(self, session: Session, items: Sequence[Item], name: str) -> Source:
        """What the pass `name` left of `items`, once; the model itself where that is not there, as
        in another process."""
        for entry in self._found:
            if entry[0] == name and entry[1].holds(items):
                self._found.remove(entry)
                return entry[1]
        assert session.adapter is not None
        eagerly = session.compiled.eagerly if session.compiled else contextlib.nullcontext
        return Passes(session.model, session.adapter, eagerly)


def score_again(session: Session, request: Json) -> tuple[Json, list[Json]]:
    """({"noise": ...}, rows): every example once more, in other batches and in another order."""
    adapter = session.adapter = session._adapter(request)
    start = time.perf_counter()
    with torch.inference_mode():
        items = adapter.items()
        frozen = session._batches(request, items)
        batches = other_batches(items, frozen, session.request["seed"])
        with session.heard.hear(session, items, "noise", part=False):
            answers = session._score(items, batches, "noise")
    session._release()
    rows = adapter.rows(items, answers)
    noise = Repeat(
        seconds=time.perf_counter() - start,
        examples=len(rows),
        batches=len(batches),
        batch_plan_hash=canonical_hash(batches),
    )
    return {"noise": noise.model_dump()}, rows


def keep_distributions(session: Session, request: Json) -> tuple[Json, bytes]:
    """({"kept": ...}, Arrow): the distributions of the reference at the first positions; ({"why":
    ...}, nothing) where the task scores none. ``outputs``: of a task that is answered in text the
    reference's answers by example, along which they are taken; those taken are in the answer."""
    adapter = session.adapter = session._adapter(request)
    outputs = request.get("outputs")
    if outputs is not None and not session.runtime.dynamic:
        return {"why": f"{session.runtime.id} has no code for the shapes of whole answers"}, b""
    start = time.perf_counter()
    with torch.inference_mode():
        items = _first(adapter, outputs)
        if not items:
            return {"why": NO_DISTRIBUTIONS if outputs is None else NO_ANSWERS}, b""
        source, plan = _source(session, request, items, "quality")
        tell = partial(session.progress, "keep")
        kept = keep(session.model, source, items, plan, Path(session.request["path"]), tell)
    answer = KeptDistributions(
        method="states" if kept.head else "log-probabilities",
        positions=len(kept.rows),
        items=len(kept.items),
        items_hash=items_hash(kept.items),
        bytes=kept.rows.nbytes,
        head=kept.head.__dict__ if kept.head else None,
        error=kept.error if kept.error is not None and math.isfinite(kept.error) else None,
        why=kept.why,
        seconds=time.perf_counter() - start,
    )
    found: Json = {"kept": answer.model_dump()}
    if outputs is not None:
        ids = [request["examples"][item.example]["id"] for item in kept.items]
        found["outputs"] = {name: outputs[name] for name in ids}
    return found, _pack(kept)


def _first(adapter: Adapter, outputs: dict[str, str] | None) -> list[Item]:
    """The items that hold the first positions: the task's own, or those along `outputs`."""
    if outputs is None:
        return first_items(adapter.items())
    assert isinstance(adapter, Generation)
    return first_items(adapter.along(outputs))


def compare_distributions(session: Session, request: Json) -> tuple[Json, list[Json]]:
    """({"positions": ...}, rows): KL to the kept reference and whether the top token is the same.

    ``reference``: the cell that kept them, ``kept``: what it answered, ``kept_rows``: its rows'
    file, ``outputs``: the answers along which they were taken, if any. The reference itself is
    compared in other batches than it was kept in: its noise floor.
    """
    adapter = session.adapter = session._adapter(request)
    kept = KeptDistributions.model_validate(request["kept"])
    start = time.perf_counter()
    with torch.inference_mode():
        items = _first(adapter, request.get("outputs"))[: kept.items]
        if items_hash(items) != kept.items_hash:
            raise ModelError(
                "the examples are other tokens than those that the reference kept; run the sweep "
                "again with another --out"
            )
        # The noise floor is what other batches do.
        name = "noise" if request["is_reference"] else "quality"
        source, plan = _source(session, request, items, name)
        batches = plan(items)
        if request["is_reference"]:
            batches = other_batches(items, batches, session.request["seed"])
        rows = compare(
            source,
            items,
            batches,
            _unpack(Path(request["kept_rows"])),
            Head(**kept.head) if kept.head else None,
            Path(session.request["path"]),
            session.device,
            partial(session.progress, "compare"),
        )
    for row in rows:
        row["id"] = request["examples"][row.pop("example")]["id"]
    positions = Positions(
        reference=request["reference"],
        positions=len(rows),
        seconds=time.perf_counter() - start,
    )
    return {"positions": positions.model_dump()}, rows


def _source(
    session: Session, request: Json, items: Sequence[Item], name: str
) -> tuple[Source, Callable[[Sequence[Item]], Batches]]:
    """What gives the distributions of `items`, and the batches to ask it in: those of the quality
    pass where no other shapes are compiled."""
    source = session.heard.source(session, items, name)
    if session.runtime.dynamic:
        return source, _Plan(session, request)
    assert session.adapter is not None
    every = session.adapter.items()
    frozen = InBatches(source, every, session._batches(request, every))
    return frozen, frozen.plan


class _Plan:
    """The frozen plan's bounds over some items computed whole, with bounded logits at a time."""

    def __init__(self, session: Session, request: Json) -> None:
        self.vocabulary = session.model.config.get_text_config().vocab_size
        self.bounds = (request["batch_plan"]["max_tokens"], request["batch_plan"]["max_items"])

    def __call__(self, items: Sequence[Item]) -> Batches:
        batches = plan_batches([len(item.ids) for item in items], *self.bounds)
        return narrower(batches, items, self.vocabulary)


def _pack(kept: Kept) -> bytes:
    """The rows as an Arrow stream of one column."""
    import pyarrow as pa

    rows = np.ascontiguousarray(kept.rows)
    flat = pa.array(rows.reshape(-1))
    table = pa.table({"values": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(path: Path) -> np.ndarray:
    """(positions, width) as `_pack` wrote it, mapped from its file."""
    import pyarrow as pa

    column = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()["values"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)
