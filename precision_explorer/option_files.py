"""YAML files that hold options by name: specs and workloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from precision_explorer.errors import UsageError

_MAX_BYTES = 1_000_000


def read_options(path: Path, what: str, example: str) -> dict[str, Any]:
    """The options in the `what` file at `path`, ``-`` in their names as ``_``; {} if it is empty.

    UsageError in one line, with `example` as a line that would do, where it can't be read, is
    larger than 1 MB or holds no mapping. Nothing in it is run.
    """
    import yaml

    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than 1 MB; a {what} file is a few lines")
        document = yaml.safe_load(path.read_text(encoding="utf8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read the {what} file {path}; check the path") from error
    # ValueError: impossible dates; RecursionError: absurd nesting.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = (str(error).splitlines() or ["bad syntax"])[0]
        text = f"{path} is no YAML ({line}); write lines such as '{example}'"
        raise UsageError(text) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{path} is no YAML mapping; write lines such as '{example}'")
    return {str(key).replace("-", "_"): value for key, value in document.items()}
