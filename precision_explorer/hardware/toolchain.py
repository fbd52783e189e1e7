"""What torch.compile needs beside torch: a C++ compiler on a CPU, Triton on a GPU. No torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

_LONGEST_S = 10.0
_NO_HEADERS = (
    "torch.compile needs Python's headers {} and found no Python.h; install them "
    "(apt-get install python3-dev)"
)


def compiler(kind: str, versions: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """({tool: version}, None) of what compiles for a device of `kind`, or ({}, why there is none
    and what to do). `versions` are the installed distributions'."""
    if kind == "cpu":
        return _cpp_compiler()
    if "triton" not in versions:
        return {}, "torch.compile needs Triton on a GPU; install it by: pip install triton"
    # Triton compiles its launchers in C: CC, else one of these (triton/runtime/build.py).
    names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    if not any(map(shutil.which, names)):
        return {}, (
            f"torch.compile needs a C compiler for Triton and found no {' or '.join(names)}; "
            "install one (apt-get install gcc), or name it by CC"
        )
    if not _has_headers():
        return {}, _NO_HEADERS.format("for Triton's launchers")
    return {"triton": versions["triton"]}, None


def _cpp_compiler() -> tuple[dict[str, str], str | None]:
    """Inductor's choice: CXX, else g++ (torch/_inductor/config.py, `cpp.cxx`)."""
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        return {}, (
            f"torch.compile needs a C++ compiler on a CPU and found no {Path(name).name}; install "
            "one (apt-get install g++), or name it by CXX"
        )
    # Inductor's kernels are Python modules.
    if not _has_headers():
        return {}, _NO_HEADERS.format("on a CPU")
    return {Path(name).name: _version(name)}, None


def _has_headers() -> bool:
    """Whether Python.h is where the compilers look: beside Python (Debian's own scheme names
    another folder, which Triton and Inductor correct), or in the compiler's variables."""
    more = [os.environ.get(name, "").split(os.pathsep) for name in ("CPATH", "C_INCLUDE_PATH")]
    folders = [sysconfig.get_paths()["include"], *more[0], *more[1]]
    if sysconfig.get_default_scheme() == "posix_local":
        folders.append(sysconfig.get_paths("posix_prefix")["include"])
    return any((Path(folder) / "Python.h").is_file() for folder in folders if folder)


def _version(name: str) -> str:
    """The compiler's version as it says itself; ``unknown`` where it says none."""
    try:
        said = subprocess.run(
            [name, "--version"], capture_output=True, text=True, timeout=_LONGEST_S, check=False
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    # The last of the first line: "g++ (Debian 12.2.0-14) 12.2.0".
    found = re.findall(r"\d+(?:\.\d+)+", said.partition("\n")[0])
    return found[-1] if found else "unknown"
