"""A cell's profile: how long its passes take at declared shapes, where the time goes, and what work
they hold. Intervals, roofs and verdicts are derived on reading (`diagnose`)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Data(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Timing(_Data):
    """`seconds`: raw, one per repeat after warm-up; empty, with a `note`, where it was not timed.

    `utilisation` is NVML's: the share of its last sampling period in which any kernel ran, which
    says nothing of how well it ran. None on a CPU.
    """

    seconds: list[float]
    utilisation: float | None = None
    note: str | None = None


class Spent(_Data):
    """Shares of one pass's time, which add up to 1: matrix products (attention's fused kernel
    among them), (de)quantizing and casts, other operators, and time outside any operator (the
    interpreter and dispatch on a CPU, an idle device on CUDA)."""

    matmul: float
    quantizing: float
    other: float
    outside: float


class Work(_Data):
    """What one request of a pass holds, counted from the layers (`models.work`).

    `flops_by_type`: floating-point (or integer) operations of the matrix products per number type.
    `fixed_bytes`: weights, read once per pass whatever the batch; `request_bytes`: activations,
    cache and gathered embeddings of each request; `widened_bytes`: weights that the kernel writes
    in a wider type and reads again, once per pass, of which the largest layer has
    `largest_widened_bytes`.
    """

    flops_by_type: dict[str, int]
    fixed_bytes: int
    request_bytes: int
    widened_bytes: int = 0
    largest_widened_bytes: int = 0


class PhaseProfile(_Data):
    """Prefill (`tokens` per request, none cached) or decode (one token after `cached_tokens`).

    `timings` by batch size; `operators` and `matmuls` (among them) started per pass and `spent`
    come from a profiled pass of batch 1, apart from the timed ones.
    """

    tokens: int
    cached_tokens: int
    timings: dict[str, Timing]
    spent: Spent | None = None
    operators: int | None = None
    matmuls: int | None = None
    work: Work


class Profile(_Data):
    """`decode` is None for models that do not generate; a phase that could not be profiled is None
    with a `note` that says why."""

    arithmetic: str
    """Number type in which converted layers' products are made, by the format's declaration."""
    compute_dtype: str
    prefill: PhaseProfile | None = None
    decode: PhaseProfile | None = None
    measured_again: list[str] = Field(default_factory=list)
    """Phases that were faster than their roof and were measured once more."""
    note: str | None = None
