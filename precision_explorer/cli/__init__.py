"""The command line: one module per command, loaded when called, so that ``--help`` is quick."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from precision_explorer import __version__

COMMANDS = {
    "sweep": "Measure a model on a task in each numeric format, and print the tradeoff table.",
    "plan": "Print the cells and skips of a sweep; run nothing.",
    "formats": "What this machine runs natively, dequantized, emulated or not, and why.",
    "tasks": "The task cards known, with size and metric.",
    "inspect": "Where each format loses precision: errors and ranges, layer by layer.",
    "mix": "Search which format each layer should be held in, within a budget.",
    "report": "Make the tables and the HTML page of runs again from their records.",
    "export": "The table of runs for Parquet, JSON, Excel, a model card, MLflow, or as PNG.",
    "verify": "Whether a run still is what was measured: its files, and its tables from them.",
    "reproduce": "Run a stored run's plan again, and say what came out otherwise.",
    "rescore": "Compute metrics again from stored predictions, without a model.",
    "diagnose": "Why a format is or is not faster, against the device's own limits.",
    "decide": "Which format, from limits and one objective: how sure, and what would change it.",
    "compare": "What changed between runs of the same method: machines, libraries, days.",
    "gate": "Fail where a run is worse than a baseline beyond budgets, for pull requests.",
    "capacity": "Machines per format for a rate within a latency objective, and their cost.",
    "fetch": "Get a model that needs no model hub.",
    "completion": "Print the script by which bash, zsh or fish complete commands and their values.",
}
_EPILOG = (
    "Exit codes: 0 all cells ok or skipped; 1 wrong use; 3 some cells failed; 4 a run is worse "
    "than its baseline (gate); 5 stored scores are not those of their predictions (rescore), a run "
    "is not as it was (verify) or answers otherwise (reproduce), or no format meets the objective "
    "(capacity) or is known to hold the limits (decide), or methods differ (compare, gate); 130 "
    "interrupted (143 by SIGTERM, 129 by SIGHUP)."
)


class _LazyGroup(click.Group):
    """Knows its commands by name and help; imports a command's module only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"precision_explorer.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        from precision_explorer.errors import UsageError, unknown_name

        unknown = args and args[0] not in COMMANDS and not args[0].startswith("-")
        if unknown and not ctx.resilient_parsing:  # A shell that asks what could follow.
            raise UsageError(unknown_name("command", args[0], COMMANDS))
        return super().resolve_command(ctx, args)


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    help="Which numeric format should this model run in, on this task and this device?",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="precision-explorer")
def group() -> None:
    """The group of all commands."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: errors made on purpose, and the system's refusals, become one
    line and their code. Without arguments: the help."""
    from precision_explorer.cli.stopping import exit_code, stoppable, was_asked
    from precision_explorer.errors import PrecisionExplorerError

    given = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        with stoppable():
            code = group.main(given, standalone_mode=False, prog_name="precision-explorer")
            sys.stdout.flush()
    except PrecisionExplorerError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except OSError as error:
        # A signal may come with the loss of what was written to: the terminal (EIO), or the reader
        # of a pipe.
        if was_asked():
            _end(exit_code())
        # The reader of stdout has gone, as `head` does: nothing is left to say.
        if isinstance(error, BrokenPipeError):
            _end(1)
        _fail(_refused(error), 1)
    except (click.Abort, KeyboardInterrupt):
        with suppress(OSError):  # Its terminal may be gone.
            click.echo("interrupted; what was done is kept", err=True)
        _end(exit_code())
    _end(code or 0)


def _refused(error: OSError) -> str:
    """One line of what the system refuses, and what to do."""
    where = f": {error.filename}" if error.filename else ""
    what = f"{error.strerror or error}{where}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{what}; free some space, then run the same command again: what was done is kept"
    return f"{what}; check the path, its rights and the space left"


def _fail(message: str, code: int) -> NoReturn:
    # What a user typed may hold line breaks; an error is one line.
    with suppress(OSError):
        click.echo(f"error: {' '.join(message.split())}", err=True)
    _end(code)


def _end(code: int) -> NoReturn:
    """Exit with `code`. Python would flush the streams again, and exit with 120 where it can't: one
    whose terminal or reader is gone leads nowhere from here on."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


__all__ = ["COMMANDS", "group", "main"]
