"""Versions of libraries and environment variables that can change a result."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Mapping
from importlib import metadata

LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "torchao",
    "bitsandbytes",
    "compressed-tensors",
    "gptqmodel",
    "optimum",
    "optimum-quanto",
    "hqq",
    "kernels",
    "accelerate",
    "datasets",
    "evaluate",
    "safetensors",
    "gguf",
    "scikit-learn",
    "pillow",
    "numpy",
    "scipy",
    "rouge-score",
    "sacrebleu",
    "triton",
    "nvidia-ml-py",
    "precision-explorer",
)
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_*",
    "DNNL_*",
    "OMP_*",
    "KMP_*",
    "GOMP_CPU_AFFINITY",
    "MKL_*",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_*",
    "TORCH_ALLOW_TF32_*",
    "TORCHINDUCTOR_*",
    "BNB_*",
    "FBGEMM_*",
    "MALLOC_*",
)
"""Names, ``*`` for any end, of variables that change numbers, speed or memory."""

_LONGEST = 64
WITHHELD = "(set, value not kept)"


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """{distribution: version} of those installed, read from their metadata: nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def relevant_variables(
    variables: Mapping[str, str] | None = None, without: Iterable[str] = ()
) -> dict[str, str]:
    """Variables of `VARIABLES` that are set. A long value, or one with a path in it, is not kept:
    records are passed on, and paths name people and machines."""
    variables = os.environ if variables is None else variables
    left = set(variables) - set(without)
    found = sorted(n for n in left if any(fnmatch.fnmatchcase(n, p) for p in VARIABLES))
    return {name: _kept(variables[name]) for name in found}


def _kept(value: str) -> str:
    plain = len(value) <= _LONGEST and value.isprintable() and not set(value) & set("/\\~")
    return value if plain else WITHHELD
