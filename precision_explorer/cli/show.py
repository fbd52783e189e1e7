"""Print on stdout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# Where stdout is no terminal it has no width; 80 columns would fold every cell.
_PIPED_WIDTH = 160


def console() -> Console:
    """stdout as a rich console: as wide as the terminal, or as ``COLUMNS`` says; wide enough for
    tables where it is piped and nobody said."""
    from rich.console import Console

    # rich takes COLUMNS for a terminal by itself, and the least width of a pipe for one without.
    told = os.environ.get("COLUMNS", "")
    on_terminal = Console()
    if on_terminal.is_terminal:
        return on_terminal
    return Console(width=int(told) if told.isdecimal() and int(told) > 0 else _PIPED_WIDTH)
