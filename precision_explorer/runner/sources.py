"""Which source of places an executor is. No torch here."""

from __future__ import annotations

from precision_explorer.plan import SweepSpec
from precision_explorer.runner.device_lanes import DeviceLanes
from precision_explorer.runner.manager import OnEvent
from precision_explorer.runner.places import Source
from precision_explorer.runner.spread import Pool


def open_pool(spec: SweepSpec, on_event: OnEvent) -> Pool | None:
    """The places that `spec` asks for; None where cells are measured one after the other by this
    process's own workers. UsageError where an executor's library, or its cluster, is missing."""
    source = _source(spec, on_event)
    return None if source is None else Pool(source, spec, on_event)


def _source(spec: SweepSpec, on_event: OnEvent) -> Source | None:
    if spec.executor == "ray":
        from precision_explorer.runner.ray_places import RaySource

        return RaySource(spec)
    if spec.executor == "slurm":
        from precision_explorer.runner.slurm_places import SlurmSource

        return SlurmSource(spec, on_event)
    if spec.device == "all" or spec.cores is not None:
        return DeviceLanes(spec)
    return None
