"""``precision-explorer tasks``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from precision_explorer.tasks import TaskCard

Row = tuple[str, ...]


@click.command("tasks", short_help="The task cards known.")
@click.option("--verbose", is_flag=True, help="Everything of each card, its prompt too.")
def command(verbose: bool) -> int:
    """The task cards known, bundled ones first, with kind, size, metric and licence."""
    from precision_explorer.cli.show import console
    from precision_explorer.tasks import bundled_cards, hub_cards, load_card, prepare

    out = console()
    bundled = [load_card(name) for name in bundled_cards()]
    sizes = [f"{prepare(loaded, None, 0).identity.n:,}" for loaded in bundled]
    own = [(loaded.card, size) for loaded, size in zip(bundled, sizes, strict=True)]
    hub = [(card, str(card.data.hub)) for card in (load_card(name).card for name in hub_cards())]
    if verbose:
        for card, size in own:
            out.print(_whole(card, ("examples", size)))
        for card, data in hub:
            out.print(_whole(card, ("data set", f"{data}, read when a sweep first asks for it")))
    else:
        headings = ("task", "kind", "examples", "metric", "licence", "source")
        rows = [(c.name, c.kind, size, c.metric, c.licence, c.source) for c, size in own]
        out.print(_table("", headings, rows))
        title = "Of the Hugging Face hub, read when a sweep first asks for them"
        headings = ("task", "kind", "data set", "metric", "source")
        out.print(
            _table(title, headings, [(c.name, c.kind, d, c.metric, c.source) for c, d in hub])
        )
    out.print("Beside these: --task lm-eval:NAME, with the names that lm-eval ls tasks lists")
    return 0


def _table(title: str, headings: Row, rows: list[Row]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _whole(card: TaskCard, size: tuple[str, str]) -> Table:
    """One card, a line for each thing that it says."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=card.name, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (("kind", card.kind), size, *_said(card)):
        table.add_row(name, escape(text))
    return table


def _said(card: TaskCard) -> Iterator[tuple[str, str]]:
    yield "metrics", ", ".join(card.metrics)
    yield "licence", card.licence
    yield "source", card.source
    if card.prompt is not None:
        # Line breaks are part of a prompt, and leading spaces of a choice.
        yield "prompt", repr(card.prompt)
    if card.choices:
        yield "choices", ", ".join(map(repr, card.choices))
