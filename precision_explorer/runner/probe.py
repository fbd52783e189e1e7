"""The probe: one worker asks the device what it makes of each format; the answer is cached by
device facts, library versions and threads, so that the parent plans without torch."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from precision_explorer import __version__
from precision_explorer.errors import UsageError
from precision_explorer.formats import Support, decide
from precision_explorer.formats.catalog import DEFAULT_FORMATS
from precision_explorer.formats.runtimes import RUNTIMES
from precision_explorer.formats.support import candidates
from precision_explorer.hardware import DeviceFacts, compiler
from precision_explorer.paths import cache_dir, without_paths
from precision_explorer.records import canonical_hash
from precision_explorer.runner.manager import (
    Event,
    OnEvent,
    WorkerError,
    WorkerGone,
    WorkerHandle,
    start_context,
)
from precision_explorer.store.atomic import write_json

# For one format, the timing of all its kernels included.
_TIME_LIMIT_S = 120.0
# The same with every kernel compiled first.
_COMPILED_LIMIT_S = 900.0
# Formats for which the fastest kernel may be another one when it is compiled.
_CHOOSE_KERNEL = ("int8-dynamic", "int8-static")
# Formats of number types that torch.compile has code for on some devices only.
_MAY_NOT_COMPILE = ("mxfp8", "nvfp4")
_CHECK = "check the installation by: python -c 'import torch, transformers'"


def probe(
    facts: DeviceFacts,
    formats: list[str],
    versions: dict[str, str],
    threads: int,
    on_event: OnEvent,
) -> dict[str, Support]:
    """{format: Support} on the device of `facts`; runs the dry runs unless they are cached.

    Raises UsageError when the device can't be used at all (a torch without CUDA, say).
    """
    wanted = candidates(facts, list(dict.fromkeys([*DEFAULT_FORMATS, *formats])))
    path = _cache_path(facts, wanted, versions, threads)
    answer = _cached(path)
    if answer is None:
        on_event(Event("note", {"text": "asking the device what it can do (once, then cached)"}))
        answer = _ask(facts, wanted, threads, on_event)
        if "device_error" not in answer and not _any_gone(answer):
            _store(path, answer)
    if "device_error" in answer:
        raise UsageError(f"{facts.device}: {answer['device_error']}")
    return {f: decide(f, facts, answer["formats"].get(f)) for f in formats}


def probe_compiled(
    facts: DeviceFacts,
    formats: list[str],
    versions: dict[str, str],
    threads: int,
    on_event: OnEvent,
    runtime: str,
    ask: bool = True,
) -> dict[str, Support]:
    """{format: Support} under `runtime`, of those `formats` whose kernel is chosen by speed (torch,
    torchao and our own kernels are tried compiled as the runtime compiles) or that may not compile
    at all. Empty for the eager runtime, where there is no compiler, and, with a note, without `ask`
    where they were not tried before."""
    tools, missing = compiler(facts.kind, versions)
    wanted = [f for f in formats if f in (*_CHOOSE_KERNEL, *_MAY_NOT_COMPILE)]
    if not RUNTIMES[runtime].compiles or missing is not None or not wanted:
        return {}
    path = _cache_path(facts, wanted, versions, threads, [runtime, tools])
    answer = _cached(path)
    if answer is None and not ask:
        text = (
            f"which kernel {', '.join(wanted)} takes under {runtime} is not known yet: a sweep "
            "tries them first, for some minutes, and keeps the answer; shown is the eager one"
        )
        on_event(Event("note", {"text": text}))
        return {}
    if answer is None:
        text = f"trying the kernels of {', '.join(wanted)} under {runtime} (once, then cached)"
        on_event(Event("note", {"text": text}))
        answer = _ask(facts, wanted, threads, on_event, runtime)
        if not _any_gone(answer):
            _store(path, answer)
    return {f: decide(f, facts, answer["formats"].get(f)) for f in wanted}


def _any_gone(answer: dict[str, Any]) -> bool:
    """Whether a worker died of a format: that may have been chance, so it is asked again."""
    return any(found.get("gone") for found in answer["formats"].values())


def _cache_path(
    facts: DeviceFacts,
    formats: list[str],
    versions: dict[str, str],
    threads: int,
    runtime: list[Any] | None = None,
) -> Path:
    stack = {n: versions.get(n) for n in ("torch", "torchao", "bitsandbytes", "transformers")}
    key = canonical_hash(
        [__version__, facts.model_dump(mode="json"), formats, stack, threads, "dry run 5"]
        + (runtime or [])
    )
    return cache_dir() / "probe" / f"{key}.json"


def _cached(path: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(path.read_text(encoding="utf8"))
        whole = all(isinstance(found["ok"], bool) for found in answer["formats"].values())
        return answer if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def _store(path: Path, answer: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, answer)
    except (OSError, ValueError):
        pass  # A cache that can't be written costs the next run some seconds, nothing else.


def _ask(
    facts: DeviceFacts,
    formats: list[str],
    threads: int,
    on_event: OnEvent,
    runtime: str = "eager",
) -> dict[str, Any]:
    """The dry run of one format after the other. One that kills or hangs its worker is recorded so,
    and a new worker goes on with the rest."""
    answers: dict[str, Any] = {}
    worker = None
    with tempfile.TemporaryDirectory(prefix="precision-explorer-") as folder:
        request = {
            "op": "probe",
            "device": facts.device,
            "threads": threads,
            "runtime": runtime,
            "compile_cache": str(Path(folder) / "compiled"),
            "log": str(Path(folder) / "probe.log"),
        }
        try:
            for format_id in formats:
                worker = worker or _start(facts, on_event)
                answer = _ask_one(worker, request | {"formats": [format_id]})
                if "device_error" in answer:
                    return answer
                answers |= answer["formats"]
                # A dead worker answers nothing more, and a CUDA error stays with its process.
                if answers[format_id].get("gone") or (
                    facts.kind == "cuda" and not answers[format_id]["ok"]
                ):
                    worker.close()
                    worker = None
        finally:
            if worker is not None:
                worker.close()
    eager = not RUNTIMES[runtime].compiles
    if eager and not any(answer["ok"] for answer in answers.values()):
        why = next(iter(answers.values()))["why"]
        raise UsageError(f"no format runs on {facts.device}: {why}; {_CHECK}")
    return {"formats": answers}


def _start(facts: DeviceFacts, on_event: OnEvent) -> WorkerHandle:
    try:
        return WorkerHandle(start_context(), on_event)
    except (WorkerGone, EOFError) as error:
        why = str(error) or "its worker did not start"
        raise UsageError(f"the probe of {facts.device} failed: {why}; {_CHECK}") from error


def _ask_one(worker: WorkerHandle, request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer; `gone` where there was none."""
    limit = _COMPILED_LIMIT_S if RUNTIMES[request["runtime"]].compiles else _TIME_LIMIT_S
    try:
        return worker.ask(request, time.monotonic() + limit)[0]
    except (WorkerError, WorkerGone) as error:
        why = without_paths(f"{error}".partition("; see")[0])
        (format_id,) = request["formats"]
        return {"formats": {format_id: {"ok": False, "why": why, "gone": True}}}
