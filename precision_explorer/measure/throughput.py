"""Offline throughput: all requests at hand, as fast as possible, at several batch sizes."""

from __future__ import annotations

import errno
import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from precision_explorer.hardware import EnergySensor, UnavailableSensor
from precision_explorer.measure.energy import EnergyWindow
from precision_explorer.measure.quiet import quiet_gc
from precision_explorer.records.record import NO_BUDGET, BatchRate, Throughput
from precision_explorer.workload import Workload

Batch = Callable[[list[int]], dict[str, Any]]

OUT_OF_MEMORY = "out of memory"
SKIPPED = "skipped: a smaller batch did not fit"
REFUSED = "refused: the server takes no more at once"
NOT_ASKED = "skipped: the server refused a smaller batch"
REFUSED_AGAIN_S = (1.0, 2.0, 4.0)
"""Pauses after which the smallest batch is sent again that a server was too busy for: it has a
limit of requests in some time, and no other size could be measured."""
_TOO_MANY = 429  # HTTP, "Too Many Requests" (RFC 6585).
_ERROR_NAMES = frozenset({"DoesNotFit", "OutOfMemoryError"})
# torch's CPU allocator and CUDA libraries raise plain RuntimeErrors with these words.
_ERROR_WORDS = (
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "out of memory",
    "defaultcpuallocator",
    "cublas_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory did not suffice; torch's class is known by its name, so
    that torch is not imported."""
    if isinstance(error, MemoryError) or {c.__name__ for c in type(error).__mro__} & _ERROR_NAMES:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _ERROR_WORDS)


def is_refused(error: BaseException) -> bool:
    """Whether a server takes no more for now."""
    return getattr(error, "status", None) == _TOO_MANY


def _free() -> None:
    """Give back what a batch that did not fit had taken."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _one_size(
    batch: Batch,
    count: int,
    size: int,
    rules: Workload,
    share_s: float,
    clock: Callable[[], float],
    sync: Callable[[], None] | None,
    warm_up: bool,
    skipped: int,
    energy: EnergyWindow | None,
) -> BatchRate:
    """One warm-up batch where asked for, then batches until the rules are met or `share_s` seconds
    are spent, those within the window of `energy`; the first `skipped` are passed over."""

    def timed(first: int) -> tuple[float, int | None]:
        indices = [(first + k) % count for k in range(size)]
        start = clock()
        answer = batch(indices)
        if sync is not None:
            sync()
        return clock() - start, (answer or {}).get("output_tokens")

    begun = clock()
    if warm_up:
        timed(0)
    times: list[float] = []
    tokens: list[int | None] = []
    note = None
    if energy is not None:
        energy.begin()
    while len(times) < rules.offline_min_batches or sum(times) < rules.offline_seconds:
        if times and clock() - begun >= share_s:
            note = "stopped by the offline budget"
            break
        spent, made = timed((skipped + len(times)) * size)
        times.append(spent)
        tokens.append(made)
    if energy is not None:
        energy.end()
    total = sum(times)
    made_all = [t for t in tokens if t is not None]
    whole = len(made_all) == len(tokens)
    return BatchRate(
        requests_per_s=len(times) * size / total if total > 0 else None,
        output_tokens_per_s=sum(made_all) / total if whole and total > 0 else None,
        batches=len(times),
        batch_s=times,
        note=note,
        **_energy(energy, len(times) * size),
    )


def _energy(window: EnergyWindow | None, requests: int) -> dict[str, Any]:
    """What a meter told of a batch size's measured batches; nothing without one."""
    if window is None:
        return {}
    found = window.record(requests)
    return {
        "energy_j": found.energy_j,
        "window_s": found.window_s,
        "requests": requests,
        "energy_note": found.note,
    }


def _window(sensor: EnergySensor, clock: Callable[[], float]) -> EnergyWindow | None:
    """None without a meter, or with an estimate, which says what the rate says."""
    measured = sensor.source.startswith("measured:") and sensor.supported()
    longer = "offline_seconds and offline_budget_seconds, which the rounds share"
    return EnergyWindow(sensor, clock=clock, longer=longer) if measured else None


def _not_measured(note: str) -> BatchRate:
    return BatchRate(requests_per_s=None, batches=0, batch_s=[], note=note)


def offline(
    batch: Batch,
    count: int,
    batch_sizes: Sequence[int],
    rules: Workload,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] | None = None,
    warm_up: bool = True,
    skipped: int = 0,
    sensor: EnergySensor | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Throughput:
    """Requests per second at each batch size, the smallest first.

    ``batch(indices)`` serves the examples of these indices at once (they run through
    0 .. `count` - 1 and begin again, also within a batch larger than `count`) and may return
    `output_tokens`. A rate is requests over the summed time of the batches, in requests per second.
    A size that does not fit, or that a server refuses, has the rate None, and larger ones are not
    tried; the smallest is sent again after pauses (`sleep`) where it is refused. Each size gets an
    equal share of what is left of ``offline_budget_seconds``, and one measured batch at least.
    `warm_up` False: the process has served these sizes before. `skipped`: how many batches earlier
    rounds have served at least; the measured ones begin after them. `sensor`: a meter that is read
    around each size's measured batches, which are not made more for it. Errors other than of memory
    are raised; ValueError without examples or sizes.
    """
    sizes = sorted(set(batch_sizes))
    if count < 1 or not sizes or sizes[0] < 1:
        raise ValueError("offline needs an example and batch sizes of at least 1")
    rates: dict[str, BatchRate] = {}
    window = _window(sensor or UnavailableSensor(), clock)
    begun = clock()
    full: str | None = None
    """What is noted of larger sizes."""
    pauses = list(REFUSED_AGAIN_S)
    for place, size in enumerate(sizes):
        left = rules.offline_budget_seconds - (clock() - begun)
        if full or (place and left <= 0):
            rates[str(size)] = _not_measured(full or NO_BUDGET)
            continue
        share = left / (len(sizes) - place)
        args = (batch, count, size, rules, share, clock, sync, warm_up, skipped, window)
        while str(size) not in rates:
            try:
                with quiet_gc():
                    rates[str(size)] = _one_size(*args)
            except Exception as error:
                if is_out_of_memory(error):
                    full, rates[str(size)] = SKIPPED, _not_measured(OUT_OF_MEMORY)
                elif place and is_refused(error):
                    full, rates[str(size)] = NOT_ASKED, _not_measured(REFUSED)
                elif not (is_refused(error) and pauses):
                    raise
            if full:
                _free()  # Outside the handler: its traceback holds the batch's tensors.
            elif str(size) not in rates:
                sleep(pauses.pop(0))
    known = {size: rates[str(size)].requests_per_s for size in sizes}
    fit = {size: rate for size, rate in known.items() if rate is not None}
    best = max(fit, key=fit.__getitem__, default=None)
    return Throughput(by_batch_size=rates, best_batch_size=best)
