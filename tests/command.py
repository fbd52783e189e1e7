"""The command line in this process: a new one would take 2 s to import what this one has, and those
that sweep as many again to start a fork server of their own."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

from precision_explorer.cli import main


class Done(NamedTuple):
    """What `subprocess.run` would tell."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """``precision-explorer ARGUMENTS``: its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Done(code, out.getvalue(), err.getvalue())
