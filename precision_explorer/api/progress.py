"""Progress on stderr: a live line on a terminal, plain lines when piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.units import clock, rate, seconds


def _label(data: dict[str, Any]) -> str:
    runtime = data.get("runtime", "eager")
    how = "" if runtime == "eager" else f", {runtime}"
    where = f" on {data['place']}" if data.get("place") else ""
    return f"{data['model']} {data['task']} {data['format']}{how}{where}"


# A pipe's reader is told this often how far a cell is.
_EVERY_S = 15.0
_PHASES = {
    "noise": "scored again",
    "keep": "keeps its distributions",
    "compare": "held against the reference",
    "offline": "throughput",
}
_UNITS = {"keep": "positions", "compare": "positions", "compile": "shapes", "layers": "layers"}
_UNITS["audit"] = "checks"
_UNITS |= dict.fromkeys(("quality", "noise", "calibrate", "examples"), "examples")


class _Place:
    """Where a sweep is: the cell, what is done of it, and how far that is."""

    def __init__(self) -> None:
        self.cell = ""
        self.phase, self.done, self.total = "start", 0, 1
        self.began = time.monotonic()

    def see(self, event: Event) -> None:
        """Follow an event of another cell or round, or a message of its worker."""
        data = event.data
        if event.name != "progress":
            self.cell = _label(data)
            if event.name == "round":
                self.cell += f", round {data['round'] + 1} of {data['rounds']}"
                self.cell += ", disturbed" if data.get("disturbed") else ""
            self.phase, self.done, self.total = "start", 0, 1
            return
        if data["phase"] != self.phase:
            self.phase, self.began = data["phase"], time.monotonic()
        self.done, self.total = data["done"], data["total"]

    @property
    def text(self) -> str:
        """The cell and what is done of it."""
        phase = _PHASES.get(self.phase, self.phase)
        return f"{self.cell}: {phase}" if self.cell else phase

    @property
    def how_far(self) -> str:
        """What is done of how much, how fast, and the time left; empty for what has no parts."""
        if self.total <= 1:
            return ""
        unit = _UNITS.get(self.phase, "steps")
        text = f"{self.done:,} of {self.total:,} {unit}"
        elapsed = time.monotonic() - self.began
        if self.done and elapsed > 0.5:
            left = elapsed / self.done * (self.total - self.done)
            text += f", {rate(self.done / elapsed, f'{unit}/s')}, {seconds(left)} left"
        return text


class _Plain:
    """One line per event that a log's reader wants: starts, ends, skips and notes; between them now
    and then how far a cell is."""

    def __init__(self) -> None:
        self.started = self.said = time.monotonic()
        self.place = _Place()
        self._places = {"": self.place}

    def see(self, event: Event) -> None:
        """Follow an event where it happened: several places may measure at once."""
        self.place = self._places.setdefault(event.data.get("place", ""), _Place())
        self.place.see(event)

    def say(self, text: str) -> None:
        """Write one line with the time since the start."""
        self.said = time.monotonic()
        click.echo(f"[{clock(self.said - self.started)}] {text}", err=True)

    def _show_place(self) -> None:
        place = self.place
        if time.monotonic() - self.said >= _EVERY_S and place.phase != "start":
            self.say(", ".join(filter(None, (place.text, place.how_far))))

    def __call__(self, event: Event) -> None:
        """Show one event."""
        data = event.data
        if event.name in ("start", "compare", "audit", "round", "progress"):
            self.see(event)
        if event.name == "note":
            self.say(": ".join(filter(None, (data.get("place"), data["text"]))))
        elif event.name == "start":
            self.say(f"{_label(data)}: start")
        elif event.name == "progress":
            self._show_place()
        elif event.name == "skip":
            self.say(f"{_label(data)}: skipped ({data['reason']})")
        elif event.name == "cell":
            how = "already there" if data["reused"] else data["status"]
            why = f" ({data['message']})" if data.get("message") else ""
            self.say(f"{_label(data)}: {how}{why}")


class _Live(_Plain):
    """The plain lines above one live line: cell, phase, how far it is and the time left."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar = bar
        self.task = bar.add_task("", total=None, rate="")

    def say(self, text: str) -> None:
        """Write one line above the live one."""
        self.bar.console.print(text, markup=False, highlight=False)

    def _show_place(self) -> None:
        place = self.place
        self.bar.update(
            self.task,
            description=place.text,
            completed=place.done,
            total=place.total if place.total > 1 else None,
            rate=place.how_far,
        )

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if event.name in ("start", "compare", "audit", "round"):
            self.see(event)
            self._show_place()
            return
        super().__call__(event)


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
    bar = Progress(*columns, console=console, transient=True, refresh_per_second=2)
    bar.start()
    try:
        yield _Live(bar)
    finally:
        # Of a terminal that is gone: what ended the block must not be lost for that.
        with suppress(OSError):
            bar.stop()
