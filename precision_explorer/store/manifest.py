"""A run's ``manifest.json``: which files it is made of, and whether they are what they were."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from precision_explorer.bounded import (
    MAX_JSON_BYTES,
    BadDocument,
    json_document,
    open_plain,
    read_bounded,
)
from precision_explorer.errors import StoreError
from precision_explorer.records import NewerSchema, canonical_hash

MANIFEST = "manifest.json"
MANIFEST_VERSION: Literal[2] = 2
"""1: ``version``, ``root`` and ``files`` alone."""
TABLES = ("tradeoffs.csv", "tradeoffs.md", "report.html")
EVIDENCE_FOLDERS = ("parts", "cells", "samples", "scores")
EVIDENCE_FILES = ("sweep.json", "roof.json", "estimate.json")
_LOGS = "logs"
DAMAGED = ".damaged"
"""What the name of a file is given that was not as it was written, and is read no more; a number
follows where there is one already. Of no figure, as logs."""
# Of the folder, not of the run: who has it open (`RunFolder.open`).
_LOCK = ".lock"
_SUFFIXES = (".json", ".arrow", ".parquet")
_ROOT_DIGITS = 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20
_NO_FILE = "no file"


class Tables(BaseModel):
    """What wrote the run's own tables, and the SHA-256 of each: by them a table that another
    release, or another machine's arithmetic, made otherwise is told from a changed one."""

    model_config = ConfigDict(extra="forbid")

    tool: str
    """Version of precision-explorer."""
    libraries: dict[str, str]
    """Versions of those that the figures are derived with."""
    files: dict[str, str]


class Manifest(BaseModel):
    """`files`: each file of the evidence (plan, roof, parts, records, samples, scores) to its
    SHA-256; `root`: the first 16 hex digits of the hash of these, which every table shows.
    `logs` stand apart: no figure rests on them, and a run may be passed on without them. `digest`:
    the hash of all that stands before it."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1, 2] = MANIFEST_VERSION
    root: str
    files: dict[str, str]
    logs: dict[str, str] = Field(default_factory=dict)
    tables: Tables | None = None
    digest: str = ""

    @property
    def full_root(self) -> str:
        """All 64 hex digits of the hash whose first 16 the tables show."""
        return canonical_hash(self.files, 64)

    def document(self) -> dict[str, Any]:
        """As it is stored: of version 1 the three keys that it had."""
        whole = self.model_dump(mode="json")
        return whole if self.version > 1 else {k: whole[k] for k in ("version", "root", "files")}

    def content(self) -> bytes:
        """The bytes of the file, the only ones that hold this document."""
        text = json.dumps(self.document(), indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"


@dataclass(frozen=True)
class Fault:
    """Something in a run that does not hold. `file`: its path in the run's folder; `found`: what
    is there, and what was expected; `advice`: what to do."""

    file: str
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file}: {self.found}; {self.advice}"


def made_manifest(
    files: dict[str, str], logs: dict[str, str], tables: Tables | None = None
) -> Manifest:
    """The manifest of files and logs, each with its SHA-256."""
    root = canonical_hash(files, _ROOT_DIGITS)
    made = Manifest(root=root, files=files, logs=logs, tables=tables)
    return made.model_copy(update={"digest": _digest(made)})


def _digest(manifest: Manifest) -> str:
    return canonical_hash(manifest.model_dump(mode="json", exclude={"digest"}), 64)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a run's folder, unchecked; None where there is none, or what stands there is
    none. NewerSchema for a newer release's; OSError where it can't be read now."""
    try:
        return parse_manifest(read_bounded(folder / MANIFEST, MAX_JSON_BYTES))
    except (FileNotFoundError, NotADirectoryError, BadDocument):
        return None
    except NewerSchema:
        raise
    except StoreError:
        return None


def parse_manifest(content: bytes) -> Manifest:
    """The manifest in a file's `content`; StoreError where it is none, NewerSchema where only a
    newer release can read it."""
    try:
        document = json_document(content)
        version = document["version"]
        if type(version) is int and version > MANIFEST_VERSION:
            raise NewerSchema(
                f"{MANIFEST} was written by a newer release; upgrade precision-explorer"
            )
        return Manifest.model_validate(document, strict=True)
    except NewerSchema:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{MANIFEST} is no manifest; put it back as it was") from error


def manifest_fault(content: bytes) -> Fault | None:
    """The first thing that does not hold in the bytes of a manifest by themselves: it must be the
    one way to write its document, and each of its hashes that of what it stands for. None where all
    holds."""
    put_back = "put it back as it was"
    try:
        manifest = parse_manifest(content)
    except NewerSchema:
        found = f"says a version above {MANIFEST_VERSION}, which this release can't read"
        return Fault(MANIFEST, found, "verify with a newer precision-explorer, or put it back")
    except StoreError:
        return Fault(MANIFEST, "is no manifest that this program wrote", put_back)
    for name, digest in [*manifest.files.items(), *manifest.logs.items()]:
        if not (_is_inside(name) and _SHA256.fullmatch(digest)):
            return Fault(MANIFEST, f"lists {name!r}, which no run holds", put_back)
    root = canonical_hash(manifest.files, _ROOT_DIGITS)
    if manifest.root != root:
        found = f"says that the root is {manifest.root}, but that of the files listed is {root}"
        return Fault(MANIFEST, found, put_back)
    if manifest.version > 1 and manifest.digest != (digest := _digest(manifest)):
        found = f"says that its digest is {manifest.digest}, but that of its content is {digest}"
        return Fault(MANIFEST, found, put_back)
    if manifest.content() != content:
        return Fault(MANIFEST, "is not written as this program writes it", put_back)
    return None


def _is_inside(name: str) -> bool:
    """Whether `name` is a path that a manifest can list: in the run's folder and nowhere else."""
    parts = name.split("/")
    # Lone surrogates, which JSON can hold and no name of a file here.
    if not name.isprintable() or any(
        part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts
    ):
        return False
    return name in EVIDENCE_FILES or (len(parts) > 1 and parts[0] in (*EVIDENCE_FOLDERS, _LOGS))


def file_faults(manifest: Manifest, found: Mapping[str, str]) -> list[Fault]:
    """What does not hold of a run's files, given the SHA-256 of each that is there (`hashes`):
    missing, changed or cut off, and unlisted ones. Tables are left to whoever makes them again."""
    faults = []
    for name, expected in manifest.files.items():
        if name not in found:
            advice = "put it back"
            if name not in EVIDENCE_FILES:
                advice += ", or remove its cell's record and run the sweep again"
            faults.append(Fault(name, f"is missing; its SHA-256 was {expected}", advice))
        elif found[name] != expected:
            faults.append(_changed(name, found[name], expected))
    for name, expected in manifest.logs.items():
        if name in found and found[name] != expected:
            faults.append(_changed(name, found[name], expected))
    for name in (*TABLES, MANIFEST):
        if found.get(name) == _NO_FILE:
            faults.append(Fault(name, "is no plain file", "put the file itself there"))
    known = {*manifest.files, *manifest.logs, *TABLES, MANIFEST}
    for name in sorted(set(found) - known):
        # Version 1 knew of no logs.
        if manifest.version > 1 or not name.startswith(f"{_LOGS}/"):
            faults.append(Fault(name, "is no file that the manifest lists", _advice(name)))
    return faults


def _advice(name: str) -> str:
    """What to do about a file that no manifest lists."""
    if name.split("/")[0] in (*EVIDENCE_FOLDERS, *EVIDENCE_FILES, _LOGS):
        return "if a sweep was cut off, run it again; else move it out of the run's folder"
    return "move it out of the run's folder"


def _changed(name: str, found: str, expected: str) -> Fault:
    if found == _NO_FILE:
        return Fault(name, f"is no plain file; its SHA-256 was {expected}", "put the file back")
    text = f"has the SHA-256 {found}, the manifest expects {expected}"
    return Fault(name, text, "put the file back as it was when the run was made")


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a run's folder, its lock apart, to its SHA-256. What is no plain file (a
    link, whatever it leads to; a pipe) stands with the text ``no file``."""
    found = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        plain = path.is_file() and not path.is_symlink()
        found[name] = file_hash(path) if plain else _NO_FILE
    return found


def _files(folder: Path) -> Iterable[Path]:
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        known = [n for n in (*names, *links) if (Path(parent), n) != (folder, _LOCK)]
        yield from (Path(parent) / name for name in sorted(known))


def evidence_hashes(folder: Path) -> dict[str, str]:
    """The files of a run's folder that its manifest's root stands for, each with its SHA-256."""
    files = {}
    for part in EVIDENCE_FOLDERS:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and path.suffix in _SUFFIXES:
                files[path.relative_to(folder).as_posix()] = file_hash(path)
    for name in EVIDENCE_FILES:
        if name == "sweep.json" or (folder / name).is_file():
            files[name] = file_hash(folder / name)
    return files


def log_hashes(folder: Path) -> dict[str, str]:
    """The logs of a run's folder and the damaged files that were set aside in it, each with its
    SHA-256."""
    paths = sorted((folder / _LOGS).rglob("*"))
    for part in EVIDENCE_FOLDERS:
        paths += sorted((folder / part).rglob(f"*{DAMAGED}*"))
    return {p.relative_to(folder).as_posix(): file_hash(p) for p in paths if p.is_file()}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits; NoPlainFile for what could have no end."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
