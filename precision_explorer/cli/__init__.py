"""The command line: one module per command, loaded when called, so that ``--help`` is quick."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from precision_explorer import __version__

COMMANDS = {
    "sweep": "Measure a model on a task in each numeric format, and print the tradeoff table.",
    "plan": "Print the cells and skips of a sweep; run nothing.",
    "formats": "What this machine runs natively, dequantized, emulated or not, and why.",
    "tasks": "The task cards known, with size and metric.",
    "report": "Make the tables and the HTML page of runs again from their records.",
    "fetch": "Get a model that needs no model hub.",
}
_EPILOG = (
    "Exit codes: 0 all cells ok or skipped; 1 wrong use; 3 some cells failed; 130 interrupted."
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

        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
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
    """Run the command line and exit: errors made on purpose become one line and their code."""
    from precision_explorer.errors import PrecisionExplorerError

    try:
        code = group.main(arguments, standalone_mode=False, prog_name="precision-explorer")
    except PrecisionExplorerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was done is kept", err=True)
        sys.exit(130)
    sys.exit(code or 0)


__all__ = ["COMMANDS", "group", "main"]
