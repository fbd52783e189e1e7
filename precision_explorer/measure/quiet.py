"""Keeping the interpreter's own housekeeping out of a measured window."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_gc() -> Iterator[None]:
    """Collect garbage, then keep the cyclic collector off inside, as CPython's `timeit` does.

    A full collection walks the hundreds of thousands of objects that torch and transformers make
    on import: tens of milliseconds that would fall on whichever request is being served, and say
    nothing about the format. Reference counting goes on, so tensors are freed as ever.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def set_aside_imports() -> None:
    """Have later collections of garbage pass over all objects there are now (`gc.freeze`).

    Called where the libraries are imported and no model is loaded yet: a full collection then walks
    what the measured work made, not the million objects of the imports, which are never garbage.
    """
    gc.freeze()
