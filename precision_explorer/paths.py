"""Where the program keeps files of its own: a cache that may vanish, and fetched models.

Both are found anew at each call, so that a changed environment counts. Nothing is created here.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from precision_explorer.errors import UsageError

_APP = "precision-explorer"


def _folder(own: str, xdg: str, fallback: str) -> Path:
    if os.environ.get(own):
        return Path(os.environ[own]).expanduser().absolute()
    base = os.environ.get(xdg, "")
    # The XDG base directory specification (0.8) says that a relative path is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / fallback) / _APP


def cache_dir() -> Path:
    """The folder for what can be made again: ``$PRECISION_EXPLORER_CACHE``, else
    ``$XDG_CACHE_HOME/precision-explorer``, else ``~/.cache/precision-explorer``.

    RuntimeError (from ``Path.home``) where none is set and the user has no home folder.
    """
    return _folder("PRECISION_EXPLORER_CACHE", "XDG_CACHE_HOME", ".cache")


def data_dir() -> Path:
    """The folder of fetched models: ``$PRECISION_EXPLORER_DATA``, else
    ``$XDG_DATA_HOME/precision-explorer``, else ``~/.local/share/precision-explorer``.

    RuntimeError (from ``Path.home``) where none is set and the user has no home folder.
    """
    return _folder("PRECISION_EXPLORER_DATA", "XDG_DATA_HOME", ".local/share")


def cards_dir() -> Path:
    """Where the bundled task cards lie: in the package (wheel), or in ``tasks/`` beside it
    (repository)."""
    inside = Path(__file__).parent / "tasks" / "bundled"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "tasks"


def expand_user(text: str | Path) -> Path:
    """`text` as a path, ``~`` for the user's home folder; UsageError where it can't be one."""
    try:
        path = Path(text).expanduser()
        path.lstat()  # What can't be a path at all is found out here.
    except FileNotFoundError:
        return path
    except (RuntimeError, ValueError) as error:
        shown = str(text).replace("\0", "?")[:80]
        raise UsageError(f"'{shown}' is no path that can be used ({error}); correct it") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"'{str(text)[:80]}...' is too long for a path; correct it") from error
        return path  # It may be one that can't be read: whoever opens it says why.
    return path


def without_paths(text: str) -> str:
    """`text` with each absolute path cut to its last two names: records are passed on, and paths
    name people and machines."""
    return re.sub(r"(?<![\w.:/])(?:/[^\s/'\":,]+)+(?=/[^\s/'\":,]+/[^\s/'\":,]+)", "...", text)
