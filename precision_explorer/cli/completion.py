"""``precision-explorer completion``."""

from __future__ import annotations

import click

from precision_explorer.cli.completing import one_of

SHELLS = ("bash", "zsh", "fish")
# By which a shell's script asks what could follow; click answers, as its name says.
_VARIABLE = "_PRECISION_EXPLORER_COMPLETE"


@click.command("completion", short_help="Print a shell's completion script.")
@click.argument("shell", metavar="bash|zsh|fish", shell_complete=one_of(SHELLS))
def command(shell: str) -> int:
    """Print the script by which a shell completes commands, options, formats, tasks, runtimes,
    workloads and the folders of runs.

    \b
    bash  eval "$(precision-explorer completion bash)", in ~/.bashrc
    zsh   eval "$(precision-explorer completion zsh)", in ~/.zshrc after compinit
    fish  precision-explorer completion fish | source, in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    from precision_explorer.cli import group
    from precision_explorer.errors import UsageError, unknown_name

    made = get_completion_class(shell) if shell in SHELLS else None
    if made is None:
        raise UsageError(unknown_name("shell", shell, SHELLS))
    found = made(group, {}, "precision-explorer", _VARIABLE)
    # Not its `source`, which starts a bash to learn whether that one is new enough.
    click.echo(found.source_template % found.source_vars())
    return 0
