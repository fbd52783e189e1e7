"""A run as one file for somebody else, and that file verified without unpacking it by hand."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from precision_explorer.audit.verify import Verified, verify
from precision_explorer.bounded import MAX_JSON_BYTES, read_bounded
from precision_explorer.errors import StoreError
from precision_explorer.store import Fault
from precision_explorer.store.bundle import (
    MAX_BYTES,
    bundle_files,
    safe_run_name,
    unpack,
    write_archive,
)
from precision_explorer.store.manifest import MANIFEST, TABLES, file_hash, parse_manifest


def pack(run: Path, path: Path) -> Verified:
    """Write the bundle of the run at `run` to `path`, where the run holds; what `verify` found of
    it either way, of which nothing is written where there is a fault. OSError where `path` can't be
    written; StoreError where there are no tables yet."""
    found = verify(run)
    if not found.holds:
        return found
    missing = [name for name in TABLES if not (run / name).is_file()]
    if missing:
        raise StoreError(f"{run} has no {missing[0]}; make it by precision-explorer report {run}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a folder of its own, where nobody's file is in the way.
    place = Path(tempfile.mkdtemp(prefix=".precision-explorer-", dir=path.parent))
    temporary = place / path.name
    try:
        _write(run, temporary, run.resolve().name)
        temporary.replace(path)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _write(run: Path, path: Path, name: str) -> None:
    manifest = parse_manifest(read_bounded(run / MANIFEST, MAX_JSON_BYTES))
    files = [(file, run / file) for file in bundle_files(manifest)]
    with path.open("wb") as out:
        write_archive(out, safe_run_name(name), manifest, files)


def verify_bundle(path: Path, root: str | None = None, max_bytes: int = MAX_BYTES) -> Verified:
    """`verify` of the run in the bundle at `path`, in a folder that is removed again; then the
    bundle itself: its every byte must be as `pack` writes this run. StoreError for what is no
    bundle, or not safe to unpack (`store.bundle.unpack`)."""
    with tempfile.TemporaryDirectory(prefix="precision-explorer-") as place:
        name = unpack(path, Path(place), max_bytes)
        run = Path(place) / name
        found = verify(run, root, f"{name} in {path.name}")
        if not found.holds:
            return found
        again = Path(place) / "again.zip"
        missing = [table for table in TABLES if not (run / table).is_file()]
        if missing:
            fault = Fault(missing[0], "is missing", "get the bundle again")
            return replace(found, faults=(fault,))
        _write(run, again, name)
        if file_hash(again) != file_hash(path):
            text = "holds the run unchanged, but not all of its own bytes are as export writes them"
            fault = Fault(path.name, text, "get it again, or export the run anew")
            return replace(found, faults=(fault,))
    return found
