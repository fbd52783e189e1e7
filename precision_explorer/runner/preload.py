"""What the fork server imports once, so that a worker starts in milliseconds.

Nothing here may touch CUDA: a context made before the fork is broken in every child. Imports of
torch and transformers do not; torchao and bitsandbytes ask for the device, so workers import them.
"""

import torch
import transformers
import transformers.modeling_utils
import transformers.models.auto.modeling_auto
import transformers.models.auto.tokenization_auto
import transformers.tokenization_utils_tokenizers

import precision_explorer.formats.apply
import precision_explorer.runner.worker  # noqa: F401

# Read by workers and tests: whether the server itself, before any fork, had touched CUDA.
CUDA_TOUCHED = torch.cuda.is_initialized()
VERSION = transformers.__version__
