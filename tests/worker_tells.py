"""A process of its own that starts real workers and prints what they find: ``python -c`` its
`main`. The fork server is then new, and was started with the environment that a test gives."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from precision_explorer.runner import manager, worker
from precision_explorer.runner.protocol import reply


def tell(connection: Connection, *more: Any) -> None:
    """In place of the worker's own `main`, whose precautions are not taken: what is told is what
    the manager and the fork server took."""
    preloaded = "huggingface_hub.constants" in sys.modules
    table = sys.modules.get("transformers.conversion_mapping")
    found: dict[str, Any] = {
        "variables": dict(os.environ),
        "process": Path("/proc/self/environ").read_bytes().decode(),
        "preloaded": preloaded,
        "conversions": getattr(table, "_checkpoint_conversion_mapping_cache", None) is not None,
    }
    reply(connection, {"type": "hello", "cuda_touched": False})
    if connection.recv()["op"] == "hub":
        found["hub"] = _hub()
    reply(connection, {"type": "answer", "answer": found, "seconds": 0.0})
    connection.recv()


def _hub() -> dict[str, Any]:
    import huggingface_hub
    from transformers.integrations import hub_kernels
    from transformers.utils.import_utils import is_kernels_available

    try:
        huggingface_hub.hf_hub_download("acme/other", "config.json")
        why = None
    except Exception as error:
        why = type(error).__name__
    return {
        "offline": huggingface_hub.constants.HF_HUB_OFFLINE,
        "cached": huggingface_hub.hf_hub_download("acme/tiny", "config.json"),
        "not_cached": why,
        "token": huggingface_hub.get_token(),
        "implicit_token": not huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN,
        "kernels": is_kernels_available(),
        "kernels_enabled": hub_kernels._kernels_enabled,
        "kernels_importable": importlib.util.find_spec("kernels") is not None,
    }


def main() -> None:
    """Print one JSON object: what a forked and a spawned worker tell, and the parent's variables
    afterwards."""
    worker.main = tell  # type: ignore[assignment]
    manager.prepare_environment(1)
    # As a library may do, or a user in a notebook.
    os.environ["HF_HUB_OFFLINE"] = "0"
    told = {}
    for name, context, op in (
        ("forked", manager.start_context(), "hub"),
        ("spawned", multiprocessing.get_context("spawn"), "x"),
    ):
        handle = manager.WorkerHandle(context, lambda event: None)
        told[name] = handle.ask({"op": op}, time.monotonic() + 240)[0]
        handle.close()
    told["parent"] = dict(os.environ)
    print(json.dumps(told))
