"""What shells are offered for the values of options and arguments.

A shell waits for it at every press of the tab key, so nothing is imported but `click`: names stand
here once more, and a test holds them to be those that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click
from click.shell_completion import CompletionItem

FORMATS = (
    "fp32", "tf32", "bf16", "fp16", "fp8-dynamic", "fp8-weight-only", "int8-llm",
    "int8-weight-only", "int8-dynamic", "int8-static", "nf4", "int4-weight-only",
    "fp8-dynamic-per-tensor", "mxfp8", "nvfp4", "bf16-autocast", "as-shipped", "all",
)  # fmt: skip
MODELS = ("demo", "demo-digits", "minilm-l6-v2", "smollm2-135m")
OBJECTIVES = (
    "quality", "latency", "latency_p90", "latency_p99", "latency_p999", "rate", "throughput",
    "memory", "weights", "cost", "value", "net", "energy",
)  # fmt: skip
RUNTIMES = ("eager", "compile", "compile-fixed", "endpoint")
WORKLOADS = (
    "single-stream", "multi-stream", "offline", "server", "poisson", "bursty", "chat", "rag",
    "classification-api", "batch-scoring",
)  # fmt: skip
# Where a sweep puts a run that is not told where.
_RESULTS = "results"
_Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def one_of(names: Iterable[str] | Callable[[], Iterable[str]], or_file: bool = False) -> _Complete:
    """Completes one value; with `or_file` the shell offers its files where no name fits."""

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        known = names() if callable(names) else names
        found = [CompletionItem(name) for name in known if name.startswith(typed)]
        return found or ([CompletionItem(typed, type="file")] if or_file else [])

    return complete


def several_of(names: Iterable[str]) -> _Complete:
    """Completes the last of values that commas part, by one that is not among them."""

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        before, comma, last = typed.rpartition(",")
        given = before.split(",")
        fit = (name for name in names if name.startswith(last) and name not in given)
        return [CompletionItem(f"{before}{comma}{name}") for name in fit]

    return complete


def tasks() -> list[str]:
    """The bundled cards' names, which are those of their folders."""
    from precision_explorer.paths import cards_dir

    return sorted(path.parent.name for path in cards_dir().glob("*/task.yaml"))


def runs(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
    """Folders of runs: beside what is typed, else in the working directory and in ``results/``."""
    head, slash, _name = typed.rpartition("/")
    places = [Path(head or "/")] if slash else [Path(), Path(_RESULTS)]
    found = [str(path) for place in places for path in _runs_in(place)]
    fit = [CompletionItem(path) for path in found if path.startswith(typed)]
    return fit or [CompletionItem(typed, type="dir")]


def _runs_in(place: Path) -> Iterator[Path]:
    try:
        folders = sorted(place.iterdir())
    except OSError:
        return
    for folder in folders:
        if (folder / "sweep.json").is_file():
            yield folder
