"""A device's roofs, as measured by `measure.roof` and stored in a run's ``roof.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

ROOF_SCHEMA = 1


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")


class MatmulRate(_Data):
    """The best rate of one kernel in one number type over the shapes tried.

    A multiplication and an addition are two operations. `shape`: rows, inner, outer of the best;
    `seconds`: its raw repeats. `flops_per_s` is None, with a `note`, where it could not be measured
    or was found wrong.
    """

    type: str
    kernel: str
    flops_per_s: float | None
    shape: tuple[int, int, int] | None = None
    seconds: list[float] = []
    note: str | None = None


class Bandwidth(_Data):
    """Bytes per second over a working set; `how` names the operator that reached it."""

    bytes_per_s: float
    working_set_bytes: int
    how: str


class Launch(_Data):
    """Seconds that starting a tiny operator takes, whatever it computes.

    CPU: an addition of one element, and a linear layer of one element called as a module. CUDA:
    one after the other without waiting; `sync_s` waits for each.
    """

    operator_s: float
    matmul_s: float
    sync_s: float | None = None


class Roof(_Data):
    """All roofs of one device with one set of libraries and threads; `key` identifies the three.

    `last_level_cache_bytes` is None where the system does not tell.
    """

    schema_version: int = ROOF_SCHEMA
    key: str = ""
    device_name: str = ""
    threads: int
    matmul: list[MatmulRate]
    read: Bandwidth | None
    cache: Bandwidth | None
    copied: Bandwidth | None
    launch: Launch
    last_level_cache_bytes: int | None = None

    def peak(self, number_type: str) -> MatmulRate | None:
        """The best kernel of `number_type`; None where no roof was measured in it."""
        found = [m for m in self.matmul if m.type == number_type and m.flops_per_s is not None]
        return max(found, key=lambda m: m.flops_per_s or 0.0, default=None)

    def missing(self) -> list[MatmulRate]:
        """Kernels without a rate, each with why."""
        return [m for m in self.matmul if m.flops_per_s is None]
