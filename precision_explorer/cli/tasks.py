"""``precision-explorer tasks``."""

from __future__ import annotations

import click


@click.command("tasks", short_help="The task cards known.")
def command() -> int:
    """The task cards known, with kind, size, metric and licence."""
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.tasks import bundled_cards, load_card, prepare

    table = Table()
    for heading in ("task", "kind", "examples", "metric", "licence", "source"):
        table.add_column(heading, overflow="fold")
    for name in bundled_cards():
        loaded = load_card(name)
        card = loaded.card
        size = prepare(loaded, None, 0).identity.n
        cells = (card.name, card.kind, f"{size:,}", card.metric, card.licence, card.source)
        table.add_row(*(escape(str(cell)) for cell in cells))
    console().print(table)
    return 0
