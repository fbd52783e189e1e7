"""The device's roofs for a run: measured once by a job, cached like the probe. No torch."""

from __future__ import annotations

from typing import Any

from precision_explorer import __version__
from precision_explorer.endpoint import ENDPOINT
from precision_explorer.errors import StoreError, UsageError
from precision_explorer.hardware import DeviceFacts, device_facts, library_versions
from precision_explorer.paths import cache_dir
from precision_explorer.records import Roof, canonical_hash
from precision_explorer.runner.jobs import JobFailed, run_job
from precision_explorer.runner.manager import Event, OnEvent, prepare_environment
from precision_explorer.store.atomic import write_bytes

# A declared choice: minutes, for slow devices. A sweep goes on without it.
_TIME_LIMIT_S = 300.0
_LIBRARIES = ("torch",)
# Raised when the way of measuring changes, so that no older figure is taken for one of it.
_METHOD = "roof 3"


def roof_key(facts: DeviceFacts, versions: dict[str, str], threads: int) -> str:
    """16 hex digits of all that the roofs depend on."""
    stack = {name: versions.get(name) for name in _LIBRARIES}
    return canonical_hash([__version__, facts.model_dump(mode="json"), stack, threads, _METHOD])


def device_roof(
    facts: DeviceFacts, versions: dict[str, str], threads: int, on_event: OnEvent
) -> Roof | None:
    """The roofs of the device of `facts`, from the cache or measured now; None, and a note, where
    they could not be measured: a sweep goes on without them."""
    key = roof_key(facts, versions, threads)
    found = cached(key)
    if found is not None:
        return found
    text = "measuring what the device can do at most (once, then cached; about 20 s on 2 cores)"
    on_event(Event("note", {"text": text}))
    request: dict[str, Any] = {"device": facts.device, "memory_bytes": facts.memory_bytes}
    try:
        answer, _ = run_job("roof", request, threads, on_event, _TIME_LIMIT_S)
        roof = Roof.model_validate(answer)
    except (JobFailed, ValueError) as error:
        text = f"no roof was measured, so nothing is held against it ({error})"
        on_event(Event("note", {"text": text}))
        return None
    roof = roof.model_copy(update={"key": key, "device_name": facts.name})
    store(roof)
    return roof


def cached(key: str) -> Roof | None:
    """The roofs stored under `key`, or None."""
    try:
        roof = Roof.model_validate_json((cache_dir() / "roof" / f"{key}.json").read_bytes())
    except (OSError, ValueError, RuntimeError):
        return None
    return roof if roof.key == key else None


def store(roof: Roof) -> None:
    """Keep `roof` in the cache, under its key."""
    try:
        folder = cache_dir() / "roof"
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / f"{roof.key}.json", roof.model_dump_json(indent=1).encode())
    except (OSError, ValueError, RuntimeError):
        pass  # A cache that can't be written costs the next run some seconds, nothing else.


def roof_of_run(sweep: dict[str, Any], on_event: OnEvent) -> Roof:
    """The roofs of the device that a stored run (its sweep.json) was made on, measured here.

    StoreError where this machine is another device, or can't measure them: limits of one device
    say nothing of another.
    """
    if sweep.get("device", {}).get("kind") == ENDPOINT:
        raise StoreError(f"{sweep['run']} asked servers, whose devices have limits nobody measured")
    try:
        facts = DeviceFacts.model_validate(sweep.get("device"))
    except ValueError as error:
        raise StoreError(
            f"{sweep['run']} does not say on which device it was made (device in sweep.json); run "
            "the sweep again"
        ) from error
    environment = sweep["environment"]
    elsewhere = StoreError(
        f"{sweep['run']} holds no roof and was made on another device ({facts.name}); run "
        "precision-explorer diagnose there, or the sweep again here"
    )
    try:
        here = device_facts(facts.device)
    except UsageError:
        raise elsewhere from None
    if _comparable(here) != _comparable(facts):
        raise elsewhere
    prepare_environment(environment["threads"])
    roof = device_roof(here, library_versions(), environment["threads"], on_event)
    if roof is None:
        raise StoreError(f"{sweep['run']} holds no roof and none could be measured; see the note")
    return roof


def _comparable(facts: DeviceFacts) -> dict[str, Any]:
    """What makes two devices the same for a roof: not which slot or how much memory."""
    return facts.model_dump(include={"kind", "name", "compute_capability", "cpu_flags", "cores"})
