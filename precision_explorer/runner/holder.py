"""A worker with the model that it holds, and the cells that share it. No torch here."""

from __future__ import annotations

import tempfile
from typing import Any

from precision_explorer.plan import PlannedCell
from precision_explorer.runner.manager import WorkerError, WorkerGone, WorkerHandle

Json = dict[str, Any]
LOST = (WorkerError, WorkerGone, EOFError)
"""What a worker's end, or its error, raises."""


class Holder:
    """The cells of one session and, once it is started, the worker that has loaded their model.

    `load`: its answer, None until then. `peak_bytes`: the most that loading and scoring took.
    `apart`: memory did not hold this model beside the others. `lost`: it could not be loaded.
    """

    def __init__(self, cells: list[PlannedCell]) -> None:
        self.cells = cells
        self.worker: WorkerHandle | None = None
        self.load: Json | None = None
        self.peak_bytes = 0
        self.apart = self.lost = False
        self.compiled: set[str] = set()
        self._cache: tempfile.TemporaryDirectory[str] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the worker lives and holds the model."""
        worker = self.worker
        return worker is not None and self.load is not None and worker.process.is_alive()

    @property
    def pid(self) -> int:
        """The worker's process number; 0 without one."""
        return (self.worker.process.pid or 0) if self.worker is not None else 0

    def start(self, worker: WorkerHandle) -> Json:
        """Take over a new worker; returns what its load request needs beside the cell's."""
        self.worker = worker
        # Made here, since a worker that is killed could not remove it.
        self._cache = tempfile.TemporaryDirectory(
            prefix="precision-explorer-", ignore_cleanup_errors=True
        )
        return {"compile_cache": self._cache.name}

    def saw(self, answer: Json) -> None:
        """Note the peaks in an answer to load or quality."""
        load_peak = answer.get("memory", {}).get("load_peak_bytes")
        peaks = (load_peak, answer.get("peak_bytes"), self.peak_bytes)
        self.peak_bytes = max(peak for peak in peaks if peak is not None)

    def kill(self) -> None:
        """End the worker whatever it does, without waiting for it."""
        if self.worker is not None:
            self.worker.kill_soon()

    def close(self) -> float:
        """End the worker and remove what it compiled; returns the seconds that it was busy."""
        worker, self.worker, self.load = self.worker, None, None
        self.compiled = set()
        if worker is not None:
            worker.close()
        if self._cache is not None:
            self._cache.cleanup()
            self._cache = None
        return worker.busy_s if worker is not None else 0.0
