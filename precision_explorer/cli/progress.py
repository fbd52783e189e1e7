"""Progress on stderr: a live line on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.units import clock, rate, seconds


def _label(data: dict[str, Any]) -> str:
    runtime = data.get("runtime", "eager")
    how = "" if runtime == "eager" else f", {runtime}"
    return f"{data['model']} {data['task']} {data['format']}{how}"


class _Plain:
    """One line per event that a log's reader wants: starts, ends, skips and notes."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """Write one line with the time since the start."""
        click.echo(f"[{clock(time.monotonic() - self.started)}] {text}", err=True)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        data = event.data
        if event.name == "note":
            self.say(data["text"])
        elif event.name == "start":
            self.say(f"{_label(data)}: start")
        elif event.name == "skip":
            self.say(f"{_label(data)}: skipped ({data['reason']})")
        elif event.name == "cell":
            how = "already there" if data["reused"] else data["status"]
            why = f" ({data['message']})" if data.get("message") else ""
            self.say(f"{_label(data)}: {how}{why}")


class _Live(_Plain):
    """The plain lines above one live line: cell, phase, examples per second, time left."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar = bar
        self.task = bar.add_task("", total=None, rate="")
        self.cell = ""
        self.phase = ""
        self.phase_started = time.monotonic()

    def say(self, text: str) -> None:
        """Write one line above the live one."""
        self.bar.console.print(text, markup=False, highlight=False)

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.name in ("start", "compare", "round"):
            self.cell = _label(event.data)
            if event.name == "round":
                self.cell += f", round {event.data['round'] + 1} of {event.data['rounds']}"
            self.bar.update(self.task, description=f"{self.cell}: start", total=None, rate="")
            return
        if event.name != "progress":
            super().__call__(event)
            return
        data = event.data
        if data["phase"] != self.phase:
            self.phase, self.phase_started = data["phase"], time.monotonic()
        self._update(data["done"], data["total"])

    def _update(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self.phase_started
        text = ""
        if total > 1 and done and elapsed > 0.5:
            left = elapsed / done * (total - done)
            text = f"{rate(done / elapsed, 'examples/s')}, {seconds(left)} left"
        self.bar.update(
            self.task,
            description=f"{self.cell}: {self.phase}",
            completed=done,
            total=total if total > 1 else None,
            rate=text,
        )


@contextmanager
def progress() -> Iterator[OnEvent]:
    """A receiver of events that shows them for as long as the block runs."""
    if not sys.stderr.isatty():
        yield _Plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # Drawing is work beside the measurement: twice a second is enough to read.
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        yield _Live(bar)
