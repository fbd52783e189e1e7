"""What the fork server imports once, so that a worker starts in milliseconds.

Nothing here may touch CUDA: a driver that was asked before the fork is broken in every child. Where
there is a GPU, workers therefore import for themselves what asks for it: bitsandbytes, and torchao
(seen in 0.18), which asks for the device's compute capability when it is imported, as
`transformers.modeling_utils` does if torchao is installed. Each worker says whether its server had
touched CUDA; then it is started without one (`manager.WorkerHandle`).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

from precision_explorer.hardware.nvml import gpu_present
from precision_explorer.runner.guard import keep_out_secrets_and_kernels


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


# Ask no device when imported.
PLAIN = ("precision_explorer.runner.session", "sklearn.metrics")
WHOLE = (
    *PLAIN,
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
)


# Before transformers is imported, which looks then.
keep_out_secrets_and_kernels()

with _silence():
    # transformers loads its parts when they are first used: these are what every worker uses. Of
    # scikit-learn most kinds' metrics are: imported by each worker after its first scores, it would
    # count as memory of the model.
    _names = PLAIN if gpu_present() else WHOLE
    for _name in _names:
        importlib.import_module(_name)
    if _names is WHOLE:
        # The table of all architectures that the first load makes and keeps: 0.1 s that are not the
        # model's. Where that is done otherwise, each worker makes it.
        with contextlib.suppress(Exception):
            table = importlib.import_module("transformers.conversion_mapping")
            table.get_checkpoint_conversion_mapping("")
