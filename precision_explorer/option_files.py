"""YAML files that hold options by name: specs and workloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from precision_explorer.bounded import BadDocument, TooLarge, yaml_file
from precision_explorer.errors import UsageError


def read_options(path: Path, what: str, example: str) -> dict[str, Any]:
    """The options in the `what` file at `path`, ``-`` in their names as ``_``; {} if it is empty.

    UsageError in one line, with `example` as a line that would do, where it can't be read, is
    beyond the bounds of `bounded` or holds no mapping. Nothing in it is run.
    """
    try:
        document = yaml_file(path)
    except OSError as error:
        raise UsageError(f"can't read the {what} file {path}; check the path") from error
    except TooLarge as error:
        raise UsageError(f"{path} {error}; a {what} file is a few lines") from error
    except BadDocument as error:
        text = f"{path} is no YAML ({error}); write lines such as '{example}'"
        raise UsageError(text) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no YAML mapping; write lines such as '{example}'")
    return {str(key).replace("-", "_"): value for key, value in document.items()}
