"""``precision-explorer reproduce``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from precision_explorer.cli import completing

if TYPE_CHECKING:
    from precision_explorer.runner.reproduce import Pair


@click.command("reproduce", short_help="Run a stored run's plan again, and hold it against it.")
@click.argument(
    "run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completing.runs
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="The new run's own folder (results/NAME-again).",
)  # fmt: skip
@click.option("--formats", metavar="a,b,...", help="Only these formats, and the reference.")
@click.option(
    "--model", multiple=True, metavar="ID|PATH",
    help="Where the run's model lies, if it was a folder: a run keeps its name and hashes.",
)  # fmt: skip
@click.option("--task", multiple=True, metavar="PATH", help="Where the run's task card lies.")
@click.option("--workload", metavar="FILE", help="The run's workload, if it was a file.")
@click.option("--calibration", metavar="FILE", help="The run's calibration texts.")
@click.option("--device", metavar="auto|cpu|cuda:0", help="Another device than the run names.")
@click.option("--threads", type=int, metavar="N", help="Another number of CPU threads.")
@click.option(
    "--trust-remote-code", is_flag=True, default=None,
    help="Let the model folder's own Python code run, as the run did.",
)  # fmt: skip
@click.option(
    "--allow-pickle", is_flag=True, default=None,
    help="Read a model's pickled weights, as the run did.",
)  # fmt: skip
@click.option(
    "--allow-metric", multiple=True, metavar="NAME",
    help="A metric of evaluate that may be fetched, and its Python run.",
)  # fmt: skip
def command(run: Path, out: Path | None, **options: Any) -> int:
    """Run the plan of RUN again into a new folder, and say what came out otherwise: quality,
    example by example, and medians of time with their ratios.

    Refuses where model or data here are not those of RUN. Other libraries, another device and what
    this release measures otherwise are told. Ends with 5 where a cell answered otherwise.
    """
    from precision_explorer.api.progress import progress
    from precision_explorer.errors import UsageError
    from precision_explorer.report import write_all
    from precision_explorer.runner.reproduce import check_inputs, check_target, pairs, stored_spec
    from precision_explorer.runner.sweep import prepare_sweep, run_sweep
    from precision_explorer.table import build

    given = {k: v for k, v in options.items() if v is not None and v != ()}
    target = out or Path("results") / f"{run.resolve().name}-again"
    if target.resolve() == run.resolve():
        raise UsageError(f"{target} is the run itself; give another --out")
    check_target(run, target)
    spec = stored_spec(run, given | {"out": str(target)})
    with progress() as on_event:
        prepared = prepare_sweep(spec, on_event)
        for note in check_inputs(run, prepared):
            click.echo(f"note: {note}", err=True)
        _, tally = run_sweep(prepared, on_event)
    write_all(build([target]), target)
    if tally.reused:
        click.echo(f"note: {tally.reused} cells stood in {target} from an earlier call", err=True)
    found = pairs(run, target)
    _print(found)
    differing = [pair for pair in found if not pair.same]
    click.echo(
        f"{len(found) - len(differing)} of {len(found)} cells ended and answered as before; "
        f"the two runs: {run} {target}",
        err=True,
    )
    if tally.failed:
        return 3
    return 5 if differing else 0


def _print(found: list[Pair]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from precision_explorer.cli.show import console
    from precision_explorer.units import seconds, significant

    table = Table()
    for heading in ("task", "format", "quality", "answers", "median latency", "offline rate"):
        table.add_column(heading, overflow="fold")
    for pair in found:
        label = pair.format if pair.runtime == "eager" else f"{pair.format} ({pair.runtime})"
        quality = _both(pair.quality, lambda value: significant(value, 4))
        median = _both(pair.latency_p50_s, seconds, ratio=True)
        rate = _both(pair.throughput_per_s, lambda value: f"{significant(value)} /s", ratio=True)
        texts = (pair.task, label, quality, _answers(pair), median, rate)
        table.add_row(*(escape(text) for text in texts))
    console().print(table)


def _both(
    values: tuple[float | None, float | None], show: Callable[[float], str], ratio: bool = False
) -> str:
    """``then -> now``, with now over then where that is asked for."""
    from precision_explorer.units import MISSING

    if values == (None, None):
        return MISSING
    text = " -> ".join(MISSING if value is None else show(value) for value in values)
    old, new = values
    return f"{text} ({new / old:.3f} x)" if ratio and old and new is not None else text


def _answers(pair: Pair) -> str:
    if pair.status[0] != pair.status[1]:
        return f"{pair.status[0]} then, {pair.status[1]} now"
    if pair.differing is None:
        return "in one of the two only"
    if not pair.examples:
        return "none" if pair.status[0] == "ok" else pair.status[0]
    if not pair.differing:
        return f"all {pair.examples:,} the same"
    return f"{pair.differing:,} of {pair.examples:,} differ"
