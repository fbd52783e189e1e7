"""The process that asks lm-evaluation-harness what its tasks are: ``python -m`` this module. It
reads one JSON request from stdin and writes one JSON answer to the file that the request names."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from precision_explorer.errors import TaskError
from precision_explorer.tasks.harness_library import (
    check_file,
    describe,
    group_specs,
    task_specs,
)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """{"tasks": [...]} as `harness_library.describe` has them, for ``name`` or ``path``, and the
    "groups" of these that have a score of their own."""
    common = {"trusted": request["trusted"], "folder": request["folder"]}
    if "path" in request:
        if check_file(Path(request["path"]), request["trusted"]):
            # No word to the hub about files that lie here. Before the libraries are imported.
            os.environ["HF_HUB_OFFLINE"] = "1"
        specs, groups = [{"path": request["path"]}], []
    else:
        specs, groups = task_specs(request["name"]), group_specs(request["name"])
    tasks = [describe(spec | common, request["limit"], request["seed"]) for spec in specs]
    return {"tasks": tasks, "groups": groups}


def main() -> int:
    """Answer the request; 0 also where the answer is an error that has words."""
    request = json.load(sys.stdin)
    try:
        found = answer(request)
    except TaskError as error:
        found = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    text = json.dumps(found)
    Path(request["answer"]).write_text(text, encoding="utf8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
