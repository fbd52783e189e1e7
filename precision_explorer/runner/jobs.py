"""Work in a worker that is no cell: named jobs, each a function of the measuring wing that is
imported in the worker only.

A job is a function ``(request, progress) -> (answer, arrow)``: `answer` is JSON-able, `arrow` an
Arrow stream or empty, `progress(phase, done, total)` may be called as often as one likes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from precision_explorer.errors import PrecisionExplorerError
from precision_explorer.paths import without_paths
from precision_explorer.runner.manager import (
    OnEvent,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    prepare_environment,
    start_context,
)
from precision_explorer.runner.places import PlaceWorker, elsewhere

# {job: module and function}
JOBS: dict[str, str] = {
    "batches": "precision_explorer.runner.batch_job:run",
    "numerics": "precision_explorer.runner.numerics_job:run",
    "roof": "precision_explorer.measure.roof:measure_roof",
    "blocks": "precision_explorer.models.dispatch:list_blocks",
    "tensors": "precision_explorer.models.tensors:list_tensors",
    "layers": "precision_explorer.runner.sensitivity:measure_layers",
    "recipes": "precision_explorer.runner.sensitivity:try_assignments",
    "layer-names": "precision_explorer.runner.sensitivity:list_layers",
    "evaluate": "precision_explorer.runner.evaluate_job:run",
}


class JobFailed(PrecisionExplorerError):
    """A job that did not answer; one line with what to do."""


def load_job(name: str) -> Any:
    """The function of the job called `name`. For the worker."""
    module, _, function = JOBS[name].partition(":")
    return getattr(importlib.import_module(module), function)


def run_job(
    name: str,
    request: dict[str, Any],
    threads: int,
    on_event: OnEvent,
    timeout_s: float,
    keep: Iterable[str] = (),
) -> tuple[dict[str, Any], bytes]:
    """Run the job `name` in a new worker with `threads` and return its answer.

    `request` must hold ``device``, None for a job without torch, whose process starts from nothing
    rather than from the fork server; what it holds is pickled to the worker. `keep`: variables of
    the environment that it gets though they may hold secrets (`scrub`). Raises JobFailed when the
    job raised, crashed or took more than `timeout_s` seconds.
    """
    prepare_environment(threads)
    with tempfile.TemporaryDirectory(prefix="precision-explorer-") as folder:
        log = Path(folder) / "job.log"
        whole = request | {"op": "job", "job": name, "threads": threads, "log": str(log)}
        worker: WorkerHandle | PlaceWorker | None = None
        try:
            plain = request["device"] is None
            context = multiprocessing.get_context("spawn") if plain else start_context()
            worker = elsewhere(on_event) or WorkerHandle(context, on_event, keep)
            return worker.ask(whole, time.monotonic() + timeout_s)
        except (WorkerError, WorkerGone, EOFError) as error:
            why = without_paths(str(error) or "its worker did not start")
            why = why.partition("; see the cell's log")[0]
            raise JobFailed(f"{name}: {why}") from error
        finally:
            if worker is not None:
                worker.close()
