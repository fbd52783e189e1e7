"""Places of a Ray cluster: one actor each, with its resources. No torch here, and Ray only where
`RaySource` is made.

A place is an actor that has one whole GPU, or a declared number of cores, for as long as it lives,
so that no two cells share a device while they are measured, and that measures one lot after the
other. A lot is one task of it, and no cell is a task by itself, since the rounds of one model's
formats are interleaved on one machine. The actor holds a lane, a process of its own: Ray's worker
process has threads and imports that no measured worker should be forked from.

Ray moves bytes only (`Line`): what a place answers is JSON, rows and files. Ray itself, however,
runs whatever whoever reaches its ports asks for, and unpickles what its processes send
(docs/threat-model.md).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from precision_explorer.errors import UsageError
from precision_explorer.plan import SweepSpec
from precision_explorer.runner import places
from precision_explorer.runner.places import (
    LaneProcess,
    Message,
    PlaceLost,
    Slot,
    frame,
    unframed,
)

ADVICE = "--executor ray needs Ray; install it by: pip install 'precision-explorer[ray]'"
# Read when Ray is imported or starts its processes. Nothing is reported to Ray's makers, and a
# node's log is no part of the sweep's output.
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_usage_stats_enabled": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # A thread that is late must not connect to a cluster that was left.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
# Of a custom resource: enough to be on a node that has it, and no count of devices.
_SOME = 0.001
# Longer than a connection takes to a cluster that is there. Ray itself goes on trying for minutes.
_ANSWERS_S = 5.0
# Longer than an actor takes to start on a node that is there.
_START_S = 120.0


class RayLane:
    """The actor: a lane, and the way its messages take."""

    def __init__(self, module: str) -> None:
        self._lane = LaneProcess(module)

    def ready(self) -> bool:
        """Whether it is there."""
        return True

    def exchange(self, request: bytes) -> Iterator[bytes]:
        """`Line.exchange`, as framed bytes; of a lane that was lost the reason."""
        try:
            for header, content in self._lane.exchange(request):
                yield frame(header, content)
        except PlaceLost as lost:
            yield frame({"type": "lost", "why": str(lost)}, b"")


class RayLine:
    """A line to a `RayLane`."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def exchange(self, request: bytes) -> Iterator[Message]:
        """As `Line.exchange`."""
        try:
            for found in self._actor.exchange.options(num_returns="streaming").remote(request):
                header, content = unframed(self._ray.get(found))
                if header["type"] == "lost":
                    raise PlaceLost(header["why"])
                yield header, content
        except PlaceLost:
            raise
        # Not RayError alone: of a cluster that was left Ray raises what happens to come.
        except Exception as error:
            raise PlaceLost(_why(error)) from error

    def close(self) -> None:
        """As `Line.close`: the actor's process is killed, its lane ends with its pipe."""
        with contextlib.suppress(Exception):  # Of a cluster that is gone.
            self._ray.kill(self._actor)


def _why(error: Exception) -> str:
    """What happened to an actor, without Ray's pages of advice."""
    name = type(error).__name__
    return {
        "ActorDiedError": "its node or its process ended",
        "ActorUnavailableError": "its node can't be reached",
        "NodeDiedError": "its node ended",
        "ActorUnschedulableError": "its node is not there any more",
        "GetTimeoutError": "it did not start in time",
    }.get(name, name)


class RaySource:
    """The places of a cluster: the one at `spec.ray_address`, or one on this machine that is
    started for the sweep. A node offers one place for each GPU or, where the sweep is of the CPU,
    for each `spec.cores` of its cores; with `spec.on` only nodes with such a custom resource do, or
    whose GPU Ray knows by that name."""

    executor = "ray"
    shares_machine = False

    def __init__(self, spec: SweepSpec) -> None:
        os.environ.update(_VARIABLES)
        try:
            import ray
        except ImportError as error:
            raise UsageError(ADVICE) from error
        self._ray, self._spec = ray, spec
        self.cores: int | None = spec.cores
        self._machines: dict[str, str] = {}
        self._actors: list[Any] = []
        self._began = not ray.is_initialized()
        if self._began:
            self._connect()

    def _connect(self) -> None:
        address = self._spec.ray_address
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            quiet |= {"include_dashboard": False, "address": "local"}
        else:
            _check_answers(address)
            quiet["address"] = address
        with _own_signals():
            try:
                self._ray.init(**quiet)
            # A start that takes more than the 30 s that Ray gives it is a bare Exception.
            except Exception as error:
                line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                where = f"at {address}" if address else "could be started on this machine"
                raise UsageError(
                    f"--executor ray: no cluster {where} ({line}); try again on a less busy "
                    "machine, or start one by ray start --head and give its --ray-address"
                ) from error

    def slots(self) -> list[Slot]:
        """As `Source.slots`."""
        nodes = sorted((n for n in self._nodes() if n["Alive"]), key=lambda n: n["NodeID"])
        gpus = self._is_gpu([n["Resources"] for n in nodes])
        found = []
        for node in nodes:
            resources = node["Resources"]
            wanted = next((t for t in self._spec.on if _resource(resources, t)), None)
            if self._spec.on and wanted is None:
                continue
            cores = self._spec.cores or int(resources.get("CPU", 0))
            count = resources.get("GPU", 0) if gpus else resources.get("CPU", 0) // max(cores, 1)
            for number in range(int(count) if cores else 0):
                key = node["NodeID"]
                name = self._machines.setdefault(key, f"node-{len(self._machines) + 1}")
                name += f"/{number + 1}" if count >= 2 else ""
                found.append(Slot(f"{key}/{number}", key, name, wanted, None if gpus else "cpu"))
        return found

    def _is_gpu(self, nodes: list[dict[str, Any]]) -> bool:
        """Whether the sweep is of GPUs: as asked, or where there are any."""
        if self._spec.device == "auto":
            return any(resources.get("GPU", 0) >= 1 for resources in nodes)
        return self._spec.device != "cpu"

    def open(self, slot: Slot) -> RayLine:
        """As `Source.open`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray, node = self._ray, self._node(slot.machine)
        resources = {} if node is None else node["Resources"]
        gpus = self._is_gpu([resources])
        options: dict[str, Any] = {
            "num_gpus": 1 if gpus else 0,
            "num_cpus": self._spec.cores or (0 if gpus else int(resources.get("CPU", 1))),
            "scheduling_strategy": NodeAffinitySchedulingStrategy(slot.machine, soft=False),
        }
        name = None if slot.device_type is None else _resource(resources, slot.device_type)
        if name is not None:
            options["resources"] = {name: _SOME}
        actor = None
        try:
            actor = ray.remote(RayLane).options(**options).remote(places.LANE)
            self._actors.append(actor)
            ray.get(actor.ready.remote(), timeout=_START_S)
        except Exception as error:  # As in `RayLine.exchange`.
            self._forget(actor)
            raise PlaceLost(_why(error)) from error
        return RayLine(ray, actor)

    def _forget(self, actor: Any) -> None:
        """End an actor that did not start, which would start later and hold what it asked for."""
        self._actors = [one for one in self._actors if one is not actor]
        if actor is not None:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)

    def _node(self, node_id: str) -> dict[str, Any] | None:
        return next((n for n in self._nodes() if n["NodeID"] == node_id), None)

    def _nodes(self) -> list[dict[str, Any]]:
        """All that Ray knows of; none of a cluster whose head is gone."""
        try:
            return list(self._ray.nodes())
        except Exception:  # As in `RayLine.exchange`.
            return []

    def close(self) -> None:
        """As `Source.close`: end the actors, those that are just starting too, and leave the
        cluster; one that was started for the sweep ends."""
        actors, self._actors = self._actors, []
        for actor in actors:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)
        if self._began:
            self._began = False
            with _own_signals():
                self._ray.shutdown()


def _check_answers(address: str) -> None:
    """UsageError where nothing listens at HOST:PORT, with or without a scheme before it; other
    addresses are Ray's to understand."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isascii() and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
    except (OSError, OverflowError, ValueError) as error:  # The last for what is no name of a host.
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({reason}); give what ray start "
            "--head has printed, or leave it out for a cluster of this machine"
        ) from error


def _resource(resources: dict[str, float], device_type: str) -> str | None:
    """The resource of a node that stands for a device type, in any case: a custom one, or the one
    by which Ray itself tells accelerators apart."""
    wanted = {device_type.lower(), f"accelerator_type:{device_type}".lower()}
    return next((name for name in sorted(resources) if name.lower() in wanted), None)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM of its own, which would end the sweep without its table."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            with contextlib.suppress(ValueError):  # Outside the main thread nothing was changed.
                signal.signal(number, handler)
