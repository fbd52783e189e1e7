"""Metrics of the `evaluate` library, written ``evaluate:NAME``: which are local modules, which
would be fetched, and how they are called in the files. The library itself is imported elsewhere, in
a process of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from precision_explorer.errors import TaskError, UsageError

PREFIX = "evaluate:"


@dataclass(frozen=True)
class ExternalMetric:
    """A metric of the `evaluate` library.

    `label` is its name in files and tables: without a path, which would name people and machines.
    `source` is what is loaded: the absolute path of a local module's script, or a name of the hub.
    `key` names one of the numbers that it returns; None for its only one, or that of its own name.
    """

    label: str
    source: str
    local: bool
    key: str | None = None

    @property
    def hash(self) -> str | None:
        """16 hex digits of the SHA-256 over the Python files of a local module (its script, and
        what lies beside it in a folder of its name); None for one that would be fetched."""
        if not self.local:
            return None
        script = Path(self.source)
        own_folder = script.parent.name == script.stem
        files = sorted(script.parent.glob("*.py")) if own_folder else [script]
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def is_external(metric: str) -> bool:
    """Whether `metric` is one of the `evaluate` library."""
    return metric.startswith(PREFIX)


def external_label(metric: str) -> str:
    """How ``evaluate:./folder/exact.py#em`` is called: ``evaluate:exact#em``. ValueError where
    there is no name."""
    name, _, key = metric.removeprefix(PREFIX).partition("#")
    short = Path(name).stem if _is_path(name) else name
    if not short or short in (".", "..") or metric.endswith("#"):
        raise ValueError(
            f"'{metric}' names no metric; write it as evaluate:./my_metric or evaluate:f1"
        )
    return PREFIX + short + (f"#{key}" if key else "")


def external_metric(metric: str, folder: Path) -> ExternalMetric:
    """`metric` resolved: a path, relative to `folder`, is that of a module's script or of a folder
    with a script of its name. TaskError where there is none, or `metric` names nothing."""
    try:
        label = external_label(metric)
    except ValueError as error:
        raise TaskError(str(error)) from error
    name, _, key = metric.removeprefix(PREFIX).partition("#")
    if not _is_path(name):
        return ExternalMetric(label, name, False, key or None)
    path = (folder / Path(name).expanduser()).resolve()
    script = path / f"{path.name}.py" if path.is_dir() else path
    if not script.is_file():
        raise TaskError(
            f"no metric module at {script}; give evaluate: a Python file, or a folder with one of "
            "the same name"
        )
    return ExternalMetric(label, str(script), True, key or None)


def check_allowed(metrics: Iterable[ExternalMetric], allowed: Iterable[str]) -> None:
    """UsageError for a metric that is no local module and not `allowed`: loading it by name may
    download Python and run it."""
    known = set(allowed)
    for metric in metrics:
        if not metric.local and metric.source not in known:
            raise UsageError(
                f"{metric.label} is no local module: loading it by name may download Python and "
                f"run it; allow that by --allow-metric {metric.source}, or give the path of one"
            )


def _is_path(name: str) -> bool:
    """A name of the hub is ``f1`` or ``user/f1``: a path says that it is one."""
    return name.startswith((".", "/", "~")) or name.endswith(".py")
