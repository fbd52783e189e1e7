"""``precision-explorer gate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from precision_explorer.cli import completing


@click.command("gate", short_help="Fail where a run is worse than a baseline beyond budgets.")
@click.argument(
    "run", type=click.Path(path_type=Path), metavar="RUN", shell_complete=completing.runs
)
@click.option(
    "--against", type=click.Path(path_type=Path), required=True, metavar="BASELINE",
    shell_complete=completing.runs,
    help="The run's folder to hold it to.",
)  # fmt: skip
@click.option(
    "--max-quality-loss", default="1%", show_default=True, metavar="1%",
    help="Largest loss of quality: points for shares, relative otherwise.",
)  # fmt: skip
@click.option(
    "--max-slowdown", default="10%", show_default=True, metavar="10%",
    help="Most that latency may grow or throughput shrink.",
)  # fmt: skip
@click.option(
    "--max-memory-growth", default="25%", show_default=True, metavar="25%",
    help="Most that peak memory and weights may grow.",
)  # fmt: skip
@click.option(
    "--speed", type=click.Choice(["ratio", "time", "both"]), default="ratio", show_default=True,
    help="Hold latency and throughput to the baseline as ratios to the reference of the same run, "
    "as measured, or both.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Fail also where a figure can't be told.")
@click.option(
    "--allow", multiple=True, metavar="FIELD",
    help="A field of the method that may differ, as in compare. May be repeated.",
)  # fmt: skip
@click.option("--junit", metavar="FILE.xml", type=click.Path(path_type=Path), help="JUnit XML.")
@click.option(
    "--summary", metavar="FILE.md", type=click.Path(path_type=Path),
    help="Markdown, added to the end of the file, as GitHub's step summary wants it.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON document.")
def command(
    run: Path,
    against: Path,
    strict: bool,
    allow: tuple[str, ...],
    junit: Path | None,
    summary: Path | None,
    as_json: bool,
    **budgets: Any,
) -> int:
    """Hold RUN to BASELINE, two runs of the same method: every format's quality, speed and memory
    to a budget.

    Exit code 4: a figure is worse by more than its budget, by its whole interval, or a row of the
    baseline has no result any more. 5: rows were refused, as their methods differ.
    """
    from precision_explorer.comparison import compare, gate
    from precision_explorer.report import gate as shown

    (compared,) = compare([against, run], allow)
    gated = gate(compared, _budgets(**budgets))
    if junit is not None:
        _write(junit, shown.to_junit(gated, strict), "w", "--junit")
    if summary is not None:
        _write(summary, shown.to_markdown(gated, strict), "a", "--summary")
    if as_json:
        click.echo(_json(gated, strict))
    else:
        from precision_explorer.cli.show import console

        shown.print_gate(gated, console(), strict)
    if not gated.holds(strict):
        return 4
    return 0 if gated.passes(strict) else 5


def _budgets(max_quality_loss: str, max_slowdown: str, max_memory_growth: str, speed: Any) -> Any:
    from precision_explorer.comparison import Budgets
    from precision_explorer.errors import UsageError
    from precision_explorer.units import parse_share

    given = {
        "max-quality-loss": max_quality_loss,
        "max-slowdown": max_slowdown,
        "max-memory-growth": max_memory_growth,
    }
    shares: list[float] = []
    for name, text in given.items():
        try:
            shares.append(parse_share(text))
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
    quality, slowdown, memory = shares
    return Budgets(quality, slowdown, memory, speed)


def _write(path: Path, text: str, mode: str, option: str) -> None:
    from precision_explorer.errors import UsageError

    try:
        with path.open(mode, encoding="utf8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(
            f"can't write {path} ({error.strerror}); choose another {option}"
        ) from error


def _json(gated: Any, strict: bool) -> str:
    import json

    from precision_explorer.report.comparison import document
    from precision_explorer.report.gate import answer, outcomes

    made = {
        "schema_version": 1,
        "answer": answer(gated, strict),
        "holds": gated.passes(strict),
        "checks": outcomes(gated.checks),
        "comparison": document([gated.compared])[0],
    }
    return json.dumps(made, indent=1, allow_nan=False)
