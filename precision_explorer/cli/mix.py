"""``precision-explorer mix``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from precision_explorer.runner.mix import Found

_SHOWN = 10
# Columns of a terminal that a layer's name, format, sizes and times take, and one more loss.
_WHOLE_WIDTH, _LOSS_WIDTH = 100, 12


@click.command("mix", short_help="Search which format each layer should be held in.")
@click.option("--model", default="demo", metavar="ID|PATH|demo", help="As for sweep (demo).")
@click.option("--task", metavar="NAME|PATH", help="The card whose calibration set is used.")
@click.option(
    "--formats",
    default="int8-weight-only,nf4",
    metavar="a,b,...",
    help="What a layer may be held in (int8-weight-only,nf4); name fp32 too to leave layers as "
    "they are.",
)
@click.option("--budget-bytes", metavar="SIZE|SHARE", help="All weights: 100MB, or 60% of fp32's.")
@click.option("--budget-latency", metavar="TIME|SHARE", help="One request: 80ms, or 90%.")
@click.option(
    "--budget-energy", metavar="JOULES|SHARE", help="One request: 2J, or 90%; meters only."
)
@click.option("--out", default="recipe.yaml", metavar="FILE.yaml", help="The recipe (recipe.yaml).")
@click.option("--device", default="auto", metavar="auto|cpu|cuda:0", help="Where to run (auto).")
@click.option(
    "--tokens", type=click.IntRange(min=16), default=512, metavar="N",
    help="Calibration tokens looked at (512).",
)  # fmt: skip
@click.option("--calibration", metavar="FILE", help="Calibration texts in place of the card's.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Order of the texts (0).")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (all usable cores).")
@click.option("--revision", metavar="REV", help="Hub revision of the model; recorded.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model's own code run.")
@click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights where there are no others."
)
def command(**given: Any) -> int:
    """Search which format each linear layer should be held in, within one budget.

    Each layer is tried alone in each format on calibration data; the recipe that loses least (mean
    KL divergence from the unquantized model) within the budget is searched by integer programming,
    tried as a whole, and written. Run it by: sweep --formats mixed:recipe.yaml
    """
    from precision_explorer.api.progress import progress
    from precision_explorer.runner.mix import MixOptions, find_recipe

    budget = _one_budget(given)
    names = tuple(name.strip() for name in given.pop("formats").split(",") if name.strip())
    with progress() as on_event:
        found = find_recipe(MixOptions(formats=names, budget=budget, **given), on_event)
    _show(found)
    return 0


def _one_budget(given: dict[str, Any]) -> tuple[str, str]:
    from precision_explorer.errors import UsageError

    texts = {kind: given.pop(f"budget_{kind}") for kind in ("bytes", "latency", "energy")}
    named = [(kind, text) for kind, text in texts.items() if text is not None]
    if len(named) != 1:
        raise UsageError(
            "a search keeps one budget; give one of --budget-bytes, --budget-latency and "
            "--budget-energy"
        )
    return named[0]


def _show(found: Found) -> None:
    """The most harmful layers, the recipe beside the uniform formats, and where it lies."""
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.units import bytes_, significant

    out = console()
    out.print(_layers(found, out.width))
    whole = Table(title=f"On {found.tokens} calibration tokens", title_justify="left")
    for heading in ("format", "weights", "KL, nats", "predicted"):
        whole.add_column(heading, justify="left" if heading == "format" else "right")
    for row in found.uniform:
        whole.add_row(row.format, bytes_(row.weight_bytes), significant(row.kl_nats), "")
    recipe = found.recipe
    whole.add_row(
        escape(found.label),
        bytes_(recipe.weight_bytes),
        significant(recipe.verified_kl_nats),
        significant(recipe.predicted_kl_nats),
    )
    out.print(whole)
    click.echo(f"run it by: precision-explorer sweep --formats mixed:{found.path} ...", err=True)


def _layers(found: Found, width: int) -> Any:
    """The layers that lose most, as a table that fits in `width`: without sizes and times, which
    the file of measurements has, where these would fold every name."""
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.units import bytes_, seconds, significant

    base, shown = found.recipe.base, found.layers[:_SHOWN]
    rest = len(found.layers) - len(shown)
    which = f"{len(shown)} of {len(found.layers)}; the rest in {found.path.name}" if rest else "all"
    table = Table(
        title=f"Layers that lose most when quantized alone ({escape(which)})", title_justify="left"
    )
    table.add_column("layer", no_wrap=True)
    losses = list(found.layers[0].kl_nats)
    for name in losses:
        table.add_column(f"KL in {name}, nats", justify="right")
    table.add_column("chosen", no_wrap=True)
    whole = width >= _WHOLE_WIDTH + _LOSS_WIDTH * len(losses)
    for heading in ("bytes", "time") if whole else ():
        table.add_column(f"{heading}, {base}", justify="right")
        table.add_column(f"{heading}, chosen", justify="right")
    for layer in shown:
        cells = [significant(loss) for loss in layer.kl_nats.values()] + [layer.chosen]
        if whole:
            cells += [bytes_(layer.bytes[name]) for name in (base, layer.chosen)]
            cells += [seconds(layer.seconds[name]) for name in (base, layer.chosen)]
        table.add_row(escape(layer.name), *cells)
    return table
