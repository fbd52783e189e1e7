"""The servers of a sweep, asked what they can before anything is planned. No torch."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from precision_explorer.endpoint import ENDPOINT, Address
from precision_explorer.errors import EndpointError
from precision_explorer.hardware import library_versions
from precision_explorer.models import ModelRef
from precision_explorer.models.reference import tokenizer_folder
from precision_explorer.plan import SweepSpec
from precision_explorer.plan.endpoints import served_ref
from precision_explorer.plan.served import Served, capabilities_in
from precision_explorer.records import Environment
from precision_explorer.runner.manager import Event, OnEvent
from precision_explorer.store import RunFolder
from precision_explorer.store.shape import planned_ids

if TYPE_CHECKING:
    from precision_explorer.endpoint.capabilities import Capabilities

# What asks and scores; the server's own software it tells of itself, or not.
_CLIENT = ("aiohttp", "transformers", "tokenizers", "numpy", "scipy", "precision-explorer")

Servers = list[tuple[ModelRef, list[Served]]]


def ask_servers(spec: SweepSpec, on_event: OnEvent, folder: RunFolder) -> Servers:
    """What each server makes of each model. One that does not answer takes part with what measured
    cells in the sweep's `folder` tell of it, so that these stay its cells; else without: its cells
    are tried, and fail with the reason where it still does not answer."""
    found: Servers = []
    for name in spec.model if spec.endpoints else ():
        tokenizer, asked = tokenizer_folder(name), []
        for address in spec.endpoints:
            model, can, remembered = address.model or name, None, False
            try:
                can = _ask(address, model)
            except EndpointError as error:
                on_event(Event("note", {"text": f"{address.format}: {error}"}))
                if error.dropped:
                    can = _stored(folder, address.digest(model))
                    remembered = can is not None
            asked.append(Served(address, model, tokenizer, can, remembered))
        found.append((served_ref(name), asked))
    return found


def _stored(folder: RunFolder, server: str) -> Capabilities | None:
    """What a measured cell of the `server` with this digest tells of it. A reader's look, which
    changes nothing."""
    cells = planned_ids(folder.read_sweep_or_none())
    for record in map(folder.read_record, cells):
        if record is not None and record.status == "ok":
            recipe = record.cell.recipe
            known = capabilities_in(recipe) if recipe.get("server") == server else None
            if known is not None:
                return known
    return None


def _ask(address: Address, model: str) -> Capabilities:
    # Here, as most sweeps ask no server.
    from precision_explorer.endpoint.capabilities import ask_capabilities
    from precision_explorer.endpoint.client import Client, Limits, api_key

    # One that takes longer is asked again when its turn comes.
    soon = Limits(connect_s=5.0, silence_s=30.0, whole_s=60.0, tries=2)
    with Client(address.url, api_key(), soon) as client:
        return ask_capabilities(client, model)


_OF_THE_MACHINE = (
    "cpu_model", "cores", "memory_bytes", "threads", "kernel", "container", "settings",
)  # fmt: skip


def client_environment(environment: Environment) -> Environment:
    """The environment of a server's cells: this machine is only its client."""
    nothing = dict.fromkeys(_OF_THE_MACHINE)
    own: dict[str, Any] = {"device_name": ENDPOINT, "device": {"kind": ENDPOINT}, "variables": {}}
    own["platform"] = f"client: {platform.system()} {platform.machine()}"
    return environment.model_copy(update=nothing | own | {"libraries": library_versions(_CLIENT)})
