"""The probe: one worker asks the device what it makes of each format; each answer is cached by
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
from precision_explorer.formats.catalog import OWN_ON_CUDA
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
from precision_explorer.runner.places import PlaceWorker, elsewhere
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
    """{format: Support} on the device of `facts`; runs the dry runs of those formats that no cached
    answer is of, and of fp32, without which a device runs nothing.

    Raises UsageError when the device can't be used at all (a torch without CUDA, say).
    """
    wanted = candidates(facts, list(dict.fromkeys(["fp32", *formats])))
    paths = {f: _cache_path(facts, f, versions, threads) for f in wanted}
    answers, lacking = _read(paths)
    if lacking:
        on_event(Event("note", {"text": "asking the device what it can do (once, then cached)"}))
        answers |= _ask(facts, lacking, threads, on_event)
        if not any(answer["ok"] for answer in answers.values()):
            why = next(iter(answers.values()))["why"]
            raise UsageError(f"no format runs on {facts.device}: {why}; {_CHECK}")
        _store(paths, answers, lacking)
    return {f: decide(f, facts, answers.get(f)) for f in formats}


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
    asked = (*_CHOOSE_KERNEL, *_MAY_NOT_COMPILE, *(OWN_ON_CUDA if facts.kind == "cuda" else ()))
    wanted = [f for f in formats if f in asked]
    if not RUNTIMES[runtime].compiles or missing is not None or not wanted:
        return {}
    paths = {f: _cache_path(facts, f, versions, threads, [runtime, tools]) for f in wanted}
    answers, lacking = _read(paths)
    if lacking and not ask:
        text = (
            f"which kernel {', '.join(lacking)} takes under {runtime} is not known yet: a sweep "
            "tries them first, for some minutes, and keeps the answer; shown is the eager one"
        )
        on_event(Event("note", {"text": text}))
    elif lacking:
        text = f"trying the kernels of {', '.join(lacking)} under {runtime} (once, then cached)"
        on_event(Event("note", {"text": text}))
        answers |= _ask(facts, lacking, threads, on_event, runtime)
        _store(paths, answers, lacking)
    return {f: decide(f, facts, answers[f]) for f in wanted if f in answers}


def _cache_path(
    facts: DeviceFacts,
    format_id: str,
    versions: dict[str, str],
    threads: int,
    runtime: list[Any] | None = None,
) -> Path:
    stack = {n: versions.get(n) for n in ("torch", "torchao", "bitsandbytes", "transformers")}
    # Where there is a kernel of our own to try, an answer from before it says nothing of it.
    own = [OWN_ON_CUDA[format_id]] if facts.kind == "cuda" and format_id in OWN_ON_CUDA else []
    key = canonical_hash(
        [__version__, facts.model_dump(mode="json"), format_id, stack, threads, "dry run 7"]
        + own
        + (runtime or [])
    )
    return cache_dir() / "probe" / f"{key}.json"


def _read(paths: dict[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """({format: its cached answer}, formats that have none)."""
    found = {f: _cached(path) for f, path in paths.items()}
    answers = {f: answer for f, answer in found.items() if answer is not None}
    return answers, [f for f in paths if f not in answers]


def _cached(path: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(path.read_text(encoding="utf8"))
        return answer if isinstance(answer["ok"], bool) else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _store(paths: dict[str, Path], answers: dict[str, Any], new: list[str]) -> None:
    """Keep what the formats `new` answered, but not that a worker died of one: that may have been
    chance, so it is asked again."""
    try:
        for format_id in new:
            if not answers[format_id].get("gone"):
                paths[format_id].parent.mkdir(parents=True, exist_ok=True)
                write_json(paths[format_id], answers[format_id])
    except (OSError, ValueError):
        pass  # A cache that can't be written costs the next run some seconds, nothing else.


def _ask(
    facts: DeviceFacts,
    formats: list[str],
    threads: int,
    on_event: OnEvent,
    runtime: str = "eager",
) -> dict[str, Any]:
    """{format: its answer}, of the dry run of one format after the other. One that kills or hangs
    its worker is recorded so, and a new worker goes on with the rest. UsageError where the device
    can't be used."""
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
                    raise UsageError(f"{facts.device}: {answer['device_error']}")
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
    return answers


def _start(facts: DeviceFacts, on_event: OnEvent) -> WorkerHandle | PlaceWorker:
    try:
        return elsewhere(on_event) or WorkerHandle(start_context(), on_event)
    except (WorkerGone, EOFError) as error:
        why = str(error) or "its worker did not start"
        raise UsageError(f"the probe of {facts.device} failed: {why}; {_CHECK}") from error


def _ask_one(worker: WorkerHandle | PlaceWorker, request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer; `gone` where there was none."""
    limit = _COMPILED_LIMIT_S if RUNTIMES[request["runtime"]].compiles else _TIME_LIMIT_S
    try:
        return worker.ask(request, time.monotonic() + limit)[0]
    except (WorkerError, WorkerGone) as error:
        why = without_paths(f"{error}".partition("; see")[0])
        (format_id,) = request["formats"]
        return {"formats": {format_id: {"ok": False, "why": why, "gone": True}}}
