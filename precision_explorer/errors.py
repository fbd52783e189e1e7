"""The error tree. Each message is one line: what is wrong, then what to do.

``PrecisionExplorerError.exit_code`` is what the command line exits with (docs/commands.md).
The core raises; only ``cli`` prints and exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PrecisionExplorerError(Exception):
    """Base of every error that is raised on purpose; ``str(error)`` is one line for a person, in
    which nothing of what it quotes can act: names and values in files may come from a stranger, and
    a terminal obeys control characters."""

    exit_code = 1

    def __str__(self) -> str:
        line = " ".join(super().__str__().splitlines())
        return line if line.isprintable() else "".join(c if c.isprintable() else "?" for c in line)


class UsageError(PrecisionExplorerError):
    """An option, a spec file or a combination of them that can't be run."""


class ModelError(PrecisionExplorerError):
    """A model that can't be found, read, or used for the task."""


class TaskError(PrecisionExplorerError):
    """A task card or its data that can't be used."""


class StoreError(PrecisionExplorerError):
    """A results folder that can't be written or read."""


class FormatNotApplied(PrecisionExplorerError):
    """A format whose label would be untrue: nothing in the model was converted."""


class NotCompiled(PrecisionExplorerError):
    """A runtime whose label would be untrue: torch.compile failed, or compiled nothing."""


class InvalidNumerics(PrecisionExplorerError):
    """The model's output holds NaN or infinity, so no score can be made of it."""


class DoesNotFit(PrecisionExplorerError):
    """The model or a batch needs more memory than there is."""


class EndpointError(PrecisionExplorerError):
    """A server that can't be asked, or whose answer can't be used. `passing`: it may answer when
    asked again soon; `status`: HTTP's, None where there was none; `silent`: it was waited for in
    vain."""

    def __init__(
        self,
        message: str,
        passing: bool = False,
        status: int | None = None,
        silent: bool = False,
    ) -> None:
        super().__init__(message)
        self.passing, self.status, self.silent = passing, status, silent

    @property
    def dropped(self) -> bool:
        """Whether overload alone may be the reason: a request that was refused for now, that the
        server came to grief with, or that was left without an answer."""
        return self.passing or self.silent or (self.status or 0) >= 500


def near_names(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """Known names that begin with `name`, then those close to it by difflib's ratio (cutoff 0.5),
    the closest first."""
    names = list(known)
    begun = [full for full in names if len(name) > 1 and full.startswith(name.lower())]
    close = difflib.get_close_matches(name.lower(), names, n=limit, cutoff=0.5)
    return list(dict.fromkeys([*begun, *close]))[:limit]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The one line for an unknown `kind`: names the near ones, or all when none is near."""
    names = list(known)
    near = near_names(name, names)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} '{name}'; {hint}"
