"""Versions of libraries and environment variables that can change a result."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from importlib import metadata

from precision_explorer.errors import UsageError

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

FLOORS = {
    "torch": ("2.10", "CVE-2026-24747 and CVE-2025-32434, code from weight files"),
    "transformers": ("5.3", "CVE-2026-4372, code from a config.json"),
    "datasets": ("4", "older ones run the Python of data sets"),
}
"""{distribution: (least version, what an older one is open to)}, as pyproject.toml asks for them
(docs/threat-model.md)."""

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


def check_floors(names: Iterable[str] = FLOORS) -> None:
    """UsageError where an installed one of `names` is below its floor, which pip allows when it is
    told to (``--no-deps``, a lock file): models and data would then run code."""
    for name, found in library_versions(names).items():
        least, why = FLOORS[name]
        if _numbers(found) < _numbers(least):
            raise UsageError(
                f"{name} {found} is below the security floor {least} ({why}); install a newer one: "
                f"pip install '{name}>={least}'"
            )


def _numbers(version: str) -> tuple[int, ...]:
    """A version's release numbers (PEP 440), without its epoch or what follows them; a development
    build of 2.10 counts as 2.10. Empty, and so below any other, where it begins with none."""
    found = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found.group(1).split("."))) if found else ()


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
