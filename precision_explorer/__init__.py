"""precision-explorer: which numeric format should this model run in, on this task and device?

From Python: ``sweep(...)`` measures and returns a `Run`, ``open_run(folder)`` opens a stored one
(docs/api.md). Both are imported when they are first used, so that this import costs next to
nothing.

Two wings are joined by files only. The measuring wing (``models``, ``formats.apply``, ``measure``,
``runner.worker``) may import torch. Everything else never does, so that old results open on a
laptop in a fraction of a second. ``tests/test_rooms.py`` holds both rules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precision_explorer.api.answers import Comparisons, Decisions
    from precision_explorer.api.run import Run, open_run
    from precision_explorer.api.sweeps import sweep
    from precision_explorer.errors import (
        ModelError,
        PrecisionExplorerError,
        StoreError,
        TaskError,
        UsageError,
    )
    from precision_explorer.runner.manager import Event

__version__ = "0.1.0"

__all__ = [
    "Comparisons",
    "Decisions",
    "Event",
    "ModelError",
    "PrecisionExplorerError",
    "Run",
    "StoreError",
    "TaskError",
    "UsageError",
    "__version__",
    "open_run",
    "sweep",
]

_WHERE = {
    "Comparisons": "api.answers",
    "Decisions": "api.answers",
    "Event": "runner.manager",
    "ModelError": "errors",
    "PrecisionExplorerError": "errors",
    "Run": "api.run",
    "StoreError": "errors",
    "TaskError": "errors",
    "UsageError": "errors",
    "open_run": "api.run",
    "sweep": "api.sweeps",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
