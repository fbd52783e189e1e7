"""``precision-explorer tasks``."""

from __future__ import annotations

import click


@click.command("tasks", short_help="The task cards known.")
def command() -> int:
    """The task cards known, bundled ones first, with kind, size, metric and licence."""
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.tasks import bundled_cards, hub_cards, load_card, prepare

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
    of_hub = Table(title="Of the Hugging Face hub, read when a sweep first asks for them")
    for heading in ("task", "kind", "data set", "metric", "source"):
        of_hub.add_column(heading, overflow="fold")
    for name in hub_cards():
        card = load_card(name).card
        row = (card.name, card.kind, str(card.data.hub), card.metric, card.source)
        of_hub.add_row(*(escape(cell) for cell in row))
    console().print(of_hub)
    console().print("Beside these: --task lm-eval:NAME, with the names that lm-eval ls tasks lists")
    return 0
