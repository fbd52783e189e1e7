"""The runtimes known, as frozen data: eager, the ways in which torch.compile is asked, servers."""

from __future__ import annotations

from dataclasses import dataclass

# Padded lengths are powers of two from here: a shorter input costs little, and each further length
# is one more compilation.
SHORTEST = 16


@dataclass(frozen=True)
class Runtime:
    """How a model's forward is run. `cpu_mode`, `cuda_mode`: torch.compile's mode, None for eager.

    `dynamic`: one graph serves inputs of any length. Otherwise each shape is compiled for itself,
    inputs are padded to few shapes and a generating model's cache has a fixed size.
    """

    id: str
    dynamic: bool
    cpu_mode: str | None
    cuda_mode: str | None

    @property
    def compiles(self) -> bool:
        """Whether torch.compile is used."""
        return self.cpu_mode is not None

    def mode(self, kind: str) -> str | None:
        """torch.compile's mode on a device `kind` (``cpu``, ``cuda``)."""
        return self.cpu_mode if kind == "cpu" else self.cuda_mode

    def cuda_graphs(self, kind: str) -> bool:
        """Whether each shape's kernels are recorded once and replayed as a CUDA graph."""
        return kind == "cuda" and self.mode(kind) == "reduce-overhead"


RUNTIMES: dict[str, Runtime] = {
    r.id: r
    for r in [
        Runtime("eager", dynamic=True, cpu_mode=None, cuda_mode=None),
        # Not max-autotune: its templates are timed at the shapes seen first and then serve all
        # lengths, and the timing takes minutes a graph.
        Runtime("compile", dynamic=True, cpu_mode="default", cuda_mode="default"),
        # CUDA graphs replay one shape each, so they want fixed ones. A CPU has none.
        Runtime("compile-fixed", dynamic=False, cpu_mode="default", cuda_mode="reduce-overhead"),
        # A server that the user has: it runs its model as it likes.
        Runtime("endpoint", dynamic=True, cpu_mode=None, cuda_mode=None),
    ]
}


def padded_length(length: int, longest: int) -> int:
    """The declared length that an input of `length` is padded to: the next power of two from
    `SHORTEST`, at most `longest`; `length` itself where that is more."""
    if length >= longest:
        return length
    return min(max(next_power(length), SHORTEST), longest)


def next_power(value: int) -> int:
    """The smallest power of two that is no less than `value` (at least 1)."""
    return 1 << max(value - 1, 0).bit_length()
