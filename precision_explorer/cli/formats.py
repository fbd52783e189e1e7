"""``precision-explorer formats``."""

from __future__ import annotations

import click


@click.command("formats", short_help="What this machine makes of each format, and why.")
@click.option("--device", default="auto", metavar="auto|cpu|cuda:0", help="Which device (auto).")
def command(device: str) -> int:
    """What this machine runs natively, dequantized, emulated or not at all, and why.

    Decided from the device's facts and a tiny dry run on it, which is cached.
    """
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.progress import progress
    from precision_explorer.cli.show import console
    from precision_explorer.formats import spec_of
    from precision_explorer.runner.sweep import probe_device

    with progress() as on_event:
        facts, supports = probe_device(device, on_event)
    table = Table(title=f"{escape(facts.name)} ({facts.device})", title_justify="left")
    for heading in ("format", "weights / activations", "execution", "why"):
        table.add_column(heading, overflow="fold")
    for name, support in supports.items():
        spec = spec_of(name)
        kinds = f"{spec.weights} / {spec.activations}"
        table.add_row(name, kinds, support.execution, escape(support.reason))
    console().print(table)
    return 0
