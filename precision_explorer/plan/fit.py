"""Whether a cell fits a device: its weights and the cache of its requests against the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from precision_explorer.formats.architectures import cache_token_bytes
from precision_explorer.formats.footprint import COMPUTE_BYTES
from precision_explorer.models import ModelRef
from precision_explorer.models.heads import HEADS
from precision_explorer.plan.spec import SweepSpec
from precision_explorer.tasks import KINDS, PreparedTask
from precision_explorer.workload import Workload


@dataclass(frozen=True)
class Cache:
    """The key-value cache of `sequences` requests at once, of `tokens` each. Bytes."""

    token_bytes: int
    tokens: int
    sequences: int

    @property
    def total_bytes(self) -> int:
        """Of all of them, full."""
        return self.token_bytes * self.tokens * self.sequences


@dataclass(frozen=True)
class Fit:
    """`held_bytes`: weights once the format is applied, None where it can't be said. `cache`: None
    for a model that keeps none, or whose config does not tell. `memory_bytes`: of one device."""

    held_bytes: int | None
    cache: Cache | None
    memory_bytes: int | None
    spread: int | None = None
    """Over how many devices the cell is planned here; None where that is one."""

    @property
    def need_bytes(self) -> int | None:
        """Weights and cache; activations are not in it."""
        if self.held_bytes is None:
            return None
        return self.held_bytes + (self.cache.total_bytes if self.cache else 0)

    @property
    def devices(self) -> int | None:
        """The fewest devices of this memory that hold weights and cache by their bytes alone; None
        where either is not known. Layers are not cut, so that it may take one more; of a cell
        that is planned on several, how many these are."""
        if self.spread is not None:
            return self.spread
        if self.need_bytes is None or not self.memory_bytes:
            return None
        return max(1, -(-self.need_bytes // self.memory_bytes))


def request_cache(
    ref: ModelRef,
    task: PreparedTask,
    workload: Workload,
    spec: SweepSpec,
    dtype: str,
    *,
    at_least: bool = False,
) -> Cache | None:
    """The cache that timed requests of a cell fill, its values in the compute type `dtype`: the
    longest request of the workload, as many of them as are decoded together at most. `at_least`:
    of batches the smallest, as the cell is measured all the same where memory refuses the others.
    None for tasks whose model generates nothing."""
    kind = KINDS[task.card.kind]
    if not (HEADS[kind.head].decodes and kind.generates):
        return None
    token = cache_token_bytes(ref.config, COMPUTE_BYTES[dtype])
    if token is None:
        return None
    own = workload.lengths
    tokens = _longest(own and own.input, workload.prompt_tokens)
    tokens += _longest(own and own.output, workload.output_tokens)
    together = (min if at_least else max)(spec.batch_size)
    if workload.scenario == "server":
        together = max(together, workload.max_batch)
    if workload.scenario == "multi-stream":
        together = max(together, workload.streams)
    return Cache(token, tokens, together)


def _longest(lengths: Any, usual: int) -> int:
    """Tokens of the longest that `lengths` can draw; `usual` where the data decide."""
    edges = getattr(lengths, "edges", None)
    if edges:
        return int(edges[-1]) - 1
    return int(getattr(lengths, "tokens", None) or getattr(lengths, "max", None) or usual)
