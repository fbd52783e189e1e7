"""An inspection as files and on a terminal: JSON, CSV, Markdown, HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from precision_explorer.records.numerics import NUMERICS_FILE, LayerNumerics, NumericsDocument
from precision_explorer.report.csv_ import csv_text
from precision_explorer.report.html import render
from precision_explorer.report.markdown import escape, grid, listing
from precision_explorer.report.numerics import NumericsContent, make_numerics
from precision_explorer.report.terminal import grid as terminal_grid
from precision_explorer.store.atomic import write_bytes, write_json

NUMERICS_COLUMNS: tuple[str, ...] = (
    "model", "task", "device", "format", "execution", *LayerNumerics.model_fields,
)  # fmt: skip


def write_numerics(document: NumericsDocument, folder: Path) -> list[Path]:
    """Write numerics.json, .csv, .md and .html in `folder`; the same document gives the same bytes.
    Returns their paths. Raises OSError where `folder` can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / NUMERICS_FILE, document.model_dump(mode="json"))
    written = [folder / NUMERICS_FILE]
    for name, text in (
        ("numerics.csv", numerics_csv(document)),
        ("numerics.md", numerics_markdown(document)),
        ("numerics.html", numerics_html(document)),
    ):
        write_bytes(folder / name, text.encode())
        written.append(folder / name)
    return written


def numerics_csv(document: NumericsDocument) -> str:
    """One row per layer and format, in the order of execution."""
    return csv_text(NUMERICS_COLUMNS, _csv_rows(document))


def _csv_rows(document: NumericsDocument) -> list[dict[str, Any]]:
    return [
        {
            "model": document.model,
            "task": document.task,
            "device": document.device,
            "format": found.format,
            "execution": found.execution,
            **layer.model_dump(),
        }
        for found in document.formats
        for layer in found.layers
    ]


def numerics_html(document: NumericsDocument) -> str:
    """A page without scripts and without a network."""
    return render("numerics.html.j2", content=make_numerics(document))


def numerics_markdown(document: NumericsDocument) -> str:
    """The findings and the worst layers as GitHub-flavoured Markdown."""
    content = make_numerics(document)
    blocks = [f"# {escape(content.title)}", escape(content.lede)]
    blocks += listing("## Context", [f"{f.label}: {'; '.join(f.lines)}" for f in content.facts])
    blocks += listing("## Cautions", content.cautions)
    blocks += listing("## The model", content.model)
    blocks += ["## Formats", grid(content.summary)]
    for found in content.formats:
        blocks += [f"### {escape(found.title)}", *listing(None, found.sentences)]
        blocks += [grid(found.worst)] if found.worst else []
    blocks += ["## Not run", grid(content.skipped)] if content.skipped else []
    blocks += listing("## How to read this", content.notes)
    return "\n\n".join(blocks) + "\n"


def print_numerics(document: NumericsDocument, console: Console) -> None:
    """The summary table and the sentences on a terminal."""
    content: NumericsContent = make_numerics(document)
    console.print(Text(content.title, style="bold underline"))
    console.print(Text(content.lede))
    for view in (content.summary, content.skipped):
        if view is not None and view.rows:
            console.print()
            console.print(terminal_grid(view, console.width))
    groups = [("The model", content.model), *((f.title, f.sentences) for f in content.formats)]
    for title, sentences in (
        *groups,
        ("Cautions", content.cautions),
        ("How to read", content.notes),
    ):
        if sentences:
            console.print()
            console.print(Text(title, style="bold"))
        for sentence in sentences:
            console.print(Padding(Text(sentence), (0, 0, 0, 2)))
