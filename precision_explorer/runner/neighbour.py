"""A process that works beside a measurement: computes, copies memory, or serves another model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from precision_explorer.hardware.caches import last_level_cache_bytes
from precision_explorer.measure import NullPhases
from precision_explorer.models.adapters import make_adapter
from precision_explorer.models.loading import load, prepare
from precision_explorer.units import bytes_

Json = dict[str, Any]
Step = Callable[[], int]
"""Does a little work; how many operations that were."""

# Three float32 matrices of this side are 432 kB: within the L2 cache that a server's core has to
# itself (512 kB and more), so that this takes arithmetic and hardly any memory bandwidth.
_SIDE = 192
# STREAM's rule (McCalpin 1995): an array of at least four times the last-level cache.
_TIMES_CACHE = 4
_LEAST_BYTES = 64 << 20
# Between two looks at whether to stop.
_CHUNK_BYTES = 16 << 20


class Neighbour:
    """What the worker becomes by a request ``neighbour``: it works from ``work`` to ``rest``.

    `request`: ``kind`` (see `workload.background`), ``device``, ``threads``, and of a model its
    ``path`` and ``model`` (its name) with the ``task`` whose requests it serves. `answer`: ``what``
    it does, in words, and the ``operation`` that its rates count.
    """

    def __init__(self, request: Json) -> None:
        torch.set_num_threads(request["threads"])
        if request["device"] != "cpu":
            torch.cuda.set_device(request["device"])
        what, operation, self._step = _KINDS[request["kind"]](request)
        self.answer = {"what": what, "operation": operation}
        self._at_work = False
        self._done, self._begun = 0, 0.0
        self._error: Exception | None = None

    def work(self, request: Json) -> tuple[Json, bytes]:
        """Begin; answered after the first step, so that the work is known to be under way."""
        with torch.inference_mode():
            self._step()
        self._at_work, self._done, self._begun = True, 0, time.perf_counter()
        return {}, b""

    def meanwhile(self, called: Callable[[], bool]) -> None:
        """Work on until `called`, if at work; an error is kept for the next request."""
        try:
            with torch.inference_mode():
                while self._at_work and not called():
                    self._done += self._step()
        except Exception as error:
            self._at_work, self._error = False, error

    def rest(self, request: Json) -> tuple[Json, bytes]:
        """Stop; ``operations`` in ``seconds`` since the work began."""
        self._at_work = False
        if self._error is not None:
            raise self._error
        return {"operations": self._done, "seconds": time.perf_counter() - self._begun}, b""


def _cpu(request: Json) -> tuple[str, str, Step]:
    generator = torch.Generator().manual_seed(request["seed"])
    first, second = torch.randn(2, _SIDE, _SIDE, generator=generator)
    product = torch.empty(_SIDE, _SIDE)

    def multiply() -> int:
        torch.mm(first, second, out=product)
        return 1

    return f"products of two float32 matrices of {_SIDE} x {_SIDE}", "products", multiply


def _copy(request: Json) -> tuple[str, str, Step]:
    device = request["device"]
    size = max(_TIMES_CACHE * (last_level_cache_bytes() or 0), _LEAST_BYTES)
    chunks = -(-size // _CHUNK_BYTES)
    pinned = device != "cpu"
    here = torch.zeros(chunks, _CHUNK_BYTES, dtype=torch.uint8, pin_memory=pinned)
    there = torch.ones(chunks, _CHUNK_BYTES, dtype=torch.uint8, device=device)
    place = 0

    def move() -> int:
        nonlocal place
        # All of it there, then all of it back: what is read was written a whole array ago.
        way, chunk = divmod(place, chunks)
        source, target = (here, there) if way == 0 else (there, here)
        target[chunk].copy_(source[chunk])
        place = (place + 1) % (2 * chunks)
        return _CHUNK_BYTES

    size_text = bytes_(chunks * _CHUNK_BYTES)
    where = "from one array to another and back" if device == "cpu" else "to the GPU and back"
    return f"copies of an array of {size_text} {where}", "bytes", move


def _model(request: Json) -> tuple[str, str, Step]:
    path, kind, device = Path(request["path"]), request["card"]["kind"], request["device"]
    trusted = request["trust_remote_code"]
    tokenizer = prepare(path, kind, trusted)
    pickled = request.get("pickled", False)
    model = load(path, kind, torch.float32, device, trusted, pickled=pickled)
    adapter = make_adapter(model, tokenizer, device, request)
    number, count = 0, len(request["examples"])

    def serve() -> int:
        nonlocal number
        adapter.request(number % count, NullPhases())
        if device != "cpu":
            torch.cuda.synchronize(device)
        number += 1
        return 1

    what = (
        f"{request['model']} in float32 with {request['threads']} threads: requests of "
        f"{request['task']}, the next when the last is done"
    )
    return what, "requests", serve


_KINDS: dict[str, Callable[[Json], tuple[str, str, Step]]] = {
    "cpu": _cpu,
    "copy": _copy,
    "model": _model,
}
