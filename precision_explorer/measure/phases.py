"""Where a request's time goes, by named phase."""

from __future__ import annotations

from time import perf_counter_ns
from types import TracebackType


class _Span:
    """One phase's stop-watch, made once and used again: making an object per use costs more than
    the phase's two clock readings."""

    __slots__ = ("_start", "total_ns", "used")

    def __init__(self) -> None:
        self.total_ns = 0
        self.used = False
        self._start = 0

    def __enter__(self) -> None:
        self.used = True
        self._start = perf_counter_ns()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.total_ns += perf_counter_ns() - self._start


class Phases:
    """``with phases("tokenize"): ...`` adds up seconds per name; `take` hands them over.

    Host time: work that a CUDA device does later counts where the host waits for it. Different
    phases may nest (both then count the inner time); one phase may not nest in itself.
    """

    def __init__(self) -> None:
        self._spans: dict[str, _Span] = {}

    def __call__(self, name: str) -> _Span:
        span = self._spans.get(name)
        if span is None:
            span = self._spans[name] = _Span()
        return span

    def take(self) -> dict[str, float]:
        """Seconds of each phase entered since the last `take`, in order of first use; resets."""
        taken = {}
        for name, span in self._spans.items():
            if span.used:
                taken[name] = span.total_ns / 1e9
                span.total_ns, span.used = 0, False
        return taken


class NullPhases:
    """The same shape, recording nothing."""

    def __call__(self, name: str) -> NullPhases:
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def take(self) -> dict[str, float]:
        """Nothing."""
        return {}
