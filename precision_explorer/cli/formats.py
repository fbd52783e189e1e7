"""``precision-explorer formats``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from precision_explorer.formats import Support


@click.command("formats", short_help="What a device makes of each format, and why.")
@click.option("--device", metavar="auto|cpu|cuda:0", help="Which device of this machine (auto).")
@click.option(
    "--device-profile", metavar="NAME",
    help="A device you don't have, such as h100, l4, a100 or x86-amx: answered from its published "
    "facts alone, and marked as not probed.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def command(device: str | None, device_profile: str | None, as_json: bool) -> int:
    """What a device runs natively, dequantized, emulated or not, why, and what it would take.

    Decided from the device's facts and a tiny dry run on it, which is cached.
    """
    from precision_explorer.errors import UsageError
    from precision_explorer.formats.matrix import probed_document, profile_document, promises

    if device is not None and device_profile is not None:
        raise UsageError(
            "--device asks this machine and --device-profile one that you don't have; give one"
        )
    if device_profile is not None:
        from precision_explorer.hardware import named_profile

        profile = named_profile(device_profile)
        supports = promises(profile)
        if as_json:
            _print_json(profile_document(profile, supports))
        else:
            _print_table(f"{profile.name}: not probed, from {profile.source}", supports, False)
        return 0
    from precision_explorer.api.progress import progress
    from precision_explorer.hardware import library_versions
    from precision_explorer.runner.sweep import probe_device

    with progress() as on_event:
        facts, supports = probe_device(device or "auto", on_event)
    if as_json:
        _print_json(probed_document(facts, supports, library_versions()))
    else:
        _print_table(f"{facts.name} ({facts.device})", supports, True)
    return 0


def _print_json(document: dict[str, object]) -> None:
    import json

    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _print_table(title: str, supports: dict[str, Support], probed: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.formats import spec_of

    table = Table(title=escape(title), title_justify="left")
    for heading in ("format", "weights / activations", "execution", "why"):
        table.add_column(heading, overflow="fold")
    for name, support in supports.items():
        spec = spec_of(name)
        kinds = f"{spec.weights} / {spec.activations}"
        execution = support.execution if probed else f"{support.execution}, not probed"
        table.add_row(name, kinds, execution, escape(support.why))
    console().print(table)
