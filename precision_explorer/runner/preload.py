"""What the fork server imports once, so that a worker starts in milliseconds.

Nothing here may touch CUDA: a context made before the fork is broken in every child. Importing
torch, transformers and torchao does not (each worker reports whether its server had); bitsandbytes
asks for the device, so workers import it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The server has the user's terminal for its output: libraries' remarks on optional parts that
    can't be loaded here would land between the lines of progress."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


with _silence():
    # transformers loads its parts when they are first used: these are what every worker uses. Of
    # scikit-learn most kinds' metrics are: imported by each worker after its first scores, it would
    # count as memory of the model.
    for _name in (
        "precision_explorer.runner.session",
        "sklearn.metrics",
        "transformers.generation.utils",
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.tokenization_utils_tokenizers",
    ):
        importlib.import_module(_name)
