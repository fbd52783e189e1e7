"""Which format is meant, and where it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precision_explorer.errors import UsageError, unknown_name

BUNDLE = "bundle"
"""The run itself, which is no format of its table."""
SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "json": (".json",),
    "xlsx": (".xlsx",),
    "model-card": (".md",),
    "mlflow": (".db", ".sqlite", ".sqlite3"),
    "png": (".png",),
    BUNDLE: (".zip",),
}
"""Each format to the ends of file names that mean it; the first is that of a default name."""

STDOUT = "-"
_TEXT = ("json", "model-card")


@dataclass(frozen=True)
class Target:
    """`place`: a file, `STDOUT`, or for ``mlflow`` also the URI of a tracking server; None for the
    tracking server that the environment names."""

    format: str
    place: str | None


def target_of(to: str, out: str | None, runs: list[Path], tracking_uri: str | None) -> Target:
    """What ``--to`` and ``--out`` say of `runs`; `tracking_uri` is MLflow's of the environment.
    UsageError where they say nothing that can be done."""
    if to in SUFFIXES:
        name = to
    else:
        name = _by_suffix(to)
        if out is not None:
            raise UsageError(f"--to {to} is a file already; leave --out away, or give --to {name}")
        out = to
    if out is None and name == "mlflow" and tracking_uri:
        return Target(name, None)
    if out == STDOUT and name not in _TEXT:
        raise UsageError(f"{name} can't be printed; give a file by --out")
    if out == STDOUT or (name == "mlflow" and out is not None and "://" in out):
        return Target(name, out)
    path = Path(_default(runs, name) if out is None else out)
    if path.is_dir():
        path = path / _default(runs, name)
    return Target(name, str(path))


def _by_suffix(to: str) -> str:
    """The format of a file name; UsageError for a word that is neither."""
    suffix = Path(to).suffix.lower()
    if not suffix:
        raise UsageError(unknown_name("format", to, SUFFIXES))
    found = [name for name, suffixes in SUFFIXES.items() if suffix in suffixes]
    if not found:
        known = ", ".join(s for suffixes in SUFFIXES.values() for s in suffixes)
        raise UsageError(f"no format ends in {suffix}; known: {known}")
    return found[0]


def _default(runs: list[Path], name: str) -> str:
    """The run's own name; of several runs that of a run's table."""
    stem = runs[0].resolve().name if len(runs) == 1 else "tradeoffs"
    return f"{stem}{SUFFIXES[name][0]}"
